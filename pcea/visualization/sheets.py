"""Pictures of one view or of several side by side, with titles and legends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from pcea.nn.recording import AttentionMap
from pcea.visualization.camera import AZIMUTH, ELEVATION
from pcea.visualization.gaps import bridge_gaps, surface_normals
from pcea.visualization.images import draw_overlay, view_picture
from pcea.visualization.legends import DPI, MARGIN, canvas_pixels, legend_of, merge_legends
from pcea.visualization.renderer import Renderer, check_size
from pcea.visualization.titles import TITLE_HEIGHT, add_title
from pcea.visualization.views import View, view_points

# Views larger than this many pixels have larger text.
_LARGEST_WITH_PLAIN_TEXT = 800


def render(
    points: Tensor,
    attention: AttentionMap | None = None,
    *,
    size: int = 600,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    **options: Any,
) -> np.ndarray:
    """Draw a cloud, coloured by what its points attend to or with your own colours. Needs no display.

    Example:
        with record_attention(model) as attention:
            model(points)
        picture = render(points[0], attention["encoder.blocks.3.attention"], slot=5)

    Args:
        points: As for `view_points`.
        attention: As for `view_points`.
        size: Height of the picture in pixels, and its width without the legend.
        azimuth: Degrees around the y axis; 0 looks from +z, 90 from +x.
        elevation: Degrees above the horizon.
        **options: Those of `view_points`: slot, query, colors, cloud, head, title.

    Returns:
        Red, green and blue, (H, W, 3) uint8.

    Raises:
        ValueError: If the arguments do not match, as for `view_points`.
        OSError: If Open3D cannot draw on this machine.
    """
    view = view_points(points, attention, **options)
    return next(draw_sheet([view], size=size, angles=[azimuth], elevation=elevation))


def render_picture(
    picture: Tensor,
    attention: AttentionMap,
    *,
    query: tuple[int, int] | None = None,
    size: int = 600,
    **options: Any,
) -> np.ndarray:
    """Draw what the tokens of an image attend to, over a picture of it.

    Example:
        with record_attention(model) as attention:
            model(images)
        drawn = render_picture(picture, attention["attention.attention"], slot=5)

    Args:
        picture: Colours of what the model was given, (3, H, W) uint8, of any size.
        attention: The attention map of one layer, from `record_attention`.
        query: Colour by how each pixel relates to the pixel x, y of the picture.
        size: Longest side of the drawn picture, in pixels.
        **options: Those of `view_points`: slot, head, title, and cloud: the index of the image in the batch.

    Returns:
        Red, green and blue, (H', W', 3) uint8.

    Raises:
        ValueError: If the arguments do not match, as for `view_picture`.
    """
    return next(draw_sheet([view_picture(picture, attention, query=query, size=size, **options)]))


def draw_sheet(
    views: Sequence[View],
    *,
    size: int = 600,
    columns: int | None = None,
    shared_legend: bool = False,
    angles: Sequence[float] = (AZIMUTH,),
    elevation: float = ELEVATION,
) -> Iterator[np.ndarray]:
    """Draw views side by side with titles and legends, once for each angle.

    Args:
        views: What to draw, row by row: all clouds, or all pictures.
        size: Side of each cloud's picture in pixels, at most 4096. Pictures keep their own size.
        columns: Views in a row; None for about as many columns as rows.
        shared_legend: Draw one legend for the whole sheet, because the colours mean the same in all views.
        angles: Azimuths in degrees, for clouds. Pictures are drawn once.
        elevation: Degrees above the horizon.

    Yields:
        A picture for each angle, (H, W, 3) uint8, all of one size.

    Raises:
        ValueError: If the size is not positive, or too large.
        OSError: If Open3D cannot draw on this machine.
    """
    check_size(size)
    columns = columns or math.ceil(math.sqrt(len(views)))
    if any(view.picture is not None for view in views):
        pictures = [draw_overlay(view) for view in views]
        # Clouds have a border of their own; pictures would touch.
        height, width = (max(picture.shape[axis] for picture in pictures) + MARGIN for axis in (0, 1))
        sheet = _Sheet(views, height, width, columns=columns, shared_legend=shared_legend)
        yield sheet.fill([_center(picture, height, width) for picture in pictures])
        return
    text_scale = max(1.0, size / _LARGEST_WITH_PLAIN_TEXT)
    sheet = _Sheet(views, size, size, columns=columns, shared_legend=shared_legend, text_scale=text_scale)
    views = [
        view if view.normals is not None else view._replace(normals=surface_normals(view.points)) for view in views
    ]
    bridges = lru_cache(1)(bridge_gaps)  # several views of one cloud share them
    views = [bridges(view.points).add_to(view) for view in views]
    with Renderer(size) as renderer:
        for angle in angles:
            yield sheet.fill([renderer.draw(view, azimuth=angle, elevation=elevation) for view in views])


class _Sheet:
    """Titles and legends of views, and a place for the picture of each.

    Args:
        views: What will be drawn.
        height: Of each picture, in pixels.
        width: Of each picture, in pixels.
        columns: Views in a row.
        shared_legend: One legend for all views.
        text_scale: How many times larger than usual the text is.
    """

    def __init__(
        self,
        views: Sequence[View],
        height: int,
        width: int,
        *,
        columns: int,
        shared_legend: bool,
        text_scale: float = 1.0,
    ):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        blank = np.full((height, width, 3), 255, np.uint8)
        # Lengths in the figure are those of a sheet with text of the usual size, which Matplotlib then enlarges.
        H, W = height / text_scale, width / text_scale
        title_height = TITLE_HEIGHT if any(view.title for view in views) else 0
        legends = [merge_legends(views)] if shared_legend else [legend_of(view) for view in views]
        legend_width = max(legend.width for legend in legends)
        # The height of clouds was asked for; that of a wide picture may be too small for any legend.
        legend_height = 0 if views[0].picture is None else max(legend.least_height for legend in legends)
        tile_width = W if shared_legend else W + legend_width
        tile_height = title_height + (H if shared_legend else max(H, legend_height))
        sheet_width = columns * tile_width + (legend_width if shared_legend else 0)
        sheet_height = max(math.ceil(len(views) / columns) * tile_height, title_height + legend_height)
        figure = Figure(figsize=(sheet_width / DPI, sheet_height / DPI), dpi=DPI * text_scale, facecolor="white")
        self._canvas = FigureCanvasAgg(figure)
        self._images = []
        for i, view in enumerate(views):
            left, top = i % columns * tile_width, i // columns * tile_height
            bottom = top + title_height + H
            axes = figure.add_axes((left / sheet_width, 1 - bottom / sheet_height, W / sheet_width, H / sheet_height))
            axes.set_axis_off()
            self._images.append(axes.imshow(blank, interpolation="none"))
            middle = (left + W / 2) / sheet_width, 1 - (top + 0.6 * title_height) / sheet_height
            add_title(figure, view.title, *middle, width=W - MARGIN)
            if not shared_legend:
                legends[i].draw(figure, left + W, top + title_height, tile_height - title_height)
        if shared_legend:
            legends[0].draw(figure, columns * tile_width, title_height, sheet_height - title_height)

    def fill(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The sheet with a picture of each view, as pixels, (H, W, 3) uint8."""
        for image, picture in zip(self._images, pictures):
            image.set_data(picture)
        return canvas_pixels(self._canvas)


def _center(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Put a picture in the middle of a larger white one."""
    centered = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    centered[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return centered
