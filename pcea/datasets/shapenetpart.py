"""ShapeNetPart in its three official forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np
import torch

from pcea.datasets.cache import Arrays, to_tensors
from pcea.datasets.memory import InMemory, check_h5_in_memory
from pcea.datasets.parts import PartDataset, number_parts
from pcea.datasets.shapenet_layout import (
    SPLIT_LISTS,
    ShapeNetSplit,
    category_folders,
    check_categories,
    check_split,
    read_text_layout,
    wanted_categories,
)
from pcea.io.hdf5 import read_h5
from pcea.io.points import normalize_points

Layout = Literal["normals", "points", "h5"]

_PART_NAMES = {
    "Airplane": ("body", "wing", "tail", "engine"),
    "Bag": ("handle", "body"),
    "Cap": ("crown", "brim"),
    "Car": ("roof", "hood", "wheel", "body"),
    "Chair": ("back", "seat", "leg", "arm"),
    "Earphone": ("earpiece", "headband", "cable"),
    "Guitar": ("head", "neck", "body"),
    "Knife": ("blade", "handle"),
    "Lamp": ("base", "shade", "canopy", "pole"),
    "Laptop": ("screen", "keyboard"),
    "Motorbike": ("tank", "seat", "wheel", "handlebar", "light", "body"),
    "Mug": ("handle", "body"),
    "Pistol": ("barrel", "grip", "trigger"),
    "Rocket": ("body", "fin", "nose"),
    "Skateboard": ("wheel", "deck", "belt"),
    "Table": ("top", "leg", "drawer"),
}
_FOLDERS = {
    "normals": "shapenetcore_partanno_segmentation_benchmark_v0_normal",
    "points": "shapenetcore_partanno_segmentation_benchmark_v0",
    "h5": "hdf5_data",
}
_CATEGORY_LISTS = {
    "normals": "synsetoffset2category.txt",
    "points": "synsetoffset2category.txt",
    "h5": "all_object_categories.txt",
}
SHAPENETPART_PARTS, SHAPENETPART_CLASSES = number_parts(_PART_NAMES)


class ShapeNetPart(PartDataset):
    """ShapeNetPart: 16,881 shapes of 16 categories with 50 parts; zero mean, unit sphere, y up.

    Text is parsed once, with a progress bar, and cached in `.pcea` by the data. Clouds keep all their points, about
    2,600 in the text layouts and 2,048 in the h5 one. The part numbers are official, the part names ours.

    Args:
        root: The folder of a layout, or the one above it.
        split: train, val, test, trainval (train and val), or all (every file there, whatever the lists say).
        with_normals: Also read unit normals (the layout `normals` has them).
        categories: Keep only these; None keeps all. Categories and parts keep their official numbers.
        layout: `normals` is shapenetcore_partanno_segmentation_benchmark_v0_normal (x y z nx ny nz part per line),
            `points` is shapenetcore_partanno_segmentation_benchmark_v0 (points/*.pts with points_label/*.seg), `h5` is
            hdf5_data. None takes the first of these that is found.
        cache: Keep the parsed text.
        in_memory: True holds the clouds in memory, False reads each batch from the cache, which needs `cache`; `auto`
            holds them if they take at most a third of the free memory, shared among the processes on the machine.
            The layout `h5` is always held in memory.

    Raises:
        FileNotFoundError: If the dataset, its lists or listed files are not under `root`.
        ValueError: If a file does not hold what its layout promises, or a category is unknown or absent.
    """

    def __init__(
        self,
        root: str | Path,
        split: ShapeNetSplit,
        *,
        with_normals: bool = False,
        categories: Sequence[str] | None = None,
        layout: Layout | None = None,
        cache: bool = True,
        in_memory: InMemory = "auto",
    ):
        found, folder = _find(Path(root), layout)
        if with_normals and found != "normals":
            raise ValueError(f"Layout {found} of ShapeNetPart has no normals. Use layout normals, or no normals.")
        offsets = category_folders(folder / _CATEGORY_LISTS[found])
        strangers = sorted(set(offsets) - set(SHAPENETPART_PARTS))
        if strangers:
            raise ValueError(f"{folder / _CATEGORY_LISTS[found]} names {strangers[0]}, not a category of ShapeNetPart.")
        arrays: dict[str, Any]
        if found == "h5":
            check_h5_in_memory(in_memory)
            arrays = _read_h5_layout(folder, split, wanted_categories(categories, SHAPENETPART_PARTS))
        else:
            arrays = read_text_layout(
                folder,
                split,
                found,
                offsets,
                SHAPENETPART_PARTS,
                categories,
                with_normals=with_normals,
                cache=cache,
                in_memory=in_memory,
            )
        tensors = to_tensors(arrays, with_normals=with_normals)
        super().__init__(**tensors, class_names=SHAPENETPART_CLASSES, parts=SHAPENETPART_PARTS)


def _find(root: Path, layout: str | None) -> tuple[str, Path]:
    """Layout and folder of the first layout found."""
    if layout not in (None, *_FOLDERS):
        raise ValueError(f"layout must be normals, points, h5 or None, got {layout!r}.")
    kinds = [layout] if layout else list(_FOLDERS)
    for kind in kinds:
        if (root / _FOLDERS[kind] / _CATEGORY_LISTS[kind]).is_file():
            return kind, root / _FOLDERS[kind]
    for kind in kinds:
        if (root / _CATEGORY_LISTS[kind]).is_file():
            if kind != "h5" and layout is None:
                kind = "points" if next(root.glob("*/points_label"), None) else "normals"
            return kind, root
    wanted = ", ".join(f"{_FOLDERS[kind]}/{_CATEGORY_LISTS[kind]}" for kind in kinds)
    raise FileNotFoundError(
        f"No ShapeNetPart under {root}: looked for {wanted}. "
        f"Run `pcea download shapenetpart --root {root}`, or see data/README.md."
    )


def _read_h5_layout(folder: Path, split: str, wanted: Sequence[str]) -> Arrays:
    check_split(split)
    names = list(SHAPENETPART_PARTS)
    numbers = [names.index(name) for name in wanted]
    kept = []
    for file in _list_h5_files(folder, split):
        data, label, pid = _read_h5_file(file)
        keep = np.isin(label, numbers)
        kept.append(
            {
                "data": normalize_points(torch.from_numpy(data[keep])).flatten(0, 1).numpy(),
                "label": pid[keep].reshape(-1),
                "sizes": np.full(keep.sum(), data.shape[1], dtype=np.int64),
                "category": label[keep],
            }
        )
    arrays = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    counts = np.bincount(arrays["category"], minlength=len(names))
    check_categories(folder, split, {names[number]: int(counts[number]) for number in numbers})
    return arrays


def _list_h5_files(folder: Path, split: str) -> list[Path]:
    files: list[Path] = []
    for part in SPLIT_LISTS.get(split, ("",)):  # all: whatever the lists say
        listed = folder / f"{part}_hdf5_file_list.txt"
        lines = listed.read_text(encoding="utf-8").split("\n") if listed.is_file() else []
        # The lists have the paths of their author's machine: only the file names matter.
        found = [folder / PureWindowsPath(line.strip()).name for line in lines if line.strip()]
        found = found or sorted(folder.glob(f"ply_data_{part}*.h5"))
        if not found:
            raise FileNotFoundError(f"No files ply_data_{part}*.h5 under {folder}. Obtain the dataset again.")
        files += found
    return files


def _read_h5_file(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (L, N, 3) float32, categories (L,) and parts (L, N) int64 of one file."""
    arrays = read_h5(path, required=("data", "label", "pid"))
    data, label, pid = (arrays[name] for name in ("data", "label", "pid"))
    if data.ndim != 3 or data.shape[-1] != 3 or not data.size or pid.shape != data.shape[:2] or label.size != len(data):
        raise ValueError(
            f"{path}: data must be (shapes, points, 3), pid (shapes, points) and label (shapes,), got {data.shape}, "
            f"{pid.shape} and {label.shape}."
        )
    if data.dtype.kind != "f" or label.dtype.kind not in "iu" or pid.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: data must be floats, label and pid integers, got {data.dtype}, {label.dtype} and {pid.dtype}."
        )
    label, pid = label.reshape(-1).astype(np.int64), pid.astype(np.int64)
    # The categories are numbered in the order of the list, which is alphabetical as ours.
    names, classes = list(SHAPENETPART_PARTS), list(SHAPENETPART_PARTS.values())
    if not 0 <= label.min() <= label.max() < len(names):
        raise ValueError(f"{path}: label must be in 0..{len(names) - 1}, got {label.min()}..{label.max()}.")
    own = np.array([(parts[0], parts[-1]) for parts in classes])[label]  # (L, 2): first and last part
    strange = (pid < own[:, :1]) | (pid > own[:, 1:])
    if strange.any():
        shape, point = np.argwhere(strange)[0]
        raise ValueError(
            f"{path}: pid {pid[shape, point]} of shape {shape} is not a part of category {names[label[shape]]}, whose "
            f"labels are {', '.join(map(str, classes[label[shape]]))}."
        )
    bad = ~np.isfinite(data).all((1, 2))
    if bad.any():
        raise ValueError(f"{path}: {bad.sum()} shapes have NaN or infinite coordinates, first: shape {bad.argmax()}.")
    return data.astype(np.float32), label, pid
