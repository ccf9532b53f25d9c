"""Any PyTorch Geometric dataset of meshes or clouds as `PointClouds`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pcea.datasets.clouds import PointClouds
from pcea.meshes import normalize_points


def from_pyg(dataset: Any, *, num_points: int, class_names: Sequence[str] | None = None, seed: int = 0) -> PointClouds:
    """Sample every item of a PyTorch Geometric dataset to one size; zero mean, unit sphere.

    Args:
        dataset: Sized and indexed; items are `Data` with pos (N, 3), y, and perhaps face (meshes), normal and category.
            y is the class of the item, or with as many entries as points the part of each point.
        num_points: Points a cloud: meshes are sampled by area, clouds give a random subset.
        class_names: Default: the dataset's `categories` or `raw_file_names` where their number fits the labels of whole
            clouds, else "0", "1", ...
        seed: Decides the samples.

    Raises:
        ValueError: If the dataset is empty, or an item lacks pos or y, has too few points or is a mesh labelled by
            vertex.
    """
    if not len(dataset):
        raise ValueError("The PyTorch Geometric dataset is empty.")
    with torch.random.fork_rng(devices=[]):  # SamplePoints draws from the global generator
        torch.manual_seed(seed)
        items = [_sample(dataset[index], num_points, index) for index in range(len(dataset))]
    label = torch.stack([item.y for item in items])
    category = torch.stack([item.category for item in items]) if "category" in items[0] else None
    has_normals = all(item.get("normal") is not None for item in items)
    names = [str(name) for name in getattr(dataset, "categories", ())]
    return PointClouds(
        normalize_points(torch.stack([item.pos for item in items])),
        label,
        class_names=class_names or _class_names(dataset, label),
        normals=torch.stack([item.normal for item in items]) if has_normals else None,
        category=category,
        category_names=names if category is not None else (),
    )


def _sample(data: Any, num_points: int, index: int) -> Any:
    """A copy of one item with `num_points` points and y as () or (num_points,)."""
    from torch_geometric.transforms import SamplePoints

    data = copy.copy(data)
    if data.get("pos") is None or data.get("y") is None:
        raise ValueError(f"Item {index} of the PyTorch Geometric dataset must have pos and y, got {data}.")
    N = len(data.pos)
    y = data.y.long().reshape(-1)
    if y.numel() not in (1, N):
        raise ValueError(f"Item {index}: y must have 1 or {N} entries (one a point), got {y.numel()}.")
    if data.get("category") is not None:
        data.category = data.category.long().reshape(())
    if data.get("face") is not None:
        if y.numel() != 1:
            raise ValueError(f"Item {index} is a mesh with a label a vertex, which cannot be sampled. Drop its faces.")
        data = SamplePoints(num_points, include_normals=True)(data)
        data.y = y[0]
        return data
    if num_points > N:
        raise ValueError(f"Item {index} holds {N} points, fewer than num_points={num_points}.")
    keep = torch.randperm(N)[:num_points]
    data.pos = data.pos[keep].float()
    data.y = y[0] if y.numel() == 1 else y[keep]
    if data.get("normal") is not None:
        data.normal = data.normal[keep].float()
    return data


def _class_names(dataset: Any, label: Tensor) -> list[str]:
    count = int(label.max()) + 1
    if label.ndim == 1:
        for attribute in ("categories", "raw_file_names"):
            names = getattr(dataset, attribute, None)
            if isinstance(names, (list, tuple)) and len(names) >= count:
                return [str(name) for name in names]
    return [str(number) for number in range(count)]
