"""Linear maps and norms of the real tokens in a padded batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pcea.nn.batch_norm import compiled_norm, has_compiled_norm
from pcea.nn.linear import Linear, linear
from pcea.nn.shortcuts import can_shortcut, has_running_statistics, is_plain


def zero_padding(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens (..., C) with zeros where a mask (...) is False.

    What stood there, even NaN, then influences neither results nor gradients: those of a linear map's weight are
    products with all tokens, and 0 * NaN is NaN.
    """
    return tokens if mask is None else tokens.masked_fill(~mask.unsqueeze(-1), 0)


def apply_to_tokens(module: Callable[[Tensor], Tensor], tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Apply a module for (T, C) rows, such as `nn.BatchNorm1d`, to tokens with any leading dimensions.

    Padded tokens stay out of the rows, so that they do not enter the statistics of a normalization.

    Args:
        module: Maps rows (T, C) to rows (T, D).
        tokens: Tokens, (..., C).
        mask: True for real tokens, (...); None when all are real.

    Returns:
        Results, (..., D); zero at padded tokens.
    """
    if mask is None:
        rows = module(tokens.flatten(0, -2))
        return rows.view(*tokens.shape[:-1], rows.shape[-1])
    rows = module(tokens[mask])
    out = rows.new_zeros(*tokens.shape[:-1], rows.shape[-1])
    out[mask] = rows
    return out


def norm_tokens(norm: nn.Module, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Apply a norm for rows (T, C) to tokens (..., C); a mask (...) keeps padding out of batch statistics.

    Results at padded tokens are meaningless.
    """
    if has_running_statistics(norm) or isinstance(norm, nn.LayerNorm | nn.GroupNorm | nn.Identity):
        mask = None  # every row is normalized by itself
    if mask is None and has_compiled_norm(norm, tokens):
        return compiled_norm(norm, tokens)
    return apply_to_tokens(norm, tokens, mask=mask)


def add_normed(
    residual: Tensor, norm: nn.Module, tokens: Tensor, *, mask: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """Residual + keep * norm(tokens), for residual and tokens (B, ..., C).

    A mask (B, ...) keeps padding out of batch statistics; results at it are meaningless. `keep` (B,) is one factor per
    item of the batch, None for 1.
    """
    is_whole = mask is None or has_running_statistics(norm)
    if is_whole and has_compiled_norm(norm, tokens, residual):
        return compiled_norm(norm, tokens, residual=residual, keep=keep)
    normed = norm_tokens(norm, tokens, mask=mask)
    return residual + (normed if keep is None else normed * keep.view(-1, *[1] * (normed.ndim - 1)))


def linear_norm(layer: nn.Linear, norm: nn.BatchNorm1d, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Linear map and norm of tokens (..., C), as one product where `can_fold` says so; (..., D).

    A mask (...) keeps padded tokens out of batch statistics; results at them are meaningless.
    """
    if can_shortcut() and can_fold(layer, norm):
        return linear(tokens, *fold_batch_norm(layer, norm))
    return norm_tokens(norm, layer(tokens), mask=mask)


def can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether a plain linear layer and a plain batch norm in evaluation, with running statistics, are one linear map.

    A module with hooks, a parametrization or another type is not plain; see `is_plain`.
    """
    return is_plain(layer, nn.Linear, Linear) and has_affine_statistics(norm)


def has_affine_statistics(norm: nn.Module) -> bool:
    """Whether `norm` is a plain batch norm in evaluation with running statistics, weight and bias."""
    is_whole = has_running_statistics(norm) and is_plain(norm, nn.BatchNorm1d)
    return is_whole and norm.weight is not None and norm.bias is not None


def fold_batch_norm(layer: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight (D, C) and bias (D,) of the linear map that equals `layer` followed by `norm` in evaluation.

    Both have the dtype of the layer; a norm may be more exact.
    """
    scale, shift = batch_norm_affine(norm)
    bias = shift if layer.bias is None else shift + scale * layer.bias
    return (layer.weight * scale[:, None]).to(layer.weight.dtype), bias.to(layer.weight.dtype)


def batch_norm_affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, (C,) each, that `norm` applies in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean
