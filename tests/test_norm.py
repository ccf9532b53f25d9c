import torch
from torch import nn

from pcea.norm import apply_to_tokens


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
