"""Data modules of images with objects. Constructors touch no disk; `setup` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pcea.datamodules.images import SplitDataModule, check_test_fraction, divide
from pcea.datamodules.points import global_seed
from pcea.datasets.coco import CocoObjects
from pcea.datasets.image_folder import Split
from pcea.datasets.mask_folder import has_mask_splits
from pcea.datasets.object_folder import read_object_folder
from pcea.datasets.objects import ObjectDataset, TransformedObjects
from pcea.datasets.voc_objects import VocObjects


class ObjectDataModule(SplitDataModule):
    """Images of any sizes with the objects in them; batches are `ObjectBatch`es.

    Transforms are called with an image and a dictionary of its objects, as those of `torchvision.transforms.v2` for
    detection want it; see `TransformedObjects`. Training leaves out regions of many objects (`iscrowd`), in which
    evaluation counts no detection.

    Args:
        batch_size: Images in a training batch, per device.
        eval_batch_size: Images in a batch of validation and test.
        **options: Those of `SplitDataModule`.
    """

    def __init__(self, *, batch_size: int = 2, eval_batch_size: int = 1, **options: Any):
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, **options)

    root: str

    def load(self, split: Split) -> ObjectDataset | None:
        """List or read one split; None for `val` if the data has none."""
        raise NotImplementedError

    @property
    def dataset_name(self) -> str:
        """That of its folder: one class here reads many datasets."""
        return Path(self.root).name

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Number of each class in the files, 1..P where they have none; known after `setup`."""
        return next(iter(self.sets.values())).category_ids if self.sets else ()

    @property
    def has_masks(self) -> bool:
        """Whether the objects have masks, known after `setup`."""
        return bool(self.sets) and next(iter(self.sets.values())).has_masks

    def transformed(self, name: str) -> TransformedObjects:
        """One of the sets with its transforms."""
        if name == "train":
            return TransformedObjects(self.sets[name], self.train_transforms, seed=global_seed(), with_crowds=False)
        return TransformedObjects(self.sets[name], self.eval_transforms)


class CocoDataModule(ObjectDataModule):
    """COCO 2017, or any set in its format. Its val, on which results are reported, is the test split.

    Args:
        root: The folder, to which all other paths are relative.
        train_images: Folder of the pictures to train on.
        train_annotations: The JSON file of their objects.
        test_images: Folder of the pictures to test on.
        test_annotations: The JSON file of their objects.
        val_images: Folder of the pictures to validate by; None holds `val_fraction` out of the training split.
        val_annotations: The JSON file of their objects.
        masks: Whether to read masks.
        keep_empty: Whether to train on images without objects too.
        **options: Those of `ObjectDataModule`.
    """

    def __init__(
        self,
        root: str = "data/coco",
        *,
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        test_images: str = "val2017",
        test_annotations: str = "annotations/instances_val2017.json",
        val_images: str | None = None,
        val_annotations: str | None = None,
        masks: bool = False,
        keep_empty: bool = True,
        **options: Any,
    ):
        super().__init__(**options)
        if (val_images is None) != (val_annotations is None):
            raise ValueError(f"val_images and val_annotations go together, got {val_images} and {val_annotations}.")
        self.root, self.masks, self.keep_empty = root, masks, keep_empty
        self.paths = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations, test_images),
        }

    def load(self, split: Split) -> CocoObjects | None:
        """Read the JSON file of one split."""
        annotations, folder = self.paths[split]
        if annotations is None or folder is None:
            return None
        return CocoObjects(
            Path(self.root, annotations),
            Path(self.root, folder),
            masks=self.masks,
            keep_empty=self.keep_empty or split != "train",
        )

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, once.

        Raises:
            ValueError: If they have different categories.
        """
        super().setup(stage)
        files = {name: Path(self.root, annotations or "") for name, (annotations, _) in self.paths.items()}
        known = [(files[name], {*zip(images.category_ids, images.class_names)}) for name, images in self.sets.items()]
        for path, categories in known[1:]:
            differing = sorted(categories ^ known[0][1])
            if differing:
                number, title = differing[0]
                raise ValueError(
                    f"{path} must have the categories of {known[0][0]}, with the same ids; {number}, {title!r}, is in "
                    "one of them only."
                )


class VocObjectDataModule(ObjectDataModule):
    """Pascal VOC 2007 or 2012, or a set in its layout; see `VocObjects`.

    Args:
        root: Folder that holds `JPEGImages`, `Annotations` and `ImageSets`.
        train_split: `train`, which leaves the official `val` to validate by, or both, `trainval`.
        test_split: `test`, or `val` where the test's objects are secret, as in VOC 2012; then `val_fraction` is held
            out to validate by.
        class_names: The classes; None takes all names in the list `train`, sorted.
        **options: Those of `ObjectDataModule`; `val_fraction` has no effect if the official `val` validates.
    """

    def __init__(
        self,
        root: str = "data/VOCdevkit/VOC2007",
        *,
        train_split: Literal["train", "trainval"] = "train",
        test_split: Literal["test", "val"] = "test",
        class_names: Sequence[str] | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        if (train_split, test_split) == ("trainval", "val"):
            raise ValueError("test_split: val would be trained on, too: set train_split to train.")
        self.root, self.train_split, self.test_split = root, train_split, test_split
        self.given_names = class_names

    def load(self, split: Split) -> VocObjects | None:
        """Read the XML files of one split."""
        if split == "val" and (self.train_split, self.test_split) != ("train", "test"):
            return None
        listed = {"train": self.train_split, "val": "val", "test": self.test_split}[split]
        return VocObjects(self.root, listed, class_names=self.given_names)


class ObjectFolderDataModule(ObjectDataModule):
    """The user's own pictures, `root/images/x.jpg`, and label maps, `root/labels/x.png`: each value is an object.

    Splits are folders (`images/train`, `labels/train`, ...) or lists (`root/train.txt`, ...) of train, val and test;
    with val and without test, val is the test split. Without any, a share is held out for the test, of every size and
    kind of pictures: always the same one of the same files, as `split_seed` decides on the validation alone.

    Args:
        root: The folder.
        class_name: Name of the class of all objects.
        test_fraction: Share held out for the test if the folder has no splits of its own.
        **options: Those of `ObjectDataModule`.
    """

    def __init__(self, root: str, *, class_name: str = "object", test_fraction: float = 0.2, **options: Any):
        super().__init__(**options)
        self.root, self.class_name, self.test_fraction = root, class_name, test_fraction
        check_test_fraction(test_fraction)

    def load(self, split: Split) -> ObjectDataset | None:
        """List the files of one split."""
        files = read_object_folder(self.root, split, class_name=self.class_name)
        if files is None or has_mask_splits(self.root):
            return files
        divided: ObjectDataset | None = divide(files, split, test_fraction=self.test_fraction)
        return divided
