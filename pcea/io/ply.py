"""PLY files: vertices and faces are read, vertices with any properties are written."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pcea.io.atomic import atomic_file

# The first name of each type is the one that is written.
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_NAMES = {code: name for name, code in reversed(_TYPES.items())}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


class Ply(NamedTuple):
    """What a PLY file holds.

    Attributes:
        columns: The properties of its V vertices by name, (V,) each; all float64 if the file is text.
        polygons: The vertices of each face, (F, K), or F sequences where faces differ in their number of corners.
    """

    columns: dict[str, np.ndarray]
    polygons: np.ndarray | list[Sequence[float]]


class _Property(NamedTuple):
    name: str
    type: str
    size_type: str  # of a list's length; "" if it is no list


class _Element(NamedTuple):
    name: str
    length: int
    properties: list[_Property]


def read_ply(path: Path) -> Ply:
    """Read the vertices and faces of a text or binary PLY file.

    Our own, because trimesh 5.2 reads no binary file whose faces differ in their number of corners, and both trimesh
    and Open3D 0.20 take some truncated files for smaller ones.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a PLY file, or ends before its vertices and faces.
    """
    try:
        with path.open("rb") as file:
            order, elements = _read_header(file)
            body = file.read()
        if not order:  # text becomes the body of a binary file whose numbers are all doubles
            body, order = _parse_numbers(body), "="
            elements = [e._replace(properties=[_as_double(p) for p in e.properties]) for e in elements]
        found: dict[str, dict[str, Any]] = {}
        start = 0
        for element in elements:
            found[element.name], start = _read_element(body, start, element, order)
    except struct.error as error:
        raise ValueError(f"{path} could not be read as .ply (it is shorter than its header says).") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} could not be read as .ply ({str(error).partition(chr(10))[0]}).") from error
    faces = found.get("face", {})
    return Ply(found.get("vertex", {}), faces.get("vertex_indices", faces.get("vertex_index", [])))


def _read_header(file: BinaryIO) -> tuple[str, list[_Element]]:
    """The byte order, "" for text, and what follows the header."""
    if file.readline().rstrip() != b"ply":
        raise ValueError("it does not begin with ply")
    order = None
    elements: list[_Element] = []
    for line in file:
        words = line.decode("ascii", "replace").split()
        keyword, *rest = words or ["comment"]
        if keyword == "end_header" and order is not None:
            return order, elements
        if keyword == "format" and rest and rest[0] in _ORDERS:
            order = _ORDERS[rest[0]]
        elif keyword == "element" and len(rest) == 2 and rest[1].isdecimal():
            elements.append(_Element(rest[0], int(rest[1]), []))
        elif keyword == "property" and len(rest) == 2 and rest[0] in _TYPES and elements:
            elements[-1].properties.append(_Property(rest[1], _TYPES[rest[0]], ""))
        elif keyword == "property" and len(rest) == 4 and rest[0] == "list" and {*rest[1:3]} <= {*_TYPES} and elements:
            elements[-1].properties.append(_Property(rest[3], _TYPES[rest[2]], _TYPES[rest[1]]))
        elif keyword not in ("comment", "obj_info"):
            raise ValueError(f"its header has the line {' '.join(words)[:60]!r}")
    raise ValueError("its header has no end")


def _parse_numbers(text: bytes) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # what NumPy before 2.3 does at a word that is no number
        try:
            return np.fromstring(text.decode("ascii"), sep=" ").tobytes()
        except (ValueError, DeprecationWarning) as error:
            raise ValueError("its body is not numbers") from error


def _as_double(column: _Property) -> _Property:
    return column._replace(type="f8", size_type="f8" if column.size_type else "")


def _read_element(body: bytes, start: int, element: _Element, order: str) -> tuple[dict[str, Any], int]:
    """Columns by name, and where the next element starts."""
    if not element.length:
        return {}, start
    # Lists are mostly as long as that of the first row; then rows are too.
    first, _ = _read_rows(body, start, element._replace(length=1), order)
    fields: list[tuple] = []
    for name, kind, size_type in element.properties:
        if size_type:
            fields.append((f"size of {name}", order + size_type))
        fields.append((name, order + kind, (len(first[name][0]),)) if size_type else (name, order + kind))
    row = np.dtype(fields)
    end = start + element.length * row.itemsize
    if end <= len(body):
        rows = np.frombuffer(body, row, element.length, start)
        lists = [column.name for column in element.properties if column.size_type]
        if all((rows[f"size of {name}"] == rows[name].shape[1]).all() for name in lists):
            return {column.name: rows[column.name] for column in element.properties}, end
    return _read_rows(body, start, element, order)


def _read_rows(body: bytes, start: int, element: _Element, order: str) -> tuple[dict[str, Any], int]:
    """The same, number by number."""
    columns: dict[str, list[Any]] = {column.name: [] for column in element.properties}
    for _ in range(element.length):
        for name, kind, size_type in element.properties:
            size = 1
            if size_type:
                counter = struct.Struct(order + np.dtype(size_type).char)
                size = int(counter.unpack_from(body, start)[0])
                start += counter.size
            values = struct.Struct(f"{order}{size}{np.dtype(kind).char}")
            columns[name].append(values.unpack_from(body, start))
            start += values.size
    lists = {column.name for column in element.properties if column.size_type}
    return {name: c if name in lists else np.array(c).reshape(-1) for name, c in columns.items()}, start


def write_ply(path: Path, columns: Mapping[str, np.ndarray], comments: Sequence[str] = ()) -> None:
    """Write vertices with the named properties, binary. A file that is there is replaced at the end, or not at all.

    Our own, because trimesh writes no normals of a cloud and Open3D no labels.

    Args:
        path: Where; its folder must be there.
        columns: One array (N,) a property, in this order, of float32, float64, or integers of at most 32 bits. Readers
            know x y z, nx ny nz, and red green blue as uint8.
        comments: Lines of the header; line breaks within one become spaces.

    Raises:
        ValueError: If columns differ in length or have another type.
        OSError: If the file cannot be written.
    """
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or any(column.ndim != 1 for column in columns.values()):
        shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
        raise ValueError(f"Columns of a PLY file must be of one length, (N,), got {shapes or 'none'}.")
    for name, column in columns.items():
        if column.dtype.str[1:] not in _NAMES:
            raise ValueError(f"PLY holds float32, float64 and integers of up to 32 bits; {name!r} is {column.dtype}.")
    rows = np.empty(lengths.pop(), [(name, column.dtype.newbyteorder("<")) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {' '.join(line.split())}" for line in comments)]
    header += [f"element vertex {len(rows)}"]
    header += [f"property {_NAMES[column.dtype.str[1:]]} {name}" for name, column in columns.items()]
    text = "\n".join([*header, "end_header", ""])
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode("ascii", "backslashreplace") + rows.tobytes())
