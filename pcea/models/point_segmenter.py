"""EAT and PCT for parts: a class for every point of a cloud of any size.

Source: PCT (Guo et al., 2020), sections 3.4 and 4.3, and its published segmentation network; EAT is PCT with external
attention (Guo et al., 2021, section 4.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.models.build import check_num_classes, start_from
from pcea.models.padding import as_padded, padded_in_graph, without_padding
from pcea.models.point_transformer import PointTransformerEncoder, PooledCenters
from pcea.nn.attention import STREAMED, AttentionFactory, ExternalAttention, OffsetAttention
from pcea.nn.chunks import map_chunks, token_chunks
from pcea.nn.layers import Dropout, LinearNormAct
from pcea.nn.linear import Linear, linear
from pcea.nn.norm import can_fold, fold_batch_norm, norm_tokens
from pcea.nn.shortcuts import can_shortcut, is_plain, is_tokenwise

_CATEGORY_CHANNELS = 64


class PointTransformerSegmenter(nn.Module):
    """Point segmenter: encoder, then three linear layers on features of the point, the cloud and its category.

    A cloud's features are the maximum and the mean over its points. They and the category are the same for all its
    points, so the first layer's product with them is computed once per cloud: a third of that layer's published cost.

    In evaluation memory grows by 4 C numbers per point (C the width of the attention layers), of large clouds in half
    precision, so that ten million points go through in one pass, if the attention is external attention.

    Args:
        encoder: Gives the outputs of all layers; every point must stay a centre.
        num_classes: Number of classes of a point (parts of all categories).
        num_categories: Number of object categories; 0 for a network without them (scenes).
        widths: Widths of the two hidden layers.
        dropout: Dropout after the first hidden layer.

    Raises:
        ValueError: If the encoder drops points.
    """

    def __init__(
        self,
        encoder: PointTransformerEncoder,
        *,
        num_classes: int,
        num_categories: int = 0,
        widths: tuple[int, int] = (512, 256),
        dropout: float = 0.5,
    ):
        super().__init__()
        check_num_classes(num_classes, num_categories)
        if any(count is not None for count in encoder.num_centers):
            raise ValueError(
                f"A segmenter needs every point: num_centers must be () or only None, got {encoder.num_centers}."
            )
        self.encoder, self.num_classes, self.num_categories = encoder, num_classes, num_categories
        self.channels = encoder.fuse.linear.out_features
        leaky_relu = partial(F.leaky_relu, negative_slope=0.2)
        category_channels = _CATEGORY_CHANNELS if num_categories else 0
        self.category = (
            LinearNormAct(num_categories, category_channels, activation=leaky_relu) if num_categories else None
        )
        self.first = LinearNormAct(3 * self.channels + category_channels, widths[0], bias=True)
        self.dropout = Dropout(dropout)
        self.second = LinearNormAct(widths[0], widths[1], bias=True)
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
        check_category(category, self.num_categories, points.shape[0])
        logits = self._classify(points, features, category, mask)
        return logits if batch is None else logits[mask]

    def _classify(
        self, points: Tensor, features: Tensor | None, category: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        num_points = points.shape[1]
        points, features, mask = padded_in_graph(points, features, mask, least=self.encoder.min_captured_points)
        outputs = self.encoder(points, features, mask=mask).outputs
        if self._is_streamed(points):
            # The outputs are fused twice, chunk by chunk, instead of keeping D channels of all points.
            fuse = self.encoder.fuse_outputs
            context = self._context(*_pool_in_chunks(fuse, outputs, mask), category)
            context = context.expand(*points.shape[:2], -1)
            return map_chunks(
                lambda context, *outputs: self._head(fuse(outputs), context[:, :1]),
                context,
                *outputs,
                modules=[self.encoder.fuse, *self._head_layers()],
            )
        local = self.encoder.fuse_outputs(outputs, mask=mask)
        highest, total = _highest_and_sum(local, mask)
        context = self._context(highest, total / _count(points, mask), category)
        context = context.expand(*points.shape[:2], -1)
        return without_padding(map_chunks(self._head, local, context, mask, modules=self._head_layers()), num_points)

    def _is_streamed(self, points: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and can_shortcut()
            and points.shape[1] > STREAMED
            and is_tokenwise([self.encoder.fuse, *self._head_layers()])
        )

    def _head_layers(self) -> list[nn.Module]:
        return [self.first, self.dropout, self.second, self.last]

    @property
    def min_points(self) -> int:
        """Fewest points per cloud that the network takes: 1, as all points are kept."""
        return self.encoder.min_points

    def pooled_centers(self, points: Tensor, features: Tensor | None = None) -> PooledCenters:
        """Which point gives each max-pooled channel; see `PointTransformerEncoder.pooled_centers`."""
        return self.encoder.pooled_centers(points, features)

    def _context(self, highest: Tensor, mean: Tensor, category: Tensor | None) -> Tensor:
        """What `_head` gets of the cloud, from its maximum and mean, (B, D) each.

        That is the first linear map of the cloud's features, (B, 1, width), or where that map cannot be split, the
        features themselves.
        """
        features = [highest, mean.to(highest.dtype)]
        if self.category is not None:
            assert category is not None
            is_category = category.unsqueeze(1) == torch.arange(self.num_categories, device=category.device)
            features.append(self.category(is_category.to(highest.dtype)))
        context = torch.cat(features, dim=1)
        if self._is_split():
            weight, bias = self._first_weights()
            context = linear(context, weight[:, self.channels :], bias)
        return context.unsqueeze(1)

    def _head(self, local: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, N, num_classes) from fused features (B, N, D) and what `_context` makes of the cloud."""
        if self._is_split():
            x = linear(local, self._first_weights()[0][:, : self.channels]) + context
            x = self.first.activation(x if self._is_folded() else norm_tokens(self.first.norm, x, mask=mask))
        else:
            x = self.first(torch.cat([local, context.expand(*local.shape[:2], -1)], dim=-1), mask=mask)
        return self.last(self.second(self.dropout(x), mask=mask))

    def _is_split(self) -> bool:
        """Whether the first linear map is a sum of one of the point and one of the cloud, taken once per cloud."""
        return is_plain(self.first, LinearNormAct) and is_plain(self.first.linear, nn.Linear, Linear)

    def _is_folded(self) -> bool:
        return can_shortcut() and can_fold(self.first.linear, self.first.norm)

    def _first_weights(self) -> tuple[Tensor, Tensor | None]:
        if self._is_folded():
            return fold_batch_norm(self.first.linear, self.first.norm)
        return self.first.linear.weight, self.first.linear.bias


