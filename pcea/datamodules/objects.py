"""Data modules of images with objects. Constructors touch no disk; `setup` does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pcea.datamodules.base import global_seed
from pcea.datamodules.images import TransformedDataModule
from pcea.datasets.coco import CocoObjects
from pcea.datasets.mask_folder import has_mask_splits
from pcea.datasets.object_folder import read_object_folder
from pcea.datasets.objects import ObjectDataset, TransformedObjects
from pcea.datasets.splits import Split, TrainOrTest, check_test_fraction, divide, warn_of_missing_classes
from pcea.datasets.voc_objects import VocObjects, listed_names


class ObjectDataModule(TransformedDataModule):
    """Images of any sizes with the objects in them; batches are `ObjectBatch`es.

    Transforms are called with an image and a dictionary of its objects, like those of `torchvision.transforms.v2` for
    detection; see `TransformedObjects`. Training leaves out regions of many objects (`iscrowd`), in which evaluation
    ignores detections.

    Args:
        root: Folder of the dataset.
        batch_size: Images per training batch, on each device.
        eval_batch_size: Images per batch in validation and test.
        **options: Those of `TransformedDataModule`.
    """

    def __init__(self, root: str, *, batch_size: int = 2, eval_batch_size: int = 1, **options: Any):
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, **options)
        self.root = root

    @property
    def dataset_name(self) -> str:
        """Name of the dataset's folder: each class here reads many datasets."""
        return Path(self.root).name

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Number of each class in the files, 1..P if they have none; known after `setup`."""
        return self._any_set.category_ids if self.sets else ()

    @property
    def has_masks(self) -> bool:
        """Whether objects have masks, known after `setup`."""
        return bool(self.sets) and self._any_set.has_masks

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, once; with a warning if pictures are in two of them."""
        super().setup(stage)
        files = {name: {*getattr(images, "files", ())} for name, images in self.sets.items()}
        for name in files.keys() - {"train"}:
            if both := files[name] & files.get("train", set()):
                _warn_of_overlap(min(both), len(both), name)

    def batches_of(self, name: str) -> TransformedObjects:
        """One of the sets with its transforms."""
        if name == "train":
            seed = global_seed(self.trainer)
            return TransformedObjects(self.sets[name], self.train_transforms, seed=seed, with_crowds=False)
        return TransformedObjects(self.sets[name], self.eval_transforms)


class CocoDataModule(ObjectDataModule):
    """COCO 2017, or any dataset in its format. Results are reported on val, which is the test split here.

    Args:
        root: The folder, which all other paths are relative to.
        train_images: Folder of the pictures to train on.
        train_annotations: The JSON file of their objects.
        test_images: Folder of the pictures to test on.
        test_annotations: The JSON file of their objects.
        val_images: Folder of the validation pictures; None holds `val_fraction` of the training split out.
        val_annotations: The JSON file of their objects.
        masks: Whether to read masks.
        keep_empty: Whether to train on images without objects, too.
        skip_unreadable: Leave out damaged annotations, with a warning that counts them.
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
        skip_unreadable: bool = False,
        **options: Any,
    ):
        super().__init__(root, **options)
        if (val_images is None) != (val_annotations is None):
            raise ValueError(f"val_images and val_annotations go together, got {val_images} and {val_annotations}.")
        self.masks, self.keep_empty, self.skip_unreadable = masks, keep_empty, skip_unreadable
        self.paths = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations, test_images),
        }

    def load(self, split: Split) -> CocoObjects:
        """Read the JSON file of one split."""
        annotations, folder = self.paths[split]
        if split == "train" and self.paths["train"] == self.paths["test"]:
            warnings.warn(
                f"train_annotations and test_annotations are both {annotations}: what is measured on pictures that "
                "were trained on is too good.",
                stacklevel=2,
            )
        assert annotations is not None
        assert folder is not None
        images = CocoObjects(
            Path(self.root, annotations),
            Path(self.root, folder),
            masks=self.masks,
            keep_empty=self.keep_empty or split != "train",
            skip_unreadable=self.skip_unreadable,
        )
        if split == "train":
            warn_of_missing_classes(images.label, images.class_names, what="object", where=images.path)
        return images

    def load_val(self) -> CocoObjects | None:
        """Read the JSON file of the validation split, if there is one."""
        return None if self.paths["val"][0] is None else self.load("val")

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
    """Pascal VOC 2007 or 2012, or a dataset in its layout; see `VocObjects`.

    Args:
        root: Folder that holds `JPEGImages`, `Annotations` and `ImageSets`.
        train_split: `train`, with the official `val` for validation, or both, `trainval`.
        test_split: `test`, or `val` if the test's objects are secret, as in VOC 2012; `val_fraction` is then held out
            for validation.
        class_names: The classes; None takes all names in the list `train`, sorted.
        **options: Those of `ObjectDataModule`; `val_fraction` has no effect if the official `val` is used.
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
        super().__init__(root, **options)
        if (train_split, test_split) == ("trainval", "val"):
            raise ValueError("test_split: val would also be trained on: set train_split to train.")
        self.train_split, self.test_split = train_split, test_split
        self.given_names = class_names

    def load(self, split: TrainOrTest) -> VocObjects:
        """Read the XML files of one split."""
        images = self._read(self.train_split if split == "train" else self.test_split)
        if split == "train":
            tested = listed_names(self.root, self.test_split)
            both = [path for path in images.files if path.stem in tested]
            if both:
                _warn_of_overlap(both[0], len(both), self.test_split)
            warn_of_missing_classes(images.label, images.class_names, what="object", where=self.root)
        return images

    def load_val(self) -> VocObjects | None:
        """Read the XML files of the official validation split, unless it is trained or tested on."""
        return self._read("val") if (self.train_split, self.test_split) == ("train", "test") else None

    def _read(self, listed: Literal["train", "val", "trainval", "test"]) -> VocObjects:
        return VocObjects(self.root, listed, class_names=self.given_names)


class ObjectFolderDataModule(ObjectDataModule):
    """The user's own pictures, `root/images/x.jpg`, and label maps, `root/labels/x.png`: each value is an object.

    Splits are folders (`images/train`, `labels/train`, ...) or lists (`root/train.txt`, ...) of train, val and test.
    Without test, val is the test split. Without any splits, a share of the pictures of each size and kind is held out
    as the test split: always the same one, because `split_seed` affects only the validation split.

    Args:
        root: The folder.
        class_name: Name of the class of all objects.
        test_fraction: Share held out as the test split if the folder has no splits of its own.
        **options: Those of `ObjectDataModule`.
    """

    def __init__(self, root: str, *, class_name: str = "object", test_fraction: float = 0.2, **options: Any):
        super().__init__(root, **options)
        self.class_name, self.test_fraction = class_name, test_fraction
        check_test_fraction(test_fraction)

    def load(self, split: TrainOrTest) -> ObjectDataset:
        """List the files of one split."""
        files = read_object_folder(self.root, split, class_name=self.class_name)
        assert files is not None, "only val may be absent"
        if split == "train":
            files.warn_if_empty()
        is_split = has_mask_splits(self.root)
        return files if is_split else divide(files, split, test_fraction=self.test_fraction)

    def load_val(self) -> ObjectDataset | None:
        """List the files of the stored validation split, if it is not the test split."""
        is_split = has_mask_splits(self.root)
        return read_object_folder(self.root, "val", class_name=self.class_name) if is_split else None


def _warn_of_overlap(first: Path, count: int, split: str) -> None:
    warnings.warn(
        f"{count} pictures of the training split are in {split} too, the first is {first}: what is measured on them is "
        "too good.",
        stacklevel=3,
    )
