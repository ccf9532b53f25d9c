"""Labelled images: read from their files when they are needed, or held in memory."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pcea.datasets.batches import IGNORE, ImageBatch
from pcea.datasets.splits import class_order
from pcea.datasets.transformed import TransformedDataset

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
# Pillow goes by the content, not by the name, and for EPS it would start Ghostscript: nothing else is tried.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")


class ImageDataset(Dataset, ABC):
    """Images with one class each, or one per pixel.

    Attributes:
        class_names: Name of each class.
    """

    class_names: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image (3, H, W) uint8, and its class () int64 or those of its pixels (H, W) uint8."""

    @abstractmethod
    def subset(self, indices: Tensor) -> ImageDataset:
        """The images at `indices`, (L',) int64, as a set of their own."""

    @abstractmethod
    def with_classes(self, class_names: Sequence[str], parts: object = None) -> ImageDataset:
        """The same images with the classes in another order, that of `class_names`; matched by name.

        Raises:
            ValueError: If the names are not the same.
        """

    @property
    def strata(self) -> Tensor:
        """What a held-out share is to be balanced by, (L,) int64."""
        return torch.zeros(len(self), dtype=torch.int64)

    def in_memory(self, description: str) -> ImageTensors:
        """The same images, read once; `description` stands before the progress bar."""
        from rich.progress import track

        images, labels = zip(*(self[i] for i in track(range(len(self)), description=description, transient=True)))
        same_size = len({image.shape for image in images}) == 1
        return ImageTensors(
            torch.stack(images) if same_size else images,
            torch.stack(labels) if same_size or labels[0].ndim == 0 else labels,
            class_names=self.class_names,
        )


