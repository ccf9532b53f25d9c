"""Carry features between clouds."""

from __future__ import annotations

import torch
from torch import Tensor

from pcea.ops.grouping import gather_points
from pcea.ops.neighbors import knn


def interpolate_features(
    query: Tensor, source: Tensor, features: Tensor, *, k: int = 3, mask: Tensor | None = None
) -> Tensor:
    """Carry features from source points to query points by inverse-distance weights.

    Args:
        query: Positions to fill, (B, M, 3).
        source: Positions that own a feature, (B, N, 3), same unit as `query`.
        features: One feature per source point, (B, N, C).
        k: How many source points are mixed into one query point.
        mask: True for real source points, (B, N).

    Returns:
        Mixed features, (B, M, C), same dtype as `features`; differentiable in them and in the positions. A query point
        that coincides with a source point receives that point's feature.

    Raises:
        ValueError: If `k` exceeds N, the shapes do not fit or the features are whole numbers.

    Source:
        PointNet++ (Qi et al., 2017), section 3.4. Ours clamps the squared distance, at 1e-16 of the k-th neighbour's.
    """
    if features.ndim != 3 or features.shape[:2] != source.shape[:2]:
        raise ValueError(
            f"features must be (B, N, C) beside source {tuple(source.shape)}, got {tuple(features.shape)}."
        )
    if not features.is_floating_point():
        raise ValueError(f"features must be floating, got {features.dtype}: for labels, take the index of `knn`, k=1.")
    exact = torch.promote_types(query.dtype, torch.float32)
    index, squared_distance = knn(query.to(exact), source.to(exact), k=k, mask=mask)
    # In units of the farthest, so that the clamp means the same for clouds of any size; it cancels out in the weights.
    unit = squared_distance.detach()[..., -1:].clamp_min(torch.finfo(exact).tiny)
    weights = 1 / (squared_distance / unit).clamp_min(1e-16)
    if mask is not None:  # where there are fewer real points, the nearest one stands for those that are missing
        weights = weights.masked_fill(torch.arange(k, device=mask.device) >= mask.sum(1)[:, None, None], 0)
    weights = (weights / weights.sum(-1, keepdim=True)).to(features.dtype)
    return (gather_points(features, index) * weights.unsqueeze(-1)).sum(2)
