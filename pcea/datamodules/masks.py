"""Data modules of images with a class a pixel. Constructors touch no disk; `setup` does."""

from __future__ import annotations

from typing import Any, Literal

from pcea.datamodules.images import ImageDataModule, check_test_fraction, divide
from pcea.datasets.image_folder import Split
from pcea.datasets.images import ImageDataset
from pcea.datasets.mask_folder import has_mask_splits, read_mask_folder
from pcea.datasets.mask_sets import read_ade20k, read_camvid, read_cityscapes, read_voc2012


class MaskDataModule(ImageDataModule):
    """Images with a class a pixel; pixels that count nowhere have the label 255, whatever value the files have.

    Args:
        batch_size: Images in a training batch, per device.
        eval_batch_size: Images in a batch of validation and test, which are measured at full size: 1 where their sizes
            differ.
        **options: Those of `ImageDataModule`. `train_transforms` are called with image and mask.
    """

    def __init__(self, *, batch_size: int = 8, eval_batch_size: int = 1, **options: Any):
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, **options)


class VOC2012DataModule(MaskDataModule):
    """Pascal VOC 2012. Its val, on which results are reported, is the test split; the masks of its test are secret.

    Args:
        root: Folder that holds `VOCdevkit/VOC2012` or `VOC2012`.
        train_split: `train`, or `trainaug` with the masks of `SegmentationClassAug`, as in the papers.
        **options: Those of `MaskDataModule`.
    """

    def __init__(self, root: str = "data", *, train_split: Literal["train", "trainaug"] = "trainaug", **options: Any):
        super().__init__(**options)
        self.root, self.train_split = root, train_split

    def load(self, split: Split) -> ImageDataset | None:
        """List the files of one split."""
        return None if split == "val" else read_voc2012(self.root, "val" if split == "test" else self.train_split)


class ADE20KDataModule(MaskDataModule):
    """ADE20K (scene parsing challenge). Its validation, on which results are reported, is the test split.

    Args:
        root: Folder that holds `ADEChallengeData2016`.
        **options: Those of `MaskDataModule`.
    """

    def __init__(self, root: str = "data", **options: Any):
        super().__init__(**options)
        self.root = root

    def load(self, split: Split) -> ImageDataset | None:
        """List the files of one split."""
        return None if split == "val" else read_ade20k(self.root, "validation" if split == "test" else "training")


class CityscapesDataModule(MaskDataModule):
    """Cityscapes. Its val, on which results are reported, is the test split; the masks of its test are secret.

    Args:
        root: Folder that holds `leftImg8bit` and `gtFine`, or the one above `cityscapes`.
        **options: Those of `MaskDataModule`.
    """

    def __init__(self, root: str = "data", **options: Any):
        super().__init__(**options)
        self.root = root

    def load(self, split: Split) -> ImageDataset | None:
        """List the files of one split."""
        return None if split == "val" else read_cityscapes(self.root, "val" if split == "test" else "train")


class CamVidDataModule(MaskDataModule):
    """CamVid at 360 x 480 pixels, with its official splits.

    Args:
        root: Folder that holds `CamVid`.
        train_split: `train`, which leaves the official `val` to validate by, or both, `trainval`.
        in_memory: Read all images once and keep them, as bytes.
        **options: Those of `MaskDataModule`; `val_fraction` has no effect with `train`.
    """

    def __init__(
        self,
        root: str = "data",
        *,
        train_split: Literal["train", "trainval"] = "train",
        in_memory: bool = True,
        **options: Any,
    ):
        super().__init__(in_memory=in_memory, **options)
        self.root, self.train_split = root, train_split

    def load(self, split: Split) -> ImageDataset | None:
        """List the files of one split."""
        if split == "train":
            return read_camvid(self.root, self.train_split)
        return None if (split, self.train_split) == ("val", "trainval") else read_camvid(self.root, split)


class MaskFolderDataModule(MaskDataModule):
    """The user's own images and masks, `root/images/x.jpg` and `root/masks/x.png`.

    Splits are folders (`images/train`, `masks/train`, ...) or lists (`root/train.txt`, ...) of train, val and test;
    with val and without test, val is the test split. Without any, a share is held out for the test.

    Args:
        root: The folder.
        num_classes: Number of classes; None counts the names in `root/classes.yaml`.
        ignore_value: Value of pixels in the masks that count nowhere; None if there are none.
        test_fraction: Share held out for the test if the folder has no splits of its own.
        **options: Those of `MaskDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        num_classes: int | None = None,
        ignore_value: int | None = 255,
        test_fraction: float = 0.2,
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.num_classes, self.ignore_value = root, num_classes, ignore_value
        self.test_fraction = test_fraction
        check_test_fraction(test_fraction)

    def load(self, split: Split) -> ImageDataset | None:
        """List the files of one split."""
        files = read_mask_folder(self.root, split, num_classes=self.num_classes, ignore_value=self.ignore_value)
        if files is None or has_mask_splits(self.root):
            return files
        return divide(files, split, test_fraction=self.test_fraction)
