"""Pictures as clouds of pixels, so that images are coloured in the same way as clouds; and colours over pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.nn.recording import AttentionMap
from pcea.visualization.point_weights import pixel_points
from pcea.visualization.views import View, view_points

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
        attention: The attention map of one layer, from `record_attention`.
        query: Colour by how each pixel relates to the pixel x, y of the picture; see `view_query`.
        size: Longest side of the result in pixels; None for that of the picture.
        **options: Those of `view_points`: slot, head, title, and cloud: the index of the image in the batch.

    Raises:
        ValueError: If `picture` has the wrong shape or type, the positions of the tokens are unknown, or there is no
            such pixel, slot, head or image.
    """
    if picture.ndim != 3 or len(picture) != 3 or picture.dtype != torch.uint8:
        raise ValueError(f"picture must be (3, H, W) uint8, got {tuple(picture.shape)} {picture.dtype}.")
    if attention.grid is None:
        raise ValueError(
            "The model does not say in which rows and columns its tokens are: set `grid` of the attention map, "
            "`attention._replace(grid=(H, W))`."
        )
    resized = picture if size is None else resize_picture(picture, size)
    index = None if query is None else pixel_index(query, picture.shape[1:], resized.shape[1:])
    points = pixel_points(*resized.shape[1:]).to(picture.device)
    return view_points(points, attention, query=index, **options)._replace(picture=to_greyscale(resized).cpu())


def resize_picture(picture: Tensor, side: int) -> Tensor:
    """Resize a picture (3, H, W) uint8 to a longest side of so many pixels."""
    H, W = picture.shape[1:]
    scale = side / max(H, W)
    size = max(1, round(H * scale)), max(1, round(W * scale))
    # As floats: torch 2.14 resizes bytes wrongly, or fails, where the result is one pixel wide.
    resized = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)
    return resized[0].round().to(torch.uint8)


def pixel_index(pixel: tuple[int, int], size: tuple[int, ...], resized: tuple[int, ...]) -> int:
    """The index, row by row, of the pixel of a resized picture that shows a pixel of the original.

    Args:
        pixel: Its x and y in the original.
        size: Height and width of the original.
        resized: Height and width of the resized picture.

    Raises:
        ValueError: If there is no such pixel.
    """
    (x, y), (H, W) = pixel, size
    if not (0 <= x < W and 0 <= y < H):
        raise ValueError(f"query must be a pixel x,y with x in 0..{W - 1} and y in 0..{H - 1}, got {x},{y}.")
    return int((y + 0.5) * resized[0] / H) * resized[1] + int((x + 0.5) * resized[1] / W)


def to_greyscale(picture: Tensor) -> Tensor:
    """Turn a picture (3, H, W) uint8 into grey, (H, W, 3) uint8, so that only what is laid over it has hues."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=picture.device)
    brightness = (picture.permute(1, 2, 0).float() @ weights).round().to(torch.uint8)
    return brightness[..., None].repeat(1, 1, 3)


def draw_overlay(view: View) -> np.ndarray:
    """Draw the colours of a view over its picture, with a red disc at the marker; (H, W, 3) uint8."""
    view = view.cpu()
    assert view.picture is not None
    drawn = blend(view.colors.view_as(view.picture), view.picture)
    if view.marker is not None:
        H, W = drawn.shape[:2]
        offset = (view.points[:, :2] - view.marker[:2]) * torch.tensor([W / 2, H / 2])
        distance = offset.norm(dim=1).view(H, W)  # in pixels
        radius = max(1.0, 0.012 * max(H, W))
        for reach, color in ((1.5 * radius, _WHITE), (radius, _RED)):
            drawn[distance <= reach] = torch.tensor(color, dtype=torch.uint8)
    return drawn.numpy()


def blend(colors: Tensor, picture: Tensor) -> Tensor:
    """Lay colours (H, W, 3) uint8 over a picture of the same size, three parts of them to two of the picture."""
    mixed = _OPACITY * colors.float() + (1 - _OPACITY) * picture.float()
    return mixed.round().to(torch.uint8)
