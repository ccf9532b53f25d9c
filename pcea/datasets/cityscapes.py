"""Cityscapes with its fine annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pcea.datasets.batches import IGNORE
from pcea.datasets.masks import MaskFiles, find_by_name, find_dataset, pair_files


def read_cityscapes(root: str | Path, split: Literal["train", "val"]) -> MaskFiles:
    """Cityscapes, fine annotations: 19 classes, 2,975 images to train on and 500 to validate by, 1024 x 2048 pixels.

    Args:
        root: Folder that holds `leftImg8bit` and `gtFine`, or the one above `cityscapes`.
        split: train or val; the masks of test are not public.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If images and masks do not match.
    """
    from torchvision.datasets import Cityscapes

    folder = find_dataset(root, "gtFine", "cityscapes")
    images, masks = [], []
    if not (folder / "leftImg8bit" / split).is_dir():
        raise FileNotFoundError(f"No folder {folder / 'leftImg8bit' / split}.")
    for city in sorted(path.name for path in (folder / "leftImg8bit" / split).iterdir() if path.is_dir()):
        pictures = find_by_name(folder / "leftImg8bit" / split / city, None, (".png",))
        labels = find_by_name(folder / "gtFine" / split / city, None, (".png",))
        ours, theirs = pair_files(
            {name.removesuffix("_leftImg8bit"): path for name, path in pictures.items()},
            {name.removesuffix("_gtFine_labelIds"): p for name, p in labels.items() if name.endswith("_labelIds")},
        )
        images += ours
        masks += theirs
    if not images:
        raise FileNotFoundError(f"No city folders under {folder / 'leftImg8bit' / split}.")
    known = [c for c in Cityscapes.classes if c.id >= 0]
    return MaskFiles(
        images,
        masks,
        classes={c.id: c.train_id for c in known} | {IGNORE: IGNORE},
        class_names=[c.name for c in sorted(known, key=lambda c: c.train_id) if c.train_id != IGNORE],
    )
