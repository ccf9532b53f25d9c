"""Whether a dataset is held in memory or read from its file a batch at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

InMemory = bool | Literal["auto"]

# Dividing a split into training and validation copies it once, and training takes memory too.
_SHARE = 1 / 3
_CGROUP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def fits_in_memory(size: int, in_memory: InMemory) -> bool:
    """Whether to hold data in memory.

    Args:
        size: Bytes of the data.
        in_memory: True or False decides; `auto` holds the data if it takes at most a third of the memory that is free
            now, divided by the number of training processes on this machine.
    """
    if in_memory != "auto":
        return in_memory
    free = free_memory()
    return free is None or size <= _SHARE * free / _processes_here()


def check_h5_in_memory(in_memory: InMemory) -> None:
    """Refuse to read official HDF5 files a batch at a time: they are compressed, and small."""
    if in_memory is False:
        raise ValueError("The layout h5 is always held in memory: leave in_memory at auto, or use another layout.")


def free_memory() -> int | None:
    """Bytes that a program can take without swapping, within the limit of its container; None if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    return min([free, *_free_in_cgroups()])


def _free_in_cgroups() -> list[int]:
    """What is left of the limit of each control group (version 2) that this process is in."""
    try:
        group = Path(_CGROUP.read_text().splitlines()[-1].partition("::")[2].lstrip("/"))
    except (OSError, IndexError):
        return []
    free = []
    for folder in (_CGROUPS / group, *(_CGROUPS / parent for parent in group.parents)):
        try:
            used, limit = (int((folder / name).read_text()) for name in ("memory.current", "memory.max"))
            cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())["inactive_file"]
        except (OSError, ValueError, KeyError):  # no such folder, or its limit is "max"
            continue
        free.append(limit - used + int(cache))
    return free


def _processes_here() -> int:
    """Training processes on this machine; on several machines without torchrun, those of all of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
