"""Attention and labels -> coloured points with a legend. Pure: nothing is drawn here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.nn.attention import AttentionMap
from pcea.ops import interpolate_features
from pcea.visualization.colors import color_parts, color_values, palette

GREY = (190, 190, 190)
# Slots with a colour of their own; more could not be told apart, nor their legend be read.
_MOST_SLOTS = 12
# Points whose weights are interpolated at once, so that a million points times 64 slots are never held three times.
_BLOCK = 1 << 16


class ColorBar(NamedTuple):
    """What the colours of `color_values` mean.

    Attributes:
        label: The quantity.
        low: Its value at the darkest colour.
        high: Its value at the brightest.
    """

    label: str
    low: float
    high: float


class View(NamedTuple):
    """One coloured cloud, ready to be drawn.

    Attributes:
        points: Coordinates, (N, 3), y up.
        colors: Red, green and blue, (N, 3) uint8, in the order of `points`.
        title: A line of text.
        legend: Names and their colours.
        legend_title: What the names are of.
        color_bar: The meaning of the colours where they are values, or None.
        values: What is coloured: a slot, a part or a value for each point, (N,), or None.
        mark: A point to be marked, (3,), or None.
        normals: Unit normals, (N, 3), for shading; of either side. None: estimated when it is drawn.
        picture: Where the points are the pixels of a picture, row by row: what the colours are laid over, (H, W, 3)
            uint8. None for clouds.
    """

    points: Tensor
    colors: Tensor
    title: str = ""
    legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    legend_title: str = ""
    color_bar: ColorBar | None = None
    values: Tensor | None = None
    mark: Tensor | None = None
    normals: Tensor | None = None
    picture: Tensor | None = None


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
    """Colour a cloud by what its points attend to, or by colours of your own.

    Args:
        points: One cloud, (N, 3), y up, in the coordinates that the model was given; any points, not only the tokens.
        attention: What `record_attention` recorded of one layer. Alone: each point in the colour of its strongest slot.
        slot: Colour by the weights for this slot.
        query: Colour by what the point of this number has to do with each other point; see `view_query`.
        colors: Red, green and blue, (N, 3) uint8, instead of attention. With neither: by height.
        cloud: Which cloud of the recorded batch these points are; needed if there are several.
        head: Which head; None for the mean over all.
        title: A line of text.

    Raises:
        ValueError: If the arguments do not fit each other or the attention.
        TypeError: If `attention` is not one layer's map, but those of all layers for example.
    """
    points = check_cloud(points)
    if sum(given is not None for given in (slot, query, colors)) > 1:
        raise ValueError("Give one of slot, query and colors.")
    if colors is not None:
        if colors.shape != points.shape or colors.dtype != torch.uint8:
            raise ValueError(f"colors must be {tuple(points.shape)} uint8, got {tuple(colors.shape)} {colors.dtype}.")
        return View(points, colors, title)
    if attention is not None and not isinstance(attention, AttentionMap):
        raise TypeError(f"attention must be the map of one layer, such as maps[name], got {type(attention).__name__}.")
    if attention is None:
        if slot is not None or query is not None:
            raise ValueError("slot and query are of an attention: give what record_attention recorded.")
        return view_values(points, points[:, 1] - points[:, 1].min(), label="height", title=title)
    if query is not None:
        return view_query(points, attention, query, cloud=cloud, head=head, title=title)
    weights = weights_at(points, attention, cloud=cloud, head=head)
    return view_slots(points, weights, title=title) if slot is None else view_slot(points, weights, slot, title=title)


def check_cloud(points: Tensor) -> Tensor:
    """One cloud as it was given, without its gradient.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is not one cloud, (N, 3), of finite coordinates.
    """
    if not isinstance(points, Tensor):
        raise TypeError(f"points must be a torch.Tensor, got {type(points).__name__}.")
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"points must be one cloud, (N, 3), got {tuple(points.shape)}.")
    bad = int((~points.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(points)} points have NaN or infinite coordinates.")
    return points.detach()


def spread(features: Tensor, positions: Tensor, points: Tensor, *, k: int = 3) -> Tensor:
    """Carry what the tokens have to all points of a cloud, by inverse-distance weights of the k nearest tokens.

    Args:
        features: One row per token, (M, C).
        positions: Where the tokens are, (M, 3), in the coordinates of `points`.
        points: (N, 3).
        k: Tokens that are mixed in one point.

    Returns:
        (N, C), fp32. A point at the position of a token has exactly that token's row.
    """
    if positions.shape == points.shape and positions.equal(points):
        return features.float()
    blocks = [
        interpolate_features(block[None], positions[None], features[None].float(), k=min(k, len(positions)))[0]
        for block in points.split(_BLOCK)
    ]
    return torch.cat(blocks)


def pixel_points(height: int, width: int) -> Tensor:
    """The centres of an image's pixels, row by row, (H W, 3): x and y in -1..1, y up, z 0."""
    y, x = (1 - (2 * torch.arange(count) + 1) / count for count in (height, width))
    y, x = torch.meshgrid(y, -x, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], dim=-1).flatten(0, 1)


