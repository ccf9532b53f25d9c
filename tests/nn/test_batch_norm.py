from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pcea.nn import batch_norm
from pcea.nn.norm import add_normed, norm_tokens

B, N, C = 3, 7, 5


@pytest.fixture
def norm() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(C, momentum=0.3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def straightforward(norm: nn.BatchNorm1d, tokens: Tensor, residual: Tensor | None, keep: Tensor | None) -> Tensor:
    normed = norm(tokens.flatten(0, 1)).view(tokens.shape)
    normed = normed if keep is None else normed * keep[:, None, None]
    return normed if residual is None else residual + normed


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("with_keep", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_training_equals_torch(
    norm: nn.BatchNorm1d, with_residual: bool, with_keep: bool, momentum: float | None
) -> None:
    norm.momentum = momentum
    exact = copy.deepcopy(norm).double()
    # Far from 0: the variance must not be a difference of large squares.
    tokens = (torch.randn(B, N, C) * 2 + 300).requires_grad_()
    residual = torch.randn(B, N, C, requires_grad=True) if with_residual else None
    keep = torch.tensor([0.0, 1.5, 1.0]) if with_keep else None
    inputs = [t for t in (tokens, residual, norm.weight, norm.bias) if t is not None]
    grad = torch.randn(B, N, C)
    for _ in range(2):  # running statistics twice
        assert batch_norm.has_compiled_norm(norm, tokens)
        out = batch_norm.compiled_norm(norm, tokens, residual=residual, keep=keep)
        doubles = [None if t is None else t.detach().double().requires_grad_() for t in (tokens, residual)]
        expected = straightforward(exact, doubles[0], doubles[1], None if keep is None else keep.double())
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-4)
        found = torch.autograd.grad(out, inputs, grad)
        wanted = torch.autograd.grad(
            expected, [t for t in (*doubles, exact.weight, exact.bias) if t is not None], grad.double()
        )
        for ours, theirs in zip(found, wanted):
            torch.testing.assert_close(ours.double(), theirs, atol=1e-3, rtol=1e-3)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean.double(), exact.running_mean)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-4, atol=1e-4)
    assert int(norm.num_batches_tracked) == 2


@torch.no_grad()
def test_evaluation_equals_torch(norm: nn.BatchNorm1d) -> None:
    norm(torch.randn(50, C) * 3 + 1)
    norm.eval()
    tokens, residual, keep = torch.randn(B, N, C), torch.randn(B, N, C), torch.tensor([0.5, 0.0, 1.0])
    assert batch_norm.has_compiled_norm(norm, tokens)
    torch.testing.assert_close(norm_tokens(norm, tokens), straightforward(norm, tokens, None, None))
    torch.testing.assert_close(
        add_normed(residual, norm, tokens, keep=keep), straightforward(norm, tokens, residual, keep)
    )


def test_second_derivative(norm: nn.BatchNorm1d) -> None:
    tokens = torch.randn(B, N, C, requires_grad=True)
    weights = torch.randn(B, N, C)

    def penalty(values: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad((values * weights).sum().square(), tokens, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), tokens)[0]

    ours = penalty(batch_norm.compiled_norm(norm, tokens))
    torch.testing.assert_close(ours, penalty(straightforward(norm, tokens, None, None)), atol=1e-3, rtol=1e-3)


def test_threads_change_only_rounding(norm: nn.BatchNorm1d) -> None:
    tokens = torch.randn(B, 200, C, requires_grad=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = batch_norm.compiled_norm(norm, tokens)
        results.append((out, *torch.autograd.grad(out.square().sum(), (tokens, norm.weight))))
    for other in results[1:]:
        for ours, first in zip(other, results[0]):
            torch.testing.assert_close(ours, first, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("_without_numba")
def test_where_it_is_not_used(norm: nn.BatchNorm1d) -> None:
    assert not batch_norm.has_compiled_norm(norm, torch.randn(B, N, C))


@pytest.mark.parametrize("frozen", ["norm", "tokens"])
def test_second_derivative_of_frozen_parts(norm: nn.BatchNorm1d, frozen: str) -> None:
    tokens = torch.randn(B, N, C, requires_grad=frozen == "norm")
    norm.requires_grad_(frozen == "tokens")
    wanted = tokens if frozen == "norm" else norm.weight
    out = batch_norm.compiled_norm(norm, tokens)
    (slope,) = torch.autograd.grad(out.pow(3).sum(), wanted, create_graph=True)
    expected = straightforward(norm, tokens, None, None)
    (theirs,) = torch.autograd.grad(expected.pow(3).sum(), wanted)
    torch.testing.assert_close(slope, theirs, atol=1e-3, rtol=1e-3)


def test_many_gradients_at_once(norm: nn.BatchNorm1d) -> None:
    tokens, grads = torch.randn(B, N, C, requires_grad=True), torch.randn(4, B, N, C)
    out = batch_norm.compiled_norm(norm, tokens)
    (batched,) = torch.autograd.grad(out, tokens, grads, is_grads_batched=True, retain_graph=True)
    for one, grad in zip(batched, grads):
        torch.testing.assert_close(one, torch.autograd.grad(out, tokens, grad, retain_graph=True)[0])


def test_statistics_that_were_switched_off_stay(norm: nn.BatchNorm1d) -> None:
    norm.track_running_stats = False
    norm_tokens(norm, torch.randn(B, N, C))
    assert int(norm.num_batches_tracked) == 0


def test_wrong_sizes() -> None:
    norm = nn.BatchNorm1d(8)
    with pytest.raises((RuntimeError, ValueError)):
        norm_tokens(norm, torch.randn(B, N, 16))
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
        norm_tokens(norm.eval(), torch.randn(B, N, 16))
    tokens = torch.randn(2, 3, C)
    with pytest.raises(RuntimeError, match="must match"):
        add_normed(torch.randn(3, 2, C), nn.BatchNorm1d(C), tokens)
    with pytest.raises(ValueError, match=r"keep must be \(2,\), got \(3,\)"):
        batch_norm.compiled_norm(nn.BatchNorm1d(C), tokens, keep=torch.ones(3))


@pytest.mark.parametrize("what", ["half", "hook", "other type", "one row", "gradients in evaluation", "no bias"])
def test_modules_that_are_not_plain_are_called(norm: nn.BatchNorm1d, what: str) -> None:
    tokens = torch.randn(B, N, C)
    module: nn.Module = norm
    if what == "half":
        tokens = tokens.half()
    elif what == "hook":
        norm.register_forward_hook(lambda *_: None)
    elif what == "other type":
        module = nn.LayerNorm(C)
    elif what == "no bias":
        norm.bias = None
    elif what == "one row":
        tokens = tokens[:1, :1]
    else:
        norm.eval()
    assert not batch_norm.has_compiled_norm(module, tokens)


def test_one_row_is_refused_as_by_torch(norm: nn.BatchNorm1d) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_tokens(norm, torch.randn(1, 1, C))
