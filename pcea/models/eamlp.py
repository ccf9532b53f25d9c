"""EAMLP and T2T-ViT for image classification: one network, with the attention passed in.

Source: EAMLP is T2T-ViT ("Tokens-to-Token ViT", Yuan et al., 2021) with external attention (Guo et al., 2021, section
4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.models.build import check_num_classes
from pcea.nn.attention import AttentionFactory, ExternalAttention, MultiHeadExternalAttention, SelfAttention
from pcea.nn.layers import Dropout
from pcea.nn.linear import Linear
from pcea.nn.norm import apply_to_tokens

Norm = Literal["layer", "batch"]


def soft_split(image: Tensor, *, kernel_size: int, stride: int) -> Tensor:
    """Cut an image into overlapping square patches, one every `stride` pixels, with zeros around the image.

    Args:
        image: (B, C, H, W).
        kernel_size: Side K of a patch.
        stride: Distance between patches. A side that it divides gives side / stride patches.

    Returns:
        Patches, (B, H', W', C K K), channel by channel and each row by row, as `torch.nn.Unfold` orders them.
    """
    patches = F.unfold(image, kernel_size, padding=_padding(kernel_size, stride), stride=stride)  # (B, C K K, H' W')
    return patches.transpose(1, 2).unflatten(1, (_count(image.shape[2], kernel_size, stride), -1))


def _count(length: int, kernel_size: int, stride: int) -> int:
    """Number of patches along a side."""
    return (length + 2 * _padding(kernel_size, stride) - kernel_size) // stride + 1


def _padding(kernel_size: int, stride: int) -> int:
    return (kernel_size - stride + 1) // 2


class ExternalTokenTransformer(nn.Module):
    """The layer between two soft splits: external attention and an MLP, both at a small width.

    Args:
        in_channels: Channels of a patch.
        dim: Width C of the tokens.
        memory_units: Slots S.
        dropout: Dropout on the attention weights and after the attention.
    """

    def __init__(self, in_channels: int, dim: int, *, memory_units: int, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_channels)
        self.embed = Linear(in_channels, dim)
        self.attention = ExternalAttention(dim, memory_units=memory_units, tied=False, value_bias=True, dropout=dropout)
        self.project = Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _mlp(dim, dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (B, N, in_channels) to tokens (B, N, C)."""
        tokens = self.embed(self.norm1(patches))  # also the residual: patches have another width
        tokens = tokens + self.dropout(self.project(self.attention(tokens)))
        return tokens + self.mlp(self.norm2(tokens))