class ImageTensors(ImageDataset):
    """Images in memory.

    Args:
        images: Colours, (L, 3, H, W) uint8, or L images (3, H, W) of any sizes.
        label: Class of each image, (L,) int64, or of its pixels, (L, H, W) uint8 with 255 for ignored ones, or L masks
            (H, W).
        class_names: Name of each class.

    Raises:
        ValueError: If numbers or sizes disagree or a label is not a class.
    """

    def __init__(
        self, images: Tensor | Sequence[Tensor], label: Tensor | Sequence[Tensor], *, class_names: Sequence[str]
    ):
        if len(images) != len(label):
            raise ValueError(f"Every image needs a label, got {len(images)} images and {len(label)} labels.")
        # Of tensors, one image shows the sizes of all.
        firsts = 1 if isinstance(images, Tensor) and isinstance(label, Tensor) else len(images)
        for number, (image, own) in enumerate(zip(images[:firsts], label[:firsts])):
            if image.ndim != 3 or len(image) != 3 or image.dtype != torch.uint8:
                raise ValueError(f"Image {number} must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}.")
            if own.ndim and own.shape != image.shape[1:]:
                raise ValueError(f"Image {number} is {tuple(image.shape[1:])}, but its mask {tuple(own.shape)}.")
        for own in [label] if isinstance(label, Tensor) else label:
            wrong = (own < 0) | (own >= len(class_names))
            if own.ndim > 1:
                wrong &= own != IGNORE
            if wrong.any():
                raise ValueError(f"labels must be in 0..{len(class_names) - 1}, got {int(own[wrong][0])}.")
        self.images, self.label, self.class_names = images, label, tuple(class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image and its label."""
        return self.images[index], self.label[index]

    def in_memory(self, description: str) -> ImageTensors:  # noqa: ARG002
        """Return itself."""
        return self

    def with_classes(self, class_names: Sequence[str], parts: object = None) -> ImageTensors:  # noqa: ARG002
        """The same images with the classes in another order."""
        order = class_order(self.class_names, class_names)
        if isinstance(self.label, Tensor):
            return ImageTensors(self.images, renumber_labels(self.label, order), class_names=class_names)
        label = [renumber_labels(own, order) for own in self.label]
        return ImageTensors(self.images, label, class_names=class_names)

    @property
    def strata(self) -> Tensor:
        """Classes of the images, (L,) int64; zeros where pixels have classes."""
        return self.label if isinstance(self.label, Tensor) and self.label.ndim == 1 else super().strata

    def subset(self, indices: Tensor) -> ImageTensors:
        """The images at `indices`, (L',) int64, as a set of their own."""
        images, label = (
            values[indices] if isinstance(values, Tensor) else [values[int(i)] for i in indices]
            for values in (self.images, self.label)
        )
        return ImageTensors(images, label, class_names=self.class_names)


def renumber_labels(label: Tensor, order: Tensor) -> Tensor:
    """Labels of any shape and type, renumbered by `order` (P,); those from P on, such as ignored pixels, stay."""
    table = torch.arange(max(256, len(order)))
    table[: len(order)] = order
    return table[label.long()].to(label.dtype)


class ImageFiles(ImageDataset):
    """Picture files with a class each.

    Args:
        files: The files, L.
        label: Class of each, (L,) int64.
        class_names: Name of each class.
    """

    def __init__(self, files: Sequence[str | Path], label: Tensor, *, class_names: Sequence[str]):
        if label.shape != (len(files),):
            raise ValueError(f"label must be ({len(files)},) like the files, got {tuple(label.shape)}.")
        self.files, self.label, self.class_names = files, label, tuple(class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read one file; see `read_image`."""
        return read_image(self.files[index]), self.label[index]

    def with_classes(self, class_names: Sequence[str], parts: object = None) -> ImageFiles:  # noqa: ARG002
        """The same files with the classes in another order."""
        label = renumber_labels(self.label, class_order(self.class_names, class_names))
        return ImageFiles(self.files, label, class_names=class_names)

    @property
    def strata(self) -> Tensor:
        """Classes of the images, (L,) int64."""
        return self.label

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files at `indices`, (L',) int64, as a set of their own."""
        return ImageFiles([self.files[i] for i in indices], self.label[indices], class_names=self.class_names)


class TransformedImages(TransformedDataset):
    """Labelled images that go through transforms one by one, in batches of images and labels; see `TransformedDataset`.

    A batch has images (B, 3, H, W) uint8, which must have one size, with labels (B,) int64 or (B, H, W) uint8.

    Args:
        images: The set.
        transforms: Each is called with an image of torchvision's type `tv_tensors.Image`, and with the
            `tv_tensors.Mask` if pixels have labels; `torchvision.transforms.v2` fits.
        seed: That of the run.
    """

    def __init__(self, images: ImageDataset, transforms: Sequence[nn.Module] = (), *, seed: int = 0):
        super().__init__(images, transforms, seed=seed)

    def batch(self, numbers: Sequence[int]) -> ImageBatch:
        """The images of these numbers."""
        if not self.transforms and isinstance(self.samples, ImageTensors):
            images, label = self.samples.images, self.samples.label
            if isinstance(images, Tensor) and isinstance(label, Tensor):
                indices = [number % len(self.samples) for number in numbers]
                return ImageBatch(images[indices], label[indices])
        return super().batch(numbers)

    def _transform(self, sample: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        image, label = sample
        if self.transforms:
            from torchvision import tv_tensors

            for transform in self.transforms:
                if label.ndim:
                    image, label = transform(tv_tensors.Image(image), tv_tensors.Mask(label))
                else:
                    image = transform(tv_tensors.Image(image))
        return image.as_subclass(Tensor), label.as_subclass(Tensor)

    def _collate(self, samples: list[tuple[Tensor, Tensor]]) -> ImageBatch:
        images, labels = zip(*samples)
        sizes = list({image.shape[1:]: None for image in images})
        if len(sizes) > 1:
            (a, b), (c, d) = sizes[:2]
            raise ValueError(
                f"The images of a batch must have one size, got {a}x{b} and {c}x{d}. Add a crop or a resize to the "
                "data's transforms, or measure images one at a time with eval_batch_size: 1."
            )
        return ImageBatch(torch.stack(images), torch.stack(labels))


def read_image(path: str | Path) -> Tensor:
    """Read a picture file as colours.

    Grey values become equal colours; those of 16 bits are scaled by 255/65535, with a warning at the first image of 12
    bits or fewer, which is dark then; those of 32 bits are taken for 8 bits if none exceeds 255, and for 16 bits
    otherwise. Palettes and CMYK are converted, what is transparent is laid over white, and the EXIF orientation is
    applied.

    Returns:
        Red, green and blue in 0..255, (3, H, W) uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or not a picture.
    """
    from PIL import ImageOps

    opened = open_picture(path)
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{path}: grey values must be 8 or 16 bits, got {values.min()}..{values.max()}.")
        # Pillow reads a PGM of 16 bits into numbers of 32.
        is_8_bits = picture.mode == "I" and opened.format != "PPM" and values.max() <= 255
        if 0 < values.max() < 4096:
            _warn_of_few_bits(path, int(values.max()), is_8_bits=is_8_bits)
        if is_8_bits:
            values *= 257
        grey = torch.from_numpy((values * 255 + 32767) // 65535).to(torch.uint8)
        return grey.expand(3, *grey.shape).contiguous()
    if picture.mode == "F":
        raise ValueError(f"{path} holds floating-point values, whose range is unknown. Save it with 8 or 16 bits.")
    if picture.has_transparency_data:
        from PIL import Image

        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


_warned_of_few_bits = False


def _warn_of_few_bits(path: str | Path, highest: int, *, is_8_bits: bool) -> None:
    global _warned_of_few_bits
    if _warned_of_few_bits:
        return
    _warned_of_few_bits = True
    if is_8_bits:
        text = f"{path} has 32 bits, but no value above {highest}: it is taken for an image of 8 bits."
    else:
        text = f"{path} has 16 bits, but no value above {highest}: it is seen as nearly black, as 65535 is white."
    advice = "If all images are so, as those of cameras of 10 or 12 bits, scale them to 0..65535 or to 8 bits."
    warnings.warn(f"{text} {advice}", stacklevel=3)


class Header(NamedTuple):
    """What a picture file says of its image.

    Attributes:
        mode: PIL's mode.
        height: Height of the image that `read_image` gives.
        width: Its width.
        is_turned: Whether it lies on its side in the file, and the EXIF orientation says so.
    """

    mode: str
    height: int
    width: int
    is_turned: bool = False


def read_header(path: str | Path) -> Header:
    """What a picture file says of its image, mostly without reading its pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a picture.
    """
    with _opened(path) as picture:
        is_turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        if is_turned and picture.format == "TIFF":  # which Pillow turns itself, some versions before they read it
            picture.load()
            height, width = picture.size[::-1]
        else:
            height, width = picture.size if is_turned else picture.size[::-1]
        return Header(picture.mode, height, width, is_turned)


def open_picture(path: str | Path) -> Image:
    """Open and decode a picture file with PIL.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or not a picture.
    """
    with _opened(path) as picture:
        picture.load()
        return picture


@contextmanager
def _opened(path: str | Path) -> Iterator[Image]:
    """A picture file as long as it is open; what is wrong with it ends in one line."""
    import struct

    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as picture:
            yield picture
    except FileNotFoundError:
        raise FileNotFoundError(f"No image {path}.") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(repr(str(path)), "").split()).rstrip(".")
        raise ValueError(f"{path} cannot be read as an image: {reason}.") from error
