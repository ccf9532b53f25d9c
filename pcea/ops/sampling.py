"""Farthest point sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcea.nn.compiled import kernels, run
from pcea.nn.norm import zero_padding
from pcea.nn.shortcuts import can_shortcut, is_onnx_export
from pcea.ops.checks import check_mask, check_points
from pcea.ops.graphs import fold_batch, refuse_tracing

# From here on fpsample's k-d tree beats the compiled loop on a CPU, although it takes one cloud at a time.
_TREE_POINTS = 1 << 15


@torch.no_grad()
def farthest_point_sample(
    points: Tensor, num_points: int, *, mask: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Choose points one by one, each the farthest from all chosen before.

    Starts at the first real point, or at a random one if a generator is given. No point is chosen twice while a
    real one is left, even where points coincide. Clouds of 32,768 points or more on a CPU go through a k-d tree
    (fpsample), which takes less time for them; it is exact too, but its start is not the first point: the same one at
    every call, or a random one with a generator.

    torch.compile and torch.export see one operation, `pcea::farthest_point_sample`; an ONNX graph gets a loop.

    Args:
        points: Clouds, (B, N, 3).
        num_points: How many to choose, M, at most N.
        mask: True for real points, (B, N). A cloud with fewer than M real points yields all of them first, then
            repeats one of them.
        generator: Source of the random start.

    Returns:
        Indices in the order of choice, (B, M) int64.

    Raises:
        ValueError: If `num_points` is not in 1..N, a shape is wrong or a masked cloud has no real point.

    Source:
        PointNet++ (Qi et al., 2017), section 3.2. Its widespread code skips points near the origin; ours does not.
    """
    check_points(points=points)
    check_mask(mask, points)
    n = points.shape[1]
    if not 1 <= num_points <= n:
        raise ValueError(f"num_points must be at most N={n} and at least 1, got {num_points}.")
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    points = zero_padding(points, mask)  # NaN would be the farthest
    start = _start(points, mask, generator)
    if is_onnx_export():
        return _sample_in_graph(points, num_points, mask, start)
    if not can_shortcut():
        refuse_tracing("farthest_point_sample")
        return _sample_op(points.detach(), num_points, mask, start)
    return _sample(points, num_points, mask, start)


def _sample(points: Tensor, num_points: int, mask: Tensor | None, start: Tensor) -> Tensor:
    n = points.shape[1]
    if points.device.type == "cpu" and n >= _TREE_POINTS:
        return _sample_tree(points, num_points, mask, start)
    compiled = (
        kernels("pcea.ops.cpu_kernels", points, work=points.shape[0] * n * num_points)
        if points.dtype == torch.float32
        else None
    )
    if compiled:
        return _sample_compiled(compiled, points, num_points, mask, start)
    return _sample_loop(points, num_points, mask, start)


