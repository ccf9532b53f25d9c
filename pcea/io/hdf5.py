"""Arrays of HDF5 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcea.io.meshes import first_line


def read_h5(path: Path, *, required: Sequence[str] = ("data",), optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an HDF5 file, which is never written to.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or not HDF5, or lacks a required array.
    """
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    try:
        with h5py.File(path, "r") as file:
            names = [name for name in (*required, *optional) if isinstance(file.get(name), h5py.Dataset)]
            missing = [name for name in required if name not in names]
            if missing:
                raise ValueError(f"{path} has no array {missing[0]!r}; it holds {sorted(file) or 'nothing'}.")
            return {name: file[name][()] for name in names}
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is truncated or not HDF5 ({first_line(error)}). Obtain it again.") from error
