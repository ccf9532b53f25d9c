"""Colours for parts and for values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Okabe and Ito's seven colours without black, then the colours farthest from all previous ones in CIELAB, in normal
# vision and with protanopia, deuteranopia and tritanopia (Machado et al., 2009), without very light or dark ones.
_PALETTE = (
    "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 8700f0 5a1e00 3c3c4b b4e196 9678ff 5a0069 f0004b 2df0ff 3c00a5"
)


def palette(count: int) -> Tensor:
    """Distinct colours, (count, 3) uint8; the first 16 can be told apart without full colour vision.

    The others are taken from an 8 x 8 x 8 grid, each the farthest in RGB from all previous colours. After 500 colours
    they start again.
    """
    colors = torch.tensor([list(bytes.fromhex(word)) for word in _PALETTE.split()])
    levels = torch.arange(8) * 255 // 7
    grid = torch.cartesian_prod(levels, levels, levels)
    while len(colors) < min(count, 500):
        farthest = torch.cdist(grid.double(), colors.double()).amin(1).argmax()
        colors = torch.cat([colors, grid[farthest][None]])
    return colors[torch.arange(count) % 500].to(torch.uint8)


def color_parts(part_label: Tensor, parts: Sequence[int]) -> Tensor:
    """Colour points by their part; each part of a category has its own colour.

    Args:
        part_label: Class of each point, (N,) int64.
        parts: The classes of the category, in the order of the palette.

    Returns:
        Red, green and blue, (N, 3) uint8.

    Raises:
        ValueError: If a label is not one of `parts`.
    """
    unknown = sorted(set(part_label.unique().tolist()) - set(parts))
    if unknown:
        raise ValueError(f"part_label must be one of {list(parts)}, got {unknown[0]}.")
    colors = torch.zeros(max(parts) + 1, 3, dtype=torch.uint8)
    colors[list(parts)] = palette(len(parts))
    return colors.to(part_label.device)[part_label]


def color_values(values: Tensor, *, low: float, high: float) -> Tensor:
    """Colour values with viridis, whose steps look equally large, also without full colour vision.

    Args:
        values: Any shape.
        low: The value of the darkest colour; smaller values get it too.
        high: The value of the brightest colour; larger values get it too.

    Returns:
        Red, green and blue, (..., 3) uint8.
    """
    from matplotlib import colormaps

    position = (values.detach().double() - low) / max(high - low, torch.finfo(torch.float64).tiny)
    index = (position.clamp(0, 1) * 255).round().long()
    table = torch.from_numpy(colormaps["viridis"](range(256), bytes=True)[:, :3])
    return table.to(values.device)[index]
