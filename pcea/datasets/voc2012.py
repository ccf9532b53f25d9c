"""Pascal VOC 2012, semantic segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pcea.datasets.masks import MaskFiles, find_by_name, find_dataset, number_classes, pair_files, read_list

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc2012(root: str | Path, split: Literal["train", "trainaug", "val"]) -> MaskFiles:
    """Pascal VOC 2012: 21 classes, 1,464 images to train on (10,582 in `trainaug`) and 1,449 to validate by.

    Args:
        root: Folder that holds `VOCdevkit/VOC2012` or `VOC2012`, or is one of them.
        split: train and val are official. `trainaug` is the usual list of those of the Semantic Boundaries Dataset that
            are not in val; its masks are in `SegmentationClassAug`.

    Raises:
        FileNotFoundError: If the folder, the list or a file that the list names is missing.
    """
    folder = find_dataset(root, "ImageSets/Segmentation", "VOC2012", "VOCdevkit/VOC2012")
    path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = read_list(path)
    masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
    images, paths = pair_files(
        find_by_name(folder / "JPEGImages", names, (".jpg",), listed_in=str(path)),
        find_by_name(folder / masks, names, (".png",), listed_in=str(path)),
    )
    return MaskFiles(images, paths, classes=number_classes(len(VOC_CLASSES)), class_names=VOC_CLASSES)
