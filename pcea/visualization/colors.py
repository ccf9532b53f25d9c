"""Colours of parts and of values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Okabe and Ito's seven colours without black, then those that stay farthest from all before in CIELAB, in normal vision
# and with protanopia, deuteranopia and tritanopia (Machado et al., 2009); very light and very dark ones left out.
_PALETTE = (
    "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 8700f0 5a1e00 3c3c4b b4e196 9678ff 5a0069 f0004b 2df0ff 3c00a5"
)


def palette(count: int) -> Tensor:
    """Distinct colours, (count, 3) uint8; the first 16 can be told apart without full colour vision.

    Those after are the colours of an 8 x 8 x 8 grid that lie farthest in RGB from all before.

    Raises:
        ValueError: If `count` exceeds 500.
    """
    if count > 500:
        raise ValueError(f"There are 500 colours, got count={count}.")
    colors = torch.tensor([list(bytes.fromhex(word)) for word in _PALETTE.split()])
    levels = torch.arange(8) * 255 // 7
    grid = torch.cartesian_prod(levels, levels, levels)
    while len(colors) < count:
        farthest = torch.cdist(grid.double(), colors.double()).amin(1).argmax()
        colors = torch.cat([colors, grid[farthest][None]])
    return colors[:count].to(torch.uint8)


def color_parts(part_label: Tensor, parts: Sequence[int]) -> Tensor:
    """Colour points by their part, each part of a category in a colour of its own.

    Args:
        part_label: Class of each point, (N,) int64.
        parts: The classes of the category, in the order of the palette.

    Returns:
        Red, green and blue, (N, 3) uint8.

    Raises:
        ValueError: If a label is not one of `parts`.
    """
    strangers = sorted(set(part_label.unique().tolist()) - set(parts))
    if strangers:
        raise ValueError(f"part_label must be one of {list(parts)}, got {strangers[0]}.")
    position = torch.zeros(max(parts) + 1, dtype=torch.int64)
    position[list(parts)] = torch.arange(len(parts))
    return palette(len(parts))[position[part_label.cpu()]].to(part_label.device)


def color_values(values: Tensor, *, low: float, high: float) -> Tensor:
    """Colour values by viridis, whose steps look equally large, also without full colour vision.

    Args:
        values: Any shape.
        low: The value of the darkest colour; smaller ones get it too.
        high: The value of the brightest colour; larger ones get it too.

    Returns:
        Red, green and blue, (..., 3) uint8.
    """
    from matplotlib import colormaps

    position = (values.detach().double() - low) / max(high - low, torch.finfo(torch.float64).tiny)
    index = (position.clamp(0, 1) * 255).round().long()
    table = torch.from_numpy(colormaps["viridis"](range(256), bytes=True)[:, :3])
    return table.to(values.device)[index]
