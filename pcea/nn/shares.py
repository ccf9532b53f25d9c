"""Evaluate the clouds of a batch on several threads at once, each thread a share of them.

The operations of a small network are so short that to spread every one of them over threads costs nearly as much as it
gains. On two cores a whole share for each makes the classifiers of pcea 1.2 to 1.5 times as fast. Segmenters gain less,
and lose a third where self-attention compares all points, so they do not use it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pcea.nn.compiled import thread_pool
from pcea.nn.recording import RecordedLayer
from pcea.nn.shortcuts import can_shortcut, has_running_statistics, is_plain

# Fewer clouds do not repay what Python takes for every share.
_FEWEST = 8


def in_shares(network: nn.Module, function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """Call a function of a batch, on several threads where that gives the same result sooner.

    That is in evaluation, without gradients, on a CPU, with at least 8 clouds for each of torch's threads, if the
    network has no hooks and nothing but modules of pcea and torch, which treat each cloud by itself.

    Args:
        network: What the function calls.
        function: Maps tensors (B, ...) to one (B, ...); the result of each cloud depends on that cloud alone.
        *tensors: Its arguments; None stays None.

    Returns:
        (B, ...).
    """
    if not can_shortcut() or torch.is_grad_enabled():
        return function(*tensors)
    given = [tensor for tensor in tensors if tensor is not None]
    clouds, threads = len(given[0]) if given[0].ndim else 0, torch.get_num_threads()
    if threads < 2 or clouds < _FEWEST * threads or not _can_share(network):
        return function(*tensors)
    if any(t.device.type != "cpu" or t.shape[:1] != given[0].shape[:1] for t in given):
        return function(*tensors)
    bounds = [clouds * i // threads for i in range(threads + 1)]
    shares = [[None if t is None else t[start:stop] for t in tensors] for start, stop in pairwise(bounds)]
    # What holds in the calling thread does not in others.
    is_inference, dtype = torch.is_inference_mode_enabled(), torch.get_autocast_dtype("cpu")
    is_autocast = torch.is_autocast_enabled("cpu")

    def evaluate(share: list[Tensor | None]) -> Tensor | Exception:
        torch.set_num_threads(1)
        with torch.inference_mode(is_inference), torch.no_grad(), torch.autocast("cpu", dtype, enabled=is_autocast):
            try:
                return function(*share)
            except Exception as error:
                return error

    try:
        futures = [thread_pool(threads).submit(evaluate, share) for share in shares[1:]]
        results = [evaluate(shares[0]), *(future.result() for future in futures)]
    finally:
        torch.set_num_threads(threads)
    parts = [result for result in results if isinstance(result, Tensor)]
    if len(parts) < threads:
        return function(*tensors)  # fails again, and says what is wrong with the batch, not with a share
    return torch.cat(parts)


def _can_share(network: nn.Module) -> bool:
    """Whether each cloud is treated by itself, and nothing follows the operations of the calling thread alone."""
    return (
        not torch.autograd._profiler_enabled()
        and _get_current_dispatch_mode() is None
        and _get_current_function_mode() is None
        and all(_is_ours(module) for module in network.modules())
    )


def _is_ours(module: nn.Module) -> bool:
    return (
        not module.training
        # A recording takes what its own thread does.
        and not (isinstance(module, RecordedLayer) and module.is_recorded())
        and type(module).__module__.startswith(("pcea.", "torch.nn.modules."))
        and is_plain(module, type(module))
        # Without running statistics it takes those of all clouds together.
        and (not isinstance(module, _BatchNorm) or has_running_statistics(module))
    )
