"""A picture file, and what a trained network attends to and predicts in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.inference.images import Window, of_logits, prepare, shown_window
from pcea.inference.networks import TrainedDetector, TrainedImageNetwork
from pcea.inference.objects import draw_objects, find_objects
from pcea.nn.attention import AttentionMap, record_attention
from pcea.visualization.images import fit, grey, pixel_number
from pcea.visualization.subject import Subject
from pcea.visualization.views import View, pixel_points, view_class, view_parts

_CLASSES = 5


def study_picture(
    file: Path,
    picture: Tensor,
    trained: TrainedImageNetwork | TrainedDetector,
    *,
    size: int,
    head: int | None = None,
) -> _Picture:
    """A picture with what a trained network attends to and predicts in it.

    Args:
        file: Where it came from.
        picture: Its colours, (3, H, W) uint8.
        trained: The network.
        size: Longest side of what is drawn, in pixels.
        head: Which attention head is shown; None for the mean over all.

    Raises:
        ValueError: If the network cannot take the picture, or has no attention layer, or not this head.
    """
    if isinstance(trained, TrainedDetector):
        return _StudiedObjects(file, picture, trained, size=size, head=head)
    return _StudiedPicture(file, picture, trained, size=size, head=head)


class _Picture(Subject):
    """A picture as a subject to look at: its pixels are the points. `window` is what the network sees of it."""

    def __init__(
        self,
        file: Path,
        picture: Tensor,
        layers: Mapping[str, AttentionMap],
        *,
        window: Window,
        size: int,
        name: str,
        head: int | None = None,
    ):
        self._file, self._window, self._size = file, window, (picture.shape[1], picture.shape[2])
        self.shown = fit(window.cut(picture), size)
        points = pixel_points(*self.shown.shape[1:])
        super().__init__(points, layers, name=name, picture=grey(self.shown), head=head)

    @property
    def modes(self) -> tuple[str, ...]:
        """What `view` can show."""
        return (*super().modes, "prediction")

    def find_pixel(self, place: tuple[int, int] | None) -> int:
        """The number of the point that shows a pixel x, y of the file; of the one in the middle if None is given.

        Raises:
            ValueError: If there is no such pixel, or the network does not see it.
        """
        top, left, height, width = self._window
        if place is None:
            place = left + width // 2, top + height // 2
        x, y = place
        if not (left <= x < left + width and top <= y < top + height):
            seen = "" if (height, width) == self._size else ", which the network sees of it"
            raise ValueError(
                f"{self._file}: --query must be a pixel x,y with x in {left}..{left + width - 1} and y in "
                f"{top}..{top + height - 1}{seen}, got {x},{y}."
            )
        return pixel_number((x - left, y - top), (height, width), self.shown.shape[1:])

    def _view_result(self, mode: str) -> View:
        assert mode == "prediction"
        return self.predicted()

    def predicted(self) -> View:
        """The picture with what the network says of it."""
        raise NotImplementedError


class _StudiedPicture(_Picture):
    """A picture with its class or those of its pixels."""

    def __init__(
        self, file: Path, picture: Tensor, trained: TrainedImageNetwork, *, size: int, head: int | None = None
    ):
        self._trained = trained
        window = shown_window(picture, trained)
        try:
            with record_attention(trained.network) as layers, torch.inference_mode():
                self._logits = trained.network(prepare(picture, trained))[0].float()
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        name = file.stem
        if not trained.labels_pixels:
            best = self._logits.softmax(0).max(0)
            name = f"{name}: {trained.class_names[int(best.indices)]} {100 * float(best.values):.0f} %"
        super().__init__(file, picture, layers, window=window, size=size, name=name, head=head)

    def predicted(self) -> View:
        """The picture with the probabilities of classes, or coloured by the class of every pixel."""
        return self._pixel_classes() if self._trained.labels_pixels else self._classes()

    def _classes(self) -> View:
        """The picture as it is, with the probabilities of classes."""
        best = self._logits.softmax(0).topk(min(_CLASSES, len(self._logits)))
        names = [self._trained.class_names[i] for i in best.indices]
        view = view_class(self.points, dict(zip(names, best.values.tolist())))
        picture = self.shown.permute(1, 2, 0)
        return view._replace(colors=picture.flatten(0, 1), picture=picture)

    def _pixel_classes(self) -> View:
        """The class of every pixel, with those that occur in the legend, largest first."""
        prediction = of_logits(self._logits, self.shown, self._trained)
        names = dict(enumerate(prediction.class_names))
        view = view_parts(self.points, prediction.label.flatten(), names)
        legend = tuple(view.legend[number] for number in prediction.shares)
        return view._replace(legend=legend, legend_title="class", picture=grey(self.shown))


class _StudiedObjects(_Picture):
    """A picture with the objects in it."""

    def __init__(self, file: Path, picture: Tensor, trained: TrainedDetector, *, size: int, head: int | None = None):
        with record_attention(trained.network) as layers:
            self._prediction = find_objects(picture, trained)
        # What the detector really saw: scaled, and filled up below and to the right.
        seen, _ = trained.network.transform([picture.float() / 255])  # type: ignore[operator]
        share = tuple(own / whole for own, whole in zip(seen.image_sizes[0], seen.tensors.shape[2:]))
        own = {name: _without_filling(attention, share) for name, attention in layers.items()}
        window = Window(0, 0, *picture.shape[1:])
        super().__init__(file, picture, own, window=window, size=size, name=file.stem, head=head)

    def predicted(self) -> View:
        """The picture with boxes, masks, names and scores."""
        drawn = torch.from_numpy(draw_objects(self._prediction, size=max(self.shown.shape)))
        view = view_class(self.points, {})
        return view._replace(colors=drawn.flatten(0, 1), picture=drawn)


def _without_filling(attention: AttentionMap, share: tuple[float, ...]) -> AttentionMap:
    """Attention of as many tokens that cover the picture alone, of those that also cover what it was filled up with.

    Args:
        attention: That of a grid of tokens without others.
        share: The picture's part of all rows and of all columns.
    """
    if attention.grid is None:
        return attention
    scale = [[share[1], 0, share[1] - 1], [0, share[0], share[0] - 1]]
    images = attention.weights.flatten(0, -3).transpose(1, 2).unflatten(2, attention.grid).float()  # (B, S, H, W)
    places = F.affine_grid(torch.tensor([scale]), [1, 1, *attention.grid], align_corners=False)
    images = F.grid_sample(images, places.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False)
    return attention._replace(weights=images.flatten(2).transpose(1, 2).view_as(attention.weights))
