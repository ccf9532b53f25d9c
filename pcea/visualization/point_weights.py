"""The attention of the tokens of one cloud or image, carried to every point that is drawn.

Everything is computed on the device of the points. The attention may have been recorded on another one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.nn.recording import AttentionMap
from pcea.ops import interpolate_features

# Points per call of the interpolation, so that a million points times 64 slots are never held three times.
_CHUNK = 1 << 16


class TokenWeights(NamedTuple):
    """The attention weights of the real tokens of one cloud, and where these tokens are.

    Attributes:
        weights: (M, S), fp32.
        positions: (M, 3).
    """

    weights: Tensor
    positions: Tensor


def check_cloud(points: Tensor) -> Tensor:
    """Check that `points` is a single cloud, and detach it.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If its shape is not (N, 3) with N > 0, or a coordinate is not finite.
    """
    if not isinstance(points, Tensor):
        raise TypeError(f"points must be a torch.Tensor, got {type(points).__name__}.")
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"points must be one cloud, (N, 3), got {tuple(points.shape)}.")
    bad = int((~points.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(points)} points have NaN or infinite coordinates.")
    return points.detach()


def pixel_points(height: int, width: int) -> Tensor:
    """The centres of an image's pixels, row by row, (H W, 3): x and y in -1..1, y up, z 0."""
    y, x = (1 - (2 * torch.arange(count) + 1) / count for count in (height, width))
    y, x = torch.meshgrid(y, -x, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], dim=-1).flatten(0, 1)


def interpolate_tokens(features: Tensor, positions: Tensor, points: Tensor, *, k: int = 3) -> Tensor:
    """Interpolate features of tokens at the points of a cloud, with inverse-distance weights of the k nearest tokens.

    Args:
        features: One row per token, (M, C).
        positions: Positions of the tokens, (M, 3), in the coordinates of `points`.
        points: (N, 3).
        k: Number of tokens that are mixed at a point.

    Returns:
        (N, C), fp32. A point at the position of a token gets exactly that token's row.
    """
    if positions.shape == points.shape and positions.equal(points):
        return features.float()
    chunks = [
        interpolate_features(chunk[None], positions[None], features[None].float(), k=min(k, len(positions)))[0]
        for chunk in points.split(_CHUNK)
    ]
    return torch.cat(chunks)


def interpolate_grid(features: Tensor, grid: tuple[int, int], points: Tensor) -> Tensor:
    """Interpolate features of the tokens of an image at points of it, bilinearly.

    Args:
        features: One row per token, row by row of the grid, (H W, C).
        grid: Rows and columns (H, W) of the tokens.
        points: Positions in the image, (N, 3): x from -1 (left) to 1 (right), y from -1 (bottom) to 1 (top).

    Returns:
        (N, C), fp32. Between an outermost token and the border of the image, the features are those of the token.
    """
    image = features.float().T.unflatten(1, grid)[None]  # (1, C, H, W)
    place = (points[:, :2] * points.new_tensor([1, -1])).to(image)  # y down
    return F.grid_sample(image, place[None, None], padding_mode="border", align_corners=False)[0, :, 0].T


def select_tokens(
    points: Tensor, attention: AttentionMap, *, cloud: int | None = None, head: int | None = None
) -> TokenWeights:
    """The weights and positions of the real tokens of one cloud, taken from the attention of a batch.

    Args:
        points: The cloud, (N, 3), in the coordinates that the model was given; for images as in `interpolate_grid`. If
            the map does not hold the positions of the tokens, the tokens are these points.
        attention: An attention map from `record_attention`.
        cloud: Index of the cloud in the batch; required if the batch has several.
        head: Index of the attention head; None averages over all heads.

    Returns:
        Both on the device of `points`.

    Raises:
        ValueError: If there is no such cloud or head, or the positions of the tokens are unknown.
    """
    weights = attention.weights
    if weights.ndim < 3:
        raise ValueError(
            "Attention of packed clouds, (N, S), does not tell clouds apart: give `weights` of one cloud as (1, N, S)."
        )
    if cloud is None and len(weights) > 1:
        raise ValueError(
            f"The attention is that of {len(weights)} clouds: choose one of them with cloud=0..{len(weights) - 1}."
        )
    cloud = cloud or 0
    if not 0 <= cloud < len(weights):
        raise ValueError(f"cloud must be in 0..{len(weights) - 1}, got {cloud}.")
    weights = weights[cloud].to(points.device).float()
    heads = len(weights) if weights.ndim == 3 else 1
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"head must be in 0..{heads - 1}, got {head}.")
    if weights.ndim == 3:
        weights = weights.mean(0) if head is None else weights[head]
    if attention.grid is not None:
        rows, columns = attention.grid
        on_grid = slice(len(weights) - rows * columns, None)
        weights = weights[on_grid, on_grid] if attention.slots_are_tokens else weights[on_grid]
        return TokenWeights(weights, pixel_points(rows, columns).to(weights))
    positions = None if attention.points is None else attention.points[cloud].to(points.device)
    if attention.mask is not None:
        is_real = attention.mask[cloud].to(points.device)
        weights, positions = weights[is_real], None if positions is None else positions[is_real]
        if attention.slots_are_tokens:
            weights = weights[:, is_real]
    if positions is None:
        if attention.mask is not None and len(weights) != len(points) == attention.mask.shape[1]:
            raise ValueError("The cloud is padded: give its real points, points[cloud][mask[cloud]].")
        if len(weights) != len(points):
            raise ValueError(
                f"The attention is that of {len(weights)} tokens, but there are {len(points)} points, and the model "
                "does not say where its tokens are: set `points` of the map, `attention._replace(points=...)`."
            )
        positions = points
    return TokenWeights(weights, positions)


def weights_at(points: Tensor, attention: AttentionMap, *, cloud: int | None = None, head: int | None = None) -> Tensor:
    """The weights of every point of a cloud for every slot, (N, S); arguments as in `select_tokens`.

    Raises:
        ValueError: If the layer is self-attention, which has no slots.
    """
    if attention.slots_are_tokens:
        raise ValueError("The layer is self-attention, which has no slots: give a query point instead.")
    weights, positions = select_tokens(points, attention, cloud=cloud, head=head)
    return interpolate(attention, weights, positions, points)


def weights_of_query(
    points: Tensor, attention: AttentionMap, query: int, *, cloud: int | None = None, head: int | None = None
) -> Tensor:
    """Self-attention: the weight that the point with index `query` gives to each point, (N,)."""
    weights, positions = select_tokens(points, attention, cloud=cloud, head=head)
    row = interpolate(attention, weights, positions, points[query : query + 1])[0]
    return interpolate(attention, row[:, None], positions, points)[:, 0]


def interpolate(attention: AttentionMap, features: Tensor, positions: Tensor, points: Tensor) -> Tensor:
    """Interpolate in the way that suits the layer: on the grid of an image, or between the tokens of a cloud."""
    if attention.grid is None:
        return interpolate_tokens(features, positions, points)
    return interpolate_grid(features, attention.grid, points)
