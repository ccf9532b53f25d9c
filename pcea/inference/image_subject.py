"""An image, and what a trained network attends to and predicts in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.inference.images import Crop, ImageSource, load_image
from pcea.inference.recording import record_on_cpu
from pcea.nn.recording import AttentionMap
from pcea.visualization.images import pixel_index, resize_picture, to_greyscale
from pcea.visualization.point_weights import pixel_points
from pcea.visualization.subject import Subject
from pcea.visualization.views import GREY, SHOWN_CLASSES, View, view_class, view_parts

if TYPE_CHECKING:
    from pcea.inference.images import ImagePredictor
    from pcea.inference.masks import MaskPredictor
    from pcea.inference.objects import ObjectPredictor

Result = TypeVar("Result")


class ImageSubject(Subject):
    """An image, and what a network attends to in it; its pixels are the points.

    Args:
        source: The image.
        image: Its colours, (3, H, W) uint8.
        layers: Attention recorded from the network.
        crop: The part of it that the network sees.
        size: Longest side of what is drawn, in pixels.
        title: Follows the file name above the drawing.
        head: Which attention head is shown; None averages over all.
        color_bases: What colours mean; as for `Subject`.

    Raises:
        ValueError: If the network has no attention, or no such head.
    """

    def __init__(
        self,
        source: ImageSource,
        image: Tensor,
        layers: Mapping[str, AttentionMap],
        *,
        crop: Crop,
        size: int,
        title: str = "",
        head: int | None = None,
        color_bases: Mapping[str, Sequence[Sequence[float]]] = MappingProxyType({}),
    ):
        self.source = str(source) if isinstance(source, str | Path) else "The image"
        self._crop, self._size = crop, (image.shape[1], image.shape[2])
        self.shown = resize_picture(crop.cut(image), size)
        name = Path(self.source).stem + (f": {title}" if title else "")
        points = pixel_points(*self.shown.shape[1:])
        picture = to_greyscale(self.shown)
        super().__init__(points, layers, name=name, picture=picture, head=head, color_bases=color_bases)

    @property
    def file_name(self) -> str:
        """The name of the file without its ending."""
        return Path(self.source).stem

    @property
    def seen(self) -> dict[str, int]:
        """The part of the file's pixels that is shown: top, left, height, width."""
        return self._crop._asdict()

    @property
    def modes(self) -> tuple[str, ...]:
        """What `view` can show."""
        return (*super().modes, "prediction")

    def default_query(self) -> int:
        """The pixel in the middle of what the network sees: the default query."""
        top, left, height, width = self._crop
        return self._find_pixel(left + width // 2, top + height // 2)

    def find_query(self, text: str) -> int:
        """The index of the point that shows a pixel `x,y` of the file.

        Raises:
            ValueError: If there is no such pixel, or the network does not see it.
        """
        try:
            x, y = (int(word) for word in text.split(","))
        except ValueError:
            raise ValueError(f"query must be a pixel x,y, got {text!r}.") from None
        return self._find_pixel(x, y)

    def _find_pixel(self, x: int, y: int) -> int:
        top, left, height, width = self._crop
        if not (left <= x < left + width and top <= y < top + height):
            seen = "" if (height, width) == self._size else ", which the network sees of it"
            raise ValueError(
                f"{self.source}: query must be a pixel x,y with x in {left}..{left + width - 1} and y in "
                f"{top}..{top + height - 1}{seen}, got {x},{y}."
            )
        return pixel_index((x - left, y - top), (height, width), self.shown.shape[1:])


class ClassSubject(ImageSubject):
    """An image with its class.

    Args:
        source: The image.
        predictor: The network.
        size: Longest side of what is drawn, in pixels.
        head: Which attention head is shown; None averages over all.
    """

    def __init__(self, source: ImageSource, predictor: ImagePredictor, *, size: int, head: int | None = None):
        image = load_image(source)
        with record_on_cpu(predictor.network) as layers:
            self._prediction = predictor.rank(named_errors(source, predictor.logits, image), SHOWN_CLASSES)
        title = self._prediction.title
        crop, bases = predictor.crop(image), predictor.description.color_bases
        super().__init__(source, image, layers, crop=crop, size=size, title=title, head=head, color_bases=bases)

    def _view_result(self, mode: str) -> View:  # noqa: ARG002
        """The image as it is, with the probabilities of classes."""
        view = view_class(self.points, dict(zip(self._prediction.class_names, self._prediction.probabilities)))
        picture = self.shown.permute(1, 2, 0)
        # None of the legend's colours is in the picture.
        legend = tuple((name, GREY) for name, _ in view.legend)
        return view._replace(colors=picture.flatten(0, 1), legend=legend, picture=picture)


class MaskSubject(ImageSubject):
    """An image with the classes of its pixels; arguments as for `ClassSubject`."""

    def __init__(self, source: ImageSource, predictor: MaskPredictor, *, size: int, head: int | None = None):
        image = load_image(source)
        with record_on_cpu(predictor.network) as layers:
            self._logits = named_errors(source, predictor.logits, image)
        self._class_names = predictor.class_names
        crop, bases = predictor.crop(image), predictor.description.color_bases
        super().__init__(source, image, layers, crop=crop, size=size, head=head, color_bases=bases)

    def _view_result(self, mode: str) -> View:  # noqa: ARG002
        """The class of every pixel; the legend names those that occur, largest first."""
        from pcea.inference.masks import to_masks

        prediction = to_masks(self._logits, self.shown, self._class_names)
        view = view_parts(self.points, prediction.label.flatten(), dict(enumerate(self._class_names)))
        legend = tuple(view.legend[number] for number in prediction.shares)
        return view._replace(legend=legend, legend_title="class", picture=to_greyscale(self.shown))


class ObjectSubject(ImageSubject):
    """An image with the objects in it; arguments as for `ClassSubject`."""

    def __init__(self, source: ImageSource, predictor: ObjectPredictor, *, size: int, head: int | None = None):
        image = load_image(source)
        with record_on_cpu(predictor.network) as layers:
            self._prediction = named_errors(source, predictor.predict, image)
        transform = getattr(predictor.network, "transform", None)
        if transform is not None:
            # What a torchvision-style detector really saw: the image scaled, and padded below and to the right.
            seen, _ = transform([image.float() / 255])
            share = tuple(own / whole for own, whole in zip(seen.image_sizes[0], seen.tensors.shape[2:]))
            layers = {name: _without_filling(attention, share) for name, attention in layers.items()}
        crop, bases = Crop(0, 0, *image.shape[1:]), predictor.description.color_bases
        super().__init__(source, image, layers, crop=crop, size=size, head=head, color_bases=bases)

    @property
    def note(self) -> str:
        """What was found."""
        return f"{self._prediction}."

    def _view_result(self, mode: str) -> View:  # noqa: ARG002
        """The image with boxes, masks, names and scores."""
        from pcea.inference.objects import draw_objects

        drawn = torch.from_numpy(draw_objects(self._prediction, size=max(self.shown.shape)))
        view = view_class(self.points, {})
        return view._replace(colors=drawn.flatten(0, 1), picture=drawn)


def named_errors(source: ImageSource, function: Callable[[Tensor], Result], image: Tensor) -> Result:
    """Call a function with an image; errors name the file."""
    try:
        return function(image)
    except ValueError as error:
        if not isinstance(source, str | Path):
            raise
        raise ValueError(f"{source}: {error}") from error


def _without_filling(attention: AttentionMap, share: tuple[float, ...]) -> AttentionMap:
    """Resample attention over a padded image to as many tokens that cover the image alone.

    Args:
        attention: Attention of a grid of tokens and of no others.
        share: The image's share of all rows and of all columns.
    """
    if attention.grid is None:
        return attention
    scale = [[share[1], 0, share[1] - 1], [0, share[0], share[0] - 1]]
    images = attention.weights.flatten(0, -3).transpose(1, 2).unflatten(2, attention.grid).float()  # (B, S, H, W)
    places = F.affine_grid(torch.tensor([scale]), [1, 1, *attention.grid], align_corners=False)
    images = F.grid_sample(images, places.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False)
    return attention._replace(weights=images.flatten(2).transpose(1, 2).view_as(attention.weights))
