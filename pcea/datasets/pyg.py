"""Any PyTorch Geometric dataset of meshes or clouds as `PointDataset` or `PartDataset`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.datasets.parts import PartDataset
from pcea.datasets.points import PointDataset
from pcea.io.points import normalize_points


def from_pyg(
    dataset: Any,
    *,
    num_points: int,
    class_names: Sequence[str] | None = None,
    with_normals: bool = False,
    seed: int = 0,
) -> PointDataset:
    """Sample every item of a PyTorch Geometric dataset to one size; zero mean, unit sphere.

    Args:
        dataset: Sized and indexed; items are `Data` with pos (N, 3), one y, and perhaps face (meshes) and normal.
        num_points: Points per cloud: meshes are sampled by area, clouds give a random subset.
        class_names: Default: the dataset's `categories` or `raw_file_names` if their number fits the labels, else "0",
            "1", ...
        with_normals: Also give unit normals: of meshes those of their faces, of clouds the items' `normal`, or `x` if
            it has three columns.
        seed: Decides the samples.

    Raises:
        ValueError: If the dataset is empty, or an item lacks what is needed, has too few points or per-point labels.
    """
    _check_not_empty(dataset)
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}.")
    with torch.random.fork_rng(devices=[]):  # SamplePoints draws from the global generator
        torch.default_generator.manual_seed(seed)
        items = [_sample(_checked(dataset[i], i), num_points, i) for i in range(len(dataset))]
    label = torch.stack([item.y for item in items])
    return PointDataset(
        normalize_points(torch.stack([item.pos.double() for item in items])),
        label,
        class_names=class_names or _class_names(dataset, label),
        normals=torch.stack([_normals(item, i) for i, item in enumerate(items)]) if with_normals else None,
    )


def parts_from_pyg(
    dataset: Any,
    *,
    parts: Mapping[str, Sequence[int]] | None = None,
    class_names: Sequence[str] | None = None,
    with_normals: bool = False,
) -> PartDataset:
    """All points of every item of a PyTorch Geometric dataset with per-point labels; zero mean, unit sphere.

    Args:
        dataset: Sized and indexed; items are `Data` with pos (N, 3), y (N,), and perhaps category, like those of
            `torch_geometric.datasets.ShapeNet`.
        parts: The classes of each category, by its name, in the order of `category`. None takes the dataset's
            `categories` and `seg_classes`. No effect if items have no category.
        class_names: Default: `category/0`, `category/1`, ... of the parts of each category; without categories
            "0", "1", ... up to the dataset's `num_classes`, or to the greatest label.
        with_normals: Also give unit normals: the items' `normal`, or `x` if it has three columns, as ShapeNet's.

    Raises:
        ValueError: If the dataset is empty, an item lacks what is needed or a label is not a part of its category.
    """
    _check_not_empty(dataset)
    items = [_checked(dataset[i], i) for i in range(len(dataset))]
    for i, item in enumerate(items):
        if item.y.numel() != len(item.pos):
            raise ValueError(f"Item {i}: y must have {len(item.pos)} entries, one per point, got {item.y.numel()}.")
    label = torch.cat([item.y for item in items])
    category = None
    if _all_have(items, "category"):
        category = torch.stack([item.category for item in items])
        known = getattr(dataset, "seg_classes", {}) if parts is None else parts
        if parts is None:
            parts = {name: known[name] for name in getattr(dataset, "categories", known) if name in known}
        if int(category.max()) >= len(parts):
            raise ValueError(
                f"Items have categories up to {int(category.max())}, but the parts of {len(parts)} categories are "
                "known. Give parts: {category: [its classes]}, in the order of their numbers."
            )
        names = {c: f"{name}/{k}" for name, classes in known.items() for k, c in enumerate(classes)}
        class_names = class_names or [names.get(c, str(c)) for c in range(max(names) + 1)]
    else:
        parts = None
        count = getattr(dataset, "num_classes", None) or int(label.max()) + 1
        class_names = class_names or [str(c) for c in range(count)]
    return PartDataset(
        torch.cat([normalize_points(item.pos.double()) for item in items]),
        label,
        torch.tensor([len(item.pos) for item in items]),
        class_names=class_names,
        normals=torch.cat([_normals(item, i) for i, item in enumerate(items)]) if with_normals else None,
        category=category,
        parts=parts,
    )


def _check_not_empty(dataset: Any) -> None:
    if not len(dataset):
        raise ValueError("The PyTorch Geometric dataset is empty.")


def _checked(data: Any, index: int) -> Any:
    """A copy of one item with y as (1,) or (N,), and category, if it has one, as ()."""
    data = copy.copy(data)
    if data.get("pos") is None or data.get("y") is None:
        raise ValueError(f"Item {index} of the PyTorch Geometric dataset must have pos and y, got {data}.")
    N, y = len(data.pos), torch.as_tensor(data.y).reshape(-1)
    if (y != y.long()).any() or (y < 0).any():
        raise ValueError(f"Item {index}: y must be whole numbers from 0, got {y[(y != y.long()) | (y < 0)][0].item()}.")
    data.y = y.long()
    if data.y.numel() not in (1, N):
        raise ValueError(f"Item {index}: y must have 1 or {N} entries (one per point), got {data.y.numel()}.")
    if data.get("category") is not None:
        data.category = torch.as_tensor(data.category).long().reshape(())
    return data


def _sample(data: Any, num_points: int, index: int) -> Any:
    """`num_points` points of one item, with y as ()."""
    from torch_geometric.transforms import SamplePoints

    N = len(data.pos)
    if data.y.numel() != 1:
        raise ValueError(
            f"Item {index} has {data.y.numel()} labels, one per point: use `parts_from_pyg` or `PyGPartDataModule`."
        )
    data.y = data.y[0]
    if data.get("face") is not None:
        return SamplePoints(num_points, include_normals=True)(data)
    if num_points > N:
        raise ValueError(f"Item {index} holds {N} points, fewer than num_points={num_points}.")
    keep = torch.randperm(N)[:num_points]
    data.pos = data.pos[keep]
    for name in ("normal", "x"):
        if data.get(name) is not None and len(data[name]) == N:
            data[name] = data[name][keep]
    return data


def _all_have(items: Sequence[Any], name: str) -> bool:
    """Whether all items have an attribute.

    Raises:
        ValueError: If only some have it.
    """
    without = [i for i, item in enumerate(items) if item.get(name) is None]
    if 0 < len(without) < len(items):
        raise ValueError(
            f"{len(without)} of {len(items)} items have no {name}, first item {without[0]}: all must be alike."
        )
    return not without


def _normals(data: Any, index: int) -> Tensor:
    """Unit normals of one item, (N, 3)."""
    normals = data.get("x") if data.get("normal") is None else data.normal
    if normals is None or normals.shape != data.pos.shape:
        raise ValueError(
            f"Item {index} has no normals: neither normal nor x is {tuple(data.pos.shape)}. Read it without "
            "with_normals, or make the dataset with include_normals."
        )
    if data.get("normal") is None and not 0.5 < float(normals.norm(dim=1).median()) < 1.5:
        raise ValueError(f"Item {index}: x does not hold unit normals (colours?). Read it without with_normals.")
    return F.normalize(normals.float(), dim=1)


def _class_names(dataset: Any, label: Tensor) -> list[str]:
    count = int(label.max()) + 1
    for attribute in ("categories", "raw_file_names"):
        names = getattr(dataset, attribute, None)
        if isinstance(names, (list, tuple)) and len(names) >= count:
            return [str(name) for name in names]
    return [str(number) for number in range(count)]
