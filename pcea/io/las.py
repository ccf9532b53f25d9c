"""Airborne laser scans (.las, .laz)."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pcea.io.meshes import unreadable

# Layers of each type of item in chunks of kind 3, by its number: points, colours, infrared, waveforms.
_LAYERS = {10: 9, 11: 1, 12: 2, 13: 1}
_BYTES = 14  # one layer per byte
# How many times its own size a compressed file may grow to. Real scans reach about 20.
_MAX_RATIO = 1000
# Bytes that are decompressed at a time.
_CHUNK = 2**24


class _Header(NamedTuple):
    size: int
    start: int
    num_vlrs: int
    is_compressed: bool
    length: int
    num_points: int
    scales: tuple[float, ...]
    offsets: tuple[float, ...]


def read_las(path: Path) -> np.ndarray:
    """The coordinates of a LAS or LAZ file, (N, 3) float64.

    Our own reader of the header, since laspy trusts its counts, and each point begins with x y z in all versions. Only
    compressed points need a package, lazrs.

    Raises:
        ValueError: If it is no such file, or ends before its points.
        ImportError: If the file is compressed and lazrs is missing.
    """
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            header = _read_header(file, file_size)
            if header.is_compressed:
                xyz = _decompress(path, file, header, file_size)
            else:
                if header.num_points * header.length > file_size - header.start:
                    raise ValueError(f"it ends before its {header.num_points} points")
                file.seek(header.start)
                xyz = _coordinates(file.read(header.num_points * header.length), header.length)
    except (ValueError, struct.error) as error:
        raise unreadable(path, error) from error
    with np.errstate(over="ignore", invalid="ignore"):  # as_points refuses what is not finite
        return xyz * header.scales + header.offsets


def _coordinates(records: bytes | bytearray, length: int) -> np.ndarray:
    return np.ndarray((len(records) // length, 3), "<i4", records, 0, (length, 4)).copy()


def _read_header(file: BinaryIO, file_size: int) -> _Header:
    content = file.read(375)
    if content[:4] != b"LASF":
        raise ValueError("it does not begin with LASF")
    if len(content) < 227:
        raise ValueError("it ends within its header")
    size, start, num_vlrs, kind, length, count = struct.unpack_from("<HIIBHI", content, 94)
    if content[25] >= 4 and size >= 255 and len(content) >= 255:  # version 1.4 counts beyond 32 bits
        count = struct.unpack_from("<Q", content, 247)[0] or count
    numbers = struct.unpack_from("<6d", content, 131)
    if not 227 <= size <= start <= file_size:
        raise ValueError(f"its header says that points begin at byte {start} of {file_size}")
    if num_vlrs * 54 > start - size:
        raise ValueError(f"its header says that {num_vlrs} records of variable length come in {start - size} bytes")
    if length < 20:
        raise ValueError(f"its header says that a point has {length} bytes")
    return _Header(size, start, num_vlrs, kind >= 64, length, count, numbers[:3], numbers[3:])


def _decompress(path: Path, file: BinaryIO, header: _Header, file_size: int) -> np.ndarray:
    settings = _laszip_record(file, header, file_size)
    if not header.num_points:
        return np.empty((0, 3), dtype=np.int32)
    try:
        import lazrs
    except ImportError as error:
        raise ImportError(f"{path} is compressed, which needs lazrs: pip install 'pcea[formats]'.") from error
    parts = []
    file.seek(header.start)
    batch = max(1, _CHUNK // header.length)
    try:
        decompressor = lazrs.LasZipDecompressor(file, settings)
        for first in range(0, header.num_points, batch):
            records = bytearray(min(batch, header.num_points - first) * header.length)
            decompressor.decompress_many(records)
            parts.append(_coordinates(records, header.length))
    except BaseException as error:  # a panic of Rust is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"its compressed points are damaged: {str(error) or type(error).__name__}") from error
    return np.concatenate(parts)


def _laszip_record(file: BinaryIO, header: _Header, file_size: int) -> bytes:
    """The compressor's settings, which must agree with the header: lazrs ends the process if it runs out of memory."""
    file.seek(header.size)
    settings = b""
    for _ in range(header.num_vlrs):
        user, number, length = struct.unpack("<2x16sHH32x", file.read(54))
        content = file.read(length)
        if user.rstrip(b"\0") == b"laszip encoded" and number == 22204:
            settings = content
    if len(settings) < 34:
        raise ValueError("it does not say how its points are compressed")
    kind, chunk_size, num_items = struct.unpack_from("<H10xI16xH", settings)
    if kind not in (2, 3):
        raise ValueError(f"its points are compressed in LASzip's kind {kind}; only 2 and 3 can be read")
    items = [struct.unpack_from("<HHH", settings, 34 + 6 * i) for i in range(num_items)]
    if sum(size for _, size, _ in items) != header.length or not chunk_size:
        raise ValueError("its compressed points have another size than its header says")
    room = file_size - header.start
    if header.num_points * header.length > _MAX_RATIO * room:
        raise ValueError(
            f"its {header.num_points} points would grow from {room} bytes to {header.num_points * header.length}"
        )
    file.seek(header.start)
    [table] = struct.unpack("<q", file.read(8))
    if table == -1:  # a writer that could not go back wrote it last
        file.seek(file_size - 8)
        [table] = struct.unpack("<q", file.read(8))
    if not header.start < table <= file_size - 8:
        raise ValueError("it ends before the table of its chunks")
    file.seek(table)
    _, num_chunks = struct.unpack("<II", file.read(8))
    if num_chunks > header.num_points:
        raise ValueError(f"it has {num_chunks} chunks of {header.num_points} points")
    if kind == 3:
        _check_layers(file, header, items, table)
    return settings


def _check_layers(file: BinaryIO, header: _Header, items: list[tuple[int, ...]], end: int) -> None:
    """Check that the layers of each chunk, whose sizes are told before them, end before the table of chunks.

    A chunk is its first point, the number of its points, the size of each layer, and the layers.
    """
    num_layers = sum(size if kind == _BYTES else _LAYERS.get(kind, 0) for kind, size, _ in items)
    head = struct.Struct(f"<{header.length}xI{num_layers}I")
    position, num_points = header.start + 8, 0
    while num_points < header.num_points and position + head.size <= end:
        file.seek(position)
        count, *sizes = head.unpack(file.read(head.size))
        position += head.size + sum(sizes)
        num_points += count
        if not count or position > end:
            raise ValueError("a chunk of its points is damaged")
    if num_points < header.num_points:
        raise ValueError(f"it ends before its {header.num_points} points")
