"""PLY files: vertices and faces are read, vertices with any properties are written."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pcea.io.atomic import atomic_file

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8", "int64": "i8", "uint64": "u8", "bool": "u1",
}  # fmt: skip
# The names that are written; readers of other programs know these types only.
_NAMES = {_TYPES[name]: name for name in ("char", "uchar", "short", "ushort", "int", "uint", "float", "double")}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
# Names of elements, and of the list of a face's vertices.
_VERTEX, _FACE, _STRIP = ("vertex", "vertices", "point", "points"), ("face", "faces"), ("tristrips", "tristrip")
_CORNERS = ("vertex_indices", "vertex_index", "vertex_indexes", "vertices", "indices")


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
    """Read the vertices and faces of a text or binary PLY file; strips of triangles become faces.

    In text each row is a line, and what follows a row's numbers is ignored; only if there are too few lines, or a line
    is too short, are all lines read as one stream of numbers, which must come out even.

    Our own reader, because trimesh 5.2 reads no binary file whose faces differ in their number of corners, trimesh and
    Open3D 0.20 take some truncated files for smaller ones, and plyfile 1.1 reads faces one by one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a PLY file, or ends before its vertices and faces.
    """
    content = path.read_bytes()
    try:
        order, elements, start = _read_header(content)
        found = _read_binary(content, start, elements, order) if order else _read_text(content[start:], elements)
        return Ply(_element(found, _VERTEX), _find_polygons(found))
    except struct.error as error:
        raise ValueError(f"{path} could not be read as .ply (it is shorter than its header says).") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} could not be read as .ply ({str(error).partition(chr(10))[0]}).") from error


def _element(found: Mapping[str, dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    return next((found[name] for name in names if found.get(name)), {})


def _find_polygons(found: Mapping[str, dict[str, Any]]) -> np.ndarray | list[Sequence[float]]:
    """The corners of faces and of strips of triangles."""
    corners: list[Any] = []
    for names in (_FACE, _STRIP):
        columns = _element(found, names)
        lists = [columns[name] for name in _CORNERS if name in columns]
        if columns and not lists:
            raise ValueError(f"its faces have no list of vertices, but {' '.join(columns)}")
        corners.append(lists[0] if lists else [])
    polygons, strips = corners
    if isinstance(polygons, np.ndarray):
        if polygons.ndim != 2:
            raise ValueError("its faces have one vertex each")
        if polygons.dtype.kind == "f":
            if not np.isfinite(polygons).all():
                raise ValueError("a vertex of a face is NaN or infinite")
            polygons = polygons.astype(np.int64)
    return polygons if not len(strips) else [*map(list, polygons), *_cut_strips(strips)]


def _cut_strips(strips: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """The triangles of strips, which -1 ends; every second one is turned, as the sides of a strip alternate."""
    triangles: list[Sequence[float]] = []
    for strip in strips:
        numbers = [int(number) for number in strip]
        start = 0
        for i in range(len(numbers) - 2):
            a, b, c = numbers[i : i + 3]
            if -1 in (a, b, c):
                start = i + 1
            else:
                triangles.append((b, a, c) if (i - start) % 2 else (a, b, c))
    return triangles


def _read_header(content: bytes) -> tuple[str, list[_Element], int]:
    """The byte order, "" for text, what follows the header, and where."""
    newline = b"\r" if content[3:4] == b"\r" and content[4:5] != b"\n" else b"\n"
    start = content.find(newline) + 1
    if content[:start].rstrip() != b"ply":
        raise ValueError("it does not begin with ply")
    order = None
    elements: list[_Element] = []
    while end := content.find(newline, start) + 1:
        words = content[start:end].decode("ascii", "replace").split()
        start = end
        keyword, *rest = words or ["comment"]
        if keyword == "end_header" and order is not None:
            return order, elements, start
        if keyword == "format" and rest and rest[0] in _ORDERS:
            order = _ORDERS[rest[0]]
        elif keyword == "element" and len(rest) == 2 and rest[1].isdecimal() and len(rest[1]) < 16:
            elements.append(_Element(rest[0].lower(), int(rest[1]), []))
        elif keyword == "property" and len(rest) == 2 and rest[0] in _TYPES and elements:
            _add_property(elements[-1], _Property(rest[1], _TYPES[rest[0]], ""))
        elif keyword == "property" and len(rest) == 4 and rest[0] == "list" and {*rest[1:3]} <= {*_TYPES} and elements:
            _add_property(elements[-1], _Property(rest[3], _TYPES[rest[2]], _TYPES[rest[1]]))
        elif keyword not in ("comment", "obj_info"):
            raise ValueError(f"its header has the line {' '.join(words)[:60]!r}")
    raise ValueError("its header has no end")


def _add_property(element: _Element, column: _Property) -> None:
    if column.name in (other.name for other in element.properties):
        raise ValueError(f"the property {column.name!r} occurs more than once")
    element.properties.append(column)


def _read_binary(body: bytes, start: int, elements: Sequence[_Element], order: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for element in elements:
        found[element.name], start = _read_element(body, start, element, order)
    return found


def _read_text(body: bytes, elements: Sequence[_Element]) -> dict[str, dict[str, Any]]:
    lines = [line for line in body.decode("ascii", "replace").splitlines() if line and not line.isspace()]
    if len(lines) >= sum(element.length for element in elements):
        found: dict[str, dict[str, Any]] = {}
        start = 0
        try:
            for element in elements:
                found[element.name] = _read_lines(lines[start : start + element.length], element)
                start += element.length
            return found
        except (ValueError, OverflowError):
            pass  # rows may go over several lines; if not, the stream names the error
    numbers = _parse_numbers(body)
    found = {}
    start = 0
    for element in elements:
        element = element._replace(properties=[_as_double(column) for column in element.properties])
        found[element.name], start = _read_element(numbers, start, element, "=")
    if start < len(numbers):
        raise ValueError(f"{(len(numbers) - start) // 8} numbers are left over after what its header says")
    return found


def _read_lines(lines: Sequence[str], element: _Element) -> dict[str, Any]:
    """Columns by name, from one line per row."""
    if not lines or not element.properties:
        return {}
    # Lists are mostly as long as those of the first row.
    places, sizes, width = _places(lines[0].split(), element)
    with nullcontext() if not sizes else suppress(ValueError):  # a list may be shorter than the first
        rows = np.loadtxt(lines, usecols=range(width), comments=None, ndmin=2)
        if all((rows[:, i] == size).all() for i, size in sizes):
            return {
                column.name: rows[:, place] if column.size_type else rows[:, place.start]
                for column, place in zip(element.properties, places)
            }
    columns: dict[str, list[Any]] = {column.name: [] for column in element.properties}
    for line in lines:
        words = line.split()
        for column, place in zip(element.properties, _places(words, element)[0]):
            numbers = [float(word) for word in words[place]]
            columns[column.name].append(numbers if column.size_type else numbers[0])
    lists = {column.name for column in element.properties if column.size_type}
    return {name: column if name in lists else np.array(column) for name, column in columns.items()}


def _places(words: Sequence[str], element: _Element) -> tuple[list[slice], list[tuple[int, int]], int]:
    """Where each property is in a row, where the length of each list is and which, and how many numbers that makes."""
    places: list[slice] = []
    sizes: list[tuple[int, int]] = []
    position = 0
    for column in element.properties:
        size = 1
        if column.size_type:
            size = int(float(words[position])) if position < len(words) else -1
            sizes.append((position, size))
            position += 1
        if size < 0 or position + size > len(words):
            raise ValueError("a row is shorter than its header says")
        places.append(slice(position, position + size))
        position += size
    return places, sizes, position


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
    if not element.length or not element.properties:
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
    """Columns by name and the next offset, read value by value."""
    columns: dict[str, list[Any]] = {column.name: [] for column in element.properties}
    for _ in range(element.length):
        for name, kind, size_type in element.properties:
            size = 1
            if size_type:
                counter = struct.Struct(order + _struct_code(size_type))
                size = int(counter.unpack_from(body, start)[0])
                start += counter.size
            values = struct.Struct(f"{order}{size}{_struct_code(kind)}")
            columns[name].append(values.unpack_from(body, start))
            start += values.size
    lists = {column.name for column in element.properties if column.size_type}
    return {name: c if name in lists else np.array(c).reshape(-1) for name, c in columns.items()}, start


def _struct_code(kind: str) -> str:
    """The code of a type in `struct`, whose l is shorter than NumPy's."""
    code = np.dtype(kind).char
    return {"l": "q", "L": "Q"}.get(code, code) if np.dtype(kind).itemsize == 8 else code


def write_ply(path: Path, columns: Mapping[str, np.ndarray], comments: Sequence[str] = ()) -> None:
    """Write vertices with the named properties, binary. A file that is there is replaced at the end, or not at all.

    Our own, because trimesh writes no normals of a cloud and Open3D no labels.

    Args:
        path: Where; its folder must be there.
        columns: One array (N,) per property, in this order, of float32, float64, or integers of up to 32 bits. Readers
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
