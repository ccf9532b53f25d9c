"""Labelled clouds in HDF5 files: the official datasets and our own cache, which has the same layout."""

from __future__ import annotations

import hashlib
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.datasets.memory import InMemory, fits_in_memory
from pcea.io.atomic import atomic_file, one_process, remove_leftovers, temporary_folder
from pcea.io.failures import summarize
from pcea.io.gltf import external_buffers
from pcea.io.hdf5 import read_h5
from pcea.io.points import Points, TooFewPointsError, normalize_points
from pcea.io.stored import Array, StoredArray, stored_h5

Arrays = dict[str, np.ndarray]
# What `parse_files` gives, besides `normal`.
CLOUD_ARRAYS = ("data", "label", "skipped")
# What an HDF5 file takes beside its arrays.
_H5_OVERHEAD = 1 << 16
# Changes with the layout of caches, so that those of other versions are not read.
_FORMAT = 4
# Clouds of fewer points teach a network little: nobody is advised to train on them.
_FEWEST = 64
# Arrays that have nothing for each cloud.
_OF_ALL = ("skipped", "classes")
_COPIED_AT_ONCE = 1 << 24


class Clouds(NamedTuple):
    """Labelled clouds of one size.

    Attributes:
        points: Coordinates, (L, N, 3), float32.
        label: Class of each cloud, (L,), int64.
        normals: Unit normals, (L, N, 3), or None.
    """

    points: Tensor
    label: Tensor
    normals: Tensor | None = None


def read_h5_clouds(
    path: Path, *, num_classes: int, num_points: int | None = None, with_normals: bool = False
) -> Clouds:
    """Read an HDF5 file with `data` (L, N, 3), `label` (L,) or (L, 1), and perhaps `normal` (L, N, 3).

    Args:
        path: The file. It is opened read-only.
        num_classes: Labels must be below it.
        num_points: Keep the first ones of each cloud; None keeps all.
        with_normals: Also read `normal`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, lacks an array, or holds something other than labelled clouds.
    """
    arrays = read_h5(path, required=("data", "label"), optional=("normal",) if with_normals else ())
    data, label = arrays["data"], arrays["label"]
    if data.ndim != 3 or data.shape[-1] != 3:
        raise ValueError(f"{path}: data must be (clouds, points, 3), got {data.shape}.")
    if label.shape not in (data.shape[:1], (len(data), 1)) or label.dtype.kind not in "iu":
        raise ValueError(f"{path}: label must be {len(data)} integers, got {label.dtype} of shape {label.shape}.")
    label = label.reshape(-1).astype(np.int64)
    if label.size and not 0 <= label.min() <= label.max() < num_classes:
        raise ValueError(f"{path}: labels must be in 0..{num_classes - 1}, got {label.min()}..{label.max()}.")
    num_points = data.shape[1] if num_points is None else num_points
    if not 1 <= num_points <= data.shape[1]:
        raise ValueError(
            f"{path} holds {data.shape[1]} points per cloud, but num_points={num_points}: give 1 to {data.shape[1]}."
        )
    points = torch.from_numpy(np.ascontiguousarray(data[:, :num_points], dtype=np.float32))
    bad = ~points.isfinite().flatten(1).all(1)
    if bad.any():
        first = int(bad.int().argmax())
        raise ValueError(f"{path}: {int(bad.sum())} clouds have NaN or infinite coordinates, first: cloud {first}.")
    normals = None
    if with_normals:
        if "normal" not in arrays:
            raise ValueError(f"{path} has no array 'normal'. Use it without with_normals, or another layout.")
        if arrays["normal"].shape != data.shape:
            raise ValueError(f"{path}: normal must be {data.shape} like data, got {arrays['normal'].shape}.")
        normals = torch.from_numpy(np.ascontiguousarray(arrays["normal"][:, :num_points], dtype=np.float32))
    return Clouds(points, torch.from_numpy(label), normals)


