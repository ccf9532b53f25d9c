"""Folders of pictures, one folder per class."""

from __future__ import annotations

from pathlib import Path

import torch

from pcea.datasets.folders import check_classes
from pcea.datasets.images import IMAGE_SUFFIXES, ImageFiles
from pcea.datasets.splits import SPLITS, Split, stored_split
from pcea.io.walk import walk


def has_splits(root: str | Path) -> bool:
    """Whether the folders in `root` are its splits, not classes; `train` may also be a class, as in car, bus, train.

    Raises:
        FileNotFoundError: If there is no such folder, or none in it.
        ValueError: If there are splits beside other folders.
    """
    names = _folders(Path(root))
    if {*names} <= {*SPLITS}:
        return True
    check_classes(Path(root), names)
    for name in names:
        inner = {path.name for path in (Path(root) / name).iterdir() if path.is_dir()}
        if {"train", "test"} <= inner <= {*SPLITS}:
            raise ValueError(
                f"{Path(root) / name} is divided into train and test; of pictures only all classes together can be: "
                f"expected {root}/train/{name}/* and {root}/test/{name}/*."
            )
    return False


def read_image_folder(root: str | Path, split: Split | None = None) -> ImageFiles | None:
    """The pictures of a folder, the name of their folder being the class.

    Classes are in alphabetical order. Pictures may lie in deeper folders; hidden files are ignored.

    Args:
        root: The folder.
        split: None for `root/<class>/*`. Else train, val or test of `root/train/<class>/*` with `root/val/<class>/*`,
            or `root/test/<class>/*`, or both; see `stored_split` for which is which.

    Returns:
        The pictures, or None for `val` if there is none.

    Raises:
        FileNotFoundError: If `root`, or the split, is missing or holds no class folder.
        ValueError: If a class has no pictures, or val or test has a class that train has not.
    """
    root = Path(root)
    if split is None:
        return _list(root, _folders(root), may_lack=False)
    stored = stored_split(split, _folders(root), str(root))
    if stored is None:
        return None
    classes = _folders(root / "train")
    strangers = sorted({*_folders(root / stored)} - {*classes})
    if strangers:
        raise ValueError(f"{root / stored} has the class {strangers[0]!r}, which {root / 'train'} has not.")
    return _list(root / stored, classes, may_lack=stored != "train")


def _folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}.")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"No class folders under {root}: expected {root}/<class>/*.")
    return names


def _pictures(folder: Path) -> list[str]:
    """The picture files in a folder and those below it, see `walk`."""
    found = [
        (str(here), name)
        for here, names in walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."
    ]
    return [str(Path(here, name)) for here, name in sorted(found)]


def _list(folder: Path, classes: list[str], *, may_lack: bool) -> ImageFiles:
    """The pictures of all classes; `may_lack` allows for classes without any."""
    found = [(path, number) for number, name in enumerate(classes) for path in _pictures(folder / name)]
    label = torch.tensor([label for _, label in found], dtype=torch.int64)
    empty = [name for name, count in zip(classes, label.bincount(minlength=len(classes))) if not count]
    if empty and not (may_lack and found):
        raise ValueError(
            f"Class {empty[0]!r} has no pictures under {folder} (files end in {', '.join(IMAGE_SUFFIXES)}). Add some "
            "or remove its folder."
        )
    return ImageFiles([path for path, _ in found], label, class_names=classes)
