"""Triangle meshes, and the errors of all readers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Share of its area by which the fan of a polygon may be too large: rounded coordinates turn straight corners inwards.
_ROUNDING = 1e-6
_CORNERS_AT_ONCE = 1 << 18


class Mesh(NamedTuple):
    """A surface of triangles.

    Attributes:
        vertices: Coordinates, (V, 3), float64.
        faces: Vertices of each triangle, (F, 3), int64.
    """

    vertices: np.ndarray
    faces: np.ndarray


def as_mesh(path: Path, vertices: np.ndarray, polygons: np.ndarray | Sequence[Sequence[float]]) -> Mesh:
    """Cut polygons, (F, K) or F of different lengths, into triangles, see `cut_polygons`; `path` is for the messages.

    There is a warning if most vertices are in no face: they may be a cloud, of which nothing will be seen.

    Raises:
        ValueError: If a polygon names a vertex that is not there.
    """
    vertices = np.asarray(vertices, dtype=np.float64)
    try:
        faces = cut_polygons(vertices, polygons)
    except (ValueError, OverflowError) as error:  # NaN, or beyond 64 bits
        raise unreadable(path, error) from error
    unused = int((~_are_used(vertices, faces)).sum())
    if len(faces) and unused > len(vertices) / 2:
        warnings.warn(
            f"{path}: only the faces are read; {unused} of {len(vertices)} vertices are in none and are left out.",
            stacklevel=3,
        )
    return Mesh(vertices, faces)


def without_unused(mesh: Mesh) -> Mesh:
    """A mesh without the vertices that are in no face."""
    is_used = _are_used(*mesh)
    return mesh if is_used.all() else Mesh(mesh.vertices[is_used], (np.cumsum(is_used) - 1)[mesh.faces])


def _are_used(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Which vertices are in faces, (V,)."""
    is_used = np.zeros(len(vertices), dtype=bool)
    is_used[faces] = True
    return is_used


def cut_polygons(vertices: np.ndarray, polygons: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """Cut polygons into triangles: into fans around their first corner, or ear by ear where a fan leaves the polygon.

    Args:
        vertices: Coordinates, (V, 3).
        polygons: The vertices of each, (F, K) or F sequences of different lengths. Holes are joined to the outline by
            an edge there and back.

    Returns:
        Vertices of each triangle, (T, 3) int64: K - 2 for each polygon, in the order of the polygons and turning the
        same way. A polygon that crosses itself or has no area is a fan, or one where no ear is left.

    Raises:
        ValueError: If a polygon names a vertex that is not there, or its corners are not numbers.
        OverflowError: If a number is beyond 64 bits.
    """
    if not len(polygons):
        return np.empty((0, 3), dtype=np.int64)
    if isinstance(polygons, np.ndarray) or len({*map(len, polygons)}) == 1:
        corners = np.asarray(polygons, dtype=np.int64)
        fan = np.array([(0, i, i + 1) for i in range(1, corners.shape[1] - 1)], dtype=np.int64).reshape(-1, 3)
        faces = corners[:, fan].reshape(-1, 3)
        sizes = np.full(len(corners), corners.shape[1])
    else:
        triangles = [(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]
        faces = np.array(triangles, dtype=np.int64).reshape(-1, 3)
        sizes = np.array([len(polygon) for polygon in polygons])
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError("a face names a vertex that is not there")
    _replace_wrong_fans(faces, sizes, vertices)
    return faces


def _replace_wrong_fans(faces: np.ndarray, sizes: np.ndarray, vertices: np.ndarray) -> None:
    """Cut concave polygons anew where need be, in place; `sizes` are the numbers of corners of all polygons, (F,)."""
    counts = np.maximum(sizes - 2, 0)
    first = np.cumsum(counts) - counts
    for K in np.unique(sizes[sizes > 3]).tolist():
        same = first[sizes == K]
        at_once = max(1, _CORNERS_AT_ONCE // K)
        for start in range(0, len(same), at_once):
            fans = same[start : start + at_once, None] + np.arange(K - 2)
            corners = np.concatenate([faces[fans[:, 0], :2], faces[fans, 2]], axis=1)
            normals, is_wrong = _find_wrong(vertices[corners])
            for i in np.flatnonzero(is_wrong):
                # Seen along the main axis of its normal, from where it turns counterclockwise.
                axis = int(np.abs(normals[i]).argmax())
                axes = [(axis + 1) % 3, (axis + 2) % 3] if normals[i, axis] > 0 else [(axis + 2) % 3, (axis + 1) % 3]
                flat = vertices[np.ix_(corners[i], axes)]
                faces[fans[i]] = corners[i][_clip_ears(flat - flat[0])]


def _find_wrong(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals (F, 3) of polygons (F, K, 3) by Newell's method, and which of their fans cover more than them (F,).

    A fan covers a polygon once unless one of its triangles is turned over, which then lies on others or outside.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # infinite coordinates are refused later
        spokes = polygons[:, 1:] - polygons[:, :1]
        doubled = np.cross(spokes[:, :-1], spokes[:, 1:])
        normals = doubled.sum(axis=1)
        covered = np.abs((doubled * normals[:, None]).sum(axis=2)).sum(axis=1)
        return normals, covered > (1 + _ROUNDING) * (normals**2).sum(axis=1)


def _clip_ears(points: np.ndarray) -> list[list[int]]:
    """Cut a polygon that turns counterclockwise, (K, 2), into K - 2 triangles of its corners.

    An ear is a corner that sticks out, with no other corner in the triangle that cuts it off. Corners in the same place
    do not count as others, for a hole is joined to the outline by an edge there and back. If no ear is left, a corner
    that takes no area is cut off.

    Source:
        Meisters, 1975: a polygon that does not cross itself has two ears.
    """
    triangles = []
    left = np.arange(len(points))
    while len(left) > 3:
        corners = np.stack([np.roll(left, 1), left, np.roll(left, -1)], axis=1)
        turns = _side(*points[corners].transpose(1, 0, 2))
        ears = (i for i in np.flatnonzero(turns > 0) if _is_empty(points[corners[i]], points[left]))
        ear = next(ears, next(iter(np.flatnonzero(turns == 0)), None))
        if ear is None:
            break
        triangles.append(corners[ear].tolist())
        left = np.roll(np.delete(left, ear), -ear)  # the next ear is near
    return triangles + [[left[0], left[i], left[i + 1]] for i in range(1, len(left) - 1)]


def _is_empty(triangle: np.ndarray, points: np.ndarray) -> bool:
    """Whether a triangle, (3, 2) counterclockwise, holds none of some points (N, 2), but perhaps on its corners."""
    a, b, c = triangle
    is_inside = (_side(a, b, points) >= 0) & (_side(b, c, points) >= 0) & (_side(c, a, points) >= 0)
    inside = points[is_inside]
    return bool((inside[:, None] == triangle).all(axis=2).any(axis=1).all())


def _side(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Positive for points (..., 2) on the left of the way from a to b, 0 for those on its line."""
    way, other = b - a, points - a
    return way[..., 0] * other[..., 1] - way[..., 1] * other[..., 0]


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error to raise, in one line that names the file, its format and the reason."""
    # The message of an error such as a KeyError is only a name.
    reason = first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
    return ValueError(f"{path} could not be read as {path.suffix.lower()} ({reason.rstrip('.')}).")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
