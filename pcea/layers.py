"""Around the attention: linear + batch norm + activation for tokens, the EANet block for images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.attention import ExternalAttention
from pcea.linear import Linear, linear
from pcea.norm import apply_to_tokens


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
        if self.training:
            return self.activation(apply_to_tokens(self.norm, self.linear(tokens), mask=mask))
        return self.activation(linear(tokens, *fold_batch_norm(self.linear, self.norm)))


def fold_batch_norm(linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight (D, C) and bias (D,) of the linear map that equals `linear` followed by `norm` in evaluation."""
    weight, bias = batch_norm_affine(norm)
    return linear.weight * weight[:, None], bias if linear.bias is None else bias + weight * linear.bias


def batch_norm_affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, (C,) each, that `norm` applies in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean


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
