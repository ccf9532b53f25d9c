"""Batch statistics over the batches of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from pcea.nn.batch_norm import update_running_statistics


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm of (B, C, ...) whose statistics in training are those of all processes, on any device.

    torch's `SyncBatchNorm` computes the same, and refuses to run on a CPU.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Normalize values (B, C, ...)."""
        if not is_synchronized(self):
            return super().forward(values)
        shape = (-1, *[1] * (values.ndim - 2))
        # In fp32, as torch's batch norm keeps its statistics.
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        axes = [axis for axis in range(values.ndim) if axis != 1]
        count = values.numel() // values.shape[1]
        mean, variance, total = over_processes(self, exact.mean(axes), exact.var(axes, correction=0), count)
        check_total(total, count)
        update_running_statistics(self, mean.detach(), variance.detach() * (total / (total - 1)))
        out = (exact - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        out = out if self.weight is None else out * self.weight.view(shape)
        out = out if self.bias is None else out + self.bias.view(shape)
        return out.to(values.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """It takes the place of a norm for one, two or three dimensions, and need not know which."""


def is_synchronized(norm: nn.Module) -> bool:
    """Whether the statistics of a norm are now those of all processes."""
    kinds = (nn.SyncBatchNorm, SynchronizedBatchNorm)
    return isinstance(norm, kinds) and norm.training and dist.is_available() and dist.is_initialized()


def check_total(total: Tensor | int, count: int) -> None:
    """Refuse statistics of a single row in all processes; this one has `count`.

    Raises:
        ValueError: If there is no other: its variance would be 0 / 0.
    """
    if count < 2 and int(total) < 2:
        raise ValueError("Expected more than 1 value per channel when training, got one in all processes.")


def over_processes(norm: nn.Module, mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of the rows of all processes in the norm's group.

    Args:
        norm: The norm; torch's may have a group of its own.
        mean: Mean of the `count` rows of this process, (C,).
        variance: Their variance, biased, (C,).
        count: Their number, which may differ from process to process.
    """
    group = getattr(norm, "process_group", None)
    summed = _SumOverProcesses.apply(torch.cat([mean * count, mean.new_tensor([count])]), group)
    total = summed[-1].detach()
    mean_of_all = summed[:-1] / total
    squares = (variance + (mean - mean_of_all).square()) * count
    return mean_of_all, _SumOverProcesses.apply(squares, group) / total, total


class _SumOverProcesses(torch.autograd.Function):
    """Sum a tensor over processes, and its gradient too: every loss depends on the inputs of all processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        values = values.clone()
        dist.all_reduce(values, group=group)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None
