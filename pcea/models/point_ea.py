"""PointEA: a small network of local edge poolings and global external attention, for classes and for parts.

    points ── encode neighbours ─┐
                                 ├─ stage 1 ── fewer centres ── stage 2 ── fewer centres ── stage 3 ── pool ── class
    coordinates, normals ── BN ──┘                                                            │
                                                             points ── sum of all stages ─────┘ ── parts

Each stage adds, to the features of its centres, an encoding of where their neighbours are, and then runs blocks of

    x + edge pooling, x + edge pooling     by how much the neighbours exceed the centre
    x + attention                          the whole cloud
    x + MLP                                each centre by itself

(`pcea.models.edge_pooling`). Nothing runs on (centre, neighbour) pairs but a maximum, so a network costs little more
than its linear maps.

Source: the order of the layers is that of DeLA ("Decoupled Local Aggregation for Point Cloud Learning", Chen et al.,
2023); external attention (Guo et al., 2021) takes the place of some of its MLPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.models.build import check_num_classes, start_from
from pcea.models.edge_pooling import Block, EllipsoidEncoding, first_points
from pcea.models.padding import as_padded, padded_in_graph, without_padding
from pcea.models.point_segmenter import check_category
from pcea.models.point_transformer import PooledCenters, join_features
from pcea.nn.attention import AttentionFactory, ExternalAttention
from pcea.nn.layers import Dropout, LinearNormAct
from pcea.nn.linear import Linear
from pcea.nn.norm import add_normed, linear_norm, norm_tokens, zero_padding
from pcea.nn.shares import in_shares
from pcea.ops import farthest_point_sample, gather_points, interpolate_features, knn, max_neighbors
from pcea.ops.checks import check_mask, check_points

Size = Literal["small", "base"]
_WIDTHS: dict[str, tuple[int, ...]] = {"small": (32, 64, 128), "base": (48, 96, 192)}

# The points that become centres: their numbers (B, M), or how many of the first, or None for all.
Chosen = Tensor | int | None


class EncodedCenters(NamedTuple):
    """What a stage knows of its centres.

    Attributes:
        features: (B, M, C).
        centers: Their coordinates, (B, M, 3).
        mask: True for real centres, (B, M), or None.
        neighbors: The centres nearest to each centre, (B, M, K), itself first; None if they were not looked for.
    """

    features: Tensor
    centers: Tensor
    mask: Tensor | None
    neighbors: Tensor | None = None


class Reduction(nn.Module):
    """From points to fewer centres: BN(W x_i) + BN(max_j V x_j - V x_i) over the points j nearest to each centre i.

    Args:
        in_channels: Channels C of the points.
        out_channels: Channels D of the centres.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.skip = Linear(in_channels, out_channels, bias=False)
        self.skip_norm = nn.BatchNorm1d(out_channels)
        self.linear = Linear(in_channels, out_channels, bias=False)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, tokens: Tensor, chosen: Chosen, index: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map points (B, N, C) to centres (B, M, D), of which `index` (B, M, K) are the nearest points."""
        own = chosen if isinstance(chosen, Tensor) else first_points(index)
        edges = max_neighbors(self.linear(tokens), index, own=own)
        skipped = linear_norm(self.skip, self.skip_norm, _choose(tokens, chosen), mask=mask)
        return add_normed(skipped, self.norm, edges, mask=mask)


def _choose(values: Tensor, chosen: Chosen) -> Tensor:
    """The chosen ones of (B, N, C)."""
    if isinstance(chosen, Tensor):
        return gather_points(values, chosen)
    return values if chosen is None else values[:, :chosen].contiguous()


class Stage(nn.Module):
    """What happens at one resolution: points are reduced to centres, their neighbours encoded, blocks run.

    Args:
        in_channels: Channels of the points.
        dim: Channels C of the centres.
        radius: See `EllipsoidEncoding`.
        attention: See `Block`.
        ratio: See `Block`.
        drop_paths: See `Residual`; one per block.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        radius: float,
        attention: AttentionFactory | None,
        ratio: float,
        drop_paths: Sequence[float],
    ):
        super().__init__()
        self.reduce = Reduction(in_channels, dim)
        self.encode = EllipsoidEncoding(dim, radius=radius)
        self.blocks = nn.ModuleList(Block(dim, attention=attention, ratio=ratio, drop_path=p) for p in drop_paths)

    def forward(
        self, finer: EncodedCenters, chosen: Chosen, *, num_neighbors: int, encodes_points: bool
    ) -> EncodedCenters:
        """Run the stage.

        Args:
            finer: The points, and what is known of them.
            chosen: Those that become centres.
            num_neighbors: Neighbours of a centre.
            encodes_points: Encode where the nearest points are, instead of the nearest centres.
        """
        tokens, points, mask, neighbors = finer
        centers = _choose(points, chosen)
        if mask is not None and chosen is not None:  # a cloud's real points are chosen first
            mask = torch.arange(centers.shape[1], device=mask.device) < mask.sum(1, keepdim=True)
        if neighbors is None:
            near_points = _nearest(centers, points, num_neighbors, finer.mask)
        else:  # the centres are some of those points
            near_points = _choose(neighbors, chosen)
        near_centers = near_points if chosen is None else _nearest(centers, centers, num_neighbors, mask)
        encoded = (
            self.encode(points, centers, near_points, mask=mask)
            if encodes_points
            else self.encode(centers, centers, near_centers, mask=mask)
        )
        tokens = self.reduce(tokens, chosen, near_points, mask=mask) + encoded
        for block in self.blocks:
            tokens = block(tokens, near_centers, mask=mask)
        return EncodedCenters(tokens, centers, mask, near_centers)


