import pytest
import torch
from torch import Tensor

import pcea.nn.chunks
from pcea.nn.chunks import map_chunks, token_chunks

B, N, C = 5, 13, 3


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcea.nn.chunks, "_CPU_CHUNK", 30)


class Double:
    """A function of single tokens that keeps the shapes it saw."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tokens: Tensor, more: Tensor | None = None) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        return 2 * tokens if more is None else 2 * tokens + more


def test_blocks_of_whole_clouds() -> None:
    assert list(token_chunks(torch.empty(B, N, C))) == [
        (slice(0, 2), slice(0, 13)),
        (slice(2, 4), slice(0, 13)),
        (slice(4, 6), slice(0, 13)),
    ]


def test_blocks_of_one_cloud() -> None:
    assert list(token_chunks(torch.empty(2, 70, C))) == [
        (slice(b, b + 1), slice(n, n + 30)) for b in range(2) for n in (0, 30, 60)
    ]


@pytest.mark.parametrize(("b", "n"), [(1, 1), (1, 30), (1, 31), (2, 15), (2, 16), (7, 29), (3, 100), (40, 1)])
def test_blocks_hold_every_token_once(b: int, n: int) -> None:
    count = torch.zeros(b, n)
    for block in token_chunks(count):
        count[block] += 1
        assert 0 < count[block].numel() <= 30
    assert torch.equal(count, torch.ones(b, n))


@pytest.mark.parametrize(("b", "n"), [(B, N), (2, 70), (1, 7)])
@torch.no_grad()
def test_map_equals_one_call(b: int, n: int) -> None:
    tokens, more, double = torch.randn(b, n, C), torch.randn(b, n, 1), Double()
    assert torch.equal(map_chunks(double, tokens, more), 2 * tokens + more)
    assert max(shape[0] * shape[1] for shape in double.shapes) <= 30


@torch.no_grad()
def test_map_gives_other_channels_and_dtypes() -> None:
    tokens = torch.randn(B, N, C)
    out = map_chunks(lambda tokens: tokens.sum(-1, keepdim=True).double(), tokens)
    torch.testing.assert_close(out, tokens.sum(-1, keepdim=True).double())


@torch.no_grad()
def test_none_stays_none() -> None:
    tokens, double = torch.randn(B, N, C), Double()
    assert torch.equal(map_chunks(double, tokens, None), 2 * tokens)
    assert torch.equal(map_chunks(lambda _, tokens: double(tokens), None, tokens), 2 * tokens)
    assert len(double.shapes) == 6


@pytest.mark.parametrize("whole", [True, False])
def test_one_call_when_whole_or_with_gradients(whole: bool) -> None:
    tokens, double = torch.randn(B, N, C, requires_grad=True), Double()
    with torch.set_grad_enabled(not whole):
        out = map_chunks(double, tokens, whole=whole)
    assert double.shapes == [(B, N, C)]
    if not whole:
        (grad,) = torch.autograd.grad(out.sum(), tokens)
        assert torch.equal(grad, torch.full_like(grad, 2))


@pytest.mark.parametrize("shape", [(0, N, C), (B, 0, C)])
@torch.no_grad()
def test_no_tokens(shape: tuple[int, ...]) -> None:
    assert map_chunks(Double(), torch.empty(shape)).shape == shape
