"""Wavefront files (.obj)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pcea.io.meshes import Mesh, unreadable
from pcea.io.scenes import read_scene

_FACE = re.compile(rb"^[ \t]*f[ \t]", re.MULTILINE)
_VERTEX = re.compile(rb"^[ \t]*v[ \t]+(.*)$", re.MULTILINE)
_NORMAL = re.compile(rb"^[ \t]*vn[ \t]+(.*)$", re.MULTILINE)
# Fewer than three coordinates.
_FLAT_VERTEX = re.compile(rb"^[ \t]*v[ \t]+(?:[^\s#]+(?:[ \t]+[^\s#]+)?)?[ \t]*(?:#.*)?$", re.MULTILINE)


def read_obj(path: Path) -> Mesh | np.ndarray:
    """Read the faces of an OBJ file, or its points if it has no faces: with normals, if there is one per point.

    Raises:
        ValueError: If it is no such file, or a vertex has fewer than three coordinates.
    """
    content = path.read_bytes().replace(b"\r", b"\n")
    if flat := _FLAT_VERTEX.search(content):
        line = flat[0].decode("ascii", "replace").strip()[:40]
        raise unreadable(path, ValueError(f"the vertex {line!r} has fewer than three coordinates"))
    if _FACE.search(content):
        return read_scene(path)
    try:
        points, normals = (
            np.loadtxt(lines, usecols=(0, 1, 2), ndmin=2) if lines else np.empty((0, 3))
            for lines in (
                [line.decode("ascii", "replace") for line in kind.findall(content)] for kind in (_VERTEX, _NORMAL)
            )
        )
    except ValueError as error:
        raise unreadable(path, error) from error
    if not len(points):
        return Mesh(points, np.empty((0, 3), dtype=np.int64))
    return np.hstack([points, normals]) if len(points) == len(normals) else points


def _read_rows(lines: list[bytes]) -> np.ndarray:
    text = [line.decode("ascii", "replace") for line in lines]
    return np.loadtxt(text, usecols=(0, 1, 2), ndmin=2) if text else np.empty((0, 3))
