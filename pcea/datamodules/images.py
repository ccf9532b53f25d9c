"""Data modules of labelled images. Constructors touch no disk; `setup` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from pcea.datamodules.points import batch_seed, global_seed, stratified_sample
from pcea.datasets.batches import ImageBatch, normalize
from pcea.datasets.image_folder import Split, has_splits, read_cifar10, read_image_folder
from pcea.datasets.images import ImageDataset, TransformedImages
from pcea.datasets.transformed import TransformedDataset
from pcea.transforms.images import ImageTransform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SplitDataModule(L.LightningDataModule):
    """Images of any kind: split into sets and transformed one by one as they are read. Subclasses load and transform.

    Order and transforms follow `seed_everything`, the epoch and the image alone, so that a resumed run continues
    exactly where it stopped, whatever the number of worker processes.

    Args:
        batch_size: Images in a training batch, per device.
        eval_batch_size: Images in a batch of validation and test.
        val_fraction: Stratified share of the training split held out to choose by. 0 trains on all of it; there is then
            no validation. No effect where the data has a validation split of its own.
        split_seed: Decides which images are held out.
        train_transforms: Applied in turn to every training image as it is read.
        eval_transforms: The same for validation and test.
        num_workers: Processes that read and transform; 0 does it in the training process.
        in_memory: Read all images once and keep them, as bytes; for as many as fit.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        train_transforms: Sequence[nn.Module] = (),
        eval_transforms: Sequence[nn.Module] = (),
        num_workers: int = 0,
        in_memory: bool = False,
    ):
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in 0..1, below 1, got {val_fraction}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.train_transforms, self.eval_transforms = tuple(train_transforms), tuple(eval_transforms)
        self.num_workers, self.in_memory = num_workers, in_memory
        self.sets: dict[str, Any] = {}

    def load(self, split: Split) -> Any:
        """List or read one split; None for `val` if the data has none."""
        raise NotImplementedError

    def transformed(self, name: str) -> TransformedDataset:
        """One of the sets with its transforms, as `train` or to be measured."""
        raise NotImplementedError

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, known after `setup`."""
        return next(iter(self.sets.values())).class_names if self.sets else ()

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, once."""
        if stage in ("fit", "validate") and "train" not in self.sets:
            train, val = self._load("train"), self.load("val")
            if val is None:
                held_out = stratified_sample(train.strata, self.val_fraction, seed=self.split_seed)
                if held_out.any():
                    train, val = (train.subset(chosen.nonzero().squeeze(1)) for chosen in (~held_out, held_out))
            self.sets["train"] = self._keep(train, "train")
            if val is not None:
                self.sets["val"] = self._keep(val, "val")
        if stage in ("test", "predict") and "test" not in self.sets:
            self.sets["test"] = self._keep(self._load("test"), "test")

    def train_dataloader(self) -> DataLoader:
        """Batches in a new order every epoch; the last small one is dropped."""
        trainer, images = self._attached_trainer, self.transformed("train")
        if len(images) < self.batch_size * trainer.world_size:
            raise ValueError(
                f"batch_size={self.batch_size} on {trainer.world_size} devices needs at least as many training images, "
                f"got {len(images)}."
            )
        sampler = _EpochSampler(images, trainer.world_size, trainer.global_rank, seed=global_seed(), drop_last=True)
        return self._loader(images, self.batch_size, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation images in order; nothing if there are none."""
        return self._in_order("val") if "val" in self.sets else []

    def test_dataloader(self) -> DataLoader:
        """The test split in order, each image on one device only, so that none counts twice."""
        trainer, images = self._attached_trainer, self.transformed("test")
        sampler = UnrepeatedDistributedSampler(images, trainer.world_size, trainer.global_rank, shuffle=False)
        return self._loader(images, self.eval_batch_size, sampler)

    def predict_dataloader(self) -> DataLoader:
        """The test split in order."""
        return self._in_order("test")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Raise what a worker process found wrong."""
        if isinstance(batch, Exception):
            raise batch
        return batch

    @property
    def _attached_trainer(self) -> L.Trainer:
        assert self.trainer is not None
        return self.trainer

    def _load(self, split: Split) -> Any:
        images = self.load(split)
        assert images is not None, f"the {split} split is always there"
        return images

    def _keep(self, images: Any, name: str) -> Any:
        return images.in_memory(f"Reading {name} images") if self.in_memory else images

    def _in_order(self, name: str) -> DataLoader:
        return self._loader(self.transformed(name), self.eval_batch_size)

    def _loader(
        self, images: TransformedDataset, batch_size: int, sampler: Sampler | None = None, *, drop_last: bool = False
    ) -> DataLoader:
        return DataLoader(
            images,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            drop_last=drop_last,
            pin_memory=self.num_workers > 0 and torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


class ImageDataModule(SplitDataModule):
    """Images with a class each, transformed one by one, then augmented a batch at a time on its device.

    Order and augmentation follow `seed_everything`, the epoch, the image and the batch alone.

    Args:
        batch_size: Images in a training batch, per device.
        eval_batch_size: Images in a batch of validation and test; None is twice `batch_size`.
        mean: Mean of red, green and blue, in 0..1, subtracted from every image.
        std: Their standard deviation, by which every image is divided then.
        train_transforms: Applied in turn to every training image as it is read, such as those of
            `torchvision.transforms.v2`. They are to make images of one size.
        augment: Applied in turn to every training batch, normalized, on its device.
        **options: Those of `SplitDataModule`.
    """

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        train_transforms: Sequence[nn.Module] = (),
        augment: Sequence[ImageTransform] = (),
        **options: Any,
    ):
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size or 2 * batch_size,
            train_transforms=train_transforms,
            **options,
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers, std positive, got {list(mean)} and {list(std)}.")
        self.mean, self.std = tuple(mean), tuple(std)
        self.augment = tuple(augment)

    def load(self, split: Split) -> ImageDataset | None:
        """List or read one split; None for `val` if the data has none."""
        raise NotImplementedError

    def transformed(self, name: str) -> TransformedImages:
        """One of the sets with its transforms."""
        if name == "train":
            return TransformedImages(self.sets[name], self.train_transforms, seed=global_seed())
        return TransformedImages(self.sets[name], self.eval_transforms)

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:  # noqa: ARG002
        """Normalize, and augment in training, on the device."""
        batch = ImageBatch(normalize(batch.images, self.mean, self.std), batch.label.long())
        trainer = self._attached_trainer
        if trainer.training and self.augment:
            generator = torch.Generator(batch.images.device).manual_seed(2 * batch_seed(trainer))
            for transform in self.augment:
                batch = transform(batch, generator=generator)
        return batch


class ImageFolderDataModule(ImageDataModule):
    """Pictures in a folder a class: the user's own, or any set in the layout of ImageNet.

    Args:
        root: The folder: `root/<class>/*`; or `root/train/<class>/*` with `root/val/<class>/*` (which is then the test
            split, as results on ImageNet are reported on it) or `root/test/<class>/*`, or both.
        test_fraction: Share of each class held out for the test if the folder has no splits of its own.
        **options: Those of `ImageDataModule`.
    """

    def __init__(self, root: str, *, test_fraction: float = 0.2, **options: Any):
        super().__init__(**options)
        self.root, self.test_fraction = root, test_fraction
        check_test_fraction(test_fraction)

    def load(self, split: Split) -> ImageDataset | None:
        """List the files of one split."""
        if has_splits(self.root):
            return read_image_folder(self.root, split)
        images = read_image_folder(self.root)
        assert images is not None
        return divide(images, split, test_fraction=self.test_fraction)


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet: `root/train/<class>/*` and `root/val/<class>/*`; val is the split that results are reported on.

    Args:
        root: The folder.
        **options: Those of `ImageDataModule`.
    """

    def __init__(self, root: str = "data/imagenet", **options: Any):
        super().__init__(root, **options)


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10, held in memory: the official Python files, or a folder of pictures.

    Args:
        root: Folder that holds `cifar-10-batches-py`, or `cifar10/train/<class>/*` and `cifar10/test/<class>/*`.
        **options: Those of `ImageDataModule`; `in_memory` has no effect.
    """

    def __init__(self, root: str = "data", **options: Any):
        super().__init__(**options)
        self.root = root

    def load(self, split: Split) -> ImageDataset | None:
        """Read one split."""
        return read_cifar10(self.root, split)


class _EpochSampler(DistributedSampler):
    """Numbers every image anew in every epoch, `index + epoch * length`, as `TransformedDataset` wants it."""

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        return iter([start + index for index in super().__iter__()])


def divide(images: Any, split: Split, *, test_fraction: float) -> Any:
    """The train or test split of images that come without splits: a seeded, stratified share is the test split."""
    if split == "val":
        return None
    held_out = stratified_sample(images.strata, test_fraction, seed=0)
    return images.subset((held_out if split == "test" else ~held_out).nonzero().squeeze(1))


def check_test_fraction(test_fraction: float) -> None:
    """Refuse a share that leaves nothing to train or to test on."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}.")


def _as_it_is(batch: Any) -> Any:
    """The dataset hands out whole batches."""
    return batch
