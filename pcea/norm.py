"""Pointwise modules on the real tokens of a padded batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


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
