"""PCT's neighbour embedding: a small network on every (centre, neighbour) pair, then a maximum over the neighbours.

The published formula runs Linear, BN, ReLU, Linear, BN, ReLU on concat(f_j - f_i, f_i) for M x K pairs. This file
computes the same numbers with less work, as long as its layers are plain (see `is_plain`) and no graph is captured:

- The first linear map has no bias, so W [f_j - f_i ; f_i] = W1 f_j + (W2 - W1) f_i = P_j + Q_i: one product per point
  and one per centre instead of one per pair.
- The batch norm after it is affine per channel. Its statistics over all pairs follow from P and Q, so that P and Q are
  normalized and the pairs are built once, already normalized: relu(P'_j + Q'_i).
- The second batch norm is monotone per channel, so the maximum over K comes first and only M rows are normalized.

On a CPU the pairs are built, reduced and differentiated by compiled loops (`neighbor_kernels`), elsewhere by torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.nn.batch_norm import update_running_statistics
from pcea.nn.compiled import kernels, run
from pcea.nn.linear import Linear, at_least_fp32, linear
from pcea.nn.norm import batch_norm_affine, fold_batch_norm, norm_tokens, zero_padding
from pcea.nn.shortcuts import can_shortcut, has_running_statistics, is_batched, is_plain
from pcea.nn.synchronized import SynchronizedBatchNorm, check_total, is_synchronized, over_processes
from pcea.ops.grouping import flat_index

_KERNELS = "pcea.models.neighbor_kernels"
# Values in a chunk of pairs, 2 MiB in fp32.
_CACHED = 1 << 19


class NeighborEmbedding(nn.Module):
    """Embed every centre together with its K neighbours; (B, N, C) -> (B, M, D).

    Args:
        in_channels: Channels C of the point features.
        out_channels: Channels D of the result.

    Source:
        PCT (Guo et al., 2020), section 3.4. Equal to the published formula up to rounding, in training and evaluation.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.linear1 = Linear(2 * in_channels, out_channels, bias=False)
        self.norm1 = nn.BatchNorm1d(out_channels)
        self.linear2 = Linear(out_channels, out_channels, bias=False)
        self.norm2 = nn.BatchNorm1d(out_channels)

    def forward(
        self, features: Tensor, center_features: Tensor, index: Tensor, *, center_mask: Tensor | None = None
    ) -> Tensor:
        """Embed.

        Args:
            features: Features of all points, (B, N, C).
            center_features: Features of the centres, (B, M, C).
            index: Neighbours of each centre, (B, M, K) int64.
            center_mask: True for real centres, (B, M). The others stay out of the statistics and get zeros.

        Returns:
            (B, M, D).
        """
        rows = flat_index(index, features.shape[1])
        if not can_shortcut() or not self._is_plain():
            return self._embed_by_modules(features.flatten(0, 1), center_features, rows, center_mask)
        if center_mask is None:
            out = self._embed(features, center_features.flatten(0, 1), rows.flatten(0, 1))
            return out.unflatten(0, index.shape[:2])
        real = self._embed(features, center_features[center_mask], rows[center_mask])
        out = real.new_zeros(*index.shape[:2], real.shape[-1])
        out[center_mask] = real
        return out

    def _is_plain(self) -> bool:
        norms, kinds = (self.norm1, self.norm2), (nn.BatchNorm1d, nn.SyncBatchNorm, SynchronizedBatchNorm)
        return (
            self._has_factors()
            and is_plain(self.linear2, nn.Linear, Linear)
            and all(is_plain(n, *kinds) and n.weight is not None and n.bias is not None for n in norms)
        )

    def _embed_by_modules(self, features: Tensor, centers: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        """The published formula: features (R, C) of all points, (B, M, C) of the centres, neighbours (B, M, K)."""
        centers = zero_padding(centers, mask)
        pair_mask = None if mask is None else mask.unsqueeze(-1).expand(index.shape)
        pairs = F.relu(norm_tokens(self.norm1, self._pairs(features, centers, index), mask=pair_mask))
        pairs = F.relu(norm_tokens(self.norm2, self.linear2(pairs), mask=pair_mask))
        out = pairs.amax(2)
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)

    def _pairs(self, features: Tensor, centers: Tensor, index: Tensor) -> Tensor:
        """The first linear map of all pairs, (B, M, K, D); see `_embed_by_modules`."""
        if self._has_factors():
            to_neighbor, weight_center = self._factors()
            neighbor, center = linear(features, to_neighbor), linear(centers, weight_center)
            pairs = neighbor.index_select(0, index.flatten()).view(*index.shape, neighbor.shape[-1])
            return pairs + center.unsqueeze(2)
        neighbors = features.index_select(0, index.flatten()).view(*index.shape, features.shape[-1])
        expanded = centers.unsqueeze(2).expand_as(neighbors)
        return self.linear1(torch.cat([neighbors - expanded, expanded], dim=-1))

    def _has_factors(self) -> bool:
        """Whether the first linear map is one of a neighbour plus one of a centre; torch's fusion adds a bias."""
        return is_plain(self.linear1, nn.Linear, Linear) and self.linear1.bias is None

    def _factors(self) -> tuple[Tensor, Tensor]:
        """The first linear map's weights of a neighbour and of a centre, (D, C) each."""
        to_neighbor, to_both = self.linear1.weight.chunk(2, dim=1)
        return to_neighbor, to_both - to_neighbor

    def _embed(self, features: Tensor, center_features: Tensor, index: Tensor) -> Tensor:
        """Features (B, N, C) of all points, (T, C) of the centres, their neighbours' rows (T, K) in B N -> (T, D)."""
        to_neighbor, weight_center = self._factors()
        num_clouds, features = len(features), features.flatten(0, 1)
        if has_running_statistics(self.norm1) and has_running_statistics(self.norm2):
            return self._embed_in_evaluation(features, center_features, index, num_clouds, to_neighbor, weight_center)

        neighbor = linear(features, to_neighbor)
        center = linear(center_features, weight_center)
        uses = _Uses.of(index, len(features), num_clouds)
        if has_running_statistics(self.norm1):
            scale, shift = batch_norm_affine(self.norm1)
        else:
            mean, variance = _pair_statistics(at_least_fp32(neighbor), at_least_fp32(center), index, uses)
            scale, shift = _normalization(self.norm1, mean, variance, index.numel())
        dtype = neighbor.dtype
        neighbor, center = at_least_fp32(neighbor) * scale, at_least_fp32(center) * scale + shift
        pairs = self.linear2(_PairReLU.apply(neighbor, center, index, uses, dtype))
        extreme, mean, variance = _NeighborExtreme.apply(pairs, self.norm2.weight < 0)
        if has_running_statistics(self.norm2):
            scale, shift = batch_norm_affine(self.norm2)
        else:
            scale, shift = _normalization(self.norm2, mean, variance, index.numel())
        return F.relu(at_least_fp32(extreme) * scale + shift).to(extreme.dtype)

    def _embed_in_evaluation(
        self,
        features: Tensor,
        center_features: Tensor,
        index: Tensor,
        num_clouds: int,
        to_neighbor: Tensor,
        weight_center: Tensor,
    ) -> Tensor:
        scale, shift = batch_norm_affine(self.norm1)
        dtype = to_neighbor.dtype  # the norms may be more exact
        neighbor = linear(features, (to_neighbor * scale[:, None]).to(dtype))
        center = linear(center_features, (weight_center * scale[:, None]).to(dtype), shift.to(dtype))
        weight, bias = fold_batch_norm(self.linear2, self.norm2)
        if torch.is_grad_enabled():
            uses = _Uses.of(index, len(features), num_clouds)
            pairs = _PairReLU.apply(neighbor, center, index, uses, neighbor.dtype)
            return F.relu(linear(pairs, weight).amax(1) + bias)
        # Without gradients no pairs are kept: on a CPU one chunk of them at a time stays in the cache.
        rows = _CACHED // (index.shape[1] * len(weight)) if index.device.type == "cpu" else len(index)
        for chunk, nearest in zip(center.split(max(1, rows)), index.split(max(1, rows))):
            chunk.copy_(linear(_pair_relu(neighbor, chunk, nearest), weight).amax(1))
        return center.add_(bias).relu_()


