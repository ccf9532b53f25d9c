"""A class for a picture file or for each of its pixels: read, predict, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.datasets.batches import normalize
from pcea.datasets.cache import summarize
from pcea.datasets.images import IMAGE_SUFFIXES, read_image
from pcea.inference.networks import TrainedImageNetwork
from pcea.visualization.colors import palette
from pcea.visualization.images import blend, grey

LONGEST_SIDE = 1024
"""Pixels along the longer side of a picture that a network for pixels is shown, unless told otherwise."""
ENDINGS = (".png", "_overlay.jpg")
"""What `write_pixels` adds to a name."""


class PixelPrediction(NamedTuple):
    """The class of every pixel of one picture.

    Attributes:
        picture: Its colours, (3, H, W) uint8.
        label: Class of each pixel, (H, W) int64; a position in `class_names`.
        confidence: Probability of that class, (H, W), in 0..1.
        class_names: Names of all classes of the network.
        shown: Height and width at which the network saw the picture.
    """

    picture: Tensor
    label: Tensor
    confidence: Tensor
    class_names: tuple[str, ...]
    shown: tuple[int, int]

    @property
    def shares(self) -> dict[int, float]:
        """The share of the pixels that each class which occurs has, in 0..1, largest first."""
        counts = self.label.flatten().bincount(minlength=len(self.class_names)) / self.label.numel()
        return {int(c): float(counts[c]) for c in counts.argsort(descending=True, stable=True) if counts[c]}


def check_pictures(files: Sequence[Path]) -> None:
    """Read pictures once, so that what is wrong with them is known before anything is computed.

    Raises:
        ValueError: If there is something else, or pictures cannot be read; they are counted and named.
    """
    unreadable = []
    for file in files:
        if not is_picture(file):
            raise ValueError(f"{file} is not a picture, and the network is for pictures ({', '.join(IMAGE_SUFFIXES)}).")
        try:
            read_image(file)
        except ValueError as error:
            unreadable.append(str(error))
    if unreadable:
        raise ValueError(summarize(unreadable, len(files)))


def is_picture(file: Path) -> bool:
    """Whether a file has the name of a picture."""
    return file.suffix.lower() in IMAGE_SUFFIXES


class Window(NamedTuple):
    """The part of a picture that a network is shown, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: Tensor) -> Tensor:
        """That part of a picture (3, H, W)."""
        return picture[:, self.top : self.top + self.height, self.left : self.left + self.width]


def shown_window(picture: Tensor, trained: TrainedImageNetwork) -> Window:
    """What the network is shown of a picture (3, H, W): all, or for classes the middle of the shape of its training."""
    H, W = picture.shape[1:]
    if trained.labels_pixels or not trained.image_size:
        return Window(0, 0, H, W)
    rows, columns = trained.image_size
    scale = min(H / rows, W / columns)
    height, width = max(1, round(scale * rows)), max(1, round(scale * columns))
    return Window((H - height) // 2, (W - width) // 2, height, width)


def prepare(picture: Tensor, trained: TrainedImageNetwork, *, longest_side: int = LONGEST_SIDE) -> Tensor:
    """What the network is given, (1, 3, h, w), normalized.

    For classes that is the middle of the picture, in the size of the training; for pixels all of it, at its own size or
    scaled down.

    Args:
        picture: Colours, (3, H, W) uint8.
        trained: The network.
        longest_side: For pixels: pixels along the longer side that it is at most given.
    """
    part = shown_window(picture, trained).cut(picture)
    H, W = part.shape[1:]
    size: tuple[int, ...] = (H, W)
    if not trained.labels_pixels:
        size = trained.image_size or size
    elif max(H, W) > longest_side:
        size = tuple(max(1, round(length * longest_side / max(H, W))) for length in (H, W))
    images = part[None].float()
    if size != (H, W):
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return normalize(images, trained.mean, trained.std)


@torch.inference_mode()
def classify_picture(picture: Tensor, trained: TrainedImageNetwork) -> Tensor:
    """Probabilities of the classes, (P,), of a picture (3, H, W) uint8.

    Raises:
        ValueError: If the network names the class of pixels, or cannot take the picture.
    """
    if trained.labels_pixels:
        raise ValueError("The network names the class of every pixel, not of a picture.")
    return trained.network(prepare(picture, trained))[0].float().softmax(0)


@torch.inference_mode()
def label_pixels(picture: Tensor, trained: TrainedImageNetwork, *, longest_side: int = LONGEST_SIDE) -> PixelPrediction:
    """The class of every pixel of a picture (3, H, W) uint8.

    Args:
        picture: Its colours.
        trained: The network.
        longest_side: A larger picture is shown to the network scaled down to so many pixels along its longer side, and
            the probabilities are brought back to its size.

    Raises:
        ValueError: If the network names the class of pictures, or `longest_side` is not positive.
    """
    if not trained.labels_pixels:
        raise ValueError("The network names the class of a picture, not of every pixel.")
    if longest_side < 1:
        raise ValueError(f"longest_side must be at least 1, got {longest_side}.")
    # Convolutions keep this layout, and are faster in it.
    images = prepare(picture, trained, longest_side=longest_side).contiguous(memory_format=torch.channels_last)
    return of_logits(trained.network(images)[0], picture, trained)


def of_logits(logits: Tensor, picture: Tensor, trained: TrainedImageNetwork) -> PixelPrediction:
    """The class of every pixel of a picture (3, H, W), by logits (P, h, w) at another size."""
    probabilities = logits.float().softmax(0)
    shown, size = (logits.shape[1], logits.shape[2]), tuple(picture.shape[1:])
    if shown == size:
        confidence, label = probabilities.max(0)
        return PixelPrediction(picture, label, confidence, trained.class_names, shown)
    confidence, label = torch.zeros(size), torch.zeros(size, dtype=torch.int64)
    # One class at a time: the probabilities of all of them in the size of a photograph take gigabytes.
    for number, probability in enumerate(probabilities):
        larger = F.interpolate(probability[None, None], size, mode="bilinear")[0, 0]
        better = larger > confidence
        confidence, label = torch.where(better, larger, confidence), label.masked_fill_(better, number)
    return PixelPrediction(picture, label, confidence, trained.class_names, shown)


def write_pixels(folder: Path, stem: str, prediction: PixelPrediction) -> None:
    """Write `<stem>.png` and `<stem>_overlay.jpg`.

    Args:
        folder: Where; it must be there.
        stem: Name of the files.
        prediction: What. The .png holds the number of each pixel's class and shows it in the colours of `palette`; the
            .jpg shows these colours over the picture in grey.
    """
    from PIL import Image

    colors = palette(len(prediction.class_names))
    mask = Image.fromarray(prediction.label.to(torch.uint8).numpy())
    mask.putpalette(colors.flatten().tolist())
    mask.save(folder / f"{stem}{ENDINGS[0]}", optimize=True)
    overlay = blend(colors[prediction.label], grey(prediction.picture))
    Image.fromarray(overlay.numpy()).save(folder / f"{stem}{ENDINGS[1]}", quality=92)