def parse_files(
    files: Sequence[Path],
    label: Sequence[int],
    read: Callable[[Path], Points],
    *,
    description: str,
    skip_unreadable: bool = False,
) -> Iterator[Arrays]:
    """Read one cloud per file and normalize it, with a progress bar.

    Args:
        files: The files, L.
        label: Class of each, L.
        read: Returns a file's points, (N, 3), the same N for all, and perhaps normals.
        description: Text before the progress bar.
        skip_unreadable: Skip unreadable files instead of raising.

    Yields:
        Of each file, data (1, N, 3), label (1,), and normal (1, N, 3) if there are normals; at the end, skipped: one
        error message per unreadable file.

    Raises:
        ValueError: If there are no files, or some cannot be read; the message counts them and names ten.
    """
    from rich.progress import track

    if not files:
        raise ValueError(f"{description}: this split has no files.")
    skipped: list[str] = []
    counts: list[int] = []
    for file, number in track(list(zip(files, label)), description=description, transient=True):
        try:
            cloud = read(file)
            points = normalize_points(cloud.points)
        except (ValueError, OSError) as error:
            skipped.append(str(error))
            if isinstance(error, TooFewPointsError):
                counts.append(error.count)
            continue
        chunk = {"data": points.numpy()[None], "label": np.array([number], dtype=np.int64)}
        if cloud.normals is not None:
            chunk["normal"] = cloud.normals.numpy()[None]
        yield chunk
    if skipped and not (skip_unreadable and len(skipped) < len(files)):
        fewer = f"set data.init_args.num_points to {min(counts)}, or " if counts and min(counts) >= _FEWEST else ""
        advice = f"{fewer}repair or remove them, or set skip_unreadable.".capitalize()
        raise ValueError(f"{summarize(skipped, len(files))} {advice}")
    yield {"skipped": np.array([line.encode() for line in skipped], dtype=bytes)}


def warn_of_skipped(arrays: dict[str, Any], total: int) -> None:
    """Warn of the files that were skipped as unreadable, of `total`, also when the arrays come from the cache."""
    skipped = [line.decode() for line in arrays["skipped"].tolist()]
    if skipped:
        warnings.warn(f"{summarize(skipped, total)} They are skipped.", stacklevel=3)


def cached(
    path: Path | None,
    make: Callable[[], Iterable[Arrays]],
    *,
    names: Sequence[str] = CLOUD_ARRAYS,
    large: Sequence[str] = ("data", "normal"),
    in_memory: InMemory = "auto",
) -> dict[str, Any]:
    """Read the arrays cached at `path`, or make them and cache them there. A half-written file is never read.

    They are written as they are made, so that memory never holds them all. Of several processes, on any machines that
    share the disk, one makes them, and the others wait for it. A cache that is damaged is made again, with a warning;
    what is not held in memory is checked as it is read, which then raises an error. If it cannot be written (disk full,
    read-only folder), the arrays are made in memory, with a warning.

    Args:
        path: The cache; None caches nothing.
        make: Gives the arrays in chunks, in which those of one name follow one another along their first axis.
        names: The arrays that are wanted.
        large: Those that are as large as the data. They are `StoredArray` if they are not to be held in memory.
        in_memory: See `fits_in_memory`.

    Raises:
        ValueError: If `in_memory` is False and nothing is to be cached.
        OSError: If `in_memory` is False and the cache cannot be written.
    """
    if path is None:
        if in_memory is False:
            raise ValueError("in_memory=False reads the clouds from the cache. Leave cache at True.")
        return join(make())
    if path.exists():
        try:
            return _load(path, names, large, in_memory)
        except ValueError as error:
            warnings.warn(f"{error} The cache is made again.", stacklevel=2)
    with one_process(path.with_name("lock")):
        with suppress(ValueError, FileNotFoundError):
            return _load(path, names, large, in_memory)  # another process has just made it
        try:
            write_h5(path, make(), large=large)
        except CacheError as error:
            if in_memory is False:
                raise OSError(f"{error} Make room, or set in_memory to true.") from error
            warnings.warn(f"{error} The data is used without a cache and parsed again next time.", stacklevel=2)
            return join(make())
    return _load(path, names, large, in_memory)


