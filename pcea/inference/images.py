"""Image classification, and what all image networks share: reading files and cropping them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.datasets.batches import normalize
from pcea.datasets.images import IMAGE_SUFFIXES, read_image
from pcea.inference.base import in_evaluation
from pcea.inference.classes import ClassPrediction, ClassPredictor, check_top

ImageSource = str | Path | Tensor | np.ndarray
"""An image file; or colours in memory, a tensor (3, H, W) or an array (H, W, 3), uint8."""


class ImagePredictor(ClassPredictor):
    """Classifies images."""

    sees_images: ClassVar[bool] = True
    purpose: ClassVar[str] = "names the class of an image"
    batch_size: ClassVar[int] = 8

    @in_evaluation
    def predict(self, source: ImageSource, *, top: int = 3) -> ClassPrediction:
        """Name the class of an image.

        Args:
            source: A file; or colours, a tensor (3, H, W) or an array (H, W, 3), uint8, of any size. The network is
                shown the middle, in the shape and size of its training images.
            top: How many classes are returned.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not an image, or the network cannot take it.
        """
        self.check(top=top)
        return self.predict_contents([load_image(source)], top=top)[0]

    def reader(self, **_: Any) -> Callable[[Path], Tensor]:
        """See `Predictor.reader`."""
        return load_image

    @in_evaluation
    def predict_contents(self, contents: Sequence[Tensor], *, top: int = 3, **_: Any) -> list[ClassPrediction]:
        """The classes of images (3, H, W) uint8. Those that the network sees in one size go through as one batch."""
        inputs = [self._prepare(image) for image in contents]
        has_one_size = len({each.shape for each in inputs}) == 1
        batches = [torch.cat(inputs)] if has_one_size else inputs
        logits = torch.cat([self.network(batch).float().cpu() for batch in batches]) / self.description.temperature
        return [self.rank(each, top) for each in logits]

    def check(self, *, top: int = 3, **_: Any) -> None:
        """Raise a ValueError for invalid options."""
        check_top(top)

    def logits(self, image: Tensor) -> Tensor:
        """Logits (P,), on the CPU, of an image (3, H, W) uint8; their softmax are its probabilities."""
        return self.network(self._prepare(image))[0].float().cpu() / self.description.temperature

    def _prepare(self, image: Tensor) -> Tensor:
        shown = self.crop(image).cut(image)
        return prepare(shown, self.description.image_size or shown.shape[1:], self)

    def crop(self, image: Tensor) -> Crop:
        """The part of an image (3, H, W) that the network sees: the middle, shaped like its training images."""
        H, W = image.shape[1:]
        if not self.description.image_size:
            return Crop(0, 0, H, W)
        rows, columns = self.description.image_size
        scale = min(H / rows, W / columns)
        height, width = max(1, round(scale * rows)), max(1, round(scale * columns))
        return Crop((H - height) // 2, (W - width) // 2, height, width)

    def subject(self, source: ImageSource, *, size: int = 600, head: int | None = None) -> Any:
        """What the network attends to in an image; the arguments are those of `pcea visualize`."""
        from pcea.inference.image_subject import ClassSubject

        return ClassSubject(source, self, size=size, head=head)


class Crop(NamedTuple):
    """The part of an image that a network sees, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: Tensor) -> Tensor:
        """Cut this part out of an image (3, H, W)."""
        return picture[:, self.top : self.top + self.height, self.left : self.left + self.width]


def is_image(file: Path) -> bool:
    """Whether a file is named like an image."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def load_image(source: ImageSource) -> Tensor:
    """Load colours, (3, H, W) uint8, from a file or from memory.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image.
    """
    if isinstance(source, str | Path):
        if not is_image(Path(source)):
            known = ", ".join(IMAGE_SUFFIXES)
            raise ValueError(f"{source} is not an image, and the network is for images ({known}).")
        return read_image(source)
    # A copy: arrays may be read-only, or reversed as from OpenCV's BGR.
    image = source if isinstance(source, Tensor) else torch.from_numpy(np.array(source)).movedim(-1, 0)
    if image.ndim != 3 or len(image) != 3 or image.dtype != torch.uint8:
        raise ValueError(
            f"An image must be (3, H, W) uint8, or as an array (H, W, 3), got {tuple(np.shape(source))} {image.dtype}."
        )
    return image.cpu()


def prepare(image: Tensor, size: Any, predictor: Any) -> Tensor:
    """A network's input: colours (3, H, W) uint8 scaled to (h, w) and normalized, (1, 3, h, w), on its device."""
    images = image[None].to(predictor.device).float()
    if tuple(size) != tuple(image.shape[1:]):
        images = F.interpolate(images, tuple(size), mode="bilinear", antialias=True)
    description = predictor.description
    return normalize(images, description.mean or (0.0,) * 3, description.std or (1.0,) * 3)
