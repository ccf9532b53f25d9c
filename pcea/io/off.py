"""Object File Format (.off)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pcea.io.meshes import Mesh, as_mesh, unreadable
from pcea.io.text import read_text

# Geomview writes the letters as ST, C, N, other programs in other orders.
_KEYWORD = re.compile(r"((?:ST|C|N)*)(4)?(n)?(?:OFF|off)(\s+BINARY)?")


def read_off(path: Path) -> Mesh | np.ndarray:
    """Read the faces of an OFF file, or its points if it has no faces: x y z, or x y z nx ny nz if it is a NOFF file.

    The keyword may be missing or be glued to the counts, as in many files of ModelNet40: OFF490 518 0. Usually each
    vertex and face has a line of its own, on which colours may follow; else all are one stream of numbers. Our own
    reader, because trimesh 5.2 fails on faces of more than four corners.

    Raises:
        ValueError: If it is no such file, or does not end with its vertices and faces.
    """
    try:
        text = re.sub("#.*", "", read_text(path)).lstrip()
        keyword = _KEYWORD.match(text)
        if keyword is None and not re.match(r"\d+[ \t]+\d+([ \t]+\d+)?\s", text):
            raise ValueError("it does not begin with OFF")
        if keyword and (keyword[2] or keyword[3] or keyword[4]):
            raise ValueError(f"it is of the kind {' '.join(keyword[0].split())}, but only text of x y z is read")
        body = text[keyword.end() :] if keyword else text
        vertices, polygons = _read_lines(body) or _read_stream(body)
    except (ValueError, OverflowError) as error:
        raise unreadable(path, error) from error
    if len(vertices) and not len(polygons):
        has_normals = keyword is not None and "N" in keyword[1] and vertices.shape[1] >= 6
        return vertices[:, : 6 if has_normals else 3]
    return as_mesh(path, vertices[:, :3], polygons)


def _read_lines(text: str) -> tuple[np.ndarray, np.ndarray | list[list[int]]] | None:
    """Vertices (V, C) and polygons of a text with one of them per line; None if the lines are something else."""
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    counts = lines[0].split() if lines else []
    if not 2 <= len(counts) <= 3 or not all(word.isdecimal() and len(word) < 16 for word in counts):
        return None
    V, F = int(counts[0]), int(counts[1])
    if len(lines) <= V + F:
        return None
    if extra := len(lines) - 1 - V - F:
        try:
            return _read_stream("\n".join([f"{V} {F} 0", *lines[1:]]))  # vertices or faces of several lines
        except (ValueError, OverflowError):
            pass
        raise ValueError(f"{extra} lines are left over after its {V} vertices and {F} faces; its counts are wrong")
    rows, faces = lines[1 : V + 1], lines[V + 1 : V + F + 1]
    width = len(rows[0].split()) if rows else 3
    if width < 3:
        raise ValueError(f"its vertices have {width} coordinates")
    vertices = np.loadtxt(rows, ndmin=2, usecols=range(6 if width >= 6 else 3)) if V else np.empty((0, 3))
    if F and all(line.split(None, 1)[0] == "3" for line in faces):
        return vertices, np.loadtxt(faces, usecols=(1, 2, 3), dtype=np.int64, ndmin=2)
    polygons = []
    for line in faces:
        size, *corners = line.split()
        if not size.isdecimal() or len(corners) < int(size):
            raise ValueError(f"it has a face {line.strip()[:40]!r}")
        polygons.append([int(word) for word in corners[: int(size)]])
    return vertices, polygons


def _read_stream(text: str) -> tuple[np.ndarray, list[list[int]]]:
    """The same of a text whose lines mean nothing, and which has nothing but coordinates and corners."""
    words = text.split()
    V, F = (int(word) for word in words[:2])
    body = words[3 if len(words) > 2 else 2 :]
    if V < 0 or F < 0 or len(body) < 3 * V + F:
        raise ValueError(f"it ends before its {V} vertices and {F} faces")
    vertices = np.array(body[: 3 * V], dtype=np.float64).reshape(V, 3)
    polygons, position = [], 3 * V
    for _ in range(F):
        size = int(body[position]) if position < len(body) else -1
        corners = body[position + 1 : position + 1 + max(size, 0)]
        if size < 0 or len(corners) < size:
            raise ValueError(f"it ends before its {V} vertices and {F} faces")
        polygons.append([int(word) for word in corners])
        position += 1 + size
    if position < len(body):
        raise ValueError(f"{len(body) - position} numbers are left over after its {V} vertices and {F} faces")
    return vertices, polygons
