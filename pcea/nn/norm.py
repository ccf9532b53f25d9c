"""Linear maps and batch norm on the real tokens of a padded batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pcea.nn.linear import linear


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


def linear_norm(layer: nn.Linear, norm: nn.BatchNorm1d, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Linear map and batch norm of tokens (..., C), in evaluation as one product; (..., D).

    In training a mask (...) keeps padded tokens out of the statistics. What is returned for them has no meaning.
    """
    if norm.training:
        return apply_to_tokens(norm, layer(tokens), mask=mask)
    return linear(tokens, *fold_batch_norm(layer, norm))


def fold_batch_norm(layer: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight (D, C) and bias (D,) of the linear map that equals `layer` followed by `norm` in evaluation."""
    scale, shift = batch_norm_affine(norm)
    return layer.weight * scale[:, None], shift if layer.bias is None else shift + scale * layer.bias


def batch_norm_affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, (C,) each, that `norm` applies in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean
