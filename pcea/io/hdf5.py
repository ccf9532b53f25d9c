"""Arrays of HDF5 files, out of the file itself: nothing that points elsewhere is followed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pcea.io.meshes import first_line

# Deflate makes at most 1032 bytes of one; what claims to hold more was never written.
_LARGEST_RATIO, _SMALL = 1100, 1 << 24


def read_h5(path: Path, *, required: Sequence[str] = ("data",), optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an HDF5 file, which is never written to.

    Args:
        path: The file.
        required: Arrays of its root group that must be there.
        optional: Arrays that are returned if they are there.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or not HDF5, lacks a required array, or an array does not hold numbers, is
            larger than the file can hold, or lies in another file (a link, a virtual dataset, external storage).
    """
    with open_h5(path, required=required, optional=optional) as datasets:
        return {name: dataset[()] for name, dataset in datasets.items()}


@contextmanager
def open_h5(path: Path, *, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The named arrays of an HDF5 file as `h5py.Dataset`, which can be read until the block ends; see `read_h5`."""
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: array for name in (*required, *optional) if (array := _dataset(file, name, path))}
            missing = [name for name in required if name not in arrays]
            if missing:
                raise ValueError(f"{path} has no array {missing[0]!r}; it holds {sorted(file) or 'nothing'}.")
            yield arrays
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is truncated or not HDF5 ({first_line(error)}). Obtain it again.") from error


def _dataset(file: Any, name: str, path: Path) -> Any:
    """The dataset `name` of the root group, checked before it is read; None if there is none."""
    import h5py

    if isinstance(file.get(name, getlink=True), h5py.SoftLink | h5py.ExternalLink):
        raise ValueError(f"{path}: {name!r} is a link, which is not followed. Copy the array itself into the file.")
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        return None
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{path}: {name!r} lies in another file, which is not read. Copy the array into this one.")
    if dataset.dtype.kind not in "biufS" or dataset.shape is None:
        raise ValueError(f"{path}: {name!r} must hold numbers, got {dataset.dtype}.")
    size = path.stat().st_size
    if dataset.nbytes > max(_SMALL, _LARGEST_RATIO * size):
        raise ValueError(f"{path}: {name!r} claims {dataset.nbytes:,} bytes, more than a file of {size:,} can hold.")
    return dataset
