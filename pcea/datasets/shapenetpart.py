"""ShapeNetPart in its three official forms, and sets in the same text layout, such as Labeled PSB."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Literal

import numpy as np
import torch

from pcea.datasets.cache import Arrays, cache_path, cached
from pcea.datasets.part_files import ARRAYS, PartCloud, as_labels, read_part_file, read_part_files, to_tensors
from pcea.datasets.points import PartClasses, PartDataset, number_parts
from pcea.io.points import as_points, normalize_points
from pcea.io.readers import read_h5, read_table

Split = Literal["train", "val", "trainval", "test", "all"]
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
_SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


SHAPENETPART_PARTS, SHAPENETPART_CLASSES = number_parts(_PART_NAMES)


class ShapeNetPart(PartDataset):
    """ShapeNetPart: 16,881 shapes of 16 categories with 50 parts; zero mean, unit sphere, y up.

    Text is parsed once, with a progress bar, and cached in `.pcea` beside the data. Clouds keep all their points, about
    2,600 in the text layouts and 2,048 in the h5 one. The names of the parts are ours, the numbers official.

    Args:
        root: The folder of a layout, or the one above it.
        split: train, val, test, trainval (both), or all (every file that is there, whatever the lists say).
        with_normals: Also give unit normals (the layout `normals` has them).
        categories: Keep these only; None keeps all. Numbers of categories and parts stay the official ones.
        layout: `normals` is shapenetcore_partanno_segmentation_benchmark_v0_normal (x y z nx ny nz part a line),
            `points` is shapenetcore_partanno_segmentation_benchmark_v0 (points/*.pts with points_label/*.seg), `h5` is
            hdf5_data. None takes the first of these that is there.
        cache: Keep what was parsed from text.

    Raises:
        FileNotFoundError: If the dataset, its lists or listed files are not under `root`.
        ValueError: If a file does not hold what its layout promises, or a category is unknown or absent.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        with_normals: bool = False,
        categories: Sequence[str] | None = None,
        layout: Layout | None = None,
        cache: bool = True,
    ):
        found, folder = _find(Path(root), layout)
        if with_normals and found != "normals":
            raise ValueError(f"Layout {found} of ShapeNetPart has no normals. Use layout normals, or no normals.")
        offsets = _category_folders(folder / _CATEGORY_LISTS[found])
        strangers = sorted(set(offsets) - set(SHAPENETPART_PARTS))
        if strangers:
            raise ValueError(f"{folder / _CATEGORY_LISTS[found]} names {strangers[0]}, not a category of ShapeNetPart.")
        if found == "h5":
            arrays = _read_h5_layout(folder, split, _wanted(categories, SHAPENETPART_PARTS))
        else:
            arrays = _read_text_layout(folder, split, found, offsets, SHAPENETPART_PARTS, categories, cache=cache)
        tensors = to_tensors(arrays, with_normals=with_normals)
        super().__init__(**tensors, class_names=SHAPENETPART_CLASSES, parts=SHAPENETPART_PARTS)


class LabeledPSB(PartDataset):
    """Labeled Princeton Segmentation Benchmark, or another set in ShapeNetPart's text layout with a `parts.json`.

    380 shapes of 19 categories with 94 parts; zero mean, unit sphere. Shapes are neither aligned nor scaled alike.

    Args:
        root: The folder of the dataset (with `parts.json`, {category: {part: number}}), or the one above `labeled_psb`.
        split: train, test or all; another set may have val and trainval.
        with_normals: Also give unit normals.
        categories: Keep these only; None keeps all. Numbers of categories and parts stay those of the whole set.
        cache: Keep what was parsed.

    Raises:
        FileNotFoundError: If the dataset, its lists or listed files are not under `root`.
        ValueError: If a file does not hold what its layout promises, or a category is unknown or absent.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        *,
        with_normals: bool = False,
        categories: Sequence[str] | None = None,
        cache: bool = True,
    ):
        places = [place for place in (Path(root) / "labeled_psb", Path(root)) if (place / "parts.json").is_file()]
        if not places:
            raise FileNotFoundError(
                f"No Labeled PSB under {root}: looked for labeled_psb/parts.json. See data/README.md."
            )
        parts, names = _read_parts(places[0] / "parts.json")
        offsets = _category_folders(places[0] / "synsetoffset2category.txt")
        arrays = _read_text_layout(places[0], split, "normals", offsets, parts, categories, cache=cache)
        super().__init__(**to_tensors(arrays, with_normals=with_normals), class_names=names, parts=parts)


def _find(root: Path, layout: str | None) -> tuple[str, Path]:
    """Layout and folder of the first layout that is there."""
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


def _category_folders(path: Path) -> dict[str, str]:
    """Folder of each category, from lines `name folder`."""
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}, which the layout needs. Obtain the dataset again.")
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        raise ValueError(f"{path} must hold lines of a category and its folder. Obtain the dataset again.")
    return dict(rows)


def _read_parts(path: Path) -> tuple[PartClasses, tuple[str, ...]]:
    """Classes of each category and names of the classes from {category: {part: number}}."""
    content = _read_json(path)
    if not isinstance(content, dict) or not all(isinstance(own, dict) and own for own in content.values()):
        raise ValueError(f"{path} must hold {{category: {{part: number}}}}.")
    names = {number: f"{category}/{part}" for category, own in content.items() for part, number in own.items()}
    numbers = [number for own in content.values() for number in own.values()]
    if not numbers or any(type(n) is not int for n in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise ValueError(
            f"{path}: the numbers of the parts must be 0, 1, 2, ... through all categories, got {numbers}."
        )
    parts = {category: tuple(own.values()) for category, own in content.items()}
    return parts, tuple(names[number] for number in range(len(numbers)))


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Obtain it again.") from error


def _wanted(categories: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    """The categories to keep, in the set's order."""
    if categories is None:
        return list(known)
    strangers = [categories] if isinstance(categories, str) else [name for name in categories if name not in known]
    if strangers or not categories:
        got = repr(strangers[0]) if strangers else "none"
        raise ValueError(f"categories must be a list of some of {', '.join(known)}, got {got}.")
    return [name for name in known if name in categories]


def _read_text_layout(
    folder: Path,
    split: str,
    layout: str,
    offsets: Mapping[str, str],
    parts: PartClasses,
    categories: Sequence[str] | None,
    *,
    cache: bool,
) -> Arrays:
    wanted = _wanted(categories, parts)
    missing = [name for name in wanted if name not in offsets]
    if missing:
        raise ValueError(f"{folder / 'synsetoffset2category.txt'} does not name category {missing[0]}.")
    files = _list_files(folder, split, layout, {name: offsets[name] for name in wanted})
    names = list(parts)
    category = [names.index(name) for name, own in files.items() for _ in own]
    paths = [path for own in files.values() for path in own]
    if layout == "points":
        read, first = _read_points_and_seg, 1
    else:
        read, first = partial(read_part_file, with_normals=True), None
    labels = [_seg(path) for path in paths] if layout == "points" else []
    path = cache_path(folder, f"{layout}_{split}", paths + labels, list(parts.items()))
    return cached(
        path if cache else None,
        lambda: read_part_files(
            paths,
            category,
            parts,
            read,
            description=f"Reading {folder.name}",
            first_label=first,
            advice="Repair them or obtain the dataset again.",
        ),
        required=ARRAYS,
    )


def _list_files(folder: Path, split: str, layout: str, offsets: Mapping[str, str]) -> dict[str, list[Path]]:
    """The files of a split by category.

    Raises:
        FileNotFoundError: If a list or listed files are missing; they are counted and the first is named.
        ValueError: If the split is unknown, or a category has no shapes to train on.
    """
    inner, suffix = ("points/", ".pts") if layout == "points" else ("", ".txt")
    if split == "all":
        found = {name: sorted((folder / offset / inner).glob(f"*{suffix}")) for name, offset in offsets.items()}
        if not any(found.values()):
            raise FileNotFoundError(f"No *{suffix} files in the category folders of {folder}.")
        return {name: files for name, files in found.items() if files}
    _check_split(split)
    listed: dict[str, list[Path]] = {name: [] for name in offsets}
    by_folder = {offset: name for name, offset in offsets.items()}
    for part in _SPLITS[split]:
        path = folder / "train_test_split" / f"shuffled_{part}_file_list.json"
        if not path.is_file():
            raise FileNotFoundError(f"No split list {path}. Obtain it, or use another split.")
        entries = _read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"{path} must be a JSON list of names .../category/shape, got a {type(entries).__name__}.")
        for entry in entries:
            if not isinstance(entry, str) or "/" not in entry:
                raise ValueError(f"{path} must be a JSON list of names .../category/shape, got the entry {entry!r}.")
            offset, shape = entry.split("/")[-2:]
            if offset in by_folder:
                listed[by_folder[offset]].append(folder / offset / f"{inner}{shape}{suffix}")
    _check_categories(folder, split, {name: len(own) for name, own in listed.items()})
    files = [file for own in listed.values() for file in own]
    gone = [file for file in files if not file.is_file()]
    if gone:
        raise FileNotFoundError(
            f"{len(gone)} of {len(files)} files that the {split} split of {folder} lists are missing, first {gone[0]}. "
            "Obtain the dataset again, or name the categories that are complete."
        )
    return {name: own for name, own in listed.items() if own}


def _check_split(split: str) -> None:
    if split not in (*_SPLITS, "all"):
        raise ValueError(f"split must be one of {', '.join(_SPLITS)} or all, got {split!r}.")


def _check_categories(folder: Path, split: str, counts: Mapping[str, int]) -> None:
    """Require shapes of every category, by their number, in a split that serves for training."""
    absent = [name for name, count in counts.items() if not count]
    # A category may go untested: its mean IoU is then absent.
    if absent and (split not in ("test", "all") or len(absent) == len(counts)):
        rest = [name for name in counts if name not in absent]
        advice = f"Name the others: categories {rest}" if rest else "Name other categories, or obtain the dataset again"
        raise ValueError(f"The {split} split of {folder} has no shape of {', '.join(absent)}. {advice}.")


def _seg(path: Path) -> Path:
    """The file of labels beside a .pts file."""
    return path.parent.parent / "points_label" / f"{path.stem}.seg"


def _read_points_and_seg(path: Path) -> PartCloud:
    seg = _seg(path)
    if not seg.is_file():
        raise ValueError(f"{path} has no labels: there is no {seg}.")
    points, label = as_points(read_table(path), path=path).points, read_table(seg, is_column=True)
    if label.size != len(label):
        raise ValueError(f"{seg} must hold one label a line, got {label.shape[1]}.")
    if len(points) != len(label):
        raise ValueError(f"{path} holds {len(points)} points, but {seg} {len(label)} labels.")
    return PartCloud(points, None, as_labels(label[:, 0], path=seg))


def _read_h5_layout(folder: Path, split: str, wanted: Sequence[str]) -> Arrays:
    _check_split(split)
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
    _check_categories(folder, split, {names[number]: int(counts[number]) for number in numbers})
    return arrays


def _list_h5_files(folder: Path, split: str) -> list[Path]:
    files: list[Path] = []
    for part in _SPLITS.get(split, ("",)):  # all: whatever the lists say
        listed = folder / f"{part}_hdf5_file_list.txt"
        lines = listed.read_text(encoding="utf-8").split("\n") if listed.is_file() else []
        # The lists have the paths of their author's machine: only the base names count.
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
