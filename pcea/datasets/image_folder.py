"""Folders of pictures, a folder a class, and CIFAR-10."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch

from pcea.datasets.images import IMAGE_SUFFIXES, ImageDataset, ImageFiles, ImageTensors

Split = Literal["train", "val", "test"]
SPLITS = ("train", "val", "test")


def stored_split(split: Split, stored: Collection[str], where: str) -> str | None:
    """Which of the stored splits serves as train, val or test.

    Where `val` is stored without `test`, as in ImageNet, it is what results are reported on: it serves as the test
    split, and never to choose by.

    Args:
        split: What is wanted.
        stored: What there is of train, val and test.
        where: Their folder, for the message.

    Returns:
        The stored one, or None if there is nothing to validate by.

    Raises:
        FileNotFoundError: If there is nothing to train or test on.
    """
    if split == "val":
        return "val" if {"val", "test"} <= {*stored} else None
    if split == "test" and "test" not in stored and "val" in stored:
        return "val"
    if split not in stored:
        wanted = "a `test` or a `val`" if split == "test" else "a `train`"
        raise FileNotFoundError(f"{where} has {' and '.join(sorted(stored))}, but not {wanted}.")
    return split


def has_splits(root: str | Path) -> bool:
    """Whether the folders in `root` are its splits, not classes; `train` may also be a class, as in car, bus, train.

    Raises:
        FileNotFoundError: If there is no such folder, or none in it.
    """
    return {*_folders(Path(root))} <= {*SPLITS}


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


def read_cifar10(root: str | Path, split: Split) -> ImageDataset | None:
    """CIFAR-10 in memory: 50,000 pictures of 32 x 32 pixels to train on, 10,000 to test on.

    Args:
        root: Folder that holds `cifar-10-batches-py`, the official files, which are verified, or
            `cifar10/train/<class>/*` and `cifar10/test/<class>/*`.
        split: train or test; there is no official val.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If a file is damaged.
    """
    root = Path(root)
    if split == "val":
        return None
    if (root / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10

        try:
            official = CIFAR10(str(root), train=split == "train", download=False)
        except RuntimeError as error:
            raise ValueError(f"Files under {root / 'cifar-10-batches-py'} are missing or damaged.") from error
        images = torch.from_numpy(official.data).permute(0, 3, 1, 2).contiguous()
        return ImageTensors(images, torch.tensor(official.targets), class_names=official.classes)
    if (root / "cifar10").is_dir():
        pictures = read_image_folder(root / "cifar10", split)
        assert pictures is not None
        return pictures.in_memory(f"Reading {root / 'cifar10' / split}")
    raise FileNotFoundError(
        f"No CIFAR-10 under {root}: expected {root / 'cifar-10-batches-py'} with the official Python files, or "
        f"{root / 'cifar10' / split}/<class>/* with pictures."
    )


def _folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}.")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"No class folders under {root}: expected {root}/<class>/*.")
    return names


def _list(folder: Path, classes: list[str], *, may_lack: bool) -> ImageFiles:
    """The pictures of all classes; `may_lack` allows for classes without any."""
    from torchvision.datasets.folder import make_dataset

    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(folder, numbers, extensions=IMAGE_SUFFIXES, allow_empty=True)
    found = [(path, label) for path, label in found if not Path(path).name.startswith(".")]
    label = torch.tensor([label for _, label in found], dtype=torch.int64)
    empty = [name for name, count in zip(classes, label.bincount(minlength=len(classes))) if not count]
    if empty and not (may_lack and found):
        raise ValueError(
            f"Class {empty[0]!r} has no pictures under {folder} (files end in {', '.join(IMAGE_SUFFIXES)}). Add some "
            "or remove its folder."
        )
    return ImageFiles([path for path, _ in found], label, class_names=classes)
