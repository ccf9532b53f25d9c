"""CamVid, as the authors of SegNet divided and scaled it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pcea.datasets.batches import IGNORE
from pcea.datasets.masks import MaskFiles, find_by_name, find_dataset, number_classes, pair_files

CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_VOID = 11


def read_camvid(root: str | Path, split: Literal["train", "val", "trainval", "test"]) -> MaskFiles:
    """CamVid, as the authors of SegNet divided and scaled it: 11 classes, 367 + 101 + 233 images of 360 x 480 pixels.

    Args:
        root: Folder that holds `CamVid`, or is it: `train`, `trainannot`, `val`, `valannot`, `test`, `testannot`.
        split: train, val or test; or the first two together.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If images and annotations do not match.
    """
    folder = find_dataset(root, "trainannot", "CamVid")
    images, masks = [], []
    for part in ("train", "val") if split == "trainval" else (split,):
        ours, theirs = pair_files(
            find_by_name(folder / part, None, (".png", ".jpg")), find_by_name(folder / f"{part}annot", None, (".png",))
        )
        images += ours
        masks += theirs
    classes = number_classes(len(CAMVID_CLASSES), ignored=(CAMVID_VOID, IGNORE))
    return MaskFiles(images, masks, classes=classes, class_names=CAMVID_CLASSES)
