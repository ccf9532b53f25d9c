"""Maxima over the neighbours of centres, without building the (centre, neighbour) pairs.

On a CPU compiled loops do the work (`cpu_kernels`), which keep for the backward pass which neighbour had the maximum:
that pass then touches M x C numbers instead of M x K x C. Elsewhere, and while a graph is captured, it is plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.nn.compiled import kernels, run
from pcea.nn.shortcuts import needs_gradient
from pcea.ops.checks import check_index, check_points
from pcea.ops.grouping import gather_points

_KERNELS = "pcea.ops.cpu_kernels"
_COMPILED_DTYPES = (torch.float32, torch.float64)


def max_neighbors(values: Tensor, index: Tensor, *, own: Tensor | None = None) -> Tensor:
    """Take the maximum over the neighbours of each centre, per channel.

    Args:
        values: Features of all points, (B, N, C).
        index: Neighbours of each centre, (B, M, K) int64 in 0..N-1.
        own: The point that each centre is, (B, M) int64: its features are subtracted. None subtracts nothing.

    Returns:
        max_j values_j, or max_j values_j - values_i, (B, M, C). The gradient of a maximum goes to one neighbour, of
        equal ones to the first in the compiled loop.

    Raises:
        ValueError: If the shapes do not fit or, on a CPU, an index is out of range.
    """
    if values.ndim != 3 or index.ndim != 3 or values.shape[0] != index.shape[0]:
        raise ValueError(
            f"values (B, N, C) and index (B, M, K) expected, got {tuple(values.shape)}, {tuple(index.shape)}."
        )
    if not values.is_floating_point():
        raise ValueError(f"values must be floating, got {values.dtype}.")
    check_index(values.shape[1], index=index)
    if own is not None:
        if own.shape != index.shape[:2]:
            raise ValueError(f"own must be {tuple(index.shape[:2])} beside index, got {tuple(own.shape)}.")
        check_index(values.shape[1], own=own)
    if not index.numel() or not kernels(_KERNELS, values, index, work=index.numel() * values.shape[-1]):
        highest = gather_points(values, index).max(2).values
        return highest if own is None else highest - gather_points(values, own)
    exact = values.to(_compiled_dtype(values.dtype))
    own = index.new_empty(index.shape[0], 0) if own is None else own
    # Where no gradient is wanted, not through the custom op: its first call imports torch's compiler, which takes
    # longer than a prediction.
    maximum = _argmax_neighbors(exact, index, own)[0] if needs_gradient(values) else _max_neighbors(exact, index, own)
    return maximum.to(values.dtype)


def max_quadratic(points: Tensor, centers: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Take the maximum over each centre's neighbours of a quadratic form of their offset, per channel.

    With (x, y, z) the offset of a neighbour from its centre, the form of channel c is the product of weight[c] and
    (1, x, y, z, xx, yy, zz, xy, xz, yz).

    Args:
        points: All points, (B, N, 3).
        centers: (B, M, 3).
        index: Neighbours of each centre, (B, M, K) int64 in 0..N-1.
        weight: Coefficients, (C, 10).

    Returns:
        (B, M, C), same dtype as `weight`; differentiable in points, centres and weight.

    Raises:
        ValueError: If the shapes do not fit or, on a CPU, an index is out of range.
    """
    check_points(points=points, centers=centers)
    if index.ndim != 3 or index.shape[:2] != centers.shape[:2] or weight.ndim != 2 or weight.shape[1] != 10:
        raise ValueError(
            f"index (B, M, K) and weight (C, 10) expected beside centers {tuple(centers.shape)}, "
            f"got {tuple(index.shape)}, {tuple(weight.shape)}."
        )
    check_index(points.shape[1], index=index)
    work = 10 * index.numel() * len(weight)
    if not index.numel() or not kernels(_KERNELS, points, centers, index, weight, work=work):
        offsets = gather_points(points, index) - centers.unsqueeze(2)
        return F.linear(_monomials(offsets).to(weight.dtype), weight).max(2).values
    dtype = _compiled_dtype(torch.promote_types(points.dtype, weight.dtype))
    maximum = _max_quadratic_op if needs_gradient(points, centers, weight) else _max_quadratic
    return maximum(points.to(dtype), centers.to(dtype), index, weight.to(dtype))[0].to(weight.dtype)


def _compiled_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in _COMPILED_DTYPES else torch.float32


def _monomials(offsets: Tensor) -> Tensor:
    """1, x, y, z, xx, yy, zz, xy, xz, yz of offsets (..., 3), as (..., 10)."""
    x, y, z = offsets.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], dim=-1)


def _max_neighbors(values: Tensor, index: Tensor, own: Tensor) -> Tensor:
    """The maxima, (B, M, C), less the values of `own`, (B, M) or (B, 0)."""
    from pcea.ops.cpu_kernels import max_gathered

    out = values.new_empty(*index.shape[:2], values.shape[-1])
    run(max_gathered, out.shape[0] * out.shape[1], values, index, own, out)
    return out


