"""Batch norm of rows in fp32 on a CPU by compiled loops, with the residual added in the same pass.

torch's own takes three times as long on (rows, channels), and its result and the residual are two more passes.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcea.nn.compiled import kernels, run
from pcea.nn.shortcuts import has_running_statistics, is_batched, is_plain, is_transformed, needs_gradient

_KERNELS = "pcea.nn.norm_kernels"


def has_compiled_norm(norm: nn.Module, *tensors: Tensor) -> TypeGuard[nn.BatchNorm1d]:
    """Whether `compiled_norm` does what `norm` does on these tensors, (..., C) each."""
    if not isinstance(norm, nn.BatchNorm1d) or not is_plain(norm, nn.BatchNorm1d):
        return False
    if norm.weight is None or norm.bias is None or any(t.shape != tensors[0].shape for t in tensors):
        return False
    if tensors[0].shape[-1] != norm.num_features:
        return False
    if torch.is_grad_enabled() and has_running_statistics(norm):
        return False
    return (
        all(t.dtype == torch.float32 and t.numel() >= 2 * t.shape[-1] for t in tensors)
        and norm.weight.dtype == torch.float32
        and kernels(_KERNELS, *tensors, norm.weight, work=tensors[0].numel()) is not None
    )


def compiled_norm(
    norm: nn.BatchNorm1d, tokens: Tensor, *, residual: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """Residual + keep * norm(tokens).

    Args:
        norm: A norm for which `has_compiled_norm` is true.
        tokens: (B, ..., C) fp32; all rows enter the statistics.
        residual: Same shape; None for 0.
        keep: One factor per item of the batch, (B,) fp32; None for 1.

    Returns:
        (B, ..., C).
    """
    if keep is not None and keep.shape != tokens.shape[:1]:
        raise ValueError(f"keep must be ({len(tokens)},), got {tuple(keep.shape)}.")
    if has_running_statistics(norm):
        mean, variance = norm.running_mean, norm.running_var
    else:
        mean, variance = _moments(tokens.detach().reshape(-1, tokens.shape[-1]))
        if norm.training:
            rows = tokens.numel() // tokens.shape[-1]
            update_running_statistics(norm, mean, variance * (rows / (rows - 1)))
    assert mean is not None
    assert variance is not None
    arguments = tokens, norm.weight, norm.bias, residual, keep, mean, variance, norm.eps
    followed = (t for t in arguments[:5] if isinstance(t, Tensor))
    return _Normalize.apply(*arguments) if needs_gradient(*followed) else _normalize(*arguments)


def update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Let `norm` count a batch's mean and unbiased variance, (C,) each, as its forward pass would.

    Does nothing if the norm does not track them.
    """
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    # Without a momentum torch keeps the mean of all batches.
    momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), momentum)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel of (T, C)."""
    from pcea.nn.norm_kernels import moments

    pivot = rows[0].clone()
    parts = run(moments, len(rows), rows, pivot)
    total, squares = (torch.from_numpy(sum(part)) / len(rows) for part in zip(*parts))
    return (pivot + total).float(), (squares - total.square()).clamp_min(0).float()


def _normalize(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    keep: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor:
    """Residual + keep * (weight * (tokens - mean) / std + bias)."""
    from pcea.nn.norm_kernels import affine, affine_add

    scale = weight * torch.rsqrt(variance + eps)
    shift = bias - scale * mean
    rows = tokens.contiguous().view(-1, tokens.shape[-1])
    # No view: what follows may change it in place.
    result = tokens.new_empty(tokens.shape)
    out = result.view(rows.shape)
    if residual is None and keep is None:
        run(affine, len(rows), rows, scale, shift, out)
    else:
        added = torch.zeros_like(rows) if residual is None else residual.reshape(rows.shape)
        factors = rows.new_ones(1) if keep is None else keep
        run(affine_add, len(rows), rows, scale, shift, added, factors, out)
    return result


class _Normalize(torch.autograd.Function):
    """`_normalize`, with a gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        tokens, weight, _, residual, keep, mean, variance, ctx.eps = arguments
        ctx.save_for_backward(tokens, weight, tokens.new_ones(1) if keep is None else keep, mean, variance)
        ctx.has_residual = residual is not None
        return _normalize(*arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, keep, mean, variance = ctx.saved_tensors
        to_residual = grad if ctx.has_residual else None
        # A gradient of this gradient is wanted, or many gradients at once.
        if torch.is_grad_enabled() or is_transformed() or is_batched(grad):
            to_tokens, to_weight, to_bias = _plain_gradient(tokens, weight, keep, grad, ctx.eps)
            return to_tokens, to_weight, to_bias, to_residual, None, None, None, None
        from pcea.nn.norm_kernels import gradient, gradient_sums

        rows, slope = (t.contiguous().view(-1, t.shape[-1]) for t in (tokens, grad))
        parts = run(gradient_sums, len(rows), slope, rows, mean, keep)
        total, products = (torch.from_numpy(sum(part)) for part in zip(*parts))
        inverse_std = torch.rsqrt(variance.double() + ctx.eps)
        by_grad = weight * inverse_std
        by_row = -by_grad * inverse_std.square() * products / len(rows)
        shift = -by_grad * total / len(rows) - by_row * mean
        out = torch.empty_like(rows)
        run(gradient, len(rows), slope, rows, by_grad.float(), by_row.float(), shift.float(), keep, out)
        to_weight = (products * inverse_std).float()
        return out.view(tokens.shape), to_weight, total.float(), to_residual, None, None, None, None


def _plain_gradient(
    tokens: Tensor, weight: Tensor, keep: Tensor, grad: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of keep * norm(tokens) in tokens, weight and bias, in operations that have gradients themselves."""
    axes = tuple(range(tokens.ndim - 1))
    inverse_std = torch.rsqrt(tokens.var(axes, correction=0) + eps)
    normed = (tokens - tokens.mean(axes)) * inverse_std
    grad = grad * keep.view(-1, *[1] * (tokens.ndim - 1))
    to_weight, to_bias = (grad * normed).sum(axes), grad.sum(axes)
    rows = tokens.numel() // tokens.shape[-1]
    return weight * inverse_std * (grad - to_bias / rows - normed * to_weight / rows), to_weight, to_bias
