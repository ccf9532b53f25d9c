"""Triangle meshes, and the errors of all readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Mesh(NamedTuple):
    """A surface of triangles.

    Attributes:
        vertices: Coordinates, (V, 3), float64.
        faces: Vertices of each triangle, (F, 3), int64.
    """

    vertices: np.ndarray
    faces: np.ndarray


def as_mesh(path: Path, vertices: np.ndarray, polygons: np.ndarray | Sequence[Sequence[float]]) -> Mesh:
    """Cut polygons, (F, K) or F of different lengths, into fans of triangles; `path` is for the message.

    Raises:
        ValueError: If a polygon names a vertex that is not there.
    """
    try:
        faces = _cut(polygons) if len(polygons) else np.empty((0, 3), dtype=np.int64)
    except (ValueError, OverflowError) as error:  # NaN, or beyond 64 bits
        raise unreadable(path, error) from error
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise unreadable(path, ValueError("a face names a vertex that is not there"))
    return Mesh(np.asarray(vertices, dtype=np.float64), faces)


def _cut(polygons: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    if isinstance(polygons, np.ndarray) or len({*map(len, polygons)}) == 1:
        corners = np.asarray(polygons, dtype=np.int64)
        fan = np.array([(0, i, i + 1) for i in range(1, corners.shape[1] - 1)], dtype=np.int64).reshape(-1, 3)
        return corners[:, fan].reshape(-1, 3)
    triangles = [(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]
    return np.array(triangles, dtype=np.int64).reshape(-1, 3)


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error to raise, in one line that names the file, its format and the reason."""
    # The message of an error such as a KeyError is only a name.
    reason = first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
    return ValueError(f"{path} could not be read as {path.suffix.lower()} ({reason.rstrip('.')}).")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
