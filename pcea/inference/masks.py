"""The class of every pixel of an image: semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.inference.base import Predictor, in_evaluation
from pcea.inference.images import Crop, ImageSource, load_image, prepare
from pcea.visualization.colors import palette
from pcea.visualization.images import blend, to_greyscale

LONGEST_SIDE = 1024
"""Default longest side, in pixels, of the image that a network sees."""


class MaskPrediction(NamedTuple):
    """The class of every pixel of one image. `print` shows what the command prints.

    Attributes:
        picture: The image, (3, H, W) uint8.
        label: Class of each pixel, (H, W) int64; a position in `class_names`.
        confidence: Probability of that class, (H, W), in 0..1.
        class_names: Names of all classes of the network.
        shown: Height and width at which the network saw the image.
    """

    picture: Tensor
    label: Tensor
    confidence: Tensor
    class_names: tuple[str, ...]
    shown: tuple[int, int]

    def __str__(self) -> str:
        H, W = self.label.shape
        seen = "" if self.shown == (H, W) else f", seen as {self.shown[1]} x {self.shown[0]}"
        shares = [f"{self.class_names[c]} {100 * share:.1f} %" for c, share in self.shares.items()]
        confidence = f"mean confidence {100 * float(self.confidence.mean()):.1f} %"
        return "  ".join([f"{W} x {H} pixels{seen}", *shares, confidence])

    @property
    def shares(self) -> dict[int, float]:
        """Share of the pixels of each class that occurs, in 0..1, largest first."""
        counts = self.label.flatten().bincount(minlength=len(self.class_names)) / self.label.numel()
        return {int(c): float(counts[c]) for c in counts.argsort(descending=True, stable=True) if counts[c]}


class MaskPredictor(Predictor):
    """Names the class of every pixel of images."""

    sees_images: ClassVar[bool] = True
    purpose: ClassVar[str] = "names the class of every pixel"
    endings: ClassVar[tuple[str, ...]] = (".png", "_overlay.jpg")

    @in_evaluation
    def predict(self, source: ImageSource, *, longest_side: int = LONGEST_SIDE) -> MaskPrediction:
        """Name the class of every pixel.

        Args:
            source: A file; or colours, a tensor (3, H, W) or an array (H, W, 3), uint8.
            longest_side: A larger image is scaled down to this many pixels along its longer side for the network; the
                probabilities are scaled back to its own size.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not an image, or `longest_side` is not positive.
        """
        self.check(longest_side=longest_side)
        return self.predict_contents([load_image(source)], longest_side=longest_side)[0]

    def reader(self, **_: Any) -> Callable[[Path], Tensor]:
        """See `Predictor.reader`."""
        return load_image

    @in_evaluation
    def predict_contents(
        self, contents: Sequence[Tensor], *, longest_side: int = LONGEST_SIDE, **_: Any
    ) -> list[MaskPrediction]:
        """The pixels of images (3, H, W) uint8, one image after the other."""
        return [to_masks(self.logits(image, longest_side=longest_side), image, self.class_names) for image in contents]

    def check(self, *, longest_side: int = LONGEST_SIDE, **_: Any) -> None:
        """Raise a ValueError for invalid options."""
        if longest_side < 1:
            raise ValueError(f"longest_side must be at least 1, got {longest_side}.")

    def logits(self, image: Tensor, *, longest_side: int = LONGEST_SIDE) -> Tensor:
        """Logits (P, h, w), on the CPU, of an image (3, H, W) uint8, at the size that the network saw."""
        size = tuple(image.shape[1:])
        if max(size) > longest_side:
            size = tuple(max(1, round(length * longest_side / max(size))) for length in size)
        # Convolutions keep this layout, and are faster in it.
        images = prepare(image, size, self).contiguous(memory_format=torch.channels_last)
        return self.network(images)[0].float().cpu()

    def crop(self, image: Tensor) -> Crop:
        """The part of an image (3, H, W) that the network sees: all of it."""
        return Crop(0, 0, *image.shape[1:])

    def write(self, folder: Path, stem: str, prediction: MaskPrediction) -> None:
        """Write `<stem>.png` and `<stem>_overlay.jpg`; see `write_masks`."""
        write_masks(folder, stem, prediction)

    def subject(self, source: ImageSource, *, size: int = 600, head: int | None = None) -> Any:
        """What the network attends to in an image; the arguments are those of `pcea visualize`."""
        from pcea.inference.image_subject import MaskSubject

        return MaskSubject(source, self, size=size, head=head)


def to_masks(logits: Tensor, picture: Tensor, class_names: tuple[str, ...]) -> MaskPrediction:
    """Label every pixel of an image (3, H, W) from logits (P, h, w) at another size."""
    probabilities = logits.float().softmax(0)
    shown, size = (logits.shape[1], logits.shape[2]), tuple(picture.shape[1:])
    if shown == size:
        confidence, label = probabilities.max(0)
        return MaskPrediction(picture, label, confidence, class_names, shown)
    confidence, label = torch.zeros(size), torch.zeros(size, dtype=torch.int64)
    # One class at a time: at the size of a photograph, the probabilities of all classes take gigabytes.
    for number, probability in enumerate(probabilities):
        larger = F.interpolate(probability[None, None], size, mode="bilinear")[0, 0]
        better = larger > confidence
        confidence, label = torch.where(better, larger, confidence), label.masked_fill_(better, number)
    return MaskPrediction(picture, label, confidence, class_names, shown)


def write_masks(folder: Path, stem: str, prediction: MaskPrediction) -> None:
    """Write `<stem>.png` and `<stem>_overlay.jpg`.

    Args:
        folder: An existing folder.
        stem: Name of the files.
        prediction: The result. The .png holds the number of each pixel's class and shows it in the colours of
            `palette`, of more than 256 classes in grey; the .jpg shows these colours over the image in grey.
    """
    from PIL import Image

    colors = palette(len(prediction.class_names))
    if len(colors) <= 256:
        mask = Image.fromarray(prediction.label.to(torch.uint8).numpy())
        mask.putpalette(colors.flatten().tolist())
    else:
        mask = Image.fromarray(prediction.label.numpy().astype(np.uint16))
    mask.save(folder / f"{stem}{MaskPredictor.endings[0]}", optimize=True)
    overlay = blend(colors[prediction.label], to_greyscale(prediction.picture))
    Image.fromarray(overlay.numpy()).save(folder / f"{stem}{MaskPredictor.endings[1]}", quality=92)
