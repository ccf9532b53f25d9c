"""Folders of the user's own meshes and point clouds, one folder per class: which files belong to a split."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcea.datasets.splits import check_test_fraction, share_of
from pcea.io.points import check_axis
from pcea.io.readers import ENDINGS
from pcea.io.walk import walk

_SPLITS = ("train", "test")
_STORED = {*_SPLITS, "val"}  # folders of a split
# What splits are called, in small letters; other spellings are refused.
_SPLIT_NAMES = {*_STORED, "training", "testing", "valid", "validation"}
_LIKE_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(sorted(_SPLIT_NAMES))})(?![a-z])")
# Files that come with meshes without being one, or that file managers leave there. Any other unknown file is reported
# as unreadable.
_PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".tga", ".bmp"}
_COMPANIONS = {"", ".mtl", ".bin", ".json", ".md", ".pdf", ".db", ".ini", *_PICTURES}
# What is certainly a shape; text files may be lists or notes.
_SHAPES = {*ENDINGS} - {".txt", ".csv"}


def list_split(root: Path, split: str, *, up: str, test_fraction: float, seed: int) -> dict[str, list[Path]]:
    """The files of one split by class, in alphabetical order; see `PointFolder` for layouts and arguments.

    Raises:
        FileNotFoundError: If `root` is missing, or has no class folders.
        ValueError: If an argument is out of range, or a class or the split has no files.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be train or test, got {split!r}.")
    check_test_fraction(test_fraction)
    check_axis(up)  # a wrong one is not the files' fault
    files = _list_files(root, split, test_fraction=test_fraction, seed=seed)
    if not any(files.values()):
        raise ValueError(f"The {split} split of {root} is empty. Add files or change test_fraction={test_fraction}.")
    return files


def list_files(root: Path) -> dict[str, list[Path]]:
    """All mesh and cloud files of each class, of all splits if there are any; see `PointFolder` for layouts.

    Raises:
        FileNotFoundError: If `root` is missing.
        ValueError: If there are splits beside classes.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}.")
    folders = _folders(root)
    inner = [folder for split in folders for folder in _folders(split)]
    if inner and {folder.name for folder in folders} <= _STORED:
        folders = inner
    else:
        check_classes(root, [folder.name for folder in folders])
    files: dict[str, list[Path]] = {}
    for folder in sorted(folders, key=lambda folder: folder.name):
        files.setdefault(folder.name, []).extend(_files(folder))
    return files


def _list_files(root: Path, split: str, *, test_fraction: float, seed: int) -> dict[str, list[Path]]:
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}.")
    folders = _folders(root)
    by_class: dict[str, dict[str, list[Path]]] = {}
    if {folder.name for folder in folders} <= _STORED:  # else `train` is a class, as in car, bus, train
        stored = _stored_splits(root)
        for name in sorted({folder.name for part in stored.values() for folder in _folders(root / part)}):
            by_class[name] = {part: _files(root / folder / name) for part, folder in stored.items()}
    else:
        check_classes(root, [folder.name for folder in folders])
        for folder in folders:
            by_class[folder.name] = _divided(folder) or _divide(_files(folder), test_fraction, seed)
    if not by_class:
        raise FileNotFoundError(
            f"No class folders under {root}: expected {root}/<class>/* or {root}/{split}/<class>/*."
        )
    outside = [root] if folders[0].name not in _STORED else [root, *folders]
    _warn_of_loose_files(
        [path for folder in outside for path in sorted(folder.iterdir()) if path.suffix.lower() in _SHAPES]
    )
    for name, parts in by_class.items():
        if not any(parts.values()):
            raise ValueError(f"Class {name!r} under {root} has no mesh or cloud files. Add some or remove its folder.")
    _warn_of_shared_files(by_class)
    return {name: parts[split] for name, parts in by_class.items()}


def _warn_of_loose_files(loose: list[Path]) -> None:
    if loose:
        warnings.warn(
            f"{len(loose)} files lie in no class folder and are left out, first {loose[0]}: move each one into the "
            "folder of its class.",
            stacklevel=2,
        )


def _warn_of_shared_files(by_class: dict[str, dict[str, list[Path]]]) -> None:
    """Warn of files of the training split that links make test files too: what is measured on them says nothing."""
    train, test = (
        {(at.st_dev, at.st_ino): path for parts in by_class.values() for path in parts[split] if (at := path.stat())}
        for split in _SPLITS
    )
    shared = [f"{train[place]} and {test[place]}" for place in train.keys() & test.keys()]
    if shared:
        warnings.warn(
            f"{len(shared)} files are in the training split and in the test split, first {min(shared)}: what is "
            "measured on them is too good.",
            stacklevel=2,
        )


def _divided(folder: Path) -> dict[str, list[Path]] | None:
    """The files of a class by split; None if they are not in folders of splits."""
    within: dict[str, list[Path]] = {}
    for path in _files(folder):
        within.setdefault(path.relative_to(folder).parts[0], []).append(path)
    parts = {part: within.get(stored, []) for part, stored in _stored_splits(folder).items()}
    if not any(parts.values()):
        return None
    if loose := [path for name, paths in within.items() if name not in _STORED for path in paths]:
        raise ValueError(
            f"{folder} is divided into train and test, but has {len(loose)} files beside them, first {loose[0]}: move "
            "them into one of the two."
        )
    return parts


def check_classes(root: Path, names: Sequence[str]) -> None:
    """Refuse splits beside other folders, which would all be classes: `train` is one only if it holds no folders.

    Args:
        root: The folder.
        names: Those of the folders in it.

    Raises:
        ValueError: If one of them looks like a split.
    """
    inner_names = {name: {path.name for path in _folders(root / name)} for name in names}
    for name, inner in inner_names.items():
        if name.lower() in _SPLIT_NAMES and not inner <= _STORED:
            raise ValueError(
                f"{root / name} holds folders, as a split does, but {root} holds {', '.join(names)}. Expected "
                f"{root}/train/<class>/* and {root}/test/<class>/* with nothing beside them, or {root}/<class>/*."
            )
    if len(names) > 1 and all(inner_names.values()) and all(_LIKE_SPLIT.search(name.lower()) for name in names):
        raise ValueError(
            f"{root} holds {', '.join(names)}, which look like splits, with folders in them: name them train, val and "
            "test."
        )


def _stored_splits(folder: Path) -> dict[str, str]:
    """The folders of train and test; `val` is the test split where there is no `test`, as for images."""
    has_val_alone = (folder / "val").is_dir() and not (folder / "test").is_dir()
    return {"train": "train", "test": "val" if has_val_alone else "test"}


def _divide(files: list[Path], test_fraction: float, seed: int) -> dict[str, list[Path]]:
    order = np.random.default_rng(seed).permutation(len(files))
    test = {files[index] for index in order[: share_of(len(files), test_fraction)]}
    return {"train": [file for file in files if file not in test], "test": [file for file in files if file in test]}


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    paths = (here / name for here, names in walk(folder) for name in names if name[0] != ".")
    return sorted(path for path in paths if path.is_file() and path.suffix.lower() not in _COMPANIONS)
