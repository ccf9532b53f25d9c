"""Labelled point clouds of one size, kept as tensors and fetched a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcea.batch import CloudBatch

if TYPE_CHECKING:
    from torch_geometric.data import Data


class PointClouds(Dataset):
    """Labelled clouds of one size, held in memory.

    Args:
        points: Coordinates, (L, N, 3).
        label: Class of each cloud, (L,), or part of each point, (L, N); int64.
        class_names: Name of each class (or part).
        normals: Unit normals, (L, N, 3).
        category: Object category of each cloud, (L,), where `label` is per point.
        category_names: Name of each category.

    Raises:
        ValueError: If shapes disagree, coordinates are not finite or a label is outside `class_names`.
    """

    def __init__(
        self,
        points: Tensor,
        label: Tensor,
        *,
        class_names: Sequence[str],
        normals: Tensor | None = None,
        category: Tensor | None = None,
        category_names: Sequence[str] = (),
    ):
        if points.ndim != 3 or points.shape[-1] != 3:
            raise ValueError(f"points must be (clouds, points, 3), got {tuple(points.shape)}.")
        if label.shape not in (points.shape[:1], points.shape[:2]):
            raise ValueError(
                f"label must be {tuple(points.shape[:1])} or {tuple(points.shape[:2])}, got {tuple(label.shape)}."
            )
        if normals is not None and normals.shape != points.shape:
            raise ValueError(
                f"normals must have the shape of points {tuple(points.shape)}, got {tuple(normals.shape)}."
            )
        bad = ~points.isfinite().flatten(1).all(1)
        if bad.any():
            first = int(bad.int().argmax())
            raise ValueError(
                f"{int(bad.sum())} of {len(points)} clouds have NaN or infinite coordinates, first: cloud {first}."
            )
        if label.numel() and not 0 <= int(label.min()) <= int(label.max()) < len(class_names):
            raise ValueError(
                f"labels must be in 0..{len(class_names) - 1}, got {int(label.min())}..{int(label.max())}."
            )
        self.points, self.label, self.normals, self.category = points, label, normals, category
        self.class_names, self.category_names = tuple(class_names), tuple(category_names)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Data:
        """One cloud as `torch_geometric.data.Data` with pos, y, and normal and category where there are any."""
        from torch_geometric.data import Data

        data = Data(pos=self.points[index], y=self.label[index])
        if self.normals is not None:
            data.normal = self.normals[index]
        if self.category is not None:
            data.category = self.category[index]
        return data

    def __getitems__(self, indices: Sequence[int]) -> CloudBatch:
        """Many clouds at once: one index operation for a tensor, which keeps loading far below a training step."""
        index = torch.as_tensor(indices)
        normals = None if self.normals is None else self.normals[index]
        category = None if self.category is None else self.category[index]
        return CloudBatch(self.points[index], self.label[index], normals, category)

    def subset(self, indices: Tensor) -> PointClouds:
        """The clouds at `indices`, (L',) int64, as a set of their own."""
        return PointClouds(
            self.points[indices],
            self.label[indices],
            class_names=self.class_names,
            normals=None if self.normals is None else self.normals[indices],
            category=None if self.category is None else self.category[indices],
            category_names=self.category_names,
        )
