"""Point clouds with a label for every point, in memory or in a file, fetched a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcea.datasets.batches import PointBatch
from pcea.datasets.points import as_item, check_clouds
from pcea.datasets.splits import class_order
from pcea.io.stored import Array

if TYPE_CHECKING:
    from torch_geometric.data import Data

PartClasses = dict[str, tuple[int, ...]]
"""The classes of each category's parts, by the category's name."""


class PartDataset(Dataset):
    """Clouds of any sizes with per-point labels, one after the other: L clouds of T points in all.

    Points, labels and normals may be arrays that stay in their file, of which a batch is read at a time.

    Args:
        points: Coordinates, (T, 3).
        label: Class of each point, (T,) int64.
        sizes: Number of points of each cloud, (L,) int64.
        class_names: Name of each class (part).
        normals: Unit normals, (T, 3).
        category: Object category of each cloud, (L,) int64; None for scenes, which have none.
        parts: The classes that each category's points can have, by its name, in the order of `category`.

    Raises:
        ValueError: If shapes disagree, coordinates are not finite or a label is not one of its category's parts.
    """

    def __init__(
        self,
        points: Array,
        label: Array,
        sizes: Tensor,
        *,
        class_names: Sequence[str],
        normals: Array | None = None,
        category: Tensor | None = None,
        parts: Mapping[str, Sequence[int]] | None = None,
    ):
        if points.ndim != 2 or points.shape[-1] != 3:
            raise ValueError(f"points must be (points of all clouds, 3), got {tuple(points.shape)}.")
        if label.shape != points.shape[:1]:
            raise ValueError(f"label must be {tuple(points.shape[:1])}, got {tuple(label.shape)}.")
        if int(sizes.sum()) != len(points) or (len(sizes) and int(sizes.min()) < 1):
            raise ValueError(
                f"sizes must be positive and sum to {len(points)} points, got a sum of {int(sizes.sum())}."
            )
        if isinstance(points, Tensor) and not points.isfinite().all():
            raise ValueError(f"{int((~points.isfinite()).any(1).sum())} points have NaN or infinite coordinates.")
        check_clouds(points, label, normals, class_names)
        if (category is None) != (parts is None):
            raise ValueError("category and parts belong together: give both or neither.")
        self.points, self.label, self.normals, self.category, self.sizes = points, label, normals, category, sizes
        self.class_names = tuple(class_names)
        self.parts = {} if parts is None else {name: tuple(classes) for name, classes in parts.items()}
        self.starts = sizes.cumsum(0) - sizes
        if category is not None and isinstance(label, Tensor):
            _check_parts(label, category, sizes, self.parts, self.class_names)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Data:
        """One cloud as `torch_geometric.data.Data` with pos, y, and normal and category where there are any."""
        batch = self.batch([index])
        return as_item(
            batch.points[0],
            batch.label[0],
            None if batch.normals is None else batch.normals[0],
            None if batch.category is None else batch.category[0],
        )

    def batch(self, indices: Sequence[int]) -> PointBatch:
        """Many clouds at once, padded with copies of their first points to the largest one."""
        index = torch.as_tensor(indices)
        sizes = self.sizes[index]
        place = torch.arange(int(sizes.max()))
        mask = place < sizes.unsqueeze(1)
        inside = torch.where(mask, place, 0)
        is_full = bool(mask.all())

        def take(array: Array) -> Tensor:
            if isinstance(array, Tensor):
                return array[self.starts[index].unsqueeze(1) + inside]
            rows = array[index]  # clouds one after the other
            if is_full:
                return rows.unflatten(0, mask.shape)
            return rows[(sizes.cumsum(0) - sizes).unsqueeze(1) + inside]

        return PointBatch(
            take(self.points),
            take(self.label),
            None if self.normals is None else take(self.normals),
            None if self.category is None else self.category[index],
            None if is_full else mask,
        )

    @property
    def strata(self) -> Tensor:
        """The groups that a random split keeps balanced, (L,) int64."""
        return torch.zeros(len(self), dtype=torch.int64) if self.category is None else self.category

    def with_classes(self, class_names: Sequence[str], parts: Mapping[str, Sequence[int]] | None = None) -> PartDataset:
        """The same clouds with classes, and categories if `parts` is given, in another order; matched by name.

        Raises:
            ValueError: If the names are not the same.
        """
        category = self.category
        if parts and category is not None:
            category = class_order(list(self.parts), list(parts), what="category")[category]
        order, label = class_order(self.class_names, class_names), self.label
        return PartDataset(
            self.points,
            order[label] if isinstance(label, Tensor) else label.renumber(order),
            self.sizes,
            class_names=class_names,
            normals=self.normals,
            category=category,
            parts=parts or self.parts or None,
        )

    def subset(self, indices: Tensor) -> PartDataset:
        """The clouds at `indices`, (L',) int64, as a set of their own."""
        sizes = self.sizes[indices]
        shift = self.starts[indices] - (sizes.cumsum(0) - sizes)
        rows = torch.arange(int(sizes.sum())) + shift.repeat_interleave(sizes)

        def take(array: Array) -> Array:
            return array[rows] if isinstance(array, Tensor) else array.select(indices)

        return PartDataset(
            take(self.points),
            take(self.label),
            sizes,
            class_names=self.class_names,
            normals=None if self.normals is None else take(self.normals),
            category=None if self.category is None else self.category[indices],
            parts=self.parts or None,
        )


def number_parts(names: Mapping[str, Sequence[str]]) -> tuple[PartClasses, tuple[str, ...]]:
    """Number the parts of all categories from 0, in the order of their names.

    Returns:
        The classes of each category, and the class names `category/part`.
    """
    parts: PartClasses = {}
    class_names: list[str] = []
    for category, members in names.items():
        parts[category] = tuple(range(len(class_names), len(class_names) + len(members)))
        class_names += [f"{category}/{part}" for part in members]
    return parts, tuple(class_names)


def _check_parts(label: Tensor, category: Tensor, sizes: Tensor, parts: PartClasses, names: Sequence[str]) -> None:
    """Require the label of each point, (T,), to be a part of the category of its cloud, (L,)."""
    if category.shape != sizes.shape:
        raise ValueError(f"category must be {tuple(sizes.shape)} like sizes, got {tuple(category.shape)}.")
    if len(category) and not 0 <= int(category.min()) <= int(category.max()) < len(parts):
        raise ValueError(f"categories must be in 0..{len(parts) - 1}, got {category.min()}..{category.max()}.")
    category = category.repeat_interleave(sizes)
    for number, (name, classes) in enumerate(parts.items()):
        found = label[category == number].unique().tolist()
        strangers = sorted(set(found) - set(classes))
        if strangers:
            wanted = ", ".join(f"{c} {names[c]}" for c in classes)
            raise ValueError(f"Points of category {name} have label {strangers[0]}; its parts are {wanted}.")