class TokensToToken(nn.Module):
    """The T2T module: soft splits, each making one token of overlapping neighbours, and layers between them.

    Args:
        in_channels: Channels of the image.
        dim: Width D of the tokens that it returns.
        kernel_sizes: Side of the patches of each soft split.
        strides: Distance between the patches of each soft split; their product is the side of a token in pixels.
        token_dim: Width of the layers between soft splits.
        memory_units: Slots S of their external attention.
        dropout: Dropout in them.

    Raises:
        ValueError: If there is not one stride for each kernel size, or a stride exceeds its kernel size.

    Source:
        Yuan et al., 2021, section 3.1, with external attention in place of self-attention.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        kernel_sizes: Sequence[int] = (7, 3, 3),
        strides: Sequence[int] = (4, 2, 2),
        token_dim: int = 64,
        memory_units: int = 128,
        dropout: float = 0.1,
    ):
        super().__init__()
        if (
            len(kernel_sizes) != len(strides)
            or not strides
            or any(not 1 <= s <= k for k, s in zip(kernel_sizes, strides))
        ):
            raise ValueError(
                "kernel_sizes and strides must have the same length, with no stride above its kernel size, "
                f"got {list(kernel_sizes)} and {list(strides)}."
            )
        self.kernel_sizes, self.strides = tuple(kernel_sizes), tuple(strides)
        self.smallest = kernel_sizes[0] - 2 * _padding(kernel_sizes[0], strides[0])
        channels = [in_channels] + [token_dim] * (len(strides) - 1)
        self.layers = nn.ModuleList(
            ExternalTokenTransformer(c * k * k, token_dim, memory_units=memory_units, dropout=dropout)
            for c, k in zip(channels[:-1], kernel_sizes)
        )
        # The last soft split and the linear map after it together are a convolution.
        k, s = kernel_sizes[-1], strides[-1]
        self.project = nn.Conv2d(channels[-1], dim, k, stride=s, padding=_padding(k, s))

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to tokens (B, N, D), row by row."""
        for kernel_size, stride, layer in zip(self.kernel_sizes, self.strides, self.layers):
            patches = soft_split(image, kernel_size=kernel_size, stride=stride)  # (B, H', W', C K K)
            tokens = layer(patches.flatten(1, 2))  # (B, H' W', token_dim)
            image = tokens.transpose(1, 2).unflatten(2, patches.shape[1:3])
        return self.project(image).flatten(2).transpose(1, 2)

    def token_grids(self, image: Tensor) -> dict[str, tuple[int, int]]:
        """Rows and columns of the tokens after each soft split, the last one as `project`; for `record_attention`."""
        names = [*(f"layers.{i}" for i in range(len(self.layers))), "project"]
        grids, (rows, columns) = {}, image.shape[2:]
        for name, kernel_size, stride in zip(names, self.kernel_sizes, self.strides):
            rows, columns = (_count(length, kernel_size, stride) for length in (rows, columns))
            grids[name] = rows, columns
        return grids


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        dim: Width D.
        attention: Builds the attention from its width.
        mlp_ratio: Width of the MLP's hidden layer as a multiple of D.
        norm: What normalizes the input of the MLP: "layer", or "batch" as in EAMLP-BN.
        drop_path: Probability that a training image skips the attention, and again that it skips the MLP.
    """

    def __init__(
        self,
        dim: int,
        *,
        attention: AttentionFactory,
        mlp_ratio: float,
        norm: Norm = "layer",
        drop_path: float = 0.0,
    ):
        super().__init__()
        from torchvision.ops import StochasticDepth  # importing pcea must not wait for torchvision

        if norm not in ("layer", "batch"):
            raise ValueError(f"norm must be layer or batch, got {norm!r}.")
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention(dim)
        self.norm2 = nn.LayerNorm(dim) if norm == "layer" else nn.BatchNorm1d(dim)
        self.mlp = _mlp(dim, int(mlp_ratio * dim))
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D)."""
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(apply_to_tokens(self.norm2, tokens)))


