"""Layers around the attention: linear, batch norm and activation for tokens; the EANet block for images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.nn.attention import ExternalAttention
from pcea.nn.linear import Linear
from pcea.nn.norm import linear_norm, zero_padding
from pcea.nn.shortcuts import can_shortcut, tokenwise


@tokenwise
class LinearNormAct(nn.Module):
    """Linear, batch norm over the last axis and an activation, on tokens (..., C): "LBR" in PCT.

    A mask keeps padded tokens out of the statistics, in training, and out of gradients.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels of the result.
        bias: Whether the linear map has a bias, which the batch norm makes redundant.
        activation: Applied at the end, ReLU by default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ):
        super().__init__()
        self.linear = Linear(in_channels, out_channels, bias=bias)
        self.norm = nn.BatchNorm1d(out_channels)
        self.activation = activation

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map tokens (..., C) with mask (...) to (..., out_channels); finite but meaningless at padded tokens."""
        return self.activation(linear_norm(self.linear, self.norm, zero_padding(tokens, mask), mask=mask))


@tokenwise
class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, on a CPU with 16 random bits per value, so that `p` is rounded to a multiple of 2^-16.

    torch draws its random numbers one after another, which takes a fifth of a segmenter's training step in bf16; one
    draw here serves four values. Where `p` is that close to 0 or 1, torch's dropout is used.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Zero values of any tensor with probability p and scale the others by 1 / (1 - p); in training only."""
        dropped = round(self.p * 2**16)
        is_fast = self.training and 0 < dropped < 2**16 - 1 and not self.inplace and tokens.device.type == "cpu"
        if not is_fast or not can_shortcut():
            return super().forward(tokens)
        draws = tokens.new_empty((tokens.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: tokens.numel()].view(tokens.shape)
        keep = (bits >= dropped - 2**15).to(tokens.dtype)
        return tokens * keep.mul_(2**16 / (2**16 - dropped))


@tokenwise
class TokenMLP(nn.Module):
    """Linear, ReLU, linear: what external attention is without attention, with as many parameters.

    It stands in for `ExternalAttention` in ablations.

    Args:
        dim: Channels C.
        memory_units: Width of the hidden layer, the slots S of external attention.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(self, dim: int, *, memory_units: int = 64):
        super().__init__()
        if dim < 1 or memory_units < 1:
            raise ValueError(f"dim and memory_units must be positive, got dim={dim}, memory_units={memory_units}.")
        self.linear1 = Linear(dim, memory_units, bias=False)
        self.linear2 = Linear(memory_units, dim, bias=False)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map tokens (..., C) to (..., C), each by itself; with a mask (...), padded tokens to zeros."""
        return self.linear2(F.relu(self.linear1(zero_padding(tokens, mask))))


class ExternalAttention2d(nn.Module):
    """The EANet block for feature maps: 1x1 conv, external attention over all pixels, 1x1 conv, residual, ReLU.

    Args:
        channels: Channels C of the feature map.
        width: Channels between the two convolutions, where the attention is; C by default.
        memory_units: Slots S.
        tied: One parameter as key and value memory; see `ExternalAttention`.
        normalization: See `ExternalAttention`.

    Raises:
        ValueError: If a size is not positive or the normalization is unknown.

    Source:
        Guo et al., 2021, section 4.3; 0.559M parameters at C = 512 tied, 0.591M untied.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int | None = None,
        memory_units: int = 64,
        tied: bool = True,
        normalization: Literal["double", "slots", "tokens"] = "double",
    ):
        super().__init__()
        width = channels if width is None else width
        if width < 1:
            raise ValueError(f"width must be positive, got {width}.")
        self.conv_in = nn.Conv2d(channels, width, 1)
        self.attention = ExternalAttention(width, memory_units=memory_units, tied=tied, normalization=normalization)
        self.conv_out = nn.Conv2d(width, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, image: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to (B, C, H, W)."""
        tokens = self.conv_in(image).flatten(2).transpose(1, 2)  # (B, H W, width)
        attended = self.attention(tokens).transpose(1, 2).unflatten(2, image.shape[2:])
        return F.relu(image + self.norm(self.conv_out(attended)))

    def token_grids(self, image: Tensor) -> dict[str, tuple[int, int]]:
        """Rows and columns of the tokens, for `record_attention`."""
        return {"attention": (image.shape[2], image.shape[3])}