def _load(path: Path, names: Sequence[str], large: Sequence[str], in_memory: InMemory) -> dict[str, Any]:
    """The arrays of a cache after a check: whole ones now, stored ones as they are read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or lacks an array.
    """
    stored = stored_h5(path, [name for name in names if name in large])
    if fits_in_memory(sum(array.nbytes for array in stored.values()), in_memory):
        stored = {}
    arrays = read_h5(path, required=[*(name for name in names if name not in stored), *map(_checksum_name, names)])
    checksums = {name: arrays.pop(_checksum_name(name)) for name in names}
    num_clouds = {len(checksums[name] if name in large else arrays[name]) for name in names if name not in _OF_ALL}
    if len(num_clouds) > 1:
        raise ValueError(f"{path} is damaged: its arrays are of {' or '.join(map(str, sorted(num_clouds)))} clouds.")
    for name, array in arrays.items():
        rows = _rows_of_clouds(array, arrays) if name in large else [len(array)]
        if not np.array_equal(checksums[name], _checksums(array, rows)):
            raise ValueError(f"{path} is damaged: {name!r} has other checksums than it was written with.")
    for name, stored_array in stored.items():
        rows = _rows_of_clouds(stored_array, arrays)
        if len(rows) != len(checksums[name]):
            raise ValueError(f"{path} is damaged: {name!r} is of {len(rows)} clouds, not of {len(checksums[name])}.")
        stored[name] = stored_array.split(torch.tensor(rows, dtype=torch.int64)).with_checksums(
            torch.from_numpy(checksums[name].astype(np.int64))
        )
    return {**stored, **arrays}


def _checksum_name(name: str) -> str:
    return f"{name}.crc32"


def _rows_of_clouds(array: Any, arrays: Mapping[str, np.ndarray]) -> list[int]:
    """How many rows each cloud has: `sizes` of `arrays` if it has them for these rows, else one."""
    if "sizes" in arrays and arrays["sizes"].sum() == len(array):
        return arrays["sizes"].tolist()
    return [1] * len(array)


def _checksums(array: np.ndarray, rows: Sequence[int]) -> list[int]:
    """CRC-32 of the clouds of an array, each of so many rows."""
    ends = np.cumsum(rows).tolist()
    return [zlib.crc32(array[start:end].data) for start, end in zip([0, *ends], ends)]


def to_tensors(arrays: dict[str, Any], *, with_normals: bool) -> dict[str, Any]:
    """Convert the arrays of `parse_files` or `read_part_files` to arguments of `PointDataset` or `PartDataset`.

    Those that are not held in memory stay in their file.

    Raises:
        ValueError: If normals are wanted and there are none.
    """
    if with_normals and "normal" not in arrays:
        raise ValueError("The files have no normals. Read them without with_normals.")
    sizes = torch.from_numpy(arrays["sizes"]) if "sizes" in arrays else None

    def convert(array: np.ndarray | StoredArray) -> Array:
        if not isinstance(array, StoredArray):
            return torch.from_numpy(array)
        return array if sizes is None else array.split(sizes)

    arguments: dict[str, Any] = {"points": convert(arrays["data"]), "label": convert(arrays["label"])}
    arguments["normals"] = convert(arrays["normal"]) if with_normals else None
    return arguments | {name: torch.from_numpy(arrays[name]) for name in ("sizes", "category") if name in arrays}


def join(chunks: Iterable[Arrays]) -> Arrays:
    """Pieces of arrays as whole arrays in memory."""
    lists: dict[str, list[np.ndarray]] = {}
    for chunk in chunks:
        for name, array in chunk.items():
            lists.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in lists.items()}


class CacheError(OSError):
    """The cache cannot be written."""


