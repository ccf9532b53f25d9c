"""The batch that data modules hand to tasks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class CloudBatch(NamedTuple):
    """What a task receives: B clouds of N points.

    Attributes:
        points: Coordinates, (B, N, 3).
        label: Class of each cloud, (B,), or part of each point, (B, N).
        normals: Unit normals, (B, N, 3), or None.
        category: Object category of each cloud, (B,), where `label` is per point; else None.
        mask: True for real points, (B, N); None when every point is real.
    """

    points: Tensor
    label: Tensor
    normals: Tensor | None = None
    category: Tensor | None = None
    mask: Tensor | None = None
