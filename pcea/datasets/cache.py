"""Labelled clouds in HDF5 files: the official datasets and our own cache, which has the same layout."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.io.atomic import atomic_file, one_process, remove_leftovers
from pcea.io.hdf5 import read_h5
from pcea.io.points import Points, normalize_points

Arrays = dict[str, np.ndarray]
# What an HDF5 file takes beside its arrays.
_H5_OVERHEAD = 1 << 16


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
    return as_clouds(arrays, path, num_classes=num_classes, num_points=num_points, with_normals=with_normals)


def as_clouds(
    arrays: Arrays, path: Path, *, num_classes: int, num_points: int | None = None, with_normals: bool = False
) -> Clouds:
    """Check the arrays of `read_h5_clouds`; `path` is where they came from, for the messages.

    Raises:
        ValueError: If they are something other than labelled clouds.
    """
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
        raise ValueError(f"{path} holds {data.shape[1]} points a cloud; num_points={num_points} cannot be had from it.")
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


def read_files(
    files: Sequence[Path],
    label: Sequence[int],
    read: Callable[[Path], Points],
    *,
    description: str,
    skip_unreadable: bool = False,
) -> Arrays:
    """Read one cloud per file and normalize it, with a progress bar.

    Args:
        files: The files, L.
        label: Class of each, L.
        read: Returns a file's points, (N, 3), the same N for all, and perhaps normals.
        description: Text before the progress bar.
        skip_unreadable: Skip unreadable files instead of raising.

    Returns:
        data (L, N, 3), label (L,), normal (L, N, 3) if there are normals, and skipped: one error message per such file.

    Raises:
        ValueError: If there are no files, or some cannot be read; the message counts them and names ten.
    """
    from rich.progress import track

    if not files:
        raise ValueError(f"{description}: this split has no files.")
    clouds: list[Points] = []
    kept: list[int] = []
    skipped: list[str] = []
    for file, number in track(list(zip(files, label)), description=description, transient=True):
        try:
            clouds.append(read(file))
            kept.append(number)
        except (ValueError, OSError) as error:
            skipped.append(str(error))
    if skipped and not (skip_unreadable and clouds):
        raise ValueError(f"{summarize(skipped, len(files))} Repair or remove them, or set skip_unreadable.")
    arrays = {
        "data": np.stack([normalize_points(cloud.points).numpy() for cloud in clouds]),
        "label": np.array(kept, dtype=np.int64),
        "skipped": np.array([line.encode() for line in skipped], dtype=bytes),
    }
    if clouds[0].normals is not None:
        arrays["normal"] = np.stack([cloud.normals.numpy() for cloud in clouds if cloud.normals is not None])
    return arrays


def summarize(skipped: Sequence[str], total: int) -> str:
    """One line that counts the unreadable files and names ten of them."""
    more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
    return f"{len(skipped)} of {total} files cannot be read: {'; '.join(s.rstrip('.') for s in skipped[:10])}{more}."


def warn_of_skipped(arrays: Arrays, total: int) -> None:
    """Warn of the files that were skipped as unreadable, of `total`, also when the arrays come from the cache."""
    skipped = [line.decode() for line in arrays["skipped"].tolist()]
    if skipped:
        warnings.warn(f"{summarize(skipped, total)} They are skipped.", stacklevel=3)


def cached(
    path: Path | None, make: Callable[[], Arrays], *, required: Sequence[str] = ("data", "label", "skipped")
) -> Arrays:
    """Read the arrays cached at `path`, or make them and cache them there. A half-written file is never read.

    Of several processes, on any machines that share the disk, one makes them, and the others wait for it.

    A cache that cannot be read is made again; if it cannot be written (disk full, read-only folder), the arrays are
    used without one. Both give a warning. With `path` None, nothing is cached.
    """
    if path is None:
        return make()
    with nullcontext() if path.exists() else one_process(path.with_name("lock")):
        if path.exists():
            try:
                return read_h5(path, required=required, optional=("normal",))
            except ValueError as error:
                warnings.warn(f"{error} The cache is made again.", stacklevel=2)
        arrays = make()
        try:
            write_h5(path, arrays)
        except OSError as error:
            warnings.warn(f"{error} The data is used without a cache and parsed again next time.", stacklevel=2)
    return arrays


def write_h5(path: Path, arrays: Arrays) -> None:
    """Write arrays under a temporary name in the same folder, then rename, so that readers see all or nothing.

    Raises:
        OSError: If the folder is read-only or the disk is full. Nothing is left behind.
    """
    import h5py

    size = sum(array.nbytes for array in arrays.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with atomic_file(path) as part:
            _check_space(part, size)
            with h5py.File(part, "w") as file:
                for name, array in arrays.items():
                    file[name] = array
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk at closing time as RuntimeError
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error).splitlines()[0]
        raise OSError(f"Could not write the cache {path} ({size / 2**20:.0f} MiB): {reason}.") from error


def _check_space(path: Path, size: int) -> None:
    """Take the space of a file and give it back: on a full disk HDF5 may end the process instead of raising."""
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + _H5_OVERHEAD)


def cache_path(folder: Path, name: str, files: Iterable[Path], *options: object) -> Path:
    """Path of the cache of these files, read with these options; it changes with any of them."""
    digest = hashlib.sha256(repr(options).encode())
    for file in files:
        stat = file.stat() if file.exists() else None
        digest.update(f"{file.relative_to(folder)} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return folder / ".pcea" / f"{name}_{digest.hexdigest()[:12]}.h5"