def _normalization(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scale and shift of `norm` for the batch's statistics (C,) over `count` rows; updates its running statistics."""
    total: Tensor | int = count
    if is_synchronized(norm):
        mean, variance, total = over_processes(norm, mean, variance, count)
    elif count < 2:
        raise ValueError("Expected more than 1 value per channel when training, got one centre with one neighbour.")
    if norm.training:
        check_total(total, count)
        update_running_statistics(norm, mean.detach(), variance.detach() * (total / (total - 1)))
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - scale * mean


class _Uses(NamedTuple):
    """Where each of R rows is used as a neighbour: the pairs sorted by the row they use.

    A sum over the pairs of a row then is an `embedding_bag`, many times faster on a CPU than `index_add_`, and its
    order, unlike that of `index_add_` on a GPU, is always the same.

    Attributes:
        pairs: Numbers of the pairs, (T K,), those that use row 0 first.
        offsets: Where each row's pairs start, (R,).
        counts: How many pairs use each row, (R,).
        rows: Those that are neighbours of each centre, (T, K).
        num_clouds: Clouds B that the rows are of, as many of each, and the centres, in this order.
    """

    pairs: Tensor
    offsets: Tensor
    counts: Tensor
    rows: Tensor
    num_clouds: int

    @staticmethod
    def of(index: Tensor, num_rows: int, num_clouds: int) -> _Uses:
        """Sort `index` (T, K) into R rows of B clouds."""
        counts = torch.bincount(index.flatten(), minlength=num_rows)
        return _Uses(index.flatten().argsort(stable=True), counts.cumsum(0) - counts, counts, index, num_clouds)

    def sum(self, values: Tensor) -> Tensor:
        """Sum the pairs' values, (T K, C), or (T, C) where all K pairs of a centre share one, into (R, C)."""
        pairs = self.pairs // (len(self.pairs) // len(values))
        return F.embedding_bag(pairs, values, self.offsets, mode="sum")


def _pair_statistics(neighbor: Tensor, center: Tensor, index: Tensor, uses: _Uses) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel, (C,), of P_j + Q_i over all pairs, without building the pairs.

    Args:
        neighbor: P, (R, C).
        center: Q, (T, C).
        index: Neighbours j of each centre i, (T, K).
        uses: The same, sorted by neighbour.
    """
    share = uses.counts.to(neighbor.dtype) / index.numel()
    neighbor_mean, center_mean = share @ neighbor, center.mean(0)
    neighbor, center = neighbor - neighbor_mean, center - center_mean
    covariance = (center * _NeighborSum.apply(neighbor, index, uses)).sum(0) / index.numel()
    return neighbor_mean + center_mean, share @ neighbor.square() + center.square().mean(0) + 2 * covariance


class _NeighborSum(torch.autograd.Function):
    """Sum over the neighbours of each centre: (R, C), (T, K) -> (T, C)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, uses: _Uses) -> Tensor:
        ctx.uses = uses
        return F.embedding_bag(index, rows, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.uses.sum(grad.contiguous()), None, None


def _kernels(pairs: Tensor, *others: Tensor) -> Any:
    """The compiled loops for pairs (T, K, C), or None where plain torch must do the work."""
    if pairs.dtype not in (torch.float32, torch.bfloat16):
        return None
    return kernels(_KERNELS, pairs, *others, work=pairs.numel())


def _bits(pairs: Tensor) -> Tensor:
    """Pairs as the compiled loops take them."""
    return pairs.view(torch.int16) if pairs.dtype == torch.bfloat16 else pairs


def _pair_relu(neighbor: Tensor, center: Tensor, index: Tensor) -> Tensor:
    pairs = neighbor.index_select(0, index.flatten()).view(*index.shape, neighbor.shape[-1])
    return pairs.add_(center.unsqueeze(1)).relu_()


class _PairReLU(torch.autograd.Function):
    """relu(P_j + Q_i) for every pair: (R, C), (T, C), (T, K) -> (T, K, C) of the given dtype."""

    @staticmethod
    def forward(ctx: Any, neighbor: Tensor, center: Tensor, index: Tensor, uses: _Uses, dtype: torch.dtype) -> Tensor:
        pairs = neighbor.new_empty(*index.shape, neighbor.shape[-1], dtype=dtype)
        if loops := _kernels(pairs, neighbor, center, index):
            is_half = dtype == torch.bfloat16
            run(loops.pair_relu, len(index), neighbor.float(), center.float(), index, is_half, _bits(pairs))
        else:
            pairs = _pair_relu(neighbor.to(dtype), center.to(dtype), index)
        ctx.save_for_backward(pairs)
        ctx.uses, ctx.dtype = uses, neighbor.dtype
        return pairs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (pairs,) = ctx.saved_tensors
        uses = ctx.uses
        loops = None if torch.is_grad_enabled() or is_batched(grad) else _kernels(pairs, grad)
        if loops:
            to_neighbor = grad.new_empty(len(uses.counts), grad.shape[-1], dtype=torch.float32)
            to_center = grad.new_empty(len(grad), grad.shape[-1], dtype=torch.float32)
            clouds = torch.arange(uses.num_clouds + 1, device=to_neighbor.device) * (
                len(to_neighbor) // uses.num_clouds
            )
            first = torch.searchsorted(uses.rows[:, 0].contiguous(), clouds)
            is_half = pairs.dtype == torch.bfloat16
            arrays = _bits(grad.contiguous()), _bits(pairs), uses.rows, first, is_half, to_neighbor, to_center
            run(loops.pair_relu_grad, uses.num_clouds, *arrays)
        else:
            grad = torch.ops.aten.threshold_backward(grad, pairs, 0)
            to_neighbor, to_center = uses.sum(grad.reshape(-1, grad.shape[-1])), grad.sum(1)
        return to_neighbor.to(ctx.dtype), to_center.to(ctx.dtype), None, None, None


class _NeighborExtreme(torch.autograd.Function):
    """Maximum (minimum where `take_minimum`) over K of (T, K, C), with mean and variance over all T x K rows.

    One function, because its gradient is one pass over the pairs: sparse for the extreme, affine for the statistics.
    The gradient of an extreme goes to the first of equal neighbours (duplicated points) in the compiled loop; in torch
    they share it, as in torch.amax.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, take_minimum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        winner = None
        if loops := _kernels(values):
            extreme = values.new_empty(len(values), values.shape[-1], dtype=torch.float32)
            winner = torch.empty_like(extreme, dtype=torch.int32)
            pivot = values[:: len(values) // 64 + 1].float().mean((0, 1))
            arrays = _bits(values.contiguous()), pivot, 1.0 - 2.0 * take_minimum
            is_half = values.dtype == torch.bfloat16
            sums = run(loops.extreme, len(values), *arrays, is_half, extreme, winner)
            extreme = extreme.to(values.dtype)
            offset, square = (torch.from_numpy(sum(part)) / values[..., 0].numel() for part in zip(*sums))
            mean, variance = (offset + pivot).float(), (square - offset.square()).clamp_min(0).float()
        else:
            extreme = values.amax(1)
            if take_minimum.any():
                extreme = torch.where(take_minimum, values.amin(1), extreme)
            mean, variance = _moments(values.flatten(0, 1))
        ctx.save_for_backward(values, extreme, mean, winner)
        return extreme, mean, variance

    @staticmethod
    def backward(ctx: Any, grad_extreme: Tensor, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor, None]:
        values, extreme, mean, winner = ctx.saved_tensors
        count = values.shape[0] * values.shape[1]
        slope = 2 / count * grad_variance
        # A gradient of this gradient is wanted, or many at once.
        if torch.is_grad_enabled() or any(map(is_batched, (grad_extreme, grad_mean, grad_variance))):
            is_extreme = (values == extreme.unsqueeze(1)).to(values.dtype)
            affine = grad_mean / count + slope * (values - mean)
            return affine.to(values.dtype) + is_extreme * (grad_extreme / is_extreme.sum(1)).unsqueeze(1), None
        shift = grad_mean / count - slope * mean
        if winner is not None and (loops := _kernels(values)):
            grad = torch.empty_like(values, memory_format=torch.contiguous_format)
            arrays = slope.float(), shift.float(), grad_extreme.float(), winner
            is_half = values.dtype == torch.bfloat16
            run(loops.extreme_grad, len(values), _bits(values.contiguous()), *arrays, is_half, _bits(grad))
            return grad, None
        grad = torch.addcmul(shift.to(values.dtype), values, slope.to(values.dtype))
        # Comparing into numbers instead of bool keeps the next two passes vectorized.
        is_extreme = torch.eq(values, extreme.unsqueeze(1), out=torch.empty_like(values))
        share = grad_extreme / is_extreme.sum(1)
        return grad.addcmul_(is_extreme, share.unsqueeze(1)), None


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel of (T, C) in fp32 at least; torch's batch norm has the fastest such kernel."""
    dtype, eps = torch.promote_types(rows.dtype, torch.float32), 1e-5
    ones = torch.ones(rows.shape[1], device=rows.device, dtype=dtype)
    _, mean, inverse_std = torch.native_batch_norm(rows, ones, torch.zeros_like(ones), None, None, True, 0.0, eps)
    return mean, (inverse_std.square().reciprocal() - eps).clamp_min(0)