def write_h5(path: Path, chunks: Iterable[Arrays], *, large: Sequence[str] = ()) -> None:
    """Write arrays that come in chunks under a temporary name, then rename, so that readers see all or nothing.

    HDF5 stores an array as one block, whose rows can be read by their place in the file, only if it knows the size
    beforehand. So the chunks go to a temporary file per array first. This takes the space of the arrays twice.

    Beside each array lies its CRC-32. HDF5's own checksums are of chunks, which cannot be read by their place.

    Args:
        path: The file. Its folder is made if need be.
        chunks: Parts of arrays; those of one name follow one another along their first axis, in one type and shape.
        large: Arrays with a checksum for each cloud, which is a row, or as many as `sizes` in the chunk tells.

    Raises:
        CacheError: If the folder is read-only or the disk is full. Nothing is left behind.
    """
    with ExitStack() as stack:
        with _writing(path, 0):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            folder = Path(stack.enter_context(temporary_folder(path.parent)))
        columns: dict[str, _Column] = {}
        for chunk in chunks:
            with _writing(path, sum(column.nbytes for column in columns.values())):
                for name, array in chunk.items():
                    if name not in columns:
                        columns[name] = _Column((folder / name).open("wb"), array.dtype, array.shape[1:])
                        stack.callback(columns[name].discard)
                    columns[name].append(array, _rows_of_clouds(array, chunk) if name in large else None)
        with _writing(path, sum(column.nbytes for column in columns.values())):
            _assemble(path, columns)


@contextmanager
def _writing(path: Path, size: int) -> Iterator[None]:
    """Say what was being written when an error came."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk at closing time as RuntimeError
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error).splitlines()[0]
        raise CacheError(f"Could not write the cache {path} ({size / 2**20:.0f} MiB): {reason}.") from error


class _Column:
    """The rows of one array in a temporary file."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], row_shape: tuple[int, ...]):
        self.file, self.dtype, self.row_shape, self.rows = file, dtype, row_shape, 0
        self.checksums: list[int] = []

    @property
    def nbytes(self) -> int:
        return self.rows * self.dtype.itemsize * int(np.prod(self.row_shape)) + 4 * len(self.checksums)

    def append(self, array: np.ndarray, rows_of_clouds: Sequence[int] | None) -> None:
        """Write rows, with a checksum for each cloud, or one for the whole column if `rows_of_clouds` is None."""
        assert (array.dtype, array.shape[1:]) == (self.dtype, self.row_shape)
        array = np.ascontiguousarray(array)
        self.file.write(array.tobytes())
        self.rows += len(array)
        if rows_of_clouds is None:
            self.checksums = [zlib.crc32(array.data, *self.checksums)]
        else:
            self.checksums += _checksums(array, rows_of_clouds)

    def discard(self) -> None:
        with suppress(OSError):  # what a full disk does not take is not needed any more
            self.file.close()

    def chunks(self) -> Iterator[np.ndarray]:
        """All rows, a few megabytes at a time."""
        self.file.close()
        with Path(self.file.name).open("rb") as file:
            row = self.dtype.itemsize * max(1, int(np.prod(self.row_shape)))
            while chunk := file.read(max(1, _COPIED_AT_ONCE // row) * row):
                yield np.frombuffer(chunk, self.dtype).reshape(-1, *self.row_shape)


def _assemble(path: Path, columns: dict[str, _Column]) -> None:
    import h5py

    with atomic_file(path) as part:
        _check_space(part, sum(column.nbytes for column in columns.values()))
        with h5py.File(part, "w") as file:
            for name, column in columns.items():
                dataset, first = file.create_dataset(name, (column.rows, *column.row_shape), column.dtype), 0
                for chunk in column.chunks():
                    dataset[first : first + len(chunk)] = chunk
                    first += len(chunk)
                file.create_dataset(_checksum_name(name), (len(column.checksums),), np.uint32)[:] = column.checksums
                Path(column.file.name).unlink()


def _check_space(path: Path, size: int) -> None:
    """Take the space of a file and give it back: on a full disk HDF5 may end the process instead of raising."""
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + _H5_OVERHEAD)


def cache_path(folder: Path, name: str, files: Sequence[Path], *options: object) -> Path:
    """Path of the cache of these files, read with these options; it changes with any of them and their buffers."""
    digest = hashlib.sha256(repr((_FORMAT, *options)).encode())
    buffers = (buffer for file in files if file.suffix.lower() == ".gltf" for buffer in external_buffers(file))
    for file in (*files, *buffers):
        stat = file.stat() if file.exists() else None
        digest.update(f"{file.relative_to(folder)} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return folder / ".pcea" / f"{name}_{digest.hexdigest()[:12]}.h5"
