"""A picture file, and what a trained network attends to and predicts in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pcea.attention import record_attention
from pcea.image_prediction import of_logits, prepare, shown_window
from pcea.trained_network import TrainedImageNetwork
from pcea.visualization.browser import LAYER_MODES, Subject
from pcea.visualization.overlay import fit, grey, pixel_number
from pcea.visualization.views import View, pixel_points, view_class, view_parts

_CLASSES = 5


class StudiedPicture(Subject):
    """A picture as a subject to look at: its pixels are the points.

    Args:
        file: Where it came from.
        picture: Its colours, (3, H, W) uint8.
        trained: The network.
        size: Longest side of what is drawn, in pixels.
        head: Which attention head is shown; None for the mean over all.

    Raises:
        ValueError: If the network cannot take the picture, or has no attention layer.
    """

    def __init__(
        self, file: Path, picture: Tensor, trained: TrainedImageNetwork, *, size: int, head: int | None = None
    ):
        self._file, self._trained = file, trained
        self._window = shown_window(picture, trained)
        self._picture = fit(self._window.cut(picture), size)
        self._size = (picture.shape[1], picture.shape[2])
        try:
            with record_attention(trained.network) as layers, torch.inference_mode():
                self._logits = trained.network(prepare(picture, trained))[0].float()
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        name = file.stem
        if not trained.labels_pixels:
            best = self._logits.softmax(0).max(0)
            name = f"{name}: {trained.class_names[int(best.indices)]} {100 * float(best.values):.0f} %"
        super().__init__(pixel_points(*self._picture.shape[1:]), layers, name=name, head=head)

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
        return pixel_number((x - left, y - top), (height, width), self._picture.shape[1:])

    def view(
        self,
        mode: str,
        *,
        layer: int,
        slot: int | None = None,
        query: int | None = None,
        ranking: Sequence[int] | None = None,
        high: float | None = None,
    ) -> View:
        """Colour the picture; the modes of the attention as in `Subject`, the other does not depend on the layer."""
        if mode in LAYER_MODES or mode not in self.modes:
            view = super().view(mode, layer=layer, slot=slot, query=query, ranking=ranking, high=high)
            return view._replace(picture=grey(self._picture))
        self.attention(layer)  # a wrong layer is an error in every mode
        view = self._pixel_classes() if self._trained.labels_pixels else self._classes()
        return view._replace(title=self.name)

    def _classes(self) -> View:
        """The picture as it is, with the probabilities of classes."""
        best = self._logits.softmax(0).topk(min(_CLASSES, len(self._logits)))
        names = [self._trained.class_names[i] for i in best.indices]
        view = view_class(self.points, dict(zip(names, best.values.tolist())))
        picture = self._picture.permute(1, 2, 0)
        return view._replace(colors=picture.flatten(0, 1), picture=picture)

    def _pixel_classes(self) -> View:
        """The class of every pixel, with those that occur in the legend, largest first."""
        prediction = of_logits(self._logits, self._picture, self._trained)
        names = dict(enumerate(prediction.class_names))
        view = view_parts(self.points, prediction.label.flatten(), names)
        legend = tuple(view.legend[number] for number in prediction.shares)
        return view._replace(legend=legend, legend_title="class", picture=grey(self._picture))
