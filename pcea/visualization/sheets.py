"""Pictures of one view or of several side by side, with titles and legends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pcea.nn.attention import AttentionMap
from pcea.visualization.camera import AZIMUTH, ELEVATION
from pcea.visualization.images import lay_over, view_picture
from pcea.visualization.legends import DPI, FONT_SIZE, MARGIN, canvas_pixels, legend_of, merge_legends, text_width
from pcea.visualization.renderer import Renderer, check_size, estimate_normals
from pcea.visualization.views import View, view_points

# Pixels of a line of text.
_LINE = 30
# Up to so many pixels, text does not grow with a view.
_PLAIN = 800


def render(
    points: Tensor,
    attention: AttentionMap | None = None,
    *,
    size: int = 600,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    **options: Any,
) -> np.ndarray:
    """Draw a cloud: what its points attend to, or in colours of your own. Needs no display.

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
        ValueError: If the arguments do not fit.
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
    """Draw what the tokens of an image attend to over a picture of it.

    Example:
        with record_attention(model) as attention:
            model(images)
        drawn = render_picture(picture, attention["attention.attention"], slot=5)

    Args:
        picture: Colours of what the model was given, (3, H, W) uint8, of any size.
        attention: What `record_attention` recorded of one layer.
        query: Colour by what the pixel x, y of the picture has to do with each other one.
        size: Longest side of the picture as it is drawn, in pixels.
        **options: Those of `view_points`: slot, head, title, and cloud: the index of the image in the batch.

    Returns:
        Red, green and blue, (H', W', 3) uint8.

    Raises:
        ValueError: If the arguments do not fit.
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
        views: What to draw, row by row: clouds, or pictures.
        size: Side of each view in pixels, at most 4096. Pictures are drawn as large as they are.
        columns: Views in a row; None for about as many as rows.
        shared_legend: All views have the same meaning of colours: one legend for all, of all that occurs.
        angles: Azimuths, in degrees.
        elevation: Degrees above the horizon.

    Yields:
        A picture for each angle, (H, W, 3) uint8, all of one size.

    Raises:
        ValueError: If the size is too large, or not positive.
        OSError: If Open3D cannot draw on this machine.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_size(size)
    columns = columns or math.ceil(math.sqrt(len(views)))
    rows = math.ceil(len(views) / columns)
    pictures = [lay_over(view) for view in views if view.picture is not None]
    down, across = size, size
    if pictures:
        # Clouds have a border; pictures must not touch.
        down, across = (max(picture.shape[axis] for picture in pictures) + MARGIN for axis in (0, 1))
    heading = _LINE if any(view.title for view in views) else 0
    keys = [merge_legends(views)] if shared_legend else [legend_of(view) for view in views]
    panel = max(key.width for key in keys)
    # Text grows with large views. From here on lengths are those of a sheet so many times smaller.
    scale = 1.0 if pictures else max(1.0, size / _PLAIN)
    high, wide = down / scale, across / scale
    tile = (wide if shared_legend else wide + panel, high + heading)
    width, height = columns * tile[0] + (panel if shared_legend else 0), rows * tile[1]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * scale, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    images = []
    for i, view in enumerate(views):
        left, top = i % columns * tile[0], i // columns * tile[1]
        axes = figure.add_axes((left / width, 1 - (top + heading + high) / height, wide / width, high / height))
        axes.set_axis_off()
        images.append(axes.imshow(np.full((down, across, 3), 255, np.uint8), interpolation="none"))
        place = (left + wide / 2) / width, 1 - (top + 0.6 * heading) / height
        title = _shorten(view.title, wide - MARGIN)
        figure.text(*place, title, ha="center", va="center", fontsize=FONT_SIZE, parse_math=False)
        if not shared_legend:
            keys[i].draw(figure, left + wide, top + heading, high)
    if shared_legend:
        keys[0].draw(figure, columns * tile[0], heading, height - heading)
    if pictures:
        for image, picture in zip(images, pictures):
            image.set_data(_center(picture, down, across))
        yield canvas_pixels(canvas)
        return
    views = [
        view if view.normals is not None else view._replace(normals=estimate_normals(view.points)) for view in views
    ]
    with Renderer(size) as renderer:
        for angle in angles:
            for image, view in zip(images, views):
                image.set_data(renderer.draw(view, azimuth=angle, elevation=elevation))
            yield canvas_pixels(canvas)


def _center(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture in the middle of a white one."""
    centered = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    centered[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return centered


def _shorten(text: str, width: float) -> str:
    """Leave out letters before the last seven until the text is so many pixels wide."""
    shortened, kept = text, len(text) - 11
    while text_width(shortened) > width and kept > 0:
        shortened, kept = f"{text[:kept]}...{text[-7:]}", kept - 1
    return shortened