def _nearest(centers: Tensor, points: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """The k points nearest to each centre, or all if they are fewer, (B, M, k)."""
    return knn(centers, points, k=min(k, points.shape[1]), mask=mask).index


class PointEAEncoder(nn.Module):
    """Points to the features of fewer and fewer centres.

    Args:
        attention: Builds the attention of a block from its width; None leaves it out.
        in_channels: 3 coordinates plus the channels of `features`.
        widths: Channels of each stage.
        num_centers: Centres of each stage, decreasing; None keeps every point. A smaller cloud keeps all it has.
        depths: Blocks of each stage.
        num_neighbors: Neighbours K of a centre.
        radius: Usual distance of the furthest neighbour in the first stage; it doubles from stage to stage.
        ratio: Width of the MLPs' hidden layers, in channels of the stage.
        drop_path: Probability that a training cloud skips a branch of the last block; it grows from 0 in the first.

    Raises:
        ValueError: If the stages are not described alike, or `num_centers` does not decrease.
    """

    def __init__(
        self,
        attention: AttentionFactory | None,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (48, 96, 192),
        num_centers: Sequence[int | None] = (512, 128, 32),
        depths: Sequence[int] = (1, 2, 2),
        num_neighbors: int = 16,
        radius: float = 0.2,
        ratio: float = 2.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if not len(widths) == len(num_centers) == len(depths) or not widths:
            raise ValueError(
                f"widths, num_centers and depths must have one number per stage, and at least one stage, got "
                f"{list(widths)}, {list(num_centers)} and {list(depths)}."
            )
        counts = [m for m in num_centers if m is not None]
        if sorted(set(counts), reverse=True) != counts or any(m < 1 for m in counts) or None in num_centers[1:]:
            raise ValueError(
                f"num_centers must decrease and be positive; only the first may be None, got {list(num_centers)}."
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {drop_path}.")
        if in_channels < 3 or num_neighbors < 1 or min(depths) < 0:
            raise ValueError(
                "in_channels must be at least 3, num_neighbors 1 and depths 0, got "
                f"{in_channels}, {num_neighbors} and {list(depths)}."
            )
        self.in_channels, self.widths = in_channels, tuple(widths)
        self.num_centers, self.num_neighbors = tuple(num_centers), num_neighbors
        total = sum(depths)
        rates = iter([drop_path * i / max(1, total - 1) for i in range(total)])
        self.stages = nn.ModuleList(
            Stage(
                channels,
                dim,
                radius=radius * 2**i,
                attention=attention,
                ratio=ratio,
                drop_paths=[next(rates) for _ in range(depth)],
            )
            for i, ((channels, dim), depth) in enumerate(zip(pairwise((in_channels, *widths)), depths))
        )

    def forward(
        self, points: Tensor, features: Tensor | None = None, *, mask: Tensor | None = None
    ) -> list[EncodedCenters]:
        """Encode points (B, N, 3) with features (B, N, in_channels - 3) and mask (B, N): one result per stage."""
        check_points(points=points)
        check_mask(mask, points)
        joined = join_features(points, features, in_channels=self.in_channels)
        encoded = EncodedCenters(zero_padding(joined, mask), zero_padding(points, mask), mask)
        stages: list[EncodedCenters] = []
        is_ordered = False
        for count, stage in zip(self.num_centers, self.stages):
            chosen: Chosen = None
            if count is not None and count < encoded.centers.shape[1]:
                # Centres stand in the order of their sampling: the first ones are the farthest points among them.
                chosen = count if is_ordered else farthest_point_sample(encoded.centers, count, mask=encoded.mask)
                is_ordered = True
            # The first stage encodes the cloud as it came, later ones wider surroundings.
            encoded = stage(encoded, chosen, num_neighbors=self.num_neighbors, encodes_points=not stages)
            stages.append(encoded)
        return stages

    @property
    def min_captured_points(self) -> int:
        """Fewest points with which a graph is captured; it then pads clouds of fewer, so that it takes any number."""
        return 1 + max(self.num_neighbors, *(count or 1 for count in self.num_centers))


class PointEAClassifier(nn.Module):
    """Point cloud classifier: encoder, maximum and mean over the centres of the last stage, two linear layers.

    Args:
        encoder: Gives the features of the centres.
        num_classes: Number of classes.
        out_channels: Channels D that are pooled.
        width: Width of the hidden layer.
        dropout: Dropout after it.
    """

    def __init__(
        self,
        encoder: PointEAEncoder,
        *,
        num_classes: int,
        out_channels: int = 384,
        width: int = 256,
        dropout: float = 0.5,
    ):
        super().__init__()
        check_num_classes(num_classes)
        self.encoder, self.num_classes = encoder, num_classes
        self.fuse = LinearNormAct(encoder.widths[-1], out_channels)
        self.hidden = LinearNormAct(2 * out_channels, width)
        self.dropout = Dropout(dropout)
        self.last = Linear(width, num_classes)

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
            points: (B, N, 3), any N; or packed clouds (T, 3) with `batch`.
            features: Normals, colours, ...: (B, N, in_channels - 3), or packed (T, in_channels - 3).
            mask: True for real points, (B, N).
            batch: The cloud of each packed point, (T,) int64, as in PyTorch Geometric; empty clouds at the end get no
                row, as it does not tell of them.

        Returns:
            Logits, (B, num_classes).
        """
        points, features, mask = as_padded(points, features, mask, batch)
        points, features, mask = padded_in_graph(points, features, mask, least=self.encoder.min_captured_points)
        return in_shares(self, self._classify, points, features, mask)

    def _classify(self, points: Tensor, features: Tensor | None, mask: Tensor | None) -> Tensor:
        tokens, _, mask, _ = self.encoder(points, features, mask=mask)[-1]
        return self.last(self.dropout(self.hidden(_max_and_mean(self.fuse(tokens, mask=mask), mask))))

    @property
    def min_points(self) -> int:
        """Fewest points per cloud that the network takes."""
        return 1

    def pooled_centers(self, points: Tensor, features: Tensor | None = None) -> PooledCenters:
        """Which centre gives each max-pooled channel.

        Args:
            points: (B, N, 3).
            features: Normals, colours, ...: (B, N, in_channels - 3).

        Returns:
            Centres of the last stage, (B, M, 3), and the winning centre of each channel, (B, D).
        """
        return _pooled_centers(self.encoder(points, features)[-1], self.fuse)


class PointEASegmenter(nn.Module):
    """Point segmenter: a U of an encoder and sums of its stages, carried up to the points by interpolation.

    A linear map of each stage is added to what the coarser stages say at its centres. The class of a point follows from
    that sum, from the maximum and mean of the last stage, and from the object category.

    Args:
        encoder: Gives the features of all stages.
        num_classes: Number of classes of a point (parts of all categories).
        num_categories: Number of object categories; 0 for a network without them (scenes).
        out_channels: Channels D that are carried up, and that are pooled.
        widths: Widths of the two hidden layers.
        dropout: Dropout after the first hidden layer.
    """

    def __init__(
        self,
        encoder: PointEAEncoder,
        *,
        num_classes: int,
        num_categories: int = 0,
        out_channels: int = 128,
        widths: tuple[int, int] = (192, 128),
        dropout: float = 0.5,
    ):
        super().__init__()
        check_num_classes(num_classes, num_categories)
        self.encoder, self.num_classes, self.num_categories = encoder, num_classes, num_categories
        self.lateral = nn.ModuleList(Linear(width, out_channels) for width in encoder.widths)
        self.input = Linear(encoder.in_channels, out_channels)
        self.norm = nn.BatchNorm1d(out_channels)
        self.fuse = LinearNormAct(encoder.widths[-1], out_channels)
        self.first = Linear(out_channels, widths[0], bias=False)
        self.context = Linear(2 * out_channels + num_categories, widths[0], bias=False)
        self.first_norm = nn.BatchNorm1d(widths[0])
        self.dropout = Dropout(dropout)
        self.second = LinearNormAct(*widths)
        self.last = Linear(widths[1], num_classes)

    def forward(
        self,
        points: Tensor,
        features: Tensor | None = None,
        *,
        category: Tensor | None = None,
        mask: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Classify every point.

        Args:
            points: (B, N, 3), any N; or packed clouds (T, 3) with `batch`.
            features: Normals, colours, ...: (B, N, in_channels - 3), or packed (T, in_channels - 3).
            category: Object category of each cloud, (B,) int64, if the network has categories.
            mask: True for real points, (B, N).
            batch: The cloud of each packed point, (T,) int64, as in PyTorch Geometric; empty clouds at the end get no
                row, as it does not tell of them.

        Returns:
            Logits, (B, N, num_classes), or packed (T, num_classes); meaningless at padded points.

        Raises:
            ValueError: If the category is missing, superfluous or unknown, or a shape is wrong.
        """
        points, features, mask = as_padded(points, features, mask, batch)
        num_points = points.shape[1]
        points, features, mask = padded_in_graph(points, features, mask, least=self.encoder.min_captured_points)
        check_category(category, self.num_categories, points.shape[0])
        stages = self.encoder(points, features, mask=mask)
        tokens = self._carry_up(stages, points, features, mask)
        tokens = F.relu(norm_tokens(self.norm, tokens, mask=mask))
        cloud = _max_and_mean(self.fuse(stages[-1].features, mask=stages[-1].mask), stages[-1].mask)
        if category is not None:
            is_category = category.unsqueeze(1) == torch.arange(self.num_categories, device=category.device)
            cloud = torch.cat([cloud, is_category.to(cloud.dtype)], dim=1)
        tokens = self.first(tokens) + self.context(cloud).unsqueeze(1)
        tokens = self.dropout(F.relu(norm_tokens(self.first_norm, tokens, mask=mask)))
        logits = without_padding(self.last(self.second(tokens, mask=mask)), num_points)
        return logits if batch is None else logits[mask]

    def _carry_up(
        self, stages: list[EncodedCenters], points: Tensor, features: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """The sum of all stages at the points, (B, N, D)."""
        coarser = self.lateral[-1](stages[-1].features)
        for finer, source, lateral in zip(stages[-2::-1], stages[:0:-1], [*self.lateral[-2::-1]]):
            coarser = lateral(finer.features) + _interpolate(finer.centers, source, coarser)
        given = zero_padding(join_features(points, features, in_channels=self.encoder.in_channels), mask)
        return self.input(given) + _interpolate(zero_padding(points, mask), stages[0], coarser)

    @property
    def min_points(self) -> int:
        """Fewest points per cloud that the network takes."""
        return 1

    def pooled_centers(self, points: Tensor, features: Tensor | None = None) -> PooledCenters:
        """Which centre gives each max-pooled channel; see `PointEAClassifier.pooled_centers`."""
        return _pooled_centers(self.encoder(points, features)[-1], self.fuse)


def _interpolate(query: Tensor, source: EncodedCenters, features: Tensor) -> Tensor:
    """Features (B, M, D) of the centres of a stage at finer points (B, N, 3), of which the centres are a part."""
    if query.shape[1] == features.shape[1]:  # nothing was left out
        return features
    k = min(3, features.shape[1])
    return interpolate_features(query, source.centers, features, k=k, mask=source.mask)


def _max_and_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Maximum and mean over the real tokens, (B, M, C) -> (B, 2 C)."""
    if mask is None:
        return torch.cat([tokens.amax(1), tokens.mean(1)], dim=-1)
    is_padded = ~mask.unsqueeze(-1)
    mean = tokens.masked_fill(is_padded, 0).sum(1) / mask.sum(1, keepdim=True)
    return torch.cat([tokens.masked_fill(is_padded, -torch.inf).amax(1), mean.to(tokens.dtype)], dim=-1)


def _pooled_centers(encoded: EncodedCenters, fuse: nn.Module) -> PooledCenters:
    return PooledCenters(encoded.centers, fuse(encoded.features).argmax(1))


def point_ea_classifier(
    num_classes: int | None = None,
    *,
    size: Size = "small",
    in_channels: int = 3,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    num_centers: Sequence[int | None] = (512, 128, 32),
    num_neighbors: int = 16,
    attention: AttentionFactory | None = None,
    memory_units: int = 64,
    drop_path: float = 0.0,
    dropout: float = 0.5,
    weights: str | Path | None = None,
) -> PointEAClassifier:
    """PointEA for classes.

    Args:
        num_classes: Number of classes; None takes that of `weights`, or 40 without weights.
        size: small (0.6M parameters) or base (1.0M): the widths, unless they are given.
        in_channels: 3 coordinates plus the channels of `features`.
        widths: Channels of each stage; None for those of `size`.
        depths: Blocks of each stage; None for 1, 2, 2.
        num_centers: Centres of each stage, decreasing; None for the first keeps every point. A smaller cloud keeps all
            it has.
        num_neighbors: Neighbours of a centre.
        attention: Builds the attention of a block from its width, such as `MultiHeadExternalAttention`,
            `SelfAttention` or `TokenMLP`; None is external attention with untied memories.
        memory_units: Slots S of external attention; 0 leaves it out.
        drop_path: Probability that a training cloud skips a branch of the last block; it grows from 0 in the first.
        dropout: Dropout in the head.
        weights: Start from trained weights: a weights file, a checkpoint, or the name of weights shipped with pcea.
            The network is then the file's. Other arguments that are not the defaults replace the file's, such as
            `dropout`, but must fit the weights; another `num_classes` gets a new head on the trained encoder.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If the weights belong to another network or do not fit a size that is given, or one is impossible.
    """
    if weights is not None:
        return start_from(point_ea_classifier, locals())
    encoder = _encoder(
        size, widths, depths, attention, memory_units,
        in_channels=in_channels, num_centers=num_centers, num_neighbors=num_neighbors, drop_path=drop_path,
    )  # fmt: skip
    return PointEAClassifier(encoder, num_classes=40 if num_classes is None else num_classes, dropout=dropout)


def point_ea_part_segmenter(
    num_classes: int | None = None,
    num_categories: int | None = None,
    *,
    size: Size = "small",
    in_channels: int = 3,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    num_centers: Sequence[int | None] = (None, 256, 64),
    num_neighbors: int = 16,
    attention: AttentionFactory | None = None,
    memory_units: int = 64,
    drop_path: float = 0.0,
    dropout: float = 0.5,
    weights: str | Path | None = None,
) -> PointEASegmenter:
    """PointEA for parts; arguments that are not named here are those of `point_ea_classifier`.

    Args:
        num_classes: Number of classes of a point; None takes that of `weights`, or 50 without weights.
        num_categories: Number of object categories, 0 for a network without them (scenes); None takes that of
            `weights`, or 16 without weights.
        size: See `point_ea_classifier`.
        in_channels: See there.
        widths: See there.
        depths: See there.
        num_centers: See there.
        num_neighbors: See there.
        attention: See there.
        memory_units: See there.
        drop_path: See there.
        dropout: See there.
        weights: See there; another number of classes or categories gets a new head on the trained encoder.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If the weights belong to another network or do not fit a size that is given, or one is impossible.
    """
    if weights is not None:
        return start_from(point_ea_part_segmenter, locals())
    encoder = _encoder(
        size, widths, depths, attention, memory_units,
        in_channels=in_channels, num_centers=num_centers, num_neighbors=num_neighbors, drop_path=drop_path,
    )  # fmt: skip
    return PointEASegmenter(
        encoder,
        num_classes=50 if num_classes is None else num_classes,
        num_categories=16 if num_categories is None else num_categories,
        dropout=dropout,
    )


def _encoder(
    size: str,
    widths: Sequence[int] | None,
    depths: Sequence[int] | None,
    attention: AttentionFactory | None,
    memory_units: int,
    **options: Any,
) -> PointEAEncoder:
    if size not in _WIDTHS:
        raise ValueError(f"size must be one of {', '.join(_WIDTHS)}, got {size!r}.")
    if attention is None and memory_units:
        attention = partial(ExternalAttention, memory_units=memory_units, tied=False)
    return PointEAEncoder(
        attention,
        widths=_WIDTHS[size] if widths is None else widths,
        depths=(1, 2, 2) if depths is None else depths,
        **options,
    )
