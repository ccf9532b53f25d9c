"""ADE20K in the form of its scene parsing challenge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pcea.datasets.masks import MaskFiles, find_by_name, find_dataset, number_classes, pair_files


def read_ade20k(root: str | Path, split: Literal["training", "validation"]) -> MaskFiles:
    """ADE20K in the form of its scene parsing challenge: 150 classes, 20,210 images to train on, 2,000 to validate by.

    Args:
        root: Folder that holds `ADEChallengeData2016`, or is it. Classes are named by its `objectInfo150.txt`, if it is
            there.
        split: training or validation.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If images and annotations do not match.
    """
    folder = find_dataset(root, "annotations", "ADEChallengeData2016")
    names = [f"class {number}" for number in range(1, 151)]
    table = folder / "objectInfo150.txt"
    if table.is_file():
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        names = [row[-1].split(",")[0].strip() for row in rows]
        if len(names) != 150:
            raise ValueError(f"{table} must have a row for each of 150 classes after the first, got {len(names)}.")
    images, masks = pair_files(
        find_by_name(folder / "images" / split, None, (".jpg",)),
        find_by_name(folder / "annotations" / split, None, (".png",)),
    )
    return MaskFiles(images, masks, classes=number_classes(150, ignored=(0,), first=1), class_names=names)