class ImageTransformer(nn.Module):
    """Image classifier: T2T module, transformer blocks, a linear layer on one token.

    Args:
        attention: Builds the attention of a block from its width: `MultiHeadExternalAttention` gives EAMLP.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        dim: Width D of the blocks.
        depth: Number of blocks.
        mlp_ratio: Width of a block's MLP as a multiple of D.
        kernel_sizes: See `TokensToToken`; (7, 3, 3) and (4, 2, 2) make 14 x 14 tokens from 224 x 224 pixels.
        strides: See `TokensToToken`.
        token_dim: See `TokensToToken`.
        token_memory_units: Slots of the external attention in the T2T module.
        token_dropout: Dropout in the T2T module.
        norm: Norm before the MLPs: "layer", or "batch" for EAMLP-BN.
        drop_path: Probability in the last block (see `TransformerBlock`); it grows linearly from 0 in the first.
        pool: What is classified: "class", an extra token beside those of the image, as published; or "mean", the mean
            of the image's tokens. External attention at first passes little of them on to the class token, so small
            networks learn faster from the mean.
        init: How the linear layers are initialized: "normal", with a standard deviation of 0.02, as published; or
            "xavier", uniform by the width (Glorot and Bengio, 2010). With "normal" the tokens of a narrow network are
            far smaller than the position table added to them, and it learns slowly.

    Raises:
        ValueError: If `norm`, `pool` or `init` is unknown, `drop_path` is not a probability, or the soft splits do not
            fit (see `TokensToToken`).
    """

    position: Tensor

    def __init__(
        self,
        attention: AttentionFactory,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        dim: int = 256,
        depth: int = 7,
        mlp_ratio: float = 2.0,
        kernel_sizes: Sequence[int] = (7, 3, 3),
        strides: Sequence[int] = (4, 2, 2),
        token_dim: int = 64,
        token_memory_units: int = 128,
        token_dropout: float = 0.1,
        norm: Norm = "layer",
        drop_path: float = 0.0,
        pool: Literal["class", "mean"] = "class",
        init: Literal["normal", "xavier"] = "normal",
    ):
        super().__init__()
        check_num_classes(num_classes)
        if norm not in ("layer", "batch"):
            raise ValueError(f"norm must be layer or batch, got {norm!r}.")
        if pool not in ("class", "mean"):
            raise ValueError(f"pool must be class or mean, got {pool!r}.")
        if init not in ("normal", "xavier"):
            raise ValueError(f"init must be normal or xavier, got {init!r}.")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {drop_path}.")
        self.num_classes, self.in_channels = num_classes, in_channels
        self.tokenizer = TokensToToken(
            in_channels,
            dim,
            kernel_sizes=kernel_sizes,
            strides=strides,
            token_dim=token_dim,
            memory_units=token_memory_units,
            dropout=token_dropout,
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if pool == "class" else None
        # The class token and 14 x 14 tokens; a longer table is made for larger images.
        self.register_buffer("position", sinusoid_table(197, dim, device=_real_device()), persistent=False)
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, attention=attention, mlp_ratio=mlp_ratio, norm=norm, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialize(init)

    def _initialize(self, init: str) -> None:
        normal = partial(nn.init.trunc_normal_, std=0.02)
        if self.class_token is not None:
            normal(self.class_token)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                # The convolution is a linear map of patches, so it is treated as one.
                fill = nn.init.xavier_uniform_ if init == "xavier" and module is not self.head else normal
                fill(module.weight.data.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, ExternalAttention):
                normal(module.key)
                if module.value is not None:
                    module.value.data.copy_(module.key.data)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageTransformer:
        """Move the network. The position table is in no file of weights, and `to_empty` leaves it without values."""
        super()._apply(fn, recurse)
        position = self.position
        if not position.is_meta:
            self.position = sinusoid_table(*position.shape, device=torch.device("cpu")).to(position)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, in_channels, H, W) of any size; logits (B, num_classes).

        Raises:
            ValueError: If the images have another shape, or are smaller than a patch.
        """
        smallest = self.tokenizer.smallest
        if images.ndim != 4 or images.shape[1] != self.in_channels or min(images.shape[2:]) < smallest:
            raise ValueError(
                f"images must be (B, {self.in_channels}, H, W) with H and W at least {smallest}, got "
                f"{tuple(images.shape)}."
            )
        tokens = self.tokenizer(images)  # (B, N, D)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)  # (B, 1 + N, D)
        tokens = tokens + self._position(tokens.shape[1]).to(tokens.device)
        for block in self.blocks:
            tokens = block(tokens)
        if self.class_token is not None:
            return self.head(self.norm(tokens[:, 0]))
        return self.head(self.norm(tokens).mean(1))

    def token_grids(self, images: Tensor) -> dict[str, tuple[int, int]]:
        """Rows and columns of the tokens in the blocks, for `record_attention`."""
        return {"blocks": self.tokenizer.token_grids(images)["project"]}

    def _position(self, count: int) -> Tensor:
        position = self.position
        # In a graph for images of any size the number of tokens is a symbol, so the table is made in the graph.
        if isinstance(count, int) and count <= len(position):
            return position[:count]
        return sinusoid_table(count, position.shape[1], device=position.device).to(position.dtype)


def _real_device() -> torch.device:
    """Where tensors are made; the CPU instead of the meta device, which keeps no values."""
    device = torch.empty(0).device
    return torch.device("cpu") if device.type == "meta" else device


def sinusoid_table(count: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """Alternating sines and cosines of the position p, at wavelengths from 2 pi to 10,000 times that; (count, dim).

    Channels 2i and 2i + 1 are sin and cos of p / 10000^(2i / dim).
    """
    wave = torch.arange(0, dim, 2, dtype=torch.float64, device=device)
    angle = torch.arange(count, dtype=torch.float64, device=device)[:, None] * torch.exp(
        wave * (-math.log(10_000) / dim)
    )
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim].float()


def _mlp(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(Linear(dim, hidden), nn.GELU(), Linear(hidden, dim))


def eamlp_7(
    num_classes: int = 1000, *, in_channels: int = 3, norm: Norm = "layer", drop_path: float = 0.0
) -> ImageTransformer:
    """EAMLP-7: 7 blocks of width 256; 6.15M parameters with the position table.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image.
        norm: "batch" is EAMLP-BN-7: batch norm before the MLPs.
        drop_path: See `ImageTransformer`; the authors train with 0.1.
    """
    return _build(7, _external, num_classes=num_classes, in_channels=in_channels, norm=norm, drop_path=drop_path)


def eamlp_14(
    num_classes: int = 1000, *, in_channels: int = 3, norm: Norm = "layer", drop_path: float = 0.0
) -> ImageTransformer:
    """EAMLP-14: 14 blocks of width 384; 29.9M parameters. Arguments as for `eamlp_7`."""
    return _build(14, _external, num_classes=num_classes, in_channels=in_channels, norm=norm, drop_path=drop_path)


def eamlp_19(
    num_classes: int = 1000, *, in_channels: int = 3, norm: Norm = "layer", drop_path: float = 0.0
) -> ImageTransformer:
    """EAMLP-19: 19 blocks of width 448; 54.6M parameters. Arguments as for `eamlp_7`."""
    return _build(19, _external, num_classes=num_classes, in_channels=in_channels, norm=norm, drop_path=drop_path)


def t2t_vit_7(num_classes: int = 1000, *, in_channels: int = 3, drop_path: float = 0.0) -> ImageTransformer:
    """T2T-ViT-7 with external attention in the T2T module and softmax self-attention in the blocks; 4.2M parameters."""
    return _build(7, _softmax, num_classes=num_classes, in_channels=in_channels, drop_path=drop_path)


def t2t_vit_14(num_classes: int = 1000, *, in_channels: int = 3, drop_path: float = 0.0) -> ImageTransformer:
    """T2T-ViT-14 with the attentions of `t2t_vit_7`; 21.5M parameters."""
    return _build(14, _softmax, num_classes=num_classes, in_channels=in_channels, drop_path=drop_path)


def t2t_vit_19(num_classes: int = 1000, *, in_channels: int = 3, drop_path: float = 0.0) -> ImageTransformer:
    """T2T-ViT-19 with the attentions of `t2t_vit_7`; 39.1M parameters."""
    return _build(19, _softmax, num_classes=num_classes, in_channels=in_channels, drop_path=drop_path)


def _build(depth: int, attention: AttentionFactory, **options: Any) -> ImageTransformer:
    dim, mlp_ratio = {7: (256, 2.0), 14: (384, 3.0), 19: (448, 3.0)}[depth]
    return ImageTransformer(attention, dim=dim, depth=depth, mlp_ratio=mlp_ratio, **options)


def _external(dim: int) -> MultiHeadExternalAttention:
    return MultiHeadExternalAttention(dim, num_heads=dim // 64)


def _softmax(dim: int) -> SelfAttention:
    return SelfAttention(dim, key_dim=dim, num_heads=dim // 64, value_bias=False, project=True)
