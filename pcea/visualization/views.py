"""From attention and labels to coloured points with a legend. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pcea.nn.recording import AttentionMap
from pcea.visualization.colors import color_parts, color_values, palette
from pcea.visualization.point_weights import check_cloud, weights_at, weights_of_query

GREY = (190, 190, 190)
# More slots than this could not be told apart by colour, and their legend could not be read.
MAX_COLORED_SLOTS = 12
# Classes that a legend names.
SHOWN_CLASSES = 5


class ColorBar(NamedTuple):
    """The meaning of the colours of `color_values`.

    Attributes:
        label: The quantity.
        low: Its value at the darkest colour.
        high: Its value at the brightest colour.
    """

    label: str
    low: float
    high: float


class View(NamedTuple):
    """A coloured cloud, ready to be drawn. Those that the functions of this file return are on the CPU.

    Attributes:
        points: Coordinates, (N, 3), y up.
        colors: Red, green and blue, (N, 3) uint8, in the order of `points`.
        title: A line of text.
        legend: Names and their colours.
        legend_title: What is named in the legend, such as "part".
        color_bar: The meaning of the colours if they stand for values, or None.
        values: What the colours stand for: a slot, a part or a value of each point, (N,), or None.
        marker: Position of a point that is marked with a red ball, (3,), or None.
        normals: Unit normals for shading, (N, 3), of either sign. If None, they are estimated when the view is drawn.
        picture: If the points are the pixels of a picture, row by row: what the colours are laid over, (H, W, 3)
            uint8. None for clouds.
    """

    points: Tensor
    colors: Tensor
    title: str = ""
    legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    legend_title: str = ""
    color_bar: ColorBar | None = None
    values: Tensor | None = None
    marker: Tensor | None = None
    normals: Tensor | None = None
    picture: Tensor | None = None

    def cpu(self) -> View:
        """The same view with all tensors on the CPU, where it is drawn."""
        tensors: dict[str, Any] = {k: v.cpu() for k, v in self._asdict().items() if isinstance(v, Tensor)}
        return self._replace(**tensors)


def view_points(
    points: Tensor,
    attention: AttentionMap | None = None,
    *,
    slot: int | None = None,
    query: int | None = None,
    colors: Tensor | None = None,
    cloud: int | None = None,
    head: int | None = None,
    title: str = "",
) -> View:
    """Colour a cloud by what its points attend to, or with your own colours.

    Args:
        points: One cloud, (N, 3), y up, in the coordinates that the model was given. They need not be the model's
            tokens.
        attention: The attention map of one layer, from `record_attention`. Without `slot` and `query`, each point gets
            the colour of its strongest slot.
        slot: Colour by the weight for this slot.
        query: Colour by how each point relates to the point with this index; see `view_query`.
        colors: Your own colours instead of attention: red, green and blue, (N, 3) uint8. Without attention and colours,
            points are coloured by height.
        cloud: Index of the cloud in the recorded batch; required if the batch has several.
        head: Index of the attention head; None averages over all heads.
        title: A line of text.

    Raises:
        ValueError: If the arguments do not match each other or the attention.
        TypeError: If `attention` is not the map of one layer, but for example the dict of all layers.
    """
    points = check_cloud(points)
    if sum(given is not None for given in (slot, query, colors)) > 1:
        raise ValueError("Give one of slot, query and colors.")
    if colors is not None:
        if colors.shape != points.shape or colors.dtype != torch.uint8:
            raise ValueError(f"colors must be {tuple(points.shape)} uint8, got {tuple(colors.shape)} {colors.dtype}.")
        return View(points, colors, title).cpu()
    if attention is not None and not isinstance(attention, AttentionMap):
        raise TypeError(f"attention must be the map of one layer, such as maps[name], got {type(attention).__name__}.")
    if attention is None:
        if slot is not None or query is not None:
            raise ValueError("slot and query need attention: give the map that record_attention recorded.")
        return view_values(points, points[:, 1] - points[:, 1].min(), label="height", title=title)
    if query is not None:
        return view_query(points, attention, query, cloud=cloud, head=head, title=title)
    weights = weights_at(points, attention, cloud=cloud, head=head)
    return view_slots(points, weights, title=title) if slot is None else view_slot(points, weights, slot, title=title)


def rank_slots(weights: Sequence[Tensor]) -> list[int]:
    """Rank slots by the number of points at which they are the strongest, most first; slots without any are left out.

    Args:
        weights: The weights of every point for every slot, (N, S) for each cloud.
    """
    counts = torch.stack([w.argmax(1).bincount(minlength=w.shape[1]) for w in weights]).sum(0)
    order = counts.argsort(descending=True, stable=True)
    return order[counts[order] > 0].tolist()


def view_colors(points: Tensor, colors: Tensor, *, title: str = "") -> View:
    """Colour each point with what `color_tokens` made of the attention; the colours have no names.

    Args:
        points: (N, 3).
        colors: Red, green and blue in 0..1, (N, 3).
        title: A line of text.
    """
    return View(points, (255 * colors).round().to(torch.uint8), title).cpu()


def view_slots(points: Tensor, weights: Tensor, *, ranking: Sequence[int] | None = None, title: str = "") -> View:
    """Colour each point by its strongest slot. The twelve slots ranked first have a colour each; the others are grey.

    Args:
        points: (N, 3).
        weights: Of every point for every slot, (N, S).
        ranking: Slots in the order of the palette; None ranks those of this cloud with `rank_slots`.
        title: A line of text.
    """
    ranking = list(rank_slots([weights]) if ranking is None else ranking)[:MAX_COLORED_SLOTS]
    strongest = weights.argmax(1).cpu()
    occurring = set(strongest.unique().tolist())
    colors = torch.tensor(GREY, dtype=torch.uint8).repeat(len(points), 1)
    legend = []
    for slot, color in zip(ranking, palette(len(ranking))):
        colors[strongest == slot] = color
        if slot in occurring:
            legend.append((f"slot {slot}", _rgb(color)))
    if not occurring <= set(ranking):
        legend.append(("other slots", GREY))
    return View(points, colors, title, tuple(legend), "strongest slot", values=strongest).cpu()


def view_slot(points: Tensor, weights: Tensor, slot: int, *, high: float | None = None, title: str = "") -> View:
    """Colour each point by its weight for one slot.

    Args:
        points: (N, 3).
        weights: Of every point for every slot, (N, S).
        slot: Index of the slot.
        high: The weight of the brightest colour; None for the highest weight in this cloud.
        title: A line of text.

    Raises:
        ValueError: If there is no such slot.
    """
    if not 0 <= slot < weights.shape[1]:
        raise ValueError(f"slot must be in 0..{weights.shape[1] - 1}, got {slot}.")
    return view_values(points, weights[:, slot], label=f"weight of slot {slot}", high=high, title=title)


def check_query(query: int, num_points: int) -> None:
    """Refuse a query that is the number of no point.

    Raises:
        ValueError: If it is not in 0..num_points - 1.
    """
    if not 0 <= query < num_points:
        raise ValueError(f"query must be the number of a point, 0..{num_points - 1}, got {query}.")


def view_query(
    points: Tensor,
    attention: AttentionMap,
    query: int,
    *,
    cloud: int | None = None,
    head: int | None = None,
    title: str = "",
) -> View:
    """Colour each point by how it relates to a query point.

    External attention: the counterpart of a row of the N x N map is how alike two points attend to the slots. It is the
    cosine of the deviations of their weights from the cloud's mean: 1 if both prefer the same slots; values of 0 and
    below share the darkest colour. (The weights of trained networks are nearly uniform, so that their plain cosine is
    always close to 1.) Self-attention: that row itself, the weight that the query gives to each point.

    Args:
        points: (N, 3).
        attention: An attention map from `record_attention`.
        query: Index of the query point in `points`.
        cloud: Index of the cloud in the recorded batch; required if the batch has several.
        head: Index of the attention head; None averages over all heads.
        title: A line of text.

    Raises:
        ValueError: If there is no such point.
    """
    check_query(query, len(points))
    if attention.slots_are_tokens:
        values = weights_of_query(points, attention, query, cloud=cloud, head=head)
        view = view_values(points, values, label="weight of the query", title=title)
    else:
        weights = weights_at(points, attention, cloud=cloud, head=head)
        deviation = weights - weights.mean(0)
        likeness = torch.cosine_similarity(deviation, deviation[query], dim=1)
        view = view_values(points, likeness, label="likeness to the query", high=1.0, title=title)
    return view._replace(marker=view.points[query])


def view_values(
    points: Tensor, values: Tensor, *, label: str, low: float = 0.0, high: float | None = None, title: str = ""
) -> View:
    """Colour each point by a value.

    Args:
        points: (N, 3).
        values: (N,).
        label: The quantity.
        low: The value of the darkest colour.
        high: The value of the brightest colour; None for the highest value.
        title: A line of text.
    """
    high = float(values.max()) if high is None else high
    colors = color_values(values, low=low, high=high)
    return View(points, colors, title, color_bar=ColorBar(label, low, high), values=values).cpu()


def share_scale(views: Sequence[View]) -> list[View]:
    """Put the values of all views on one scale, up to the highest of all. Views without a colour bar stay unchanged."""
    high = max((view.color_bar.high for view in views if view.color_bar is not None), default=0.0)
    shared = []
    for view in views:
        if view.color_bar is not None and view.values is not None:
            bar = view.color_bar._replace(high=high)
            view = view._replace(colors=color_values(view.values, low=bar.low, high=high), color_bar=bar)
        shared.append(view)
    return shared


def view_parts(points: Tensor, part_label: Tensor, parts: Mapping[int, str], *, title: str = "") -> View:
    """Colour each point by its part.

    Args:
        points: (N, 3).
        part_label: Class of each point, (N,) int64.
        parts: Names of the classes that the category has, in the order of the palette.
        title: A line of text.

    Raises:
        ValueError: If a label is not one of `parts`.
    """
    colors = color_parts(part_label, list(parts))
    legend = zip(parts.values(), map(_rgb, palette(len(parts))))
    return View(points, colors, title, tuple(legend), "part", values=part_label).cpu()


def view_class(points: Tensor, probabilities: Mapping[str, float], *, title: str = "") -> View:
    """Give all points one colour, that of the most probable class; in the legend of probabilities others are grey.

    Args:
        points: (N, 3).
        probabilities: Of the classes in the legend, most probable first, in 0..1.
        title: A line of text.
    """
    color = palette(1)
    names = [f"{name} {100 * p:.1f} %" for name, p in probabilities.items()]
    legend = tuple((name, GREY if i else _rgb(color[0])) for i, name in enumerate(names))
    return View(points, color.repeat(len(points), 1), title, legend, "class").cpu()


def _rgb(color: Tensor) -> tuple[int, int, int]:
    red, green, blue = color.tolist()
    return red, green, blue
