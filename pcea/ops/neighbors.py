"""Nearest neighbours of points: k nearest, and the nearest within a radius."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.nn.compiled import kernels, run
from pcea.nn.shortcuts import can_shortcut, is_onnx_export, needs_gradient
from pcea.ops.checks import check_mask, check_points
from pcea.ops.graphs import fold_batch, refuse_tracing
from pcea.ops.grouping import gather_points

# Entries in a block of the distance matrix: 64 MiB in fp32, or 2 MiB on a CPU, where it then stays in the cache.
_BLOCK = 1 << 24
_CACHED = 1 << 19
# From this many source points, in total and per neighbour, a k-d tree beats on a CPU the compiled loop, or the matrix.
_TREE_OR_LOOP = (3_000, 400)
_TREE_OR_MATRIX = (1_500, 40)


class Neighbors(NamedTuple):
    """Neighbours of each query point, nearest first.

    Attributes:
        index: Position of each neighbour in the source, (B, M, K) int64.
        squared_distance: (B, M, K), same dtype as the points.
    """

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index
    squared_distance: Tensor


class BallNeighbors(NamedTuple):
    """Neighbours of each query point within a radius, nearest first.

    Attributes:
        index: Position of each neighbour in the source, (B, M, K) int64; the nearest source point fills the rest.
        mask: True where the neighbour lies within the radius, (B, M, K).
    """

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index
    mask: Tensor


def knn(query: Tensor, source: Tensor, *, k: int, mask: Tensor | None = None) -> Neighbors:
    """Find the k nearest source points of each query point, exactly.

    Distances are sums of squared differences, in fp32 at least, never the expansion |a|^2 + |b|^2 - 2ab, which loses
    near neighbours in fp32. On a CPU a compiled loop finds them, or a k-d tree (SciPy) for large sources; elsewhere the
    distance matrix is built in blocks.

    torch.compile and torch.export see one operation, `pcea::knn`; an ONNX graph gets the whole matrix and `TopK`.

    Args:
        query: Points to find neighbours for, (B, M, 3).
        source: Points to choose from, (B, N, 3).
        k: Neighbours per query point, at most N.
        mask: True for real source points, (B, N). In a cloud with fewer than k of them the nearest fills the rest.

    Returns:
        Indices and squared distances, nearest first; ties in any order. A point of the source that is also a query
        finds itself. The distances are differentiable in both clouds.

    Raises:
        ValueError: If `k` is not in 1..N, a shape is wrong, a masked cloud has no real point or, where a k-d tree is
            used (large sources on a CPU), none is finite.
    """
    check_points(query=query, source=source)
    check_mask(mask, source)
    n = source.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be at most N={n} and at least 1, got k={k}.")
    dtype, exact = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, source = query.to(exact), source.to(exact)
    with torch.no_grad():
        index, squared_distance = _find(query, source, k, mask)
    # Of the K distances alone; a captured graph may be differentiated later.
    if needs_gradient(query, source) or (not can_shortcut() and not is_onnx_export()):
        squared_distance = (query.unsqueeze(2) - gather_points(source, index)).square().sum(-1)
    return Neighbors(index, squared_distance.to(dtype))


def _find(query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> Neighbors:
    if is_onnx_export():
        refuse_tracing("knn")
        return Neighbors(*_knn_in_graph(query, source, k, mask))
    if not can_shortcut():
        refuse_tracing("knn")
        return Neighbors(*_knn_op(query.detach(), source.detach(), k, mask))
    return _knn(query, source, k, mask)


def _knn(query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> Neighbors:
    n = source.shape[1]
    if _is_tree_faster(source, k, *_TREE_OR_LOOP):  # asked first: numba need not be imported for it
        return _knn_tree(query, source, k, mask)
    is_single = query.dtype == source.dtype == torch.float32
    compiled = kernels("pcea.ops.cpu_kernels", query, source, work=query[..., 0].numel() * n) if is_single else None
    if not compiled and _is_tree_faster(source, k, *_TREE_OR_MATRIX):
        return _knn_tree(query, source, k, mask)
    if compiled:
        index, squared_distance = _knn_compiled(compiled, query, source, k, mask)
        # The loop does not know NaN. At padding distances are infinite.
        if mask is not None and not squared_distance.isnan().any():
            return _fill(index, squared_distance, squared_distance.isfinite())
        if mask is None and squared_distance.sum().isfinite():
            return Neighbors(index, squared_distance)
    block = _CACHED if source.device.type == "cpu" else _BLOCK
    step = max(1, block // max(1, query.shape[0] * n))
    # At least one block, so that no query points give an empty result.
    blocks = [_knn_matrix(query[:, i : i + step], source, k, mask) for i in range(0, max(1, query.shape[1]), step)]
    squared_distance = torch.cat([values for values, _ in blocks], dim=1)
    index = torch.cat([indices for _, indices in blocks], dim=1)
    if mask is None:
        return Neighbors(index, squared_distance)
    return _fill(index, squared_distance, squared_distance.isfinite())


def _is_tree_faster(source: Tensor, k: int, least: int, per_neighbor: int) -> bool:
    return source.device.type == "cpu" and source.shape[1] >= max(least, per_neighbor * k)


@torch.library.custom_op("pcea::knn", mutates_args=())
def _knn_op(query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """`_knn` as one node of a captured graph."""
    index, squared_distance = _knn(query, source, k, mask)
    return index.contiguous(), squared_distance.contiguous()


@_knn_op.register_fake
def _(query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return query.new_empty(*query.shape[:2], k, dtype=torch.int64), query.new_empty(*query.shape[:2], k)


@_knn_op.register_vmap
def _(info: Any, in_dims: tuple, query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> Any:
    dims = in_dims[0], in_dims[1], in_dims[3]
    folded = [fold_batch(info.batch_size, t, dim) for t, dim in zip((query, source, mask), dims)]
    results = _knn_op(folded[0], folded[1], k, folded[2])
    index, squared_distance = (out.unflatten(0, (info.batch_size, -1)) for out in results)
    return (index, squared_distance), (0, 0)


def _knn_in_graph(query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """`_knn` in operations that ONNX has, with the whole matrix of distances."""
    distance = (query.unsqueeze(2) - source.unsqueeze(1)).square().sum(-1)  # (B, M, N)
    if mask is None:
        squared_distance, index = distance.topk(k, largest=False)
        return index, squared_distance
    distance = distance.masked_fill(~mask.unsqueeze(1), torch.inf)
    squared_distance, index = distance.topk(k, largest=False)
    return _fill(index, squared_distance, squared_distance < torch.inf)


def _knn_matrix(query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    distance = (query[:, :, None, 0] - source[:, None, :, 0]).square_()  # (B, M, N)
    for axis in range(1, 3):
        distance += (query[:, :, None, axis] - source[:, None, :, axis]).square_()
    if mask is not None:
        distance.masked_fill_(~mask[:, None], torch.inf)
    if distance.device.type == "cpu" and distance.dtype == torch.float32:
        return _smallest(distance, k)
    return distance.topk(k, largest=False)


def _knn_compiled(compiled: Any, query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    xyz = source.detach().permute(2, 0, 1).contiguous()
    if mask is not None:
        xyz = xyz.masked_fill(~mask, torch.inf)
    shape = (*query.shape[:2], k)
    index, squared_distance = query.new_zeros(shape, dtype=torch.int64), query.new_full(shape, torch.inf)
    run(compiled.nearest, shape[0] * shape[1], query, xyz, index, squared_distance)
    return index, squared_distance


def _smallest(distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row and their places, ties by place; twice as fast as `topk` on a CPU.

    NumPy partitions integers with vector instructions. The bits of a float that is not negative order like the float,
    so they become the high half of a key, its place the low half. NaN comes last, also with its sign bit set.
    """
    places = torch.arange(distance.shape[-1], device=distance.device)
    key = (distance.abs_().view(torch.int32).to(torch.int64) << 32).bitwise_or_(places)
    keys = key.numpy()
    keys.partition(k - 1, axis=-1)
    nearest = torch.from_numpy(np.sort(keys[..., :k], axis=-1))
    return (nearest >> 32).to(torch.int32).view(torch.float32), nearest & 0xFFFFFFFF


