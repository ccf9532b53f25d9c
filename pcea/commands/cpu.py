"""Settings that make a process faster on a CPU. The command line applies them; importing this changes nothing."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def tune_allocator() -> None:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system.

    By default glibc maps fresh pages for every large tensor and unmaps them when it is freed, and the page faults take
    more time than the arithmetic: training runs 1.7 to 2.6 times as fast with this. Call it before the first tensor is
    made. The process then keeps its peak memory until it ends. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def share_cores() -> None:
    """Let torch's threads sleep while they wait, so that other threads and processes get the cores meanwhile.

    By default they spin for some milliseconds after every operation. The compiled loops of pcea, whose threads are
    others, take up to twice as long beside them, and so does another program on the same cores. Call it before torch is
    imported; a value that is set already stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import modules within this context without looking for garbage, now or later, in what they consist of.

    A program that imports torch starts and ends faster by half a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
