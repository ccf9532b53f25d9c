"""The batch of images that data modules hand to tasks."""

from __future__ import annotations

from typing import NamedTuple

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
