"""Random transforms of images that `torchvision.transforms.v2` lacks: batched ones, and the crop of segmentation.

Batched transforms are called as `transform(batch, generator=generator)` with normalized images, whose mean colour is 0,
and return a new `ImageBatch`, as `pcea.transforms.points` does for clouds; every image draws its own numbers.
Transforms of single images, like torchvision's, draw from torch's global generator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.datasets.batches import IGNORE, ImageBatch
from pcea.transforms.points import check_share


class ImageTransform(ABC):
    """Maps a batch of images to a new batch."""

    @abstractmethod
    def __call__(self, batch: ImageBatch, *, generator: torch.Generator | None = None) -> ImageBatch:
        """Return the transformed batch; the generator lives on its device."""


class RandomShift(ImageTransform):
    """Shift each image by whole pixels and fill the gap with the mean colour: the usual pad and crop.

    Args:
        extent: Largest shift in each direction, in pixels.
    """

    def __init__(self, *, extent: int = 4):
        if extent < 0:
            raise ValueError(f"extent must not be negative, got {extent}.")
        self.extent = extent

    def __call__(self, batch: ImageBatch, *, generator: torch.Generator | None = None) -> ImageBatch:
        """Shift images (B, 3, H, W) with one class each."""
        _require_classes(batch, "RandomShift")
        B, C, H, W = batch.images.shape
        device = batch.images.device
        shift = torch.randint(2 * self.extent + 1, (2, B, 1), generator=generator, device=device)
        rows = (shift[0] + torch.arange(H, device=device)).view(B, 1, H, 1)
        columns = (shift[1] + torch.arange(W, device=device)).view(B, 1, 1, W)
        padded = F.pad(batch.images, [self.extent] * 4)
        number, channel = (torch.arange(n, device=device) for n in (B, C))
        return batch._replace(images=padded[number.view(B, 1, 1, 1), channel.view(C, 1, 1), rows, columns])


class RandomFlip(ImageTransform):
    """Mirror a random share of the images left to right, together with their pixel labels.

    Args:
        probability: Share of the images that are mirrored.
    """

    def __init__(self, *, probability: float = 0.5):
        check_share("probability", probability)
        self.probability = probability

    def __call__(self, batch: ImageBatch, *, generator: torch.Generator | None = None) -> ImageBatch:
        """Mirror images (B, 3, H, W) and labels (B, H, W)."""
        images, label = batch
        flipped = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < self.probability
        images = torch.where(flipped, images.flip(-1), images)
        if label.ndim == 3:
            label = torch.where(flipped.squeeze(1), label.flip(-1), label)
        return ImageBatch(images, label)


class RandomErase(ImageTransform):
    """Fill a random rectangle of a random share of the images with normal noise.

    Args:
        probability: Share of the images that get such a rectangle.
        low: Smallest area, as a share of the image.
        high: Largest area; a rectangle longer than the image is clipped.
        ratio: Smallest ratio of the sides; the largest is its inverse.

    Source:
        Random Erasing Data Augmentation (Zhong et al., 2020).
    """

    def __init__(self, *, probability: float = 0.25, low: float = 0.02, high: float = 1 / 3, ratio: float = 0.3):
        check_share("probability", probability)
        if not (0 < low <= high <= 1 and 0 < ratio <= 1):
            raise ValueError(
                f"0 < low <= high <= 1 and 0 < ratio <= 1 expected, got low={low}, high={high}, ratio={ratio}."
            )
        self.probability, self.low, self.high, self.ratio = probability, low, high, ratio

    def __call__(self, batch: ImageBatch, *, generator: torch.Generator | None = None) -> ImageBatch:
        """Erase from images (B, 3, H, W) with one class each."""
        _require_classes(batch, "RandomErase")
        images = batch.images
        B, _, H, W = images.shape
        chosen, area, aspect, top, left = torch.rand(5, B, 1, generator=generator, device=images.device)
        area = H * W * (self.low + (self.high - self.low) * area)
        aspect = torch.exp(math.log(self.ratio) * (2 * aspect - 1))
        rows = _inside(top, (area * aspect).sqrt(), H)
        columns = _inside(left, (area / aspect).sqrt(), W)
        erased = (rows.unsqueeze(2) & columns.unsqueeze(1) & (chosen < self.probability).unsqueeze(2)).unsqueeze(1)
        noise = torch.empty_like(images).normal_(generator=generator)
        return batch._replace(images=torch.where(erased, noise, images))


class RandomScaledCrop(nn.Module):
    """Scale an image and its mask by a random factor and cut out a window of one size; for one image at a time.

    The window is cut out before it is scaled, which costs a fraction of scaling first. If it is larger than the scaled
    image, the image lies at a random place in it, padded with `fill` and ignored labels.

    Args:
        size: Height and width of the result, in pixels.
        low: Smallest factor.
        high: Largest factor; factors are uniform.
        fill: Colour of the padding, 0..255; by default the mean of ImageNet, which becomes 0 when normalized.
    """

    def __init__(
        self,
        size: Sequence[int],
        *,
        low: float = 0.5,
        high: float = 2.0,
        fill: Sequence[int] = (124, 116, 104),
    ):
        super().__init__()
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be a positive height and width, got {list(size)}.")
        if not 0 < low <= high:
            raise ValueError(f"0 < low <= high expected, got low={low}, high={high}.")
        if len(fill) != 3 or min(fill) < 0 or max(fill) > 255:
            raise ValueError(f"fill must be three numbers in 0..255, got {list(fill)}.")
        self.size, self.low, self.high, self.fill = tuple(size), low, high, tuple(fill)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and cut.

        Args:
            image: Colours, (3, H, W) uint8.
            mask: Class of each pixel, (H, W) uint8.

        Returns:
            Image (3, height, width) and mask (height, width), both uint8.
        """
        scale = float(torch.empty(()).uniform_(self.low, self.high))
        rows, height, top = self._side(0, image.shape[1], scale)
        columns, width, left = self._side(1, image.shape[2], scale)
        # As floats: torch 2.14 resizes bytes wrongly, or fails, where the result or the window is one pixel wide.
        window = image[:, rows, columns].unsqueeze(0).float()
        part = F.interpolate(window, (height, width), mode="bilinear", antialias=True).round().to(torch.uint8)
        labels = F.interpolate(mask[rows, columns][None, None], (height, width), mode="nearest-exact")
        if (height, width) == self.size:
            return part[0], labels[0, 0]
        canvas = torch.tensor(self.fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, *self.size)
        ignored = torch.full(self.size, IGNORE, dtype=torch.uint8)
        inside = (slice(top, top + height), slice(left, left + width))
        canvas[:, inside[0], inside[1]] = part[0]
        ignored[inside] = labels[0, 0]
        return canvas, ignored

    def _side(self, axis: int, length: int, scale: float) -> tuple[slice, int, int]:
        """Along one axis: the pixels taken, how many they become, and where they start in the result."""
        wanted = self.size[axis]
        window = max(1, round(wanted / scale))
        if window <= length:
            start = int(torch.randint(length - window + 1, ()))
            return slice(start, start + window), wanted, 0
        scaled = min(wanted, max(1, round(length * scale)))
        return slice(0, length), scaled, int(torch.randint(wanted - scaled + 1, ()))


def _inside(place: Tensor, length: Tensor, total: int) -> Tensor:
    """True inside one interval per row, (B, total); `place` in 0..1, (B, 1), picks one of the possible starts."""
    length = length.round().clamp(1, total)
    start = (place * (total - length + 1)).floor()
    pixel = torch.arange(total, device=place.device)
    return (pixel >= start) & (pixel < start + length)


def _require_classes(batch: ImageBatch, name: str) -> None:
    if batch.label.ndim != 1:
        raise ValueError(f"{name} is for images with one class each, but these have pixel labels. Leave it out.")
