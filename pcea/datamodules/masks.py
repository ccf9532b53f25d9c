"""Data modules of semantic segmentation: images with the class of each pixel. Constructors touch no disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pcea.datamodules.images import ImageDataModule
from pcea.datasets.ade20k import read_ade20k
from pcea.datasets.camvid import read_camvid
from pcea.datasets.cityscapes import read_cityscapes
from pcea.datasets.mask_folder import check_mask_classes, has_mask_splits, read_mask_folder
from pcea.datasets.masks import MaskFiles
from pcea.datasets.splits import Split, TrainOrTest, check_test_fraction, divide
from pcea.datasets.voc2012 import read_voc2012


class MaskDataModule(ImageDataModule):
    """Images with the class of each pixel; ignored pixels have the label 255, whatever their value in the files.

    Args:
        root: Folder of the dataset, or one above it; see the dataset's reader in `pcea.datasets`.
        batch_size: Images per training batch, on each device.
        eval_batch_size: Images per batch in validation and test, which see whole images: 1 if their sizes differ.
        **options: Those of `ImageDataModule`. `train_transforms` are called with image and mask.
    """

    def __init__(self, root: str = "data", *, batch_size: int = 8, eval_batch_size: int = 1, **options: Any):
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, **options)
        self.root = root


class VOC2012DataModule(MaskDataModule):
    """Pascal VOC 2012. The masks of its test are secret, so results are reported on val, which is the test split here.

    Args:
        root: Folder that holds `VOCdevkit/VOC2012` or `VOC2012`.
        train_split: `train`, or `trainaug` with the masks of `SegmentationClassAug`, as in the papers.
        **options: Those of `MaskDataModule`.
    """

    def __init__(self, root: str = "data", *, train_split: Literal["train", "trainaug"] = "trainaug", **options: Any):
        super().__init__(root, **options)
        self.train_split = train_split

    def load(self, split: TrainOrTest) -> MaskFiles:
        """List the files of one split."""
        return read_voc2012(self.root, self.train_split if split == "train" else "val")


class ADE20KDataModule(MaskDataModule):
    """ADE20K (scene parsing challenge). Results are reported on its validation split, which is the test split here."""

    def load(self, split: TrainOrTest) -> MaskFiles:
        """List the files of one split."""
        return read_ade20k(self.root, "training" if split == "train" else "validation")


class CityscapesDataModule(MaskDataModule):
    """Cityscapes. The masks of its test are secret, so results are reported on val, which is the test split here."""

    def load(self, split: TrainOrTest) -> MaskFiles:
        """List the files of one split."""
        return read_cityscapes(self.root, "train" if split == "train" else "val")


class CamVidDataModule(MaskDataModule):
    """CamVid at 360 x 480 pixels, with its official splits.

    Args:
        root: Folder that holds `CamVid`.
        train_split: `train`, with the official `val` for validation, or both, `trainval`.
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
        super().__init__(root, in_memory=in_memory, **options)
        self.train_split = train_split

    def load(self, split: TrainOrTest) -> MaskFiles:
        """List the files of one split."""
        return read_camvid(self.root, self.train_split if split == "train" else "test")

    def load_val(self) -> MaskFiles | None:
        """List the official validation files, unless they are trained on."""
        return read_camvid(self.root, "val") if self.train_split == "train" else None


class MaskFolderDataModule(MaskDataModule):
    """The user's own images and masks, `root/images/x.jpg` and `root/masks/x.png`.

    Splits are folders (`images/train`, `masks/train`, ...) or lists (`root/train.txt`, ...) of train, val and test.
    Without test, val is the test split. Without any splits, a share is held out as the test split.

    Args:
        root: The folder.
        num_classes: Number of classes; None counts the names in `root/classes.yaml`.
        ignore_value: Value of ignored pixels in the masks, unless `class_values` has it; None if there are none.
        class_values: Value of each class in the masks, such as 0 and 255; None for 0, 1, 2 ...
        test_fraction: Share held out as the test split if the folder has no splits of its own.
        **options: Those of `MaskDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        num_classes: int | None = None,
        ignore_value: int | None = 255,
        class_values: Sequence[int] | None = None,
        test_fraction: float = 0.2,
        **options: Any,
    ):
        super().__init__(root, **options)
        self.num_classes, self.ignore_value, self.class_values = num_classes, ignore_value, class_values
        self.test_fraction = test_fraction
        check_test_fraction(test_fraction)

    def load(self, split: TrainOrTest) -> MaskFiles:
        """List the files of one split."""
        files = self._read(split)
        assert files is not None, "only val may be absent"
        if not has_mask_splits(self.root):
            files = divide(files, split, test_fraction=self.test_fraction)
        if split == "train":
            self._train_files = files
        return files

    def load_val(self) -> MaskFiles | None:
        """List the files of the stored validation split, if it is not the test split."""
        return self._read("val") if has_mask_splits(self.root) else None

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, once; before training, look whether every class occurs.

        Raises:
            ValueError: If only one class does.
        """
        is_new = "train" not in self.sets
        super().setup(stage)
        if stage == "fit" and is_new:
            check_mask_classes(self._train_files, self.root)

    def _read(self, split: Split) -> MaskFiles | None:
        return read_mask_folder(
            self.root,
            split,
            num_classes=self.num_classes,
            ignore_value=self.ignore_value,
            class_values=self.class_values,
        )
