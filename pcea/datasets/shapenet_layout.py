"""ShapeNetPart's text layout: one folder of files per category, a list of the categories, and a list per split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pcea.datasets.cache import cache_path, cached
from pcea.datasets.memory import InMemory
from pcea.datasets.part_files import LARGE_ARRAYS, PART_ARRAYS, PartCloud, as_labels, read_part_file, read_part_files
from pcea.datasets.parts import PartClasses
from pcea.io.points import as_points
from pcea.io.tables import read_table
from pcea.io.text import read_names

ShapeNetSplit = Literal["train", "val", "trainval", "test", "all"]
SPLIT_LISTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
"""The lists that make up each split; `all` is every file that is there."""


def category_folders(path: Path) -> dict[str, str]:
    """Read the folder of each category from lines `name folder`."""
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}, which the layout needs. Obtain the dataset again.")
    rows = [line.split() for line in read_names(path)]
    if not rows or any(len(row) != 2 for row in rows):
        raise ValueError(f"{path} must hold lines of a category and its folder. Obtain the dataset again.")
    return dict(rows)


def read_json(path: Path) -> object:
    """Read a JSON file of a dataset; what is wrong with it ends in one line."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Obtain it again.") from error


def wanted_categories(categories: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    """Check the categories to keep, None for all, and put them in the order of the dataset."""
    if categories is None:
        return list(known)
    strangers = [categories] if isinstance(categories, str) else [name for name in categories if name not in known]
    if strangers or not categories:
        got = repr(strangers[0]) if strangers else "none"
        raise ValueError(f"categories must be a list of some of {', '.join(known)}, got {got}.")
    return [name for name in known if name in categories]


def read_text_layout(
    folder: Path,
    split: str,
    layout: str,
    offsets: Mapping[str, str],
    parts: PartClasses,
    categories: Sequence[str] | None,
    *,
    with_normals: bool,
    cache: bool,
    in_memory: InMemory,
) -> dict[str, Any]:
    """Read one split in a text layout, from the cache if it is there.

    Args:
        folder: Folder of the dataset.
        split: Name of the split; see `SPLIT_LISTS`.
        layout: `normals` for files x y z nx ny nz part, `points` for points/*.pts with points_label/*.seg.
        offsets: Folder of each category, by its name.
        parts: The classes of each category, by its name.
        categories: The categories to keep; None for all.
        with_normals: Also return normals.
        cache: Keep the parsed files in `folder/.pcea`.
        in_memory: Whether to hold the clouds in memory; see `fits_in_memory`.

    Returns:
        The arrays of `read_part_files`; the large ones are `StoredArray` if they are not held in memory.

    Raises:
        FileNotFoundError: If a list or listed files are missing.
        ValueError: If a file cannot be read, or the split or a category is unknown or empty.
    """
    wanted = wanted_categories(categories, parts)
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
        names=(*PART_ARRAYS, "normal") if with_normals else PART_ARRAYS,
        large=LARGE_ARRAYS,
        in_memory=in_memory,
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
    check_split(split)
    listed: dict[str, list[Path]] = {name: [] for name in offsets}
    by_folder = {offset: name for name, offset in offsets.items()}
    for part in SPLIT_LISTS[split]:
        path = folder / "train_test_split" / f"shuffled_{part}_file_list.json"
        if not path.is_file():
            raise FileNotFoundError(f"No split list {path}. Obtain it, or use another split.")
        entries = read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"{path} must be a JSON list of names .../category/shape, got a {type(entries).__name__}.")
        for entry in entries:
            if not isinstance(entry, str) or "/" not in entry:
                raise ValueError(f"{path} must be a JSON list of names .../category/shape, got the entry {entry!r}.")
            offset, shape = entry.split("/")[-2:]
            if offset in by_folder:
                listed[by_folder[offset]].append(folder / offset / f"{inner}{shape}{suffix}")
    check_categories(folder, split, {name: len(own) for name, own in listed.items()})
    files = [file for own in listed.values() for file in own]
    gone = [file for file in files if not file.is_file()]
    if gone:
        raise FileNotFoundError(
            f"{len(gone)} of {len(files)} files that the {split} split of {folder} lists are missing, first {gone[0]}. "
            "Obtain the dataset again, or name the categories that are complete."
        )
    return {name: own for name, own in listed.items() if own}


def check_split(split: str) -> None:
    """Refuse a split that no list makes up."""
    if split not in (*SPLIT_LISTS, "all"):
        raise ValueError(f"split must be one of {', '.join(SPLIT_LISTS)} or all, got {split!r}.")


def check_categories(folder: Path, split: str, counts: Mapping[str, int]) -> None:
    """Require shapes of every category, whose numbers are `counts`, in a split to train or validate on."""
    absent = [name for name, count in counts.items() if not count]
    # A category may have no test shapes: its mean IoU is then absent.
    if absent and (split not in ("test", "all") or len(absent) == len(counts)):
        rest = [name for name in counts if name not in absent]
        advice = f"Name the others: categories {rest}" if rest else "Name other categories, or obtain the dataset again"
        raise ValueError(f"The {split} split of {folder} has no shape of {', '.join(absent)}. {advice}.")


def _seg(path: Path) -> Path:
    """The file of labels that belongs to a .pts file."""
    return path.parent.parent / "points_label" / f"{path.stem}.seg"


def _read_points_and_seg(path: Path) -> PartCloud:
    seg = _seg(path)
    if not seg.is_file():
        raise ValueError(f"{path} has no labels: there is no {seg}.")
    points, label = as_points(read_table(path), path=path).points, read_table(seg, is_column=True)
    if label.size != len(label):
        raise ValueError(f"{seg} must hold one label per line, got {label.shape[1]}.")
    if len(points) != len(label):
        raise ValueError(f"{path} holds {len(points)} points, but {seg} {len(label)} labels.")
    return PartCloud(points, None, as_labels(label[:, 0], path=seg))
