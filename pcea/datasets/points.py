"""Labelled point clouds of one size, in memory or in a file, fetched a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcea.datasets.batches import PointBatch
from pcea.datasets.splits import class_order
from pcea.io.stored import Array, select

if TYPE_CHECKING:
    from torch_geometric.data import Data


class PointDataset(Dataset):
    """Labelled clouds of one size.

    Points and normals may be arrays that stay in their file, of which a batch is read at a time. PyTorch Geometric's
    loader takes the dataset as it is; torch's takes `DataLoader(range(len(clouds)), collate_fn=clouds.batch, ...)`.

    Args:
        points: Coordinates, (L, N, 3).
        label: Class of each cloud, (L,) int64.
        class_names: Name of each class.
        normals: Unit normals, (L, N, 3).

    Raises:
        ValueError: If shapes disagree, coordinates are not finite or a label is outside `class_names`.
    """

    def __init__(
        self,
        points: Array,
        label: Tensor,
        *,
        class_names: Sequence[str],
        normals: Array | None = None,
    ):
        if points.ndim != 3 or points.shape[-1] != 3:
            raise ValueError(f"points must be (clouds, points, 3), got {tuple(points.shape)}.")
        if label.shape != points.shape[:1]:
            raise ValueError(
                f"label must be {tuple(points.shape[:1])}, got {tuple(label.shape)}. Clouds with per-point labels make "
                "a PartDataset."
            )
        if isinstance(points, Tensor):
            bad = ~points.isfinite().flatten(1).all(1)
            if bad.any():
                first = int(bad.int().argmax())
                raise ValueError(
                    f"{int(bad.sum())} of {len(points)} clouds have NaN or infinite coordinates, first: cloud {first}."
                )
        check_clouds(points, label, normals, class_names)
        self.points, self.label, self.normals = points, label.long(), normals
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Data:
        """One cloud as `torch_geometric.data.Data` with pos, y, and normal if there is one."""
        batch = self.batch([index])
        return as_item(batch.points[0], batch.label[0], None if batch.normals is None else batch.normals[0])

    def batch(self, indices: Sequence[int]) -> PointBatch:
        """Many clouds at once, by one operation per array, so that loading takes little of a training step."""
        index = torch.as_tensor(indices)
        normals = None if self.normals is None else self.normals[index]
        return PointBatch(self.points[index], self.label[index], normals)

    @property
    def strata(self) -> Tensor:
        """The groups that a random split keeps balanced, (L,) int64."""
        return self.label

    def with_classes(self, class_names: Sequence[str], parts: object = None) -> PointDataset:  # noqa: ARG002
        """The same clouds with the classes in another order, that of `class_names`; matched by name.

        Raises:
            ValueError: If the names are not the same.
        """
        return PointDataset(
            self.points,
            class_order(self.class_names, class_names)[self.label],
            class_names=class_names,
            normals=self.normals,
        )

    def subset(self, indices: Tensor) -> PointDataset:
        """The clouds at `indices`, (L',) int64, as a set of their own."""
        return PointDataset(
            select(self.points, indices),
            self.label[indices],
            class_names=self.class_names,
            normals=None if self.normals is None else select(self.normals, indices),
        )


def check_clouds(points: Array, label: Array, normals: Array | None, class_names: Sequence[str]) -> None:
    """Require what holds for clouds of one size, points (L, N, 3), and for packed ones, points (T, 3).

    Labels that stay in their file were checked when it was written.

    Raises:
        ValueError: If normals have another shape than points, something in memory has another kind of numbers, normals
            in memory are not finite, or a label is outside `class_names`.
    """
    if normals is not None and normals.shape != points.shape:
        raise ValueError(f"normals must have the shape of points {tuple(points.shape)}, got {tuple(normals.shape)}.")
    if isinstance(points, Tensor) and not points.is_floating_point():
        raise ValueError(f"points must be floating-point numbers, got {points.dtype}.")
    if isinstance(label, Tensor) and (label.is_floating_point() or label.dtype == torch.bool):
        raise ValueError(f"labels must be whole numbers, as int64, got {label.dtype}.")
    if isinstance(normals, Tensor) and not normals.isfinite().all():
        raise ValueError(f"{int((~normals.isfinite()).any(-1).sum())} normals are NaN or infinite.")
    if isinstance(label, Tensor) and label.numel() and not 0 <= int(label.min()) <= int(label.max()) < len(class_names):
        raise ValueError(f"labels must be in 0..{len(class_names) - 1}, got {int(label.min())}..{int(label.max())}.")


def as_item(points: Tensor, label: Tensor, normals: Tensor | None, category: Tensor | None = None) -> Data:
    """One cloud, (N, 3), as `torch_geometric.data.Data` with pos, y, and normal and category where there are any."""
    from torch_geometric.data import Data

    data = Data(pos=points, y=label)
    if normals is not None:
        data.normal = normals
    if category is not None:
        data.category = category
    return data
