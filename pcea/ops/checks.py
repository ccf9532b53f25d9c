"""Shape checks at the public border of the ops."""

from __future__ import annotations

import torch
from torch import Tensor

from pcea.nn.shortcuts import can_shortcut


def check_points(**points: Tensor) -> None:
    """Require each named tensor to be (B, N, 3), floating, with one B.

    Raises:
        ValueError: With the name of the tensor that is not.
    """
    first = next(iter(points.values()))
    for name, value in points.items():
        if value.ndim != 3 or value.shape[-1] != 3 or not value.is_floating_point():
            raise ValueError(f"{name} must be floating (B, N, 3), got {value.dtype} {tuple(value.shape)}.")
    if any(value.shape[0] != first.shape[0] for value in points.values()):
        sizes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in points.items())
        raise ValueError(f"{' and '.join(points)} must have the same batch size, got {sizes}.")


def check_mask(mask: Tensor | None, points: Tensor) -> None:
    """Require a mask of points (B, N, 3) to be bool (B, N) with a real point in every cloud.

    Raises:
        ValueError: If it is not.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != points.shape[:2]:
        raise ValueError(f"mask must be bool {tuple(points.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}.")
    # In a graph the values are unknown.
    if can_shortcut() and not bool(mask.any(1).all()):
        raise ValueError(f"every cloud needs a real point, but cloud {int(mask.any(1).int().argmin())} is all padding.")


def check_index(num_points: int, **indices: Tensor) -> None:
    """Require int64 in 0..num_points - 1, where that can be seen: others name points of another cloud, or none.

    Raises:
        ValueError: With the name of the tensor that is not.
    """
    for name, index in indices.items():
        if index.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, got {index.dtype}.")
        if not index.numel() or not can_shortcut() or index.device.type != "cpu":
            continue
        low, high = (int(bound) for bound in index.aminmax())
        if low < 0 or high >= num_points:
            raise ValueError(f"{name} must be in 0..{num_points - 1}, got {low}..{high}.")