def spread_grid(features: Tensor, grid: tuple[int, int], points: Tensor) -> Tensor:
    """Carry what the tokens of an image have to points of it, bilinearly.

    Args:
        features: One row per token, row by row of the grid, (H W, C).
        grid: Rows and columns (H, W) of the tokens.
        points: Where in the image, (N, 3): x from -1 (left) to 1 (right), y from -1 (bottom) to 1 (top).

    Returns:
        (N, C), fp32. Between an outermost token and the image's border everything is as at the token.
    """
    image = features.float().T.unflatten(1, grid)[None]  # (1, C, H, W)
    place = (points[:, :2] * torch.tensor([1, -1], device=points.device)).to(image)  # y down
    return F.grid_sample(image, place[None, None], padding_mode="border", align_corners=False)[0, :, 0].T


def _carry(attention: AttentionMap, features: Tensor, positions: Tensor, points: Tensor) -> Tensor:
    """Carry what the tokens of a layer have to points, as is right for a cloud or an image."""
    if attention.grid is None:
        return spread(features, positions, points)
    return spread_grid(features, attention.grid, points)


def tokens_of(
    points: Tensor, attention: AttentionMap, *, cloud: int | None = None, head: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weights (M, S) and positions (M, 3) of the real tokens of one cloud of a batch.

    Args:
        points: The cloud, (N, 3), in the coordinates that the model was given; pixels as for `spread_grid`. Where the
            map does not know the tokens' positions, the tokens are these points.
        attention: What `record_attention` recorded.
        cloud: Which cloud of the batch; needed if there are several.
        head: Which head; None for the mean over all.

    Raises:
        ValueError: If there is no such cloud or head, or nobody knows where the tokens are.
    """
    weights = attention.weights
    if weights.ndim < 3:
        raise ValueError("Attention of packed clouds (N, S) is not of one cloud: give `weights` as (1, N, S).")
    if cloud is None and len(weights) > 1:
        raise ValueError(
            f"The attention is of {len(weights)} clouds: say which one it is by cloud=0..{len(weights) - 1}."
        )
    cloud = cloud or 0
    if not 0 <= cloud < len(weights):
        raise ValueError(f"cloud must be in 0..{len(weights) - 1}, got {cloud}.")
    weights = weights[cloud].float()
    heads = len(weights) if weights.ndim == 3 else 1
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"head must be in 0..{heads - 1}, got {head}.")
    if weights.ndim == 3:
        weights = weights.mean(0) if head is None else weights[head]
    if attention.grid is not None:
        rows, columns = attention.grid
        at_places = slice(len(weights) - rows * columns, None)
        weights = weights[at_places, at_places] if attention.slots_are_tokens else weights[at_places]
        return weights, pixel_points(rows, columns).to(weights)
    positions = None if attention.points is None else attention.points[cloud]
    if attention.mask is not None:
        real = attention.mask[cloud]
        weights, positions = weights[real], None if positions is None else positions[real]
        if attention.slots_are_tokens:
            weights = weights[:, real]
    if positions is None:
        if attention.mask is not None and len(weights) != len(points) == attention.mask.shape[1]:
            raise ValueError("The cloud is padded: give its real points, points[cloud][mask[cloud]].")
        if len(weights) != len(points):
            raise ValueError(
                f"The attention is of {len(weights)} tokens, there are {len(points)} points, and the model does not "
                "say where its tokens are: set `points` of the attention map, `attention._replace(points=...)`."
            )
        positions = points
    return weights, positions


def weights_at(points: Tensor, attention: AttentionMap, *, cloud: int | None = None, head: int | None = None) -> Tensor:
    """The weights of every point of a cloud for every slot, (N, S); the arguments are those of `tokens_of`.

    Raises:
        ValueError: If the layer is self-attention, which has no slots.
    """
    if attention.slots_are_tokens:
        raise ValueError("The layer is self-attention, which has no slots: give a query point instead.")
    weights, positions = tokens_of(points, attention, cloud=cloud, head=head)
    return _carry(attention, weights, positions, points)


def rank_slots(weights: Sequence[Tensor]) -> list[int]:
    """Slots by the number of points of all clouds, (N, S) each, whose strongest slot they are, most first."""
    counts = torch.stack([w.argmax(1).bincount(minlength=w.shape[1]) for w in weights]).sum(0)
    order = counts.argsort(descending=True, stable=True)
    return order[counts[order] > 0].tolist()


def view_slots(points: Tensor, weights: Tensor, *, ranking: Sequence[int] | None = None, title: str = "") -> View:
    """Colour each point by its strongest slot; the slots that most points have get a colour each, the rest is grey.

    Args:
        points: (N, 3).
        weights: Of every point for every slot, (N, S).
        ranking: Slots in the order of the palette; None takes those of this cloud by `rank_slots`.
        title: A line of text.
    """
    ranking = list(rank_slots([weights]) if ranking is None else ranking)[:_MOST_SLOTS]
    strongest = weights.argmax(1)
    occurring = set(strongest.unique().tolist())
    colors = torch.tensor(GREY, dtype=torch.uint8).repeat(len(points), 1)
    legend = []
    for slot, color in zip(ranking, palette(len(ranking))):
        colors[strongest.cpu() == slot] = color
        if slot in occurring:
            legend.append((f"slot {slot}", _triple(color)))
    if not occurring <= set(ranking):
        legend.append(("other slots", GREY))
    return View(points, colors, title, tuple(legend), "strongest slot", values=strongest)


def view_slot(points: Tensor, weights: Tensor, slot: int, *, high: float | None = None, title: str = "") -> View:
    """Colour each point by its weight for one slot.

    Args:
        points: (N, 3).
        weights: Of every point for every slot, (N, S).
        slot: Which slot.
        high: The weight of the brightest colour; None for the highest of this cloud.
        title: A line of text.

    Raises:
        ValueError: If there is no such slot.
    """
    if not 0 <= slot < weights.shape[1]:
        raise ValueError(f"slot must be in 0..{weights.shape[1] - 1}, got {slot}.")
    return view_values(points, weights[:, slot], label=f"weight of slot {slot}", high=high, title=title)


def view_query(
    points: Tensor,
    attention: AttentionMap,
    query: int,
    *,
    cloud: int | None = None,
    head: int | None = None,
    title: str = "",
) -> View:
    """Colour each point by what a query point has to do with it.

    External attention: the correlation of both points' weights over the slots, its counterpart of a row of the N x N
    map: the cosine of what sets each of them apart from the cloud's mean. 1 where both prefer the same slots; 0 and
    less are drawn alike. (The weights of trained networks are nearly uniform, and their plain cosine is close to 1.)
    Self-attention: that row itself, the weight of the query for each point.

    Args:
        points: (N, 3).
        attention: What `record_attention` recorded.
        query: The position of the query point in `points`.
        cloud: Which cloud of the batch was recorded of these points; needed if there are several.
        head: Which head; None for the mean over all.
        title: A line of text.

    Raises:
        ValueError: If there is no such point.
    """
    if not 0 <= query < len(points):
        raise ValueError(f"query must be the number of a point, 0..{len(points) - 1}, got {query}.")
    if attention.slots_are_tokens:
        weights, positions = tokens_of(points, attention, cloud=cloud, head=head)
        row = _carry(attention, weights, positions, points[query : query + 1])[0]
        values = _carry(attention, row[:, None], positions, points)[:, 0]
        view = view_values(points, values, label="weight of the query", title=title)
    else:
        weights = weights_at(points, attention, cloud=cloud, head=head)
        apart = weights - weights.mean(0)
        likeness = torch.cosine_similarity(apart, apart[query], dim=1)
        view = view_values(points, likeness, label="likeness to the query", high=1.0, title=title)
    return view._replace(mark=points[query])


def view_values(
    points: Tensor, values: Tensor, *, label: str, low: float = 0.0, high: float | None = None, title: str = ""
) -> View:
    """Colour each point by a value.

    Args:
        points: (N, 3).
        values: (N,).
        label: What the values are.
        low: The value of the darkest colour.
        high: The value of the brightest colour; None for the highest.
        title: A line of text.
    """
    high = float(values.max()) if high is None else high
    colors = color_values(values, low=low, high=high).cpu()
    return View(points, colors, title, color_bar=ColorBar(label, low, high), values=values)


def share_scale(views: Sequence[View]) -> list[View]:
    """The same views with values on one scale, up to the highest of all; those without a colour bar as they are."""
    high = max((view.color_bar.high for view in views if view.color_bar is not None), default=0.0)
    shared = []
    for view in views:
        if view.color_bar is not None and view.values is not None:
            bar = view.color_bar._replace(high=high)
            view = view._replace(colors=color_values(view.values, low=bar.low, high=high).cpu(), color_bar=bar)
        shared.append(view)
    return shared


def view_parts(points: Tensor, part_label: Tensor, parts: Mapping[int, str], *, title: str = "") -> View:
    """Colour each point by its part.

    Args:
        points: (N, 3).
        part_label: Class of each point, (N,) int64.
        parts: Name of each class that the category has, in the order of the palette.
        title: A line of text.

    Raises:
        ValueError: If a label is not one of `parts`.
    """
    colors = color_parts(part_label, list(parts)).cpu()
    legend = zip(parts.values(), map(_triple, color_parts(torch.tensor(list(parts)), list(parts))))
    return View(points, colors, title, tuple(legend), "part", values=part_label)


def view_class(points: Tensor, probabilities: Mapping[str, float], *, title: str = "") -> View:
    """Colour a whole cloud by the class that it is taken for, with the probabilities of others in the legend.

    Args:
        points: (N, 3).
        probabilities: Of the classes to be named, most probable first, in 0..1.
        title: A line of text.
    """
    colors = palette(max(1, len(probabilities)))
    legend = ((f"{name} {100 * p:.1f} %", _triple(c)) for (name, p), c in zip(probabilities.items(), colors))
    return View(points, colors[:1].repeat(len(points), 1), title, tuple(legend), "class")


def _triple(color: Tensor) -> tuple[int, int, int]:
    red, green, blue = color.tolist()
    return red, green, blue
