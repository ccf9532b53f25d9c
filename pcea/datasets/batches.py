"""The batches that data modules hand to tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = 255
"""Label of a pixel that counts nowhere, whatever value stands for it in the files of a dataset."""


class PointBatch(NamedTuple):
    """What a task receives: B clouds of N points.

    Attributes:
        points: Coordinates, (B, N, 3).
        label: Class of each cloud, (B,), or part of each point, (B, N).
        normals: Unit normals, (B, N, 3), or None.
        category: Object category of each cloud, (B,), where `label` is per point; else None.
        mask: True for real points, (B, N); None when every point is real.
    """

    points: Tensor
    label: Tensor
    normals: Tensor | None = None
    category: Tensor | None = None
    mask: Tensor | None = None


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


class ObjectBatch(NamedTuple):
    """B images of any sizes, each with the objects in it.

    Attributes:
        images: Colours 0..255, each (3, H, W) uint8.
        targets: One dictionary per image, in torchvision's format, where the image has K objects:

            - boxes: (K, 4) float32, x1 y1 x2 y2 in pixels;
            - labels: (K,) int64 in 1..P; 0 is the background, so that `class_names[label - 1]` is the name;
            - masks: (K, H, W) uint8, 0 or 1; only where the data has masks;
            - iscrowd: (K,) int64, 1 for a region of many objects of a class, in which detections count nowhere;
            - area: (K,) float32, pixels, by which COCO calls an object small, medium or large;
            - image_id: () int64, number of the image in its set.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
