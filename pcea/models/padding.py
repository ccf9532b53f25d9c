"""Clouds of different sizes in one batch: padded, with a mask, or packed, as in PyTorch Geometric."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pcea.nn.shortcuts import is_exporting


def as_padded(
    points: Tensor, features: Tensor | None, mask: Tensor | None, batch: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Pad packed clouds; padded ones stay as they are.

    Args:
        points: (B, N, 3), or packed (T, 3) with `batch`.
        features: (B, N, C), or packed (T, C), or None.
        mask: True for real points, (B, N), or None.
        batch: The cloud of each packed point, (T,) int64, or None.

    Returns:
        points (B, N, 3), features (B, N, C) or None, and mask (B, N) or None.

    Raises:
        ValueError: If both `mask` and `batch` are given, or `batch` does not number the clouds in order.
    """
    if batch is None:
        return points, features, mask
    if mask is not None:
        raise ValueError("mask is for padded clouds (B, N, 3), batch for packed ones (T, 3): give one of them.")
    if points.ndim != 2 or batch.shape != points.shape[:1]:
        raise ValueError(
            f"packed points (T, 3) and batch (T,) expected, got {tuple(points.shape)} and {tuple(batch.shape)}."
        )
    if batch.dtype != torch.int64 or (features is not None and features.shape[:1] != batch.shape) or not len(batch):
        what = "none" if features is None else f"{tuple(features.shape)}"
        raise ValueError(
            f"batch must be int64 with a number for each point and feature, got {batch.dtype} {tuple(batch.shape)}, "
            f"features {what}."
        )
    if (batch[1:] < batch[:-1]).any():
        raise ValueError("batch must be sorted: all points of a cloud must follow one another.")
    numbers, counts = batch.unique_consecutive(return_counts=True)
    if int(numbers[0]) != 0 or int(numbers[-1]) != len(numbers) - 1:
        raise ValueError(
            f"batch must number {len(numbers)} clouds from 0 to {len(numbers) - 1} without gaps, got numbers from "
            f"{int(numbers[0])} to {int(numbers[-1])}."
        )
    padded = [
        None if values is None else pad_sequence(list(values.split(counts.tolist())), batch_first=True)
        for values in (points, features)
    ]
    mask = torch.arange(int(counts.max()), device=batch.device) < counts.unsqueeze(1)
    assert padded[0] is not None
    return padded[0], padded[1], mask


def padded_in_graph(
    points: Tensor, features: Tensor | None, mask: Tensor | None, *, least: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """While a graph is exported, clouds padded to `least` points, so that one graph suits fewer points too.

    A stage keeps all points of a cloud that has fewer than its centres, but a graph always samples. Elsewhere nothing
    is padded.
    """
    if not is_exporting():
        return points, features, mask
    b, n, _ = points.shape
    count = torch.sym_max(n, least)
    real = torch.ones(b, n, dtype=torch.bool, device=points.device) if mask is None else mask
    real = _filled_up(real, least, count)
    return _filled_up(points, least, count), None if features is None else _filled_up(features, least, count), real


def without_padding(values: Tensor, num_points: int) -> Tensor:
    """What a network says of the points that there were, (B, num_points, ...), without those of `padded_in_graph`."""
    if not is_exporting():
        return values
    # A slice would tie the graph to clouds of many points.
    return values.index_select(1, torch.arange(num_points, device=values.device))


def _filled_up(values: Tensor, least: int, count: int | torch.SymInt) -> Tensor:
    """(B, N, ...) with zeros at the end, (B, count, ...), where count is the larger of N and `least`."""
    zeros = values.new_zeros(values.shape[0], least, *values.shape[2:])
    return torch.cat([values, zeros], dim=1)[:, :count]
