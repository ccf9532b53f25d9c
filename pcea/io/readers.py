"""What mesh and cloud files hold, format by format: triangles, or points in rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from pcea.io.arrays import NORMAL_NAMES, POINT_NAMES, as_table, drop_missing, read_numpy_cloud, with_unit_length
from pcea.io.gltf import read_gltf
from pcea.io.hdf5 import read_h5
from pcea.io.las import read_las
from pcea.io.meshes import Mesh, as_mesh
from pcea.io.obj import read_obj
from pcea.io.off import read_off
from pcea.io.pcd import read_pcd
from pcea.io.ply import read_ply
from pcea.io.scenes import read_3mf, read_collada
from pcea.io.stl import read_stl
from pcea.io.tables import TABLES, read_text_cloud

# What Open3D needs to be imported and to draw.
SYSTEM_PACKAGES = "apt-get install libegl1 libgl1 libgomp1 libx11-6 libusb-1.0-0"


def read_file(path: Path) -> Mesh | np.ndarray:
    """Read a mesh, or a cloud as rows x y z or x y z nx ny nz (N, C). What NumPy's files hold besides stays.

    Coordinates and their unit are the file's. The nodes of a scene become one mesh, each where its transforms put it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the extension is unknown, or the file is not what it says.
        ImportError: If the format needs a package that cannot be imported.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    extension = path.suffix.lower()
    if extension not in _READERS:
        raise ValueError(f"{path} has an unknown extension {extension!r}; known are {' '.join(sorted(_READERS))}.")
    return _READERS[extension](path)


def import_open3d() -> ModuleType:
    """Open3D, or one line that says which system libraries to install.

    Raises:
        ImportError: If Open3D or a library that it needs is missing.
    """
    try:
        import open3d
    except (ImportError, OSError) as error:
        if ".so" not in str(error):
            raise
        raise ImportError(
            f"Open3D needs a system library that is missing ({error}). On Debian or Ubuntu: {SYSTEM_PACKAGES}"
        ) from error
    return open3d


def _read_h5_cloud(path: Path) -> np.ndarray:
    return as_table(read_h5(path, required=(), optional=(*POINT_NAMES, *NORMAL_NAMES)), path=path)


def _read_ply_cloud(path: Path) -> Mesh | np.ndarray:
    columns, polygons = read_ply(path)
    if not columns:
        return np.empty((0, 3))
    named = {re.sub("^normal_([xyz])$", r"n\1", name.lower()): column for name, column in columns.items()}
    axes = ("x", "y", "z", "nx", "ny", "nz")
    if not {*axes[:3]} <= {*named}:
        raise ValueError(f"{path} has no vertices x y z; theirs are {' '.join(columns)}.")
    rows = np.stack([named[axis] for axis in (axes if {*axes} <= {*named} else axes[:3])], axis=1)
    if len(polygons):
        mesh = as_mesh(path, rows[:, :3], polygons)
        if len(mesh.faces):  # else they are single points and lines
            return mesh
    rows = drop_missing(rows, path)
    return rows if rows.shape[1] == 3 else np.hstack([rows[:, :3], with_unit_length(rows[:, 3:])])


_READERS: dict[str, Callable[[Path], Mesh | np.ndarray]] = {
    ".off": read_off,
    ".obj": read_obj,
    ".stl": read_stl,
    ".3mf": read_3mf,
    ".dae": read_collada,
    **dict.fromkeys((".glb", ".gltf"), read_gltf),
    ".ply": _read_ply_cloud,
    ".pcd": read_pcd,
    **dict.fromkeys((".las", ".laz"), read_las),
    **dict.fromkeys(TABLES, read_text_cloud),
    **dict.fromkeys((".npy", ".npz"), read_numpy_cloud),
    **dict.fromkeys((".h5", ".hdf5"), _read_h5_cloud),
}

ENDINGS = tuple(_READERS)
"""What the names of mesh and cloud files end in, in lower case."""
