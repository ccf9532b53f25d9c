"""Titles, each on one line, drawn by Matplotlib."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from pcea.visualization.fonts import drawable, font_families
from pcea.visualization.legends import DPI, FONT_SIZE, MARGIN, canvas_pixels, text_width

# In pixels.
TITLE_HEIGHT = 30


def draw_title(text: str, *, width: int) -> np.ndarray:
    """Draw a title alone, from the left, (30, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, TITLE_HEIGHT / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    add_title(figure, text, 0, 0.5, width=width - MARGIN, align="left")
    return canvas_pixels(canvas)


def add_title(figure: Any, text: str, x: float, y: float, *, width: float, align: str = "center") -> None:
    """Write a title on a Matplotlib figure.

    Args:
        figure: The figure.
        text: The title.
        x: The middle of the title, or with align="left" its left end, as a share of the figure's width.
        y: Its middle, as a share of the figure's height from below.
        width: The pixels that it may take at most.
        align: "center" or "left".
    """
    figure.text(
        x,
        y,
        drawable(shorten_title(text, width)),
        ha=align,
        va="center",
        fontsize=FONT_SIZE,
        fontfamily=font_families(text),
        parse_math=False,
    )


def shorten_title(title: str, width: float) -> str:
    """Replace the middle of a title by dots, so that it is at most `width` pixels wide.

    That is the middle of the file name, which ends at the first colon, because the class and what else follows it must
    not get lost. Only if that does not suffice, it is the middle of the whole title.
    """
    name, colon, rest = title.partition(": ")
    shorter = chain(
        [title],
        (_cut(name, kept) + colon + rest for kept in range(len(name) - 1, 0, -1)),
        (_cut(title, kept) for kept in range(len(title) - 1, 0, -1)),
    )
    return next((text for text in shorter if text_width(text) <= width), "...")


def _cut(text: str, kept: int) -> str:
    """Keep so many letters, half of them from either end."""
    return f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
