"""The batch of images that data modules hand to tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = 255
"""Label of a pixel that counts nowhere, whatever value stands for it in the files of a dataset."""


class ImageBatch(NamedTuple):
    """What a task receives: B images of H x W pixels.

    Attributes:
        images: Colours, (B, 3, H, W): 0..255 as they are read, with zero mean and unit variance for a network.
        label: Class of each image, (B,), or of each pixel, (B, H, W), where `IGNORE` counts nowhere.
    """

    images: Tensor
    label: Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (B, 3, H, W) as float32 with `mean` subtracted and divided by `std`, which are of colours in 0..1."""
    shift, scale = (255 * torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images.float() - shift) / scale
