"""Pictures as clouds of pixels, so that what images attend to is coloured as for points; and colours laid over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.nn.attention import AttentionMap
from pcea.visualization.views import View, pixel_points, view_points

# Share of the colours in what is drawn; the rest is the picture.
_OPACITY = 0.6
_RED, _WHITE = (255, 0, 25), (255, 255, 255)


def view_picture(
    picture: Tensor,
    attention: AttentionMap,
    *,
    query: tuple[int, int] | None = None,
    size: int | None = None,
    **options: Any,
) -> View:
    """Colour the pixels of a picture by what the tokens of the image attend to.

    Args:
        picture: Colours of what the model was given, (3, H, W) uint8, of any size.
        attention: What `record_attention` recorded of one layer.
        query: Colour by what the pixel x, y of the picture has to do with each other one.
        size: Longest side of the result in pixels; None for that of the picture.
        **options: Those of `view_points`: slot, head, title, and cloud: the index of the image in the batch.

    Raises:
        ValueError: If the picture is none, the model does not say where the tokens are, or an argument is of nothing.
    """
    if picture.ndim != 3 or len(picture) != 3 or picture.dtype != torch.uint8:
        raise ValueError(f"picture must be (3, H, W) uint8, got {tuple(picture.shape)} {picture.dtype}.")
    if attention.grid is None:
        raise ValueError(
            "The model does not say in which rows and columns its tokens are: set `grid` of the attention map, "
            "`attention._replace(grid=(H, W))`."
        )
    shown = picture if size is None else fit(picture, size)
    number = None if query is None else pixel_number(query, picture.shape[1:], shown.shape[1:])
    view = view_points(pixel_points(*shown.shape[1:]), attention, query=number, **options)
    return view._replace(picture=grey(shown))


def fit(picture: Tensor, side: int) -> Tensor:
    """A picture (3, H, W) uint8 with another longest side, in pixels."""
    H, W = picture.shape[1:]
    scale = side / max(H, W)
    size = max(1, round(H * scale)), max(1, round(W * scale))
    # As floats: torch 2.14 resizes bytes wrongly, or fails, where the result is one pixel wide.
    resized = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)
    return resized[0].round().to(torch.uint8)


def pixel_number(place: tuple[int, int], size: tuple[int, ...], shown: tuple[int, ...]) -> int:
    """The number of the pixel, row by row, that shows a pixel of the original.

    Args:
        place: The pixel x, y.
        size: Height and width of the original.
        shown: Height and width of what is shown of it, in another size.

    Raises:
        ValueError: If there is no such pixel.
    """
    (x, y), (H, W) = place, size
    if not (0 <= x < W and 0 <= y < H):
        raise ValueError(f"query must be a pixel x,y with x in 0..{W - 1} and y in 0..{H - 1}, got {x},{y}.")
    return int((y + 0.5) * shown[0] / H) * shown[1] + int((x + 0.5) * shown[1] / W)


def grey(picture: Tensor) -> Tensor:
    """Brightness of a picture (3, H, W) uint8 as grey, (H, W, 3) uint8: only what is laid over it has hues."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=picture.device)
    brightness = (picture.permute(1, 2, 0).float() @ weights).round().to(torch.uint8)
    return brightness[..., None].repeat(1, 1, 3)


def lay_over(view: View) -> np.ndarray:
    """The colours of a view laid over its picture, with the marked point as a red disc; (H, W, 3) uint8."""
    assert view.picture is not None
    colors = view.colors.view_as(view.picture)
    drawn = blend(colors, view.picture)
    if view.mark is not None:
        H, W = drawn.shape[:2]
        place = (view.points[:, :2] - view.mark[:2]) * torch.tensor([W / 2, H / 2])
        distance = place.norm(dim=1).view(H, W)
        radius = max(1.0, 0.012 * max(H, W))
        for reach, color in ((1.5 * radius, _WHITE), (radius, _RED)):
            drawn[distance <= reach] = torch.tensor(color, dtype=torch.uint8)
    return drawn.numpy()


def blend(colors: Tensor, picture: Tensor) -> Tensor:
    """Colours (H, W, 3) uint8 laid over a picture of the same size."""
    mixed = _OPACITY * colors.float() + (1 - _OPACITY) * picture.float()
    return mixed.round().to(torch.uint8)