def _knn_tree(query: Tensor, source: Tensor, k: int, mask: Tensor | None) -> Neighbors:
    from scipy.spatial import KDTree

    index = query.new_empty((*query.shape[:2], k), dtype=torch.int64)
    squared_distance = query.new_empty((*query.shape[:2], k))
    valid = torch.ones_like(index, dtype=torch.bool)
    for b in range(len(query)):
        is_real = source[b].isfinite().all(1)  # SciPy refuses others, which are nearest to nothing
        rows = (is_real if mask is None else is_real & mask[b]).nonzero().squeeze(1)
        found = min(k, len(rows))
        if not found:
            raise ValueError(f"source {b} has no finite point.")
        tree = KDTree(source[b, rows].double().numpy(), balanced_tree=False, compact_nodes=False)
        # It refuses them as queries too, and NaN may stand at padding.
        sought = query[b].double().nan_to_num(0, 0, 0).numpy()
        distance, nearest = tree.query(sought, k=np.arange(1, found + 1), workers=-1)
        index[b, :, :found] = rows[torch.from_numpy(nearest)]
        found_here = torch.from_numpy(distance).square().to(query.dtype)
        is_finite = query[b].isfinite().all(1, keepdim=True)
        beyond = query[b].abs().sum(1, keepdim=True)  # NaN or infinity where it is not
        squared_distance[b, :, :found] = torch.where(is_finite, found_here, beyond)
        valid[b, :, found:] = False
    return _fill(index, squared_distance, valid)


def _fill(index: Tensor, squared_distance: Tensor, valid: Tensor) -> Neighbors:
    """Put the nearest neighbour where `valid` is False."""
    return Neighbors(
        torch.where(valid, index, index[..., :1]), torch.where(valid, squared_distance, squared_distance[..., :1])
    )


def ball_query(query: Tensor, source: Tensor, *, radius: float, k: int, mask: Tensor | None = None) -> BallNeighbors:
    """Find up to k source points within a radius of each query point, the nearest ones.

    Args:
        query: Points to find neighbours for, (B, M, 3).
        source: Points to choose from, (B, N, 3).
        radius: Largest plain distance of a neighbour, inclusive.
        k: Neighbours per query point, at most N.
        mask: True for real source points, (B, N).

    Returns:
        Indices and which of them lie within the radius.

    Raises:
        ValueError: If `radius` is not positive, `k` is not in 1..N or a shape is wrong.

    Source:
        PointNet++ (Qi et al., 2017), section 3.2. Theirs keeps the first k in storage order, ours the nearest, so that
        the result does not depend on the order of the points.
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}.")
    exact = torch.promote_types(query.dtype, torch.float32)  # in which the radius is no infinity
    index, squared_distance = knn(query.to(exact), source.to(exact), k=k, mask=mask)
    inside = squared_distance <= radius**2
    if mask is not None:
        inside &= torch.arange(k, device=index.device) < mask.sum(1)[:, None, None]
    return BallNeighbors(torch.where(inside, index, index[..., :1]), inside)
