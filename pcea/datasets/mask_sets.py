"""Pascal VOC 2012, ADE20K, Cityscapes and CamVid, in the folders in which they are distributed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pcea.datasets.batches import IGNORE
from pcea.datasets.masks import MaskFiles, find_files, number_classes, pair_files, read_list

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_VOID = 11


def read_voc2012(root: str | Path, split: Literal["train", "trainaug", "val"]) -> MaskFiles:
    """Pascal VOC 2012: 21 classes, 1,464 images to train on (10,582 in `trainaug`) and 1,449 to validate by.

    Args:
        root: Folder that holds `VOCdevkit/VOC2012` or `VOC2012`, or is one of them.
        split: train and val are official. `trainaug` is the usual list of those of the Semantic Boundaries Dataset that
            are not in val; its masks are in `SegmentationClassAug`.

    Raises:
        FileNotFoundError: If the folder, the list or a file that the list names is missing.
    """
    folder = _find(root, "ImageSets/Segmentation", "VOC2012", "VOCdevkit/VOC2012")
    path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = read_list(path)
    masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
    images, paths = pair_files(
        find_files(folder / "JPEGImages", names, (".jpg",), listed_in=str(path)),
        find_files(folder / masks, names, (".png",), listed_in=str(path)),
    )
    return MaskFiles(images, paths, classes=number_classes(len(VOC_CLASSES)), class_names=VOC_CLASSES)


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
    folder = _find(root, "annotations", "ADEChallengeData2016")
    names = [f"class {number}" for number in range(1, 151)]
    table = folder / "objectInfo150.txt"
    if table.is_file():
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        names = [row[-1].split(",")[0].strip() for row in rows]
        if len(names) != 150:
            raise ValueError(f"{table} must have a row for each of 150 classes after the first, got {len(names)}.")
    images, masks = pair_files(
        find_files(folder / "images" / split, None, (".jpg",)),
        find_files(folder / "annotations" / split, None, (".png",)),
    )
    return MaskFiles(images, masks, classes=number_classes(150, ignored=(0,), first=1), class_names=names)


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

    folder = _find(root, "gtFine", "cityscapes")
    images, masks = [], []
    if not (folder / "leftImg8bit" / split).is_dir():
        raise FileNotFoundError(f"No folder {folder / 'leftImg8bit' / split}.")
    for city in sorted(path.name for path in (folder / "leftImg8bit" / split).iterdir() if path.is_dir()):
        pictures = find_files(folder / "leftImg8bit" / split / city, None, (".png",))
        labels = find_files(folder / "gtFine" / split / city, None, (".png",))
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


def read_camvid(root: str | Path, split: Literal["train", "val", "trainval", "test"]) -> MaskFiles:
    """CamVid, as the authors of SegNet divided and scaled it: 11 classes, 367 + 101 + 233 images of 360 x 480 pixels.

    Args:
        root: Folder that holds `CamVid`, or is it: `train`, `trainannot`, `val`, `valannot`, `test`, `testannot`.
        split: train, val or test; or the first two together.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If images and annotations do not match.
    """
    folder = _find(root, "trainannot", "CamVid")
    images, masks = [], []
    for part in ("train", "val") if split == "trainval" else (split,):
        ours, theirs = pair_files(
            find_files(folder / part, None, (".png", ".jpg")), find_files(folder / f"{part}annot", None, (".png",))
        )
        images += ours
        masks += theirs
    classes = number_classes(len(CAMVID_CLASSES), ignored=(CAMVID_VOID, IGNORE))
    return MaskFiles(images, masks, classes=classes, class_names=CAMVID_CLASSES)


def _find(root: str | Path, proof: str, *names: str) -> Path:
    """The folder of a dataset, known by a folder in it: `root` itself or one of these in it."""
    candidates = [Path(root), *(Path(root, name) for name in names)]
    for folder in candidates:
        if (folder / proof).is_dir():
            return folder
    raise FileNotFoundError(
        f"No {names[-1]} under {root}: none of {', '.join(f'{c / proof}' for c in candidates)} is there."
    )
