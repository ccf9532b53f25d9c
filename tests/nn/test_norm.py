import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pcea.nn.norm import apply_to_tokens, batch_norm_affine, fold_batch_norm, linear_norm


def trained_norm(channels: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 3)
    return norm.eval()


def test_without_mask_every_token_is_a_row() -> None:
    linear, tokens = nn.Linear(5, 3), torch.randn(2, 7, 4, 5)
    torch.testing.assert_close(apply_to_tokens(linear, tokens), linear(tokens))


def test_mask_keeps_padding_out_of_the_statistics() -> None:
    norm, plain = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    mask = torch.tensor([[True, True, False], [False, True, False]])
    tokens = torch.randn(2, 3, 5).masked_fill(~mask.unsqueeze(-1), 1e6)
    out = apply_to_tokens(norm, tokens, mask=mask)
    torch.testing.assert_close(out[mask], plain(tokens[mask]))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert not out[~mask].any()


def test_width_may_change_under_a_mask() -> None:
    linear, tokens, mask = nn.Linear(5, 3), torch.randn(2, 7, 5), torch.rand(2, 7) > 0.5
    out = apply_to_tokens(linear, tokens, mask=mask)
    torch.testing.assert_close(out, linear(tokens) * mask.unsqueeze(-1))


def test_gradient_reaches_real_tokens_only() -> None:
    tokens, mask = torch.randn(2, 7, 5, requires_grad=True), torch.rand(2, 7) > 0.5
    apply_to_tokens(nn.Linear(5, 3), tokens, mask=mask).sum().backward()
    assert torch.equal(tokens.grad.any(-1), mask)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_norm_in_training_and_evaluation(bias: bool) -> None:
    linear, norm, tokens = nn.Linear(5, 3, bias=bias), trained_norm(3), torch.randn(2, 7, 5)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    expected = norm(linear(tokens).flatten(0, 1)).view(2, 7, 3)
    torch.testing.assert_close(linear_norm(linear, norm, tokens, mask=mask), expected)
    expected = norm.train()(linear(tokens)[mask])
    torch.testing.assert_close(linear_norm(linear, norm, tokens, mask=mask)[mask], expected)


@pytest.mark.parametrize("bias", [False, True])
def test_fold_batch_norm(bias: bool) -> None:
    linear, norm, rows = nn.Linear(5, 3, bias=bias), trained_norm(3), torch.randn(7, 5)
    torch.testing.assert_close(F.linear(rows, *fold_batch_norm(linear, norm)), norm(linear(rows)))


def test_a_norm_may_be_more_exact_than_its_layer() -> None:
    layer, norm, tokens = nn.Linear(4, 6).bfloat16(), trained_norm(6).eval(), torch.randn(5, 4).bfloat16()
    folded = linear_norm(layer, norm, tokens)
    assert folded.dtype == torch.bfloat16
    torch.testing.assert_close(folded.float(), norm(layer(tokens).float()), rtol=0.05, atol=0.05)


def test_batch_norm_affine_by_hand() -> None:
    norm = nn.BatchNorm1d(1, eps=0)
    for tensor, value in ((norm.weight, 6), (norm.bias, 1), (norm.running_mean, 5), (norm.running_var, 4)):
        nn.init.constant_(tensor, value)
    scale, shift = batch_norm_affine(norm)  # 6 (x - 5) / 2 + 1 = 3 x - 14
    assert (scale.item(), shift.item()) == (3, -14)
