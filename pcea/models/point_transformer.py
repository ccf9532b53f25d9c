"""EAT and PCT for point clouds: one network, with the attention passed in.

Source: PCT (Guo et al., 2020), sections 3 and 4; EAT is PCT with external attention (Guo et al., 2021, section 4.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.models.build import check_num_classes, start_from
from pcea.models.neighbor_embedding import NeighborEmbedding
from pcea.models.padding import as_padded
from pcea.nn.attention import AttentionFactory, ExternalAttention, OffsetAttention, ResidualAttention, SelfAttention
from pcea.nn.chunks import map_chunks
from pcea.nn.layers import Dropout, LinearNormAct
from pcea.nn.norm import zero_padding
from pcea.nn.shares import in_shares
from pcea.nn.shortcuts import can_shortcut
from pcea.ops import farthest_point_sample, gather_points, knn
from pcea.ops.checks import check_mask

# Of more points evaluation keeps the outputs of the layers in half precision.
_HALVED = 1 << 18


class EncodedPoints(NamedTuple):
    """The output of every layer, for a head to fuse.

    Attributes:
        outputs: Outputs of the attention layers, then of the neighbour embedding, (B, M, C) each; M = N if every
            point stays a centre. In evaluation of more than 262,144 points in half precision.
        centers: Coordinates of the centres, (B, M, 3).
        mask: True for real centres, (B, M), or None.
    """

    outputs: list[Tensor]
    centers: Tensor
    mask: Tensor | None


class PooledCenters(NamedTuple):
    """Where a max-pooled feature comes from.

    Attributes:
        centers: Coordinates of the centres, (B, M, 3).
        winner: The centre that gave each pooled channel its value, (B, D) int64 in 0..M-1.
    """

    centers: Tensor
    winner: Tensor


class PointTransformerEncoder(nn.Module):
    """Points to features: pointwise embedding, optional neighbour embedding, attention layers.

    Args:
        attention: Builds one attention layer from its width.
        in_channels: 3 coordinates plus the channels of `features`.
        dim: Width C of the attention layers.
        depth: Number of attention layers.
        num_centers: Points kept by each stage of neighbour embedding, decreasing; None keeps every point, () means no
            neighbour embedding (PCT's "naive" layout).
        num_neighbors: Neighbours K of a centre.
        dilations: One per stage of neighbour embedding: with dilation n every n-th of the n K nearest points is a
            neighbour, so that a centre sees further at the same cost (Li et al., DeepGCNs, 2019). None means 1
            everywhere, as published.
        input_layers: LinearNormAct layers between neighbour embedding and attention.
        positional_embedding: Whether a linear map of the centres is added before every attention layer, as in the
            authors' later code.
        out_channels: Channels D of the feature that all outputs are fused into.

    Raises:
        ValueError: If `num_centers` does not decrease, `dim` cannot be halved at every stage, or a stage has fewer
            centres than the next one needs neighbours.
    """

    def __init__(
        self,
        attention: AttentionFactory,
        *,
        in_channels: int = 3,
        dim: int = 256,
        depth: int = 4,
        num_centers: Sequence[int | None] = (512, 256),
        num_neighbors: int = 32,
        dilations: Sequence[int] | None = None,
        input_layers: int = 2,
        positional_embedding: bool = False,
        out_channels: int = 1024,
    ):
        super().__init__()
        counts = [m for m in num_centers if m is not None]
        if sorted(set(counts), reverse=True) != counts or any(m < 1 for m in counts):
            raise ValueError(f"num_centers must decrease and be positive, got {list(num_centers)}.")
        if in_channels < 3 or num_neighbors < 1 or depth < 0:
            raise ValueError(
                "in_channels must be at least 3, num_neighbors 1 and depth 0, got "
                f"{in_channels}, {num_neighbors} and {depth}."
            )
        stem_dim, rest = divmod(dim, 2 ** len(num_centers))
        if rest:
            raise ValueError(f"dim must be divisible by {2 ** len(num_centers)}, got {dim}.")
        self.dilations = tuple(dilations or [1] * len(num_centers))
        if len(self.dilations) != len(num_centers) or any(d < 1 for d in self.dilations):
            raise ValueError(f"dilations must be {len(num_centers)} positive numbers, got {list(self.dilations)}.")
        for count, dilation in zip(num_centers, self.dilations[1:]):
            if count is not None and count < num_neighbors * dilation:
                raise ValueError(
                    f"A stage of {count} centres is too small for the next one, where a neighbour is one of the "
                    f"{num_neighbors * dilation} nearest: raise num_centers, or lower num_neighbors or dilations."
                )
        self.in_channels, self.num_centers, self.num_neighbors = in_channels, tuple(num_centers), num_neighbors
        self.stem = nn.ModuleList([LinearNormAct(in_channels, stem_dim), LinearNormAct(stem_dim, stem_dim)])
        widths = [stem_dim * 2**i for i in range(len(num_centers) + 1)]
        self.stages = nn.ModuleList(NeighborEmbedding(c, d) for c, d in pairwise(widths))
        self.input = nn.ModuleList(LinearNormAct(dim, dim) for _ in range(input_layers))
        self.position = nn.Linear(3, dim, bias=False) if positional_embedding else None
        self.blocks = nn.ModuleList(attention(dim) for _ in range(depth))
        fused = dim * (depth + bool(num_centers))
        self.fuse = LinearNormAct(fused, out_channels, activation=partial(F.leaky_relu, negative_slope=0.2))

    def forward(self, points: Tensor, features: Tensor | None = None, *, mask: Tensor | None = None) -> EncodedPoints:
        """Encode points (B, N, 3) with features (B, N, in_channels - 3) and mask (B, N)."""
        x = self._concatenate(points, features)
        check_mask(mask, points)
        encoded = self._encode(x, points, mask, may_halve=True)
        if any(self._has_overflowed(output) for output in encoded.outputs):
            encoded = self._encode(x, points, mask, may_halve=False)
        return encoded

    def _encode(self, x: Tensor, points: Tensor, mask: Tensor | None, *, may_halve: bool) -> EncodedPoints:
        points, x = zero_padding(points, mask), zero_padding(x, mask)
        # Without stages both run as one, so that what is between them is never there for all points.
        x = self._run([*self.stem, *([] if self.stages else self.input)], x, mask)
        nearest: Tensor | None = None
        for count, dilation, stage in zip(self.num_centers, self.dilations, self.stages):
            reach = self.num_neighbors * dilation
            if count is None:
                if nearest is None:  # stages that keep all points share their neighbours
                    furthest = self.num_neighbors * max(self.dilations)
                    nearest = _nearest(points, points, min(furthest, points.shape[1]), mask)
                x = stage(x, x, nearest[..., :reach:dilation], center_mask=mask)
                continue
            index = farthest_point_sample(points, count, mask=mask)
            centers = gather_points(points, index)
            neighbors = _nearest(centers, points, reach, mask)[..., ::dilation]
            if mask is not None:
                mask = torch.arange(count, device=points.device) < mask.sum(1, keepdim=True)
            x = stage(x, gather_points(x, index), neighbors, center_mask=mask)
            points, nearest = centers, None
        nearest = None  # no longer needed: free the memory
        halved = may_halve and self._is_halved(x)
        embedded = [x.half() if halved else x] if self.stages else []
        x = self._run(self.input if self.stages else [], x, mask)
        x = x.half() if halved else x
        position = None if self.position is None else self.position(points)
        outputs = []
        for block in self.blocks:
            x = block(x if position is None else x + position, mask=mask)
            outputs.append(x)
        return EncodedPoints(outputs + embedded, points, mask)

    def fuse_outputs(self, outputs: Sequence[Tensor], *, mask: Tensor | None = None) -> Tensor:
        """Fuse all outputs, (B, M, C) each with mask (B, M), into one feature per centre, (B, M, D)."""
        x = torch.cat(list(outputs), dim=-1)
        return self.fuse(x.to(self.fuse.linear.weight.dtype) if x.dtype == torch.float16 else x, mask=mask)

    def _is_halved(self, x: Tensor) -> bool:
        """Whether the outputs of so many points are kept in half precision."""
        return (
            can_shortcut()  # asked first: a graph must not depend on the number of points
            and x.dtype == torch.float32
            and x.shape[1] > _HALVED
            and self.position is None
            and all(isinstance(block, ResidualAttention) and block.is_streamed(x) for block in self.blocks)
        )

    def _has_overflowed(self, output: Tensor) -> bool:
        """Whether half precision was chosen by `_is_halved`, and is not enough."""
        if output.dtype != torch.float16 or self.fuse.linear.weight.dtype == torch.float16 or not can_shortcut():
            return False
        return not bool(torch.stack(output.aminmax()).isfinite().all())

    @property
    def min_points(self) -> int:
        """Fewest points per cloud: the first stage that samples needs its centres and neighbours. 1 if none does."""
        for count, dilation in zip(self.num_centers, self.dilations):
            if count is not None:
                return max(count, self.num_neighbors * dilation)
        return 1

    @property
    def min_captured_points(self) -> int:
        """Fewest points of a cloud for which no size in a captured graph depends on their number."""
        return 1 + max(self.min_points, self.num_neighbors * max(self.dilations, default=1))

    def pooled_centers(self, points: Tensor, features: Tensor | None = None) -> PooledCenters:
        """The centres, and which of them gives each channel of the max-pooled feature.

        Args:
            points: (B, N, 3), N at least `min_points`.
            features: Normals, colours, ...: (B, N, in_channels - 3).

        Returns:
            Centres, (B, M, 3), and the winning centre of each channel, (B, D).
        """
        outputs, centers, _ = self(points, features)
        return PooledCenters(centers, self.fuse_outputs(outputs).argmax(1))

    def _run(self, layers: Iterable[nn.Module], tokens: Tensor, mask: Tensor | None) -> Tensor:
        layers = list(layers)
        if not layers:
            return tokens

        def apply(tokens: Tensor, mask: Tensor | None) -> Tensor:
            for layer in layers:
                tokens = layer(tokens, mask=mask)
            return tokens

        return map_chunks(apply, tokens, mask, modules=layers)

    def _concatenate(self, points: Tensor, features: Tensor | None) -> Tensor:
        if points.ndim != 3 or points.shape[-1] != 3:
            raise ValueError(f"points must be (B, N, 3), got {tuple(points.shape)}.")
        if points.shape[1] < self.min_points:
            raise ValueError(f"The network needs at least {self.min_points} points per cloud, got N={points.shape[1]}.")
        return join_features(points, features, in_channels=self.in_channels)


def join_features(points: Tensor, features: Tensor | None, *, in_channels: int) -> Tensor:
    """Concatenate coordinates (B, N, 3) and features (B, N, in_channels - 3), None for none.

    Raises:
        ValueError: If the features have another size.
    """
    channels = 0 if features is None else features.shape[-1]
    if channels != in_channels - 3:
        raise ValueError(f"features must have {in_channels - 3} channels, got {channels}.")
    if features is None:
        return points
    if features.shape[:-1] != points.shape[:-1]:
        raise ValueError(
            f"features must be (B, N, C) beside points {tuple(points.shape)}, got {tuple(features.shape)}."
        )
    return torch.cat([points, features], dim=-1)


def _nearest(centers: Tensor, points: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """The k points nearest to each centre, (B, M, k), in fp32 even under autocast."""
    return knn(centers, points, k=k, mask=mask).index


class PointTransformerClassifier(nn.Module):
    """Point cloud classifier: encoder, maximum over the points, three linear layers.

    Args:
        encoder: Gives the features of the centres.
        num_classes: Number of classes.
        widths: Widths of the two hidden layers.
        dropout: Dropout after each hidden layer.
    """

    def __init__(
        self,
        encoder: PointTransformerEncoder,
        *,
        num_classes: int,
        widths: tuple[int, int] = (512, 256),
        dropout: float = 0.5,
    ):
        super().__init__()
        check_num_classes(num_classes)
        self.encoder = encoder
        self.num_classes = num_classes
        leaky_relu = partial(F.leaky_relu, negative_slope=0.2)
        channels = encoder.fuse.linear.out_features
        self.head = nn.Sequential(
            LinearNormAct(channels, widths[0], activation=leaky_relu),
            Dropout(dropout),
            LinearNormAct(widths[0], widths[1], bias=True, activation=leaky_relu),
            Dropout(dropout),
            nn.Linear(widths[1], num_classes),
        )

    def forward(
        self,
        points: Tensor,
        features: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Classify.

        Args:
            points: (B, N, 3), N at least the number of centres; or packed clouds (T, 3) with `batch`.
            features: Normals, colours, ...: (B, N, in_channels - 3), or packed (T, in_channels - 3).
            mask: True for real points, (B, N).
            batch: The cloud of each packed point, (T,) int64, as in PyTorch Geometric; empty clouds at the end get no
                row, as it does not tell of them.

        Returns:
            Logits, (B, num_classes).
        """
        points, features, mask = as_padded(points, features, mask, batch)
        return in_shares(self, self._classify, points, features, mask)

    def _classify(self, points: Tensor, features: Tensor | None, mask: Tensor | None) -> Tensor:
        encoded = self.encoder(points, features, mask=mask)
        x = self.encoder.fuse_outputs(encoded.outputs, mask=encoded.mask)
        if encoded.mask is not None:
            x = x.masked_fill(~encoded.mask.unsqueeze(-1), -torch.inf)
        return self.head(x.amax(1))

    @property
    def min_points(self) -> int:
        """Fewest points per cloud that the network takes."""
        return self.encoder.min_points

    def pooled_centers(self, points: Tensor, features: Tensor | None = None) -> PooledCenters:
        """Which point gives each max-pooled channel; see `PointTransformerEncoder.pooled_centers`."""
        return self.encoder.pooled_centers(points, features)


def eat_classifier(
    num_classes: int | None = None,
    *,
    in_channels: int = 3,
    dim: int = 256,
    num_centers: Sequence[int] = (512, 256),
    num_neighbors: int = 32,
    memory_units: int = 64,
    tied: bool = True,
    out_channels: int = 1024,
    widths: tuple[int, int] = (512, 256),
    dropout: float = 0.5,
    weights: str | Path | None = None,
) -> PointTransformerClassifier:
    """EAT: PCT's classifier with external attention in every layer; 2.613M parameters at its published size.

    Args:
        num_classes: Number of classes; None takes that of `weights`, or 40 without weights.
        in_channels: 3 coordinates plus the channels of `features`.
        dim: Width of the attention layers.
        num_centers: Points kept by each stage of neighbour embedding; () for none.
        num_neighbors: Neighbours of a centre.
        memory_units: Slots S of every external attention.
        tied: One parameter as key and value memory.
        out_channels: Channels that are max-pooled.
        widths: Widths of the two hidden layers of the head.
        dropout: Dropout in the head.
        weights: Start from trained weights: a weights file, a checkpoint, or the name of weights shipped with pcea.
            The network is then the file's. Other arguments that are not the defaults replace the file's, such as
            `dropout`, but must fit the weights; another `num_classes` gets a new head on the trained encoder.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If the weights belong to another network, or do not fit a size that is given.
    """
    if weights is not None:
        return start_from(eat_classifier, locals())

    def attention(width: int) -> OffsetAttention:
        return OffsetAttention(width, attention=partial(ExternalAttention, memory_units=memory_units, tied=tied))

    encoder = PointTransformerEncoder(
        attention,
        in_channels=in_channels,
        dim=dim,
        num_centers=num_centers,
        num_neighbors=num_neighbors,
        out_channels=out_channels,
    )
    return PointTransformerClassifier(
        encoder, num_classes=40 if num_classes is None else num_classes, widths=widths, dropout=dropout
    )


def pct_classifier(num_classes: int = 40, *, in_channels: int = 3) -> PointTransformerClassifier:
    """PCT with offset attention and neighbour embedding, as in its PyTorch port; 2.876M parameters."""
    encoder = PointTransformerEncoder(OffsetAttention, in_channels=in_channels)
    return PointTransformerClassifier(encoder, num_classes=num_classes)


def naive_pct_classifier(num_classes: int = 40, *, in_channels: int = 3) -> PointTransformerClassifier:
    """PCT without neighbour embedding, with plain self-attention ("naive PCT"); 1.361M parameters."""
    attention = partial(ResidualAttention, attention=partial(SelfAttention, shared_query_key=True))
    encoder = PointTransformerEncoder(attention, in_channels=in_channels, dim=128, num_centers=(), input_layers=0)
    return PointTransformerClassifier(encoder, num_classes=num_classes)