@torch.library.custom_op("pcea::max_neighbors", mutates_args=())
def _argmax_neighbors(values: Tensor, index: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """What `_max_neighbors` gives, and the neighbour that has each maximum, (B, M, C) int32."""
    from pcea.ops.cpu_kernels import argmax_gathered

    shape = (*index.shape[:2], values.shape[-1])
    out, winner = values.new_empty(shape), values.new_empty(shape, dtype=torch.int32)
    run(argmax_gathered, shape[0] * shape[1], values, index, own, out, winner)
    return out, winner


@_argmax_neighbors.register_fake
def _(values: Tensor, index: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    shape = (*index.shape[:2], values.shape[-1])
    return values.new_empty(shape), values.new_empty(shape, dtype=torch.int32)


def _keep_winner(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(output[1], inputs[2])
    ctx.mark_non_differentiable(output[1])
    ctx.num_points = inputs[0].shape[1]


def _to_winner(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    winner, own = ctx.saved_tensors
    if torch.is_grad_enabled():  # a gradient of this gradient is wanted
        out = grad.new_zeros(grad.shape[0], ctx.num_points, grad.shape[2]).scatter_add(1, winner.long(), grad)
        return out.scatter_add(1, own.unsqueeze(-1).expand_as(grad), -grad) if own.numel() else out, None, None
    return _scatter_op(grad, winner, own, ctx.num_points), None, None


@torch.library.custom_op("pcea::scatter_neighbors", mutates_args=())
def _scatter_op(grad: Tensor, winner: Tensor, own: Tensor, num_points: int) -> Tensor:
    """Gradients (B, M, C) added to their winners and subtracted from `own`, (B, N, C)."""
    from pcea.ops.cpu_kernels import scatter_gathered

    out = grad.new_empty(grad.shape[0], num_points, grad.shape[2])
    run(scatter_gathered, len(grad), grad, winner, own, out)
    return out


@_scatter_op.register_fake
def _(grad: Tensor, winner: Tensor, own: Tensor, num_points: int) -> Tensor:  # noqa: ARG001
    return grad.new_empty(grad.shape[0], num_points, grad.shape[2])


_argmax_neighbors.register_autograd(_to_winner, setup_context=_keep_winner)


def _max_quadratic(points: Tensor, centers: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The maxima, (B, M, C), and the neighbour of each, (B, M, C) int32."""
    from pcea.ops.cpu_kernels import max_quadratic

    shape = (*index.shape[:2], len(weight))
    out, winner = weight.new_empty(shape), weight.new_empty(shape, dtype=torch.int32)
    run(max_quadratic, shape[0] * shape[1], points, centers, index, weight.T, out, winner)
    return out, winner


_max_quadratic_op = torch.library.custom_op("pcea::max_quadratic", mutates_args=())(_max_quadratic)


@_max_quadratic_op.register_fake
def _(points: Tensor, centers: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    shape = (*index.shape[:2], len(weight))
    return weight.new_empty(shape), weight.new_empty(shape, dtype=torch.int32)


def _keep_offsets(ctx: Any, inputs: tuple, output: tuple) -> None:
    points, centers, _, weight = inputs
    ctx.save_for_backward(points, centers, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _to_quadratic(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
    points, centers, weight, winner = ctx.saved_tensors
    needs_points, needs_centers, _, needs_weight = ctx.needs_input_grad
    is_differentiated = torch.is_grad_enabled()
    if not (is_differentiated or needs_points or needs_centers):
        return None, None, None, _quadratic_weight_op(points, centers, winner, grad)
    needed = (needs_points, needs_centers, needs_weight)
    with torch.enable_grad():
        # Cut off from what they were computed from, which they may share, but not from gradients of this gradient.
        points, centers, weight = (
            t.view_as(t) if is_differentiated else t.detach().requires_grad_(is_needed)
            for t, is_needed in zip((points, centers, weight), needed)
        )
        # The form at the winners, whose gradient is that of the maximum.
        place = winner.flatten(1).long().unsqueeze(-1).expand(-1, -1, 3)
        offsets = points.gather(1, place).unflatten(1, winner.shape[1:]) - centers.unsqueeze(2)  # (B, M, C, 3)
        value = (_monomials(offsets) * weight).sum(-1)
        wanted = [t for t, is_needed in zip((points, centers, weight), needed) if is_needed]
    found = iter(torch.autograd.grad(value, wanted, grad, create_graph=is_differentiated))
    grads = [next(found) if is_needed else None for is_needed in needed]
    return grads[0], grads[1], None, grads[2]


@torch.library.custom_op("pcea::quadratic_weight_grad", mutates_args=())
def _quadratic_weight_op(points: Tensor, centers: Tensor, winner: Tensor, grad: Tensor) -> Tensor:
    """The gradient of `max_quadratic` in its weight, (C, 10)."""
    from pcea.ops.cpu_kernels import quadratic_weight_grad

    parts = run(quadratic_weight_grad, winner.shape[0] * winner.shape[1], points, centers, winner, grad)
    return torch.from_numpy(sum(parts)).T.contiguous()


@_quadratic_weight_op.register_fake
def _(points: Tensor, centers: Tensor, winner: Tensor, grad: Tensor) -> Tensor:  # noqa: ARG001
    return grad.new_empty(grad.shape[2], 10)


_max_quadratic_op.register_autograd(_to_quadratic, setup_context=_keep_offsets)
