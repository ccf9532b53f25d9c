"""The meaning of a view's colours, drawn by Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pcea.visualization.fonts import drawable, font_families
from pcea.visualization.views import GREY, ColorBar, View

# Pixels per inch, and pixels between a picture and its legend.
DPI, MARGIN = 100, 10
# In points; 72 points are an inch.
FONT_SIZE = 10.0
_LEAST_FONT_SIZE = 7.0
# Height of a line of the usual font, in pixels.
_LINE_HEIGHT = 24


def draw_legend(view: View, *, height: int) -> np.ndarray:
    """Draw the legend of a view alone, (height, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    legend = legend_of(view)
    figure = Figure(figsize=(max(legend.width, 1) / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    legend.draw(figure, 0, 0, height)
    return canvas_pixels(canvas)


class Legend(NamedTuple):
    """The meaning of the colours, drawn beside a picture.

    Attributes:
        entries: Names and their colours.
        title: What is named, such as "part".
        color_bar: The meaning of colours that stand for values, or None.
    """

    entries: tuple[tuple[str, tuple[int, int, int]], ...]
    title: str
    color_bar: ColorBar | None

    @property
    def width(self) -> int:
        """Its width in pixels; 0 if there is nothing to explain."""
        names = [self.title, *(name for name, _ in self.entries)]
        entries = math.ceil(max(map(text_width, names))) + 60 if self.entries else 0
        return max(entries, 130 if self.color_bar else 0)

    @property
    def least_height(self) -> int:
        """The height in pixels below which its text is too small to be read."""
        entries = _LINE_HEIGHT * (len(self.entries) + 1) if self.entries else 0
        color_bar = text_width(self.color_bar.label) + MARGIN if self.color_bar else 0
        return math.ceil(max(entries, color_bar) * _LEAST_FONT_SIZE / FONT_SIZE)

    def draw(self, figure: Any, left: float, top: float, height: float) -> None:
        """Draw it on a Matplotlib figure, with its upper left corner at (left, top); all in pixels."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.patches import Patch

        W, H = figure.get_size_inches() * DPI
        left += MARGIN
        if self.entries:
            # As large as it can be for all lines to fit.
            font_size = min(FONT_SIZE, FONT_SIZE * height / (_LINE_HEIGHT * (len(self.entries) + 1)))
            handles = [
                Patch(color=(r / 255, g / 255, b / 255), label=drawable(name)) for name, (r, g, b) in self.entries
            ]
            corner = (left / W, 1 - (top + height / 2) / H)
            legend = figure.legend(
                handles=handles,
                title=drawable(self.title),
                alignment="left",
                loc="center left",
                bbox_to_anchor=corner,
                frameon=False,
                handlelength=1.2,
                fontsize=font_size,
                title_fontsize=font_size,
            )
            families = font_families(self.title, *(name for name, _ in self.entries))
            for text in (legend.get_title(), *legend.get_texts()):
                text.set_parse_math(False)
                text.set_fontfamily(families)
        if self.color_bar is not None:
            label, low, high = self.color_bar
            bar = min(height * 0.6, 300)
            axes = figure.add_axes((left / W, 1 - (top + (height + bar) / 2) / H, 15 / W, bar / H))
            # A bar needs two ends, even if all values are equal.
            scale = Normalize(low, high if high > low else low + 1)
            font_size = min(FONT_SIZE, FONT_SIZE * height / (text_width(label) + MARGIN))
            color_bar = figure.colorbar(ScalarMappable(scale, "viridis"), cax=axes, format="{x:.3g}")
            color_bar.set_label(label, fontsize=font_size)
            color_bar.ax.tick_params(labelsize=font_size)


def legend_of(view: View) -> Legend:
    """The legend of one view."""
    return Legend(view.legend, view.legend_title, view.color_bar)


def merge_legends(views: Sequence[View]) -> Legend:
    """One legend for views whose colours mean the same, with every entry that occurs in any of them."""
    entries = dict.fromkeys(entry for view in views for entry in view.legend)
    ordered = sorted(entries, key=lambda entry: entry[1] == GREY)  # grey, which stands for all others, comes last
    return Legend(tuple(ordered), views[0].legend_title, views[0].color_bar)


def text_width(text: str) -> float:
    """The width in pixels of a text as it is drawn."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=font_families(text), size=FONT_SIZE)
    return text_to_path.get_text_width_height_descent(drawable(text), font, ismath=False)[0] * DPI / 72


def canvas_pixels(canvas: Any) -> np.ndarray:
    """Read what was drawn on a Matplotlib canvas, (H, W, 3) uint8."""
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