def check_category(category: Tensor | None, num_categories: int, B: int) -> None:
    """Require a category in 0..num_categories - 1 for each of B clouds, or none if there are no categories.

    Raises:
        ValueError: If it is missing, superfluous or unknown.
    """
    if not num_categories:
        if category is not None:
            raise ValueError("This network has no categories: leave category out.")
        return
    if category is None:
        raise ValueError(f"This network needs the category of each cloud, (B,) in 0..{num_categories - 1}.")
    if category.shape != (B,) or category.is_floating_point():
        raise ValueError(f"category must be ({B},) int64, got {tuple(category.shape)} {category.dtype}.")
    if B == 0 or not can_shortcut():  # values are unknown in a graph
        return
    if not 0 <= int(category.min()) <= int(category.max()) < num_categories:
        raise ValueError(
            f"category must be in 0..{num_categories - 1}, got {int(category.min())}..{int(category.max())}."
        )


def _count(points: Tensor, mask: Tensor | None) -> Tensor | int:
    return points.shape[1] if mask is None else mask.sum(1, keepdim=True)


def _highest_and_sum(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Maximum and sum of the real tokens, (B, N, D) -> (B, D) each; the sum in fp32 at least."""
    exact = torch.promote_types(tokens.dtype, torch.float32)
    # Sums of bf16 are taken in fp32 and rounded once; asking for fp32 would copy all tokens first. fp16 would overflow.
    dtype = tokens.dtype if tokens.dtype == torch.bfloat16 else exact
    if mask is None:
        return tokens.amax(1), tokens.sum(1, dtype=dtype).to(exact)
    is_padded = ~mask.unsqueeze(-1)
    return (
        tokens.masked_fill(is_padded, -torch.inf).amax(1),
        tokens.masked_fill(is_padded, 0).sum(1, dtype=dtype).to(exact),
    )


def _pool_in_chunks(
    fuse: Callable[[list[Tensor]], Tensor], outputs: Sequence[Tensor], mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Maximum and mean over the points of what `fuse` makes of the outputs, (B, D) each, which is never kept whole."""
    highest: Tensor | None = None
    for chunk in token_chunks(outputs[0]):
        part = _highest_and_sum(fuse([o[chunk] for o in outputs]), None if mask is None else mask[chunk])
        if highest is None:
            highest = part[0].new_full((len(outputs[0]), part[0].shape[1]), -torch.inf)
            total = torch.zeros_like(highest, dtype=part[1].dtype)
        clouds = chunk[0]
        highest[clouds] = torch.maximum(highest[clouds], part[0])
        total[clouds] += part[1]
    assert highest is not None
    return highest, total / _count(outputs[0], mask)


def eat_part_segmenter(
    num_classes: int | None = None,
    num_categories: int | None = None,
    *,
    in_channels: int = 3,
    neighbor_embedding: bool = True,
    dim: int = 128,
    num_neighbors: int = 32,
    dilation: int = 1,
    memory_units: int = 64,
    tied: bool = True,
    out_channels: int = 1024,
    widths: tuple[int, int] = (512, 256),
    dropout: float = 0.5,
    weights: str | Path | None = None,
) -> PointTransformerSegmenter:
    """EAT for parts: PCT's part segmenter with external attention in every layer.

    Args:
        num_classes: Number of classes of a point; None takes that of `weights`, or 50 without weights.
        num_categories: Number of object categories, 0 for a network without them (scenes); None takes that of
            `weights`, or 16 without weights.
        in_channels: 3 coordinates plus the channels of `features`.
        neighbor_embedding: True embeds every point with its neighbours, as PCT's text has it; False is PCT's published
            network, 2.396M parameters, which embeds every point alone.
        dim: Width of the attention layers.
        num_neighbors: Neighbours of a point, itself included.
        dilation: The second stage of neighbour embedding takes every n-th of n times as many nearest points, and so
            sees further; 1 as published.
        memory_units: Slots S of every external attention.
        tied: One parameter as key and value memory.
        out_channels: Channels that are pooled.
        widths: Widths of the two hidden layers of the head.
        dropout: Dropout in the head.
        weights: Start from trained weights: a weights file, a checkpoint, or the name of weights shipped with pcea.
            The network is then the file's. Other arguments that are not the defaults replace the file's, such as
            `dropout`, but must fit the weights; another number of classes or categories gets a new head on the trained
            encoder.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If the weights belong to another network, or do not fit a size that is given.
    """
    if weights is not None:
        return start_from(eat_part_segmenter, locals())

    def attention(width: int) -> OffsetAttention:
        return OffsetAttention(width, attention=partial(ExternalAttention, memory_units=memory_units, tied=tied))

    encoder = _encoder(attention, in_channels, neighbor_embedding, dim, num_neighbors, dilation, out_channels)
    return PointTransformerSegmenter(
        encoder,
        num_classes=50 if num_classes is None else num_classes,
        num_categories=16 if num_categories is None else num_categories,
        widths=widths,
        dropout=dropout,
    )


def eat_semantic_segmenter(
    num_classes: int | None = None,
    *,
    in_channels: int = 3,
    neighbor_embedding: bool = True,
    dim: int = 128,
    num_neighbors: int = 32,
    dilation: int = 1,
    memory_units: int = 64,
    tied: bool = True,
    out_channels: int = 1024,
    widths: tuple[int, int] = (512, 256),
    dropout: float = 0.5,
    weights: str | Path | None = None,
) -> PointTransformerSegmenter:
    """EAT for scenes: `eat_part_segmenter` without categories; its other arguments are those.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If the weights belong to another network, or do not fit a size that is given; or if there are
            neither weights nor `num_classes`.
    """
    arguments = locals()
    if weights is not None:
        return start_from(eat_semantic_segmenter, arguments)
    if num_classes is None:
        raise ValueError("num_classes is needed where there are no weights.")
    return eat_part_segmenter(num_categories=0, **arguments)


def pct_part_segmenter(
    num_classes: int = 50,
    num_categories: int = 16,
    *,
    in_channels: int = 3,
    neighbor_embedding: bool = True,
    dim: int = 128,
    num_neighbors: int = 32,
    dilation: int = 1,
    out_channels: int = 1024,
    widths: tuple[int, int] = (512, 256),
    dropout: float = 0.5,
) -> PointTransformerSegmenter:
    """PCT for parts, with offset attention; 2.446M parameters as published, `neighbor_embedding=False`.

    Its arguments are those of `eat_part_segmenter`.
    """
    encoder = _encoder(OffsetAttention, in_channels, neighbor_embedding, dim, num_neighbors, dilation, out_channels)
    return PointTransformerSegmenter(
        encoder, num_classes=num_classes, num_categories=num_categories, widths=widths, dropout=dropout
    )


def _encoder(
    attention: AttentionFactory,
    in_channels: int,
    neighbor_embedding: bool,
    dim: int,
    num_neighbors: int,
    dilation: int,
    out_channels: int,
) -> PointTransformerEncoder:
    return PointTransformerEncoder(
        attention,
        in_channels=in_channels,
        dim=dim,
        num_centers=(None, None) if neighbor_embedding else (),
        num_neighbors=num_neighbors,
        dilations=(1, dilation) if neighbor_embedding else (),
        input_layers=0,
        out_channels=out_channels,
    )
