"""Arrays of NumPy's files, and clouds as named arrays."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pcea.io.archives import check_archive
from pcea.io.meshes import first_line

# Names of arrays in .npz and .h5 files; the first that is there counts.
POINT_NAMES = ("points", "pos", "xyz", "data")
NORMAL_NAMES = ("normals", "normal")


def read_numpy(path: Path, *, names: Collection[str] = ()) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or the arrays of a .npz file by their names.

    Args:
        path: The file.
        names: Which arrays of a .npz file to read, of those that are there; a single array is read whatever its name.
            () reads all.

    Raises:
        ValueError: If it is neither, holds Python objects, or would need far more memory than its own size.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                file.seek(0)
                return _read_array(file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path)
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            kept = [name for name in members if not names or len(members) == 1 or name in names]
            return {name: _read_member(archive, members[name]) for name in kept}
    except Exception as error:  # the parsers of headers, zip directories and compressed data raise whatever they meet
        raise ValueError(f"{path} is not a NumPy file of numbers ({first_line(error).rstrip('.')}).") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    return _read_array(io.BytesIO(content), len(content))


def _read_array(file: BinaryIO, size: int) -> np.ndarray:
    """An array of a stream of `size` bytes, which NumPy's reader would not compare with what its header promises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy remarks that a header is of Python 2
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"its format has the unknown version {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    count = math.prod(shape)
    if any(length < 0 for length in shape) or count * dtype.itemsize > size - file.tell():
        raise ValueError(f"it is shorter than its header says, which promises {dtype} of shape {shape}")
    content = file.read(count * dtype.itemsize)
    return np.frombuffer(content, dtype, count).reshape(shape, order="F" if is_fortran else "C")


def as_table(arrays: Mapping[str, np.ndarray], *, path: Path) -> np.ndarray:
    """The points and perhaps normals of one cloud from named arrays, in rows; `path` is for the message.

    Args:
        arrays: One of `POINT_NAMES` (N, C), and perhaps one of `NORMAL_NAMES` (N, C), or the same as (1, N, C).
        path: Where they came from, for the message.

    Raises:
        ValueError: If there are no points, more than one cloud, or normals of another shape.
    """
    points, normals = (
        next((arrays[name] for name in names if name in arrays), None) for names in (POINT_NAMES, NORMAL_NAMES)
    )
    if points is None:
        raise ValueError(
            f"{path} has no points: none of the arrays {', '.join(POINT_NAMES)} is there. {describe_arrays(path)}"
        )
    if points.dtype.names:
        points = _stack_fields(points, path)
    if points.ndim == 3 and len(points) != 1:
        raise ValueError(f"{path} holds {len(points)} clouds; one cloud per file is expected, (N, 3) or (1, N, 3).")
    rows = [array[0] if array.ndim == 3 else array for array in (points, normals) if array is not None]
    if len(rows) == 1:
        return rows[0]
    if rows[0].ndim == 2:
        rows[0] = rows[0][:, :3]  # what stands behind are colours, or the normals again
    if rows[1].shape != rows[0].shape:
        raise ValueError(f"{path}: normals must be {rows[0].shape} like points, got {rows[1].shape}.")
    if rows[0].ndim != 2 or any(array.dtype.kind not in "fiu" for array in rows):
        raise ValueError(
            f"{path}: points and normals must be numbers, (N, 3), got {rows[0].dtype} of shape {rows[0].shape}."
        )
    return np.hstack([rows[0], with_unit_length(rows[1])])


def with_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Normals (N, 3) of any length as unit vectors; those of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def describe_arrays(path: Path) -> str:
    """Say which arrays, or columns, a file holds, for messages; "" for other files than .npz, .h5 and .hdf5."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = sorted(info.filename.removesuffix(".npy") for info in archive.infolist())
        elif suffix in (".h5", ".hdf5"):
            import h5py

            with h5py.File(path, "r") as file:
                names = sorted(file)
        else:
            return ""
    except Exception:  # damaged: the message is of something else
        return ""
    shown = ", ".join(map(repr, names[:10])) + (" ..." if len(names) > 10 else "")
    return f"It holds {shown}: rename them." if names else "It holds nothing."


def drop_missing(rows: np.ndarray, path: Path) -> np.ndarray:
    """Leave out rows whose x, y or z is NaN, where a depth camera saw nothing, with a warning that counts them.

    Raises:
        ValueError: If none is left.
    """
    is_missing = np.isnan(rows[:, :3]).any(1) if rows.dtype.kind == "f" else np.zeros(len(rows), dtype=bool)
    missing = int(is_missing.sum())
    if not missing:
        return rows
    if missing == len(rows):
        raise ValueError(f"{path}: all {missing} points are NaN.")
    warnings.warn(f"{path}: {missing} of {len(rows)} points have NaN coordinates and are dropped.", stacklevel=3)
    return rows[~is_missing]


def read_numpy_cloud(path: Path) -> np.ndarray:
    """The points and perhaps normals of a .npy or .npz file, in rows.

    Raises:
        ValueError: If it is no such file.
    """
    arrays = read_numpy(path, names=(*POINT_NAMES, *NORMAL_NAMES))
    if isinstance(arrays, np.ndarray):
        return as_table({"points": arrays}, path=path)
    return as_table({"points": next(iter(arrays.values()))} if len(arrays) == 1 else arrays, path=path)


def _stack_fields(records: np.ndarray, path: Path) -> np.ndarray:
    """The fields x y z, and nx ny nz or normal_x normal_y normal_z, of a structured array, (N, 3) or (N, 6)."""
    fields = {name.lower(): name for name in records.dtype.names or ()}
    records = records.reshape(-1)
    for names in (
        ("x", "y", "z", "nx", "ny", "nz"),
        ("x", "y", "z", "normal_x", "normal_y", "normal_z"),
        ("x", "y", "z"),
    ):
        if {*names} <= {*fields}:
            columns = [records[fields[name]] for name in names]
            if all(column.ndim == 1 and column.dtype.kind in "fiu" for column in columns):
                return np.stack(columns, axis=1)
    raise ValueError(f"{path} has no fields x, y and z of numbers; its fields are {', '.join(fields)}.")
