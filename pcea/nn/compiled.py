"""Loops that numba compiles for a CPU: when they are used, and how they are run on several threads.

The threads sleep while they wait. Those of numba's own pools would spin, and so would slow down torch's threads, which
already occupy every core.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pcea.nn.shortcuts import can_shortcut, needs_gradient

# Importing numba and loading the loops takes half a second, as long as about this many steps of plain torch. A command
# that names one file stays below.
_WORTH_IMPORTING = 1 << 29

_steps_of_torch = 0
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def kernels(module: str, *tensors: Tensor, work: int) -> Any:
    """Import a module of compiled loops, or return None where plain torch must do the work, or is the better choice.

    Args:
        module: Its name.
        *tensors: What the work is done on.
        work: About how many steps the innermost loop takes. Numba is imported once much work has been asked for, or if
            autograd follows, as in training; from then on the compiled loop is used for any.

    Returns:
        The module, or None if a tensor is not on a CPU, numba is not installed, a graph is captured or a function
        transformed (torch.func).
    """
    if not all(tensor.device.type == "cpu" for tensor in tensors) or not can_shortcut():
        return None
    if "numba" not in sys.modules and not needs_gradient(*tensors):
        global _steps_of_torch
        _steps_of_torch += work
        if _steps_of_torch < _WORTH_IMPORTING:
            return None
    return _module(module)


@cache
def _module(name: str) -> ModuleType | None:
    return importlib.import_module(name) if load_numba() else None


@cache
def load_numba() -> bool:
    """Import numba, so that compiled loops are used from the first step on, however small; True if it is there.

    A training that is resumed then rounds as one that never stopped.
    """
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module("numba")
    except ImportError as error:  # numba refuses versions of NumPy that it does not know
        warnings.warn(f"Compiled loops are not used, as numba cannot be imported: {error}", stacklevel=2)
        return False
    return True


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop at its first call, and keep the machine code on disk if there is a place for it."""
    from numba import njit

    # Numba's files do not remember these options: after a change, remove them (`__pycache__/*.nb?`).
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    uncached = njit(**options)(function)
    try:
        cached = njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return uncached

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return cached(*arguments)
        except OSError:  # the disk is full
            return uncached(*arguments)

    return call


def run(kernel: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """Call `kernel(*arguments, start, stop)` for parts of range(count), one per thread of torch; return the results.

    Tensors are given as arrays; one that the kernel fills must be contiguous.
    """
    arguments = tuple([_array(a) if isinstance(a, Tensor) else a for a in arguments])
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * i // threads for i in range(threads + 1)]
    if threads == 1:
        return [kernel(*arguments, 0, count)]
    rest = [thread_pool(threads).submit(kernel, *arguments, a, b) for a, b in pairwise(bounds[1:])]
    return [kernel(*arguments, 0, bounds[1]), *(future.result() for future in rest)]


def _array(tensor: Tensor) -> Any:
    """A contiguous tensor as an array that shares its memory."""
    if tensor.requires_grad:  # detaching costs as much as all the rest
        tensor = tensor.detach()
    return tensor.contiguous().numpy()


def thread_pool(threads: int) -> ThreadPoolExecutor:
    """The threads that help the calling one, so that they are `threads` together."""
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="pcea")
    return _pools[threads]