def _start(points: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
    b, n, _ = points.shape
    real = torch.ones(b, n, device=points.device) if mask is None else mask.float()
    if generator is None:
        return real.argmax(1)
    return torch.multinomial(real.to(generator.device), 1, generator=generator).squeeze(1).to(points.device)


@torch.library.custom_op("pcea::farthest_point_sample", mutates_args=())
def _sample_op(points: Tensor, num_points: int, mask: Tensor | None, start: Tensor) -> Tensor:
    """`_sample` as one node of a captured graph."""
    return _sample(points, num_points, mask, start)


@_sample_op.register_fake
def _(points: Tensor, num_points: int, mask: Tensor | None, start: Tensor) -> Tensor:  # noqa: ARG001
    return points.new_empty(points.shape[0], num_points, dtype=torch.int64)


@_sample_op.register_vmap
def _(info: Any, in_dims: tuple, points: Tensor, num_points: int, mask: Tensor | None, start: Tensor) -> Any:
    dims = in_dims[0], in_dims[2], in_dims[3]
    clouds, masks, starts = (fold_batch(info.batch_size, t, dim) for t, dim in zip((points, mask, start), dims))
    return _sample_op(clouds, num_points, masks, starts).unflatten(0, (info.batch_size, -1)), 0


def _sample_in_graph(points: Tensor, num_points: int, mask: Tensor | None, start: Tensor) -> Tensor:
    """`_sample_loop` in operations that ONNX has, its rounds as a loop inside the graph."""
    from torch._higher_order_ops.while_loop import while_loop

    places = torch.arange(points.shape[1], device=points.device)
    nearest = torch.full_like(points[..., 0], torch.inf)
    nearest = nearest if mask is None else nearest.masked_fill(~mask, -2)
    slots = torch.arange(num_points, device=points.device)

    def is_going_on(i: Tensor, *_: Tensor) -> Tensor:
        return i < num_points

    def choose(i: Tensor, index: Tensor, last: Tensor, nearest: Tensor) -> tuple[Tensor, ...]:
        index = torch.where(slots == i, last.unsqueeze(1), index)
        chosen = points.gather(1, last[:, None, None].expand(-1, 1, 3))
        nearest = torch.minimum(nearest, (points - chosen).square().sum(-1))
        nearest = torch.where(places == last.unsqueeze(1), -1, nearest)
        return i + 1, index, nearest.argmax(1), nearest

    # Any places, which the loop replaces: `TopK` refuses clouds of fewer points, where a loop would repeat some.
    index = nearest.topk(num_points).indices
    state = (torch.zeros((), dtype=torch.int64, device=points.device), index, start, nearest)
    return while_loop(is_going_on, choose, state)[1]


def _sample_loop(points: Tensor, num_points: int, mask: Tensor | None, start: Tensor) -> Tensor:
    """Indices of the chosen points, (B, M), from `start` (B,), one point at a time; any device."""
    b, n, _ = points.shape
    dtype = torch.promote_types(points.dtype, torch.float32)
    # One contiguous array per coordinate, updated in place: with (B, N, 3) strides each step's small operations cross
    # the threshold of parallel execution and thread barriers dominate.
    x, y, z = points.to(dtype).unbind(-1)
    x, y, z = x.contiguous(), y.contiguous(), z.contiguous()
    nearest = torch.full((b, n), torch.inf, dtype=dtype, device=points.device)
    if mask is not None:
        nearest.masked_fill_(~mask, -2)
    index = torch.empty(num_points, b, 1, dtype=torch.int64, device=points.device)
    dx, dy, dz = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    last = start[:, None]
    for i in range(num_points):
        index[i] = last
        torch.sub(x, x.gather(1, last), out=dx)
        torch.sub(y, y.gather(1, last), out=dy)
        torch.sub(z, z.gather(1, last), out=dz)
        dx.mul_(dx).addcmul_(dy, dy).addcmul_(dz, dz)
        torch.fmin(nearest, dx, out=nearest)  # a point with NaN is at no distance
        # Below every distance: a chosen point comes last, whatever coincides with it, but before padding.
        nearest.scatter_(1, last, -1)
        last = nearest.argmax(1, keepdim=True)
    return index.squeeze(2).T.contiguous()


def _sample_compiled(compiled: Any, points: Tensor, num_points: int, mask: Tensor | None, start: Tensor) -> Tensor:
    """`_sample_loop` as one compiled loop per cloud."""
    b, n, _ = points.shape
    xyz = points.permute(2, 0, 1)
    nearest = np.full((b, n), np.inf, np.float32)
    if mask is not None:
        nearest[~mask.numpy()] = compiled.PADDING
    index = points.new_empty((b, num_points), dtype=torch.int64)
    index[:, 0] = start
    run(compiled.farthest, b, xyz, nearest, nearest.view(np.int32), index)
    return index


def _sample_tree(points: Tensor, num_points: int, mask: Tensor | None, start: Tensor) -> Tensor:
    import fpsample

    out = points.new_empty((len(points), num_points), dtype=torch.int64)
    for b in range(len(points)):
        rows = torch.arange(points.shape[1], device=points.device) if mask is None else mask[b].nonzero().squeeze(1)
        if len(rows) < _TREE_POINTS:
            out[b] = _sample_loop(points[b, None], num_points, None if mask is None else mask[b, None], start[b, None])
            continue
        count = min(num_points, len(rows))
        # Far from the origin fp32 would lose digits, but not here.
        cloud = (points[b, rows].double() - points[b, start[b]].double()).float().numpy()
        # fpsample counts start_idx in the order of its tree: it fixes the start without naming it.
        chosen = fpsample.bucket_fps_kdline_sampling(cloud, count, h=7, start_idx=int((rows == start[b]).nonzero()))
        # Once all remaining points coincide with chosen ones, fpsample repeats itself.
        chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])]
        rest = np.setdiff1d(np.arange(len(rows)), chosen)[: count - len(chosen)]
        out[b, :count] = rows[torch.from_numpy(np.concatenate([chosen, rest]).astype(np.int64))]
        out[b, count:] = out[b, 0]
    return out
