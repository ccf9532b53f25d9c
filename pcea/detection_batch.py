"""The batch of images with objects that data modules hand to the task of detection."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DetectionBatch(NamedTuple):
    """B images of any sizes, each with the objects in it.

    Attributes:
        images: Colours 0..255, each (3, H, W) uint8.
        targets: One dictionary an image, in torchvision's format, where the image has K objects:

            - boxes: (K, 4) float32, x1 y1 x2 y2 in pixels;
            - labels: (K,) int64 in 1..P; 0 is the background, so that `class_names[label - 1]` is the name;
            - masks: (K, H, W) uint8, 0 or 1; only where the data has masks;
            - iscrowd: (K,) int64, 1 for a region of many objects of a class, in which detections count nowhere;
            - area: (K,) float32, pixels, by which COCO calls an object small, medium or large;
            - image_id: () int64, number of the image in its set.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
