"""Point Cloud Library files (.pcd)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pcea.io.arrays import drop_missing
from pcea.io.meshes import unreadable

_TYPES = {
    f"{kind}{size}": f"{code}{size}"
    for kind, code, sizes in (("F", "f", (2, 4, 8)), ("I", "i", (1, 2, 4, 8)), ("U", "u", (1, 2, 4, 8)))
    for size in sizes
}
# The fields that are read of text.
_WANTED = ("x", "y", "z", "normal_x", "normal_y", "normal_z", "nx", "ny", "nz")
_KEYS = ("VERSION", "FIELDS", "COLUMNS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")


class _Header(NamedTuple):
    """The fields of each point, in order, and how many points follow, how, and from which byte on."""

    names: list[str]
    types: list[str]
    counts: list[int]
    num_points: int
    data: str
    start: int


def read_pcd(path: Path) -> np.ndarray:
    """The points of a PCD file in rows x y z, or x y z nx ny nz if all three normals are there, (N, 3 | 6).

    Text, binary and compressed files, and organized clouds. Our own reader: Open3D 0.20 ends the process at fields of
    one name, as PCL's padding has, and pypcd4 reads no upper-case or repeated fields and trusts the header's counts.

    Raises:
        ValueError: If it is no such file, has no x, y and z, or ends before its points.
    """
    content = path.read_bytes()
    try:
        header = _read_header(content)
        columns = _read_columns(content, header)
    except (ValueError, OverflowError) as error:
        raise unreadable(path, error) from error
    if not {*"xyz"} <= {*columns}:
        raise ValueError(f"{path} has no fields x, y and z; its fields are {' '.join(header.names)}.")
    normals: tuple[str, ...] = ()
    for names in (("normal_x", "normal_y", "normal_z"), ("nx", "ny", "nz")):
        if {*names} <= {*columns}:
            normals = names
    rows = np.stack([columns[name] for name in ("x", "y", "z", *normals)], axis=1)
    return drop_missing(rows, path)


def _read_header(content: bytes) -> _Header:
    found: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in found:
        end = content.find(b"\n", start)
        if end < 0:
            raise ValueError("its header has no DATA")
        line = content[start:end].decode("ascii", "replace").lstrip("\ufeff\ufffd").strip()
        start = end + 1
        if not line or line.startswith("#"):
            continue
        keyword, *words = line.split()
        if keyword.upper() not in _KEYS:
            raise ValueError(f"its header has the line {line[:60]!r}")
        found[keyword.upper()] = words
    names = [name.lower() for name in found.get("FIELDS", found.get("COLUMNS", []))]
    sizes, kinds = found.get("SIZE", []), [kind.upper() for kind in found.get("TYPE", [])]
    counts = _whole_numbers("COUNT", found.get("COUNT", ["1"] * len(names)))
    if not names or not len(names) == len(sizes) == len(kinds) == len(counts):
        raise ValueError(
            f"its header has {len(names)} fields, but {len(sizes)} sizes, {len(kinds)} types and {len(counts)} counts"
        )
    types = [kind + size for kind, size in zip(kinds, sizes)]
    if unknown := [kind for kind in types if kind not in _TYPES]:
        raise ValueError(f"its header has the type and size {unknown[0][:20]!r}")
    width, height = (
        (_whole_numbers(key, found[key])[:1] for key in ("WIDTH", "HEIGHT"))
        if "WIDTH" in found and ("HEIGHT" in found)
        else ([], [])
    )
    product = width[0] * height[0] if width and height else None
    [num_points] = _whole_numbers("POINTS", found["POINTS"])[:1] if found.get("POINTS") else [product]
    if num_points is None or (product is not None and product != num_points):
        raise ValueError(f"its header has {num_points} points, but width x height is {product}")
    return _Header(names, [_TYPES[kind] for kind in types], counts, num_points, " ".join(found["DATA"]).lower(), start)


def _whole_numbers(key: str, words: list[str]) -> list[int]:
    if not all(word.isdecimal() and len(word) < 16 for word in words):
        raise ValueError(f"its header has {key} {' '.join(words)[:40]}")
    return [int(word) for word in words]


def _read_columns(content: bytes, header: _Header) -> dict[str, np.ndarray]:
    """The first field of each name that is a single number per point, (N,) each."""
    n = header.num_points
    places = np.cumsum([0, *header.counts]).tolist()
    first = {
        name: index for index, name in reversed([*enumerate(header.names)]) if header.counts[index] == 1 and name != "_"
    }
    if header.data == "ascii":
        lines = [line for line in content[header.start :].decode("ascii", "replace").splitlines() if line.strip()][:n]
        if len(lines) < n:
            raise ValueError(f"it ends before its {n} points")
        wanted = {name: index for name, index in first.items() if name in _WANTED}
        if not n or not wanted:
            return {name: np.empty(n) for name in wanted}
        rows = np.loadtxt(lines, usecols=[places[index] for index in wanted.values()], comments=None, ndmin=2)
        return dict(zip(wanted, rows.T))
    sizes = [int(kind[1:]) * count for kind, count in zip(header.types, header.counts)]
    if header.data == "binary":
        length = sum(sizes)
        if n * length > len(content) - header.start:
            raise ValueError(f"it ends before its {n} points")
        offsets = np.cumsum([0, *sizes]).tolist()
        return {
            name: np.ndarray((n,), "<" + header.types[i], content, header.start + offsets[i], (length,))
            for name, i in first.items()
        }
    if header.data == "binary_compressed":
        packed, unpacked = (int.from_bytes(content[header.start + i : header.start + i + 4], "little") for i in (0, 4))
        body = content[header.start + 8 : header.start + 8 + packed]
        if unpacked < n * sum(sizes) or len(body) < packed:
            raise ValueError(f"it ends before its {n} points")
        body = _decompress_lzf(body, unpacked)
        offsets = np.cumsum([0, *(n * size for size in sizes)]).tolist()
        return {name: np.frombuffer(body, "<" + header.types[i], n, offsets[i]) for name, i in first.items()}
    raise ValueError(f"its data is {header.data[:30]!r}, neither ascii, binary nor binary_compressed")


def _decompress_lzf(packed: bytes, size: int) -> bytes:
    """Unpack LZF: runs of literal bytes, and copies of what was unpacked before.

    Raises:
        ValueError: If the bytes are something else, or do not become `size` bytes.
    """
    result = bytearray()
    position, end = 0, len(packed)
    try:
        while position < end and len(result) <= size:
            control = packed[position]
            position += 1
            if control < 32:  # that many literals, and one
                result += packed[position : position + control + 1]
                position += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[position]
                position += 1
            start = len(result) - ((control & 31) << 8) - packed[position] - 1
            position += 1
            length += 2
            if start < 0:
                raise ValueError("its compressed data is damaged")
            copied = result[start : start + length]
            if len(copied) < length:  # the copy overlaps what it writes
                copied = (copied * (length // len(copied) + 1))[:length]
            result += copied
    except IndexError as error:
        raise ValueError("its compressed data is damaged") from error
    if len(result) != size:
        raise ValueError("its compressed data is damaged")
    return bytes(result)
