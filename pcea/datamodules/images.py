"""Data modules of labelled images. Constructors touch no disk; `setup` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.utils.data import DistributedSampler

from pcea.datamodules.base import DataModule, augment_batch, global_seed
from pcea.datasets.batches import ImageBatch, normalize
from pcea.datasets.cifar10 import read_cifar10
from pcea.datasets.image_folder import has_splits, read_image_folder
from pcea.datasets.images import ImageDataset, TransformedImages
from pcea.datasets.splits import TrainOrTest, check_test_fraction, divide
from pcea.datasets.transformed import TransformedDataset
from pcea.transforms.images import ImageTransform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _EpochSampler(DistributedSampler):
    """Numbers the samples of each epoch anew, `index + epoch * length`, as `TransformedDataset` expects."""

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        return iter([start + index for index in super().__iter__()])


class TransformedDataModule(DataModule):
    """Images of any kind, transformed one by one as they are read.

    Order and transforms depend only on `seed_everything`, the epoch and the image, so that a resumed run continues
    exactly where it stopped, with any number of worker processes.

    Args:
        batch_size: Images per training batch, on each device.
        eval_batch_size: Images per batch in validation and test.
        train_transforms: Applied in turn to every training image as it is read.
        eval_transforms: The same for validation and test.
        in_memory: Read all images once and keep them, as bytes; for datasets that fit.
        **options: Those of `DataModule`.
    """

    _train_sampler = _EpochSampler

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        train_transforms: Sequence[nn.Module] = (),
        eval_transforms: Sequence[nn.Module] = (),
        in_memory: bool = False,
        **options: Any,
    ):
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, **options)
        self.train_transforms, self.eval_transforms = tuple(train_transforms), tuple(eval_transforms)
        self.in_memory = in_memory

    def batches_of(self, name: str) -> TransformedDataset:
        """One of the sets with its transforms."""
        raise NotImplementedError

    def _keep(self, name: str, samples: Any) -> None:
        super()._keep(name, samples.in_memory(f"Reading {name} images") if self.in_memory else samples)


class ImageDataModule(TransformedDataModule):
    """Labelled images, transformed one by one, then augmented a batch at a time on its device.

    Order and augmentation depend only on `seed_everything`, the epoch, the image and the batch.

    Args:
        batch_size: Images per training batch, on each device.
        eval_batch_size: Images per batch in validation and test; None is twice `batch_size`.
        mean: Mean of red, green and blue, in 0..1, subtracted from every image.
        std: Their standard deviation, by which every image is then divided.
        train_transforms: Applied in turn to every training image as it is read, such as those of
            `torchvision.transforms.v2`. The images of a batch must come out at one size.
        augment: Applied in turn to every training batch, normalized, on its device.
        **options: Those of `TransformedDataModule`.
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
            eval_batch_size=2 * batch_size if eval_batch_size is None else eval_batch_size,
            train_transforms=train_transforms,
            **options,
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers, std positive, got {list(mean)} and {list(std)}.")
        self.mean, self.std = tuple(mean), tuple(std)
        self.augment = tuple(augment)

    def batches_of(self, name: str) -> TransformedImages:
        """One of the sets with its transforms."""
        if name == "train":
            return TransformedImages(self.sets[name], self.train_transforms, seed=global_seed(self.trainer))
        return TransformedImages(self.sets[name], self.eval_transforms)

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:  # noqa: ARG002
        """Normalize on the device, and augment in training."""
        trainer = self._attached_trainer
        batch = ImageBatch(normalize(batch.images, self.mean, self.std), batch.label.long())
        if trainer.training and self.augment:
            batch = augment_batch(batch, self.augment, trainer, batch.images.device)
        return batch


class ImageFolderDataModule(ImageDataModule):
    """Pictures in one folder per class: the user's own, or any dataset in the layout of ImageNet.

    Args:
        root: The folder: `root/<class>/*`; or `root/train/<class>/*` with `root/test/<class>/*`, `root/val/<class>/*`,
            or both. Without test, val is the test split, because results on ImageNet are reported on it.
        test_fraction: Share of each class held out as the test split if the folder has no splits of its own.
        **options: Those of `ImageDataModule`.
    """

    def __init__(self, root: str, *, test_fraction: float = 0.2, **options: Any):
        super().__init__(**options)
        self.root, self.test_fraction = root, test_fraction
        check_test_fraction(test_fraction)

    def load(self, split: TrainOrTest) -> ImageDataset:
        """List the files of one split."""
        is_split = has_splits(self.root)
        images = read_image_folder(self.root, split if is_split else None)
        assert images is not None, "only val may be absent"
        return images if is_split else divide(images, split, test_fraction=self.test_fraction)

    def load_val(self) -> ImageDataset | None:
        """List the files of `root/val`, if it is not the test split."""
        return read_image_folder(self.root, "val") if has_splits(self.root) else None


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet: `root/train/<class>/*` and `root/val/<class>/*`. Results are reported on val, so it is the test split.

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

    def load(self, split: TrainOrTest) -> ImageDataset:
        """Read one split."""
        return read_cifar10(self.root, split)
