"""STL files (.stl), text or binary."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np

from pcea.io.meshes import Mesh, as_mesh, unreadable

_HEADER, _FACET = 84, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
# A name may be any words, on the line of its keyword; what follows it may be on the same line.
_NAME = re.compile(r"solid(?:(?!\bfacet\s+normal\b).)*")
_CORNER = re.compile(r"vertex\s+(\S+\s+\S+\s+\S+)")


def read_stl(path: Path) -> Mesh:
    """Read the triangles of an STL file, of all of its solids. Three vertices per face, as in the file.

    Our own reader, because trimesh 5.2 leaves out solids that are cut off, and does not read names such as "vertex" or
    a binary file with bytes behind its facets.

    Raises:
        ValueError: If it is no such file, or ends before its facets.
    """
    content = path.read_bytes()
    try:
        # The header of a binary file ends with the count of facets: one byte of it is zero up to 16 million of them.
        if _num_facets(content) * _FACET.itemsize + _HEADER == len(content) or b"\0" in content[:_HEADER]:
            corners = _read_binary(path, content)
        else:
            corners = _read_text(content.decode("utf-8-sig", "replace"))
    except ValueError as error:
        raise unreadable(path, error) from error
    return as_mesh(path, corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3))


def _num_facets(content: bytes) -> int:
    return int.from_bytes(content[_HEADER - 4 : _HEADER], "little")


def _read_binary(path: Path, content: bytes) -> np.ndarray:
    """The corners of the triangles, (F, 3, 3)."""
    if len(content) < _HEADER:
        raise ValueError(f"it ends within its header, after {len(content)} bytes")
    count, available = _num_facets(content), (len(content) - _HEADER) // _FACET.itemsize
    if available < count:
        raise ValueError(f"it ends after {available} of its {count} facets")
    if extra := len(content) - _HEADER - count * _FACET.itemsize:
        warnings.warn(f"{path}: {extra} bytes after its {count} facets are ignored.", stacklevel=4)
    return np.frombuffer(content, _FACET, count, _HEADER)["corners"].astype(np.float64)


def _read_text(text: str) -> np.ndarray:
    """The corners of the triangles, (F, 3, 3)."""
    text = _NAME.sub("solid\n", text.lower().replace("\r", "\n"))
    ends, facet_ends = text.count("endsolid"), text.count("endfacet")
    starts, facets = text.count("solid") - ends, text.count("facet") - facet_ends
    if not starts:
        raise ValueError("it does not begin with solid")
    if starts != ends:
        raise ValueError(f"it has {starts} solids, of which {ends} end with endsolid; is it cut off?")
    if facets != facet_ends:
        raise ValueError(f"it has {facets} facets, of which {facet_ends} end with endfacet; is it cut off?")
    words = " ".join(_CORNER.findall(text)).split()
    if len(words) != 9 * facets:
        raise ValueError(f"its {facets} facets have {len(words) // 3} vertices instead of three each")
    return np.array(words, dtype=np.float64).reshape(-1, 3, 3)
