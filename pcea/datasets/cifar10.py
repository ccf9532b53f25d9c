"""CIFAR-10: the official Python files, or a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from pcea.datasets.image_folder import read_image_folder
from pcea.datasets.images import ImageDataset, ImageTensors
from pcea.datasets.splits import TrainOrTest


def read_cifar10(root: str | Path, split: TrainOrTest) -> ImageDataset:
    """Read CIFAR-10 into memory: 50,000 pictures of 32 x 32 pixels to train on, 10,000 to test on.

    Args:
        root: Folder that holds `cifar-10-batches-py`, the official files, which are verified, or
            `cifar10/train/<class>/*` and `cifar10/test/<class>/*`.
        split: train or test; there is no official validation split.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If a file is damaged.
    """
    root = Path(root)
    if (root / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10

        try:
            official = CIFAR10(str(root), train=split == "train", download=False)
        except RuntimeError as error:
            raise ValueError(f"Files under {root / 'cifar-10-batches-py'} are missing or damaged.") from error
        images = torch.from_numpy(official.data).permute(0, 3, 1, 2).contiguous()
        return ImageTensors(images, torch.tensor(official.targets), class_names=official.classes)
    if (root / "cifar10").is_dir():
        pictures = read_image_folder(root / "cifar10", split)
        assert pictures is not None
        return pictures.in_memory(f"Reading {root / 'cifar10' / split}")
    raise FileNotFoundError(
        f"No CIFAR-10 under {root}: expected {root / 'cifar-10-batches-py'} with the official Python files, or "
        f"{root / 'cifar10' / split}/<class>/* with pictures."
    )
