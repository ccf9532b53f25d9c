"""Wavefront files (.obj)."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np

from pcea.io.meshes import Mesh, as_mesh, unreadable, without_unused

# Names, which may end in a backslash, do not go on in the next line.
_CONTINUED = re.compile(r"^[ ]*(?:v|vn|vt|f|l|p) (?:.*\\\n)+.*", re.MULTILINE)
# Free-form curves and surfaces, and faces of version 2.
_UNREAD = ("surf", "curv", "curv2", "fo", "bzp", "bsp", "cdc", "cdp", "res")


def read_obj(path: Path) -> Mesh | np.ndarray:
    """Read the faces of an OBJ file, or its points if it has no faces: with normals, if there is one per point.

    Objects, groups and materials become one mesh. Vertices of no face are left out. Lines are not read, with a warning
    if there are neither faces nor points; nor are free-form surfaces, with an error if there are no faces.

    Our own reader, because trimesh 5.2 counts negative indices from the end of the file instead of from their line,
    takes index 0 for 1, and does not read comments behind a face or indented lines.

    Raises:
        ValueError: If it is no such file, a vertex has fewer than three coordinates, or a face names a vertex that is
            not there.
    """
    lines = _read_lines(path)
    vertex_lines, face_lines, normal_lines, curves, single_points = (
        [number for number, line in enumerate(lines) if line.startswith(f"{kind} ")]
        for kind in ("v", "f", "vn", "l", "p")
    )
    unread = next((line for line in lines if line.startswith(_UNREAD) and line.split(" ")[0] in _UNREAD), None)
    try:
        if unread is not None and not face_lines:
            raise ValueError(f"it has {unread.split(' ')[0]!r}, which is not read; export it as a mesh of faces")
        points = _read_vectors(lines, vertex_lines)
        if face_lines:
            corners, sizes = _read_corners(lines, face_lines, vertex_lines)
        elif vertex_lines:
            if curves and not single_points:
                warnings.warn(f"{path} has lines and no faces: only its vertices are read, as points.", stacklevel=2)
            normals = _read_vectors(lines, normal_lines)
            return np.hstack([points, normals]) if len(points) == len(normals) else points
        else:
            return Mesh(points, np.empty((0, 3), dtype=np.int64))
    except (ValueError, OverflowError) as error:
        raise unreadable(path, error) from error
    if unread is not None:
        what = unread.split(" ")[0]
        warnings.warn(f"{path}: only faces are read, not what {what!r} describes beside them.", stacklevel=2)
    if (sizes == sizes[0]).all():
        return without_unused(as_mesh(path, points, corners.reshape(len(sizes), sizes[0])))
    ends = np.cumsum(sizes).tolist()
    flat = corners.tolist()
    return without_unused(as_mesh(path, points, [flat[start:end] for start, end in zip([0, *ends], ends)]))


def _read_lines(path: Path) -> list[str]:
    """The lines of a file, without comments and indents, with blanks for tabs. Continued lines are joined.

    The lines that were joined to another are left empty, so that line numbers stay.
    """
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    if "#" in text:
        text = re.sub("#.*", "", text)
    if "\\\n" in text:
        text = _CONTINUED.sub(lambda joined: joined[0].replace("\\\n", " ") + "\n" * joined[0].count("\\\n"), text)
    lines = text.split("\n")
    return [line.lstrip(" ") for line in lines] if text.startswith(" ") or "\n " in text else lines


def _read_vectors(lines: list[str], numbers: list[int]) -> np.ndarray:
    """The first three numbers of each of the lines `numbers`, (V, 3)."""
    if not numbers:
        return np.empty((0, 3))
    rows = [lines[number].partition(" ")[2] for number in numbers]
    try:
        if all(map(str.strip, rows)):  # NumPy skips blank rows
            return np.loadtxt(rows, usecols=(0, 1, 2), ndmin=2)
    except ValueError:
        if all(len(row.split()) > 2 for row in rows):
            raise
    number = next(number for number, row in zip(numbers, rows) if len(row.split()) < 3)
    raise ValueError(f"line {number + 1}, {lines[number].strip()[:40]!r}, has fewer than three coordinates")


def _read_corners(lines: list[str], face_lines: list[int], vertex_lines: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The vertices of the faces, counted from 0, one face after another (K,), and how many each face has (F,)."""
    indices, sizes = _read_indices([lines[number] for number in face_lines])
    vertices_before = np.searchsorted(vertex_lines, face_lines).repeat(sizes)
    corners = np.where(indices < 0, indices + vertices_before, indices - 1)
    is_wrong = (indices == 0) | (corners < 0) | (corners >= len(vertex_lines))
    if is_wrong.any():
        wrong = int(is_wrong.argmax())
        number = face_lines[int(np.searchsorted(np.cumsum(sizes), wrong, side="right"))]
        raise ValueError(
            f"line {number + 1}, {lines[number].strip()[:40]!r}, names vertex {indices[wrong]}, but OBJ counts from 1, "
            f"or from -1 back, and the file has {len(vertex_lines)} vertices"
        )
    return corners, sizes


def _read_indices(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The indices of vertices in the lines of faces, one after another (K,), and how many each line has (F,)."""
    rows = [line[2:] for line in lines]
    if any("/" in row for row in rows):  # without texture coordinates and normals
        rows = re.sub(r"/[^ \n]*", "", "\n".join(rows)).split("\n")
    if all(map(str.strip, rows)):
        try:
            table = np.loadtxt(rows, dtype=np.int64, ndmin=2)  # faster, but all must have the same number of corners
            return table.ravel(), np.full(len(table), table.shape[1])
        except ValueError:
            pass
    words = [row.split() for row in rows]
    indices = np.array([int(word) for corners in words for word in corners], dtype=np.int64)
    return indices, np.array([len(corners) for corners in words])
