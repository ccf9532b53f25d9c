"""Around the attention: linear + batch norm + activation for tokens, the EANet block for images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pcea.attention import ExternalAttention
from pcea.linear import Linear
from pcea.norm import linear_norm


class LinearNormAct(nn.Module):
    """Linear, batch norm over the last axis and an activation, on tokens (..., C): "LBR" in PCT.

    In training a mask keeps padded tokens out of the statistics.

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
        """Map tokens (..., C) with mask (...) to (..., out_channels)."""
        return self.activation(linear_norm(self.linear, self.norm, tokens, mask=mask))


class ExternalAttention2d(nn.Module):
    """The EANet block for feature maps: 1x1 conv, external attention over all pixels, 1x1 conv, residual, ReLU.

    Args:
        channels: Channels C of the feature map.
        memory_units: Slots S.
        tied: One parameter as key and value memory; see `ExternalAttention`.
        normalization: See `ExternalAttention`.

    Source:
        Guo et al., 2021, section 4.3; 0.559M parameters at C = 512 tied, 0.591M untied.
    """

    def __init__(
        self,
        channels: int,
        *,
        memory_units: int = 64,
        tied: bool = True,
        normalization: Literal["double", "slots", "tokens"] = "double",
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 1)
        self.attention = ExternalAttention(channels, memory_units=memory_units, tied=tied, normalization=normalization)
        self.conv_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, image: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to (B, C, H, W)."""
        tokens = self.conv_in(image).flatten(2).transpose(1, 2)  # (B, H W, C)
        attended = self.attention(tokens).transpose(1, 2).unflatten(2, image.shape[2:])
        return F.relu(image + self.norm(self.conv_out(attended)))
