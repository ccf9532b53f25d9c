"""Gather the features of chosen points."""

from __future__ import annotations

import torch
from torch import Tensor

from pcea.ops.checks import check_index


def flat_index(index: Tensor, num_points: int) -> Tensor:
    """Turn indices into clouds of N points, (B, ...), into indices into their flattened rows (B N), same shape."""
    offset = torch.arange(index.shape[0], device=index.device) * num_points
    return index + offset.view(-1, *[1] * (index.ndim - 1))


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Pick points, or their features, by index within each cloud.

    Args:
        points: (B, N, C).
        index: Indices in 0..N-1, (B, ...) int64.

    Returns:
        (B, ..., C); differentiable in `points`.

    Raises:
        ValueError: If the shapes do not fit or, on a CPU, an index is out of range.
    """
    if points.ndim != 3 or index.ndim < 2 or points.shape[0] != index.shape[0]:
        raise ValueError(
            f"points (B, N, C) and index (B, ...) expected, got {tuple(points.shape)}, {tuple(index.shape)}."
        )
    check_index(points.shape[1], index=index)
    # index_select on flattened rows: its backward pass is several times faster than that of points[batch, index].
    rows = points.flatten(0, 1).index_select(0, flat_index(index, points.shape[1]).flatten())
    return rows.view(*index.shape, points.shape[-1])


def group_neighbors(features: Tensor, center_features: Tensor, index: Tensor) -> Tensor:
    """Describe each neighbour of a centre by its offset from the centre and by the centre itself.

    This is the readable form; models use the factored one of `NeighborEmbedding`, which never builds this tensor.

    Args:
        features: Features of all points, (B, N, C).
        center_features: Features of the centres, (B, M, C).
        index: Neighbours of each centre, (B, M, K) int64.

    Returns:
        concat(f_j - f_i, f_i), (B, M, K, 2C).

    Source:
        PCT (Guo et al., 2020), section 3.4; DGCNN (Wang et al., 2019).
    """
    neighbors = gather_points(features, index)
    centers = center_features.unsqueeze(2).expand_as(neighbors)
    return torch.cat([neighbors - centers, centers], dim=-1)
