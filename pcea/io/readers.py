"""What mesh and cloud files hold, format by format: triangles, or points in rows."""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from pcea.io.hdf5 import read_h5
from pcea.io.meshes import Mesh, as_mesh, first_line, unreadable
from pcea.io.ply import read_ply
from pcea.io.scenes import read_scene

# What Open3D needs to be imported and to draw.
SYSTEM_PACKAGES = "apt-get install libegl1 libgl1 libgomp1 libx11-6 libusb-1.0-0"
# What arrays of .npz and .h5 files are called; the first that is there counts.
POINT_NAMES = ("points", "pos", "xyz", "data")
NORMAL_NAMES = ("normals", "normal")


def read_file(path: Path) -> Mesh | np.ndarray:
    """Read a mesh, or a cloud as rows x y z or x y z nx ny nz (N, C); further columns of a text or .npy file stay.

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


def read_table(path: Path, *, max_rows: int | None = None, is_column: bool = False) -> np.ndarray:
    """Numbers in rows, (N, C), from text separated by commas or white space; one header or count line is skipped.

    Args:
        path: The file.
        max_rows: Read no more than these; None reads all.
        is_column: The text is one number a line without a header. Otherwise a first line of fewer than three numbers is
            taken for a header.

    Raises:
        ValueError: If the text is not a table of numbers.
    """
    try:
        with path.open(encoding="utf-8") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of an empty file; the caller reports it
            lines = file.readline(), file.readline()
            has_header = not is_column and not _is_row(lines[0])
            delimiter = "," if "," in lines[has_header] else None
            file.seek(0)
            return np.loadtxt(file, delimiter=delimiter, skiprows=int(has_header), max_rows=max_rows, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {first_line(error).partition(';')[0]}.") from error


def _is_row(line: str) -> bool:
    try:
        return len([float(word) for word in line.replace(",", " ").split()]) >= 3
    except ValueError:
        return False


def read_numpy(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or the arrays of a .npz file by their names.

    Raises:
        ValueError: If it is neither, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a NumPy file of numbers ({first_line(error)}).") from error


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
        raise ValueError(f"{path} has no points: none of the arrays {', '.join(POINT_NAMES)} is there.")
    if normals is not None and normals.shape != points.shape:
        raise ValueError(f"{path}: normals must be {points.shape} like points, got {normals.shape}.")
    if points.ndim == 3 and len(points) != 1:
        raise ValueError(f"{path} holds {len(points)} clouds; one cloud a file is expected here, (N, 3) or (1, N, 3).")
    rows = [array[0] if array.ndim == 3 else array for array in (points, normals) if array is not None]
    return rows[0] if len(rows) == 1 else np.hstack(rows)


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


def _read_numpy_cloud(path: Path) -> np.ndarray:
    arrays = read_numpy(path)
    if isinstance(arrays, np.ndarray):
        return arrays
    return as_table({"points": next(iter(arrays.values()))} if len(arrays) == 1 else arrays, path=path)


def _read_h5_cloud(path: Path) -> np.ndarray:
    return as_table(read_h5(path, required=(), optional=(*POINT_NAMES, *NORMAL_NAMES)), path=path)


def _read_pcd(path: Path) -> np.ndarray:
    open3d = import_open3d()
    header = re.search(rb"^POINTS (\d+)\s+DATA ascii\s+", path.read_bytes(), re.MULTILINE)
    # Open3D 0.20 makes the points that text lacks up.
    if header and int(header[1]) > header.string[header.end() :].rstrip().count(b"\n") + 1:
        raise ValueError(f"{path} ends before its {int(header[1])} points.")
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        # Not open3d.io, which reads doubles as zeros.
        columns = open3d.t.io.read_point_cloud(str(path)).point
    arrays = [columns[name].numpy() for name in ("positions", "normals") if name in columns]
    return np.hstack(arrays) if arrays else np.empty((0, 3))


def _read_las(path: Path) -> np.ndarray:
    try:
        import laspy
    except ImportError as error:
        raise ImportError(f"{path} needs laspy: pip install laspy, or for .laz pip install 'laspy[lazrs]'.") from error
    try:
        with laspy.open(path) as reader:
            count, points = reader.header.point_count, reader.read().xyz
    except Exception as error:  # laspy raises also what NumPy and its decompressors raise
        if "LazBackend" in str(error):
            raise ImportError(f"{path} is compressed, and laspy cannot read it: pip install 'laspy[lazrs]'.") from error
        raise unreadable(path, error) from error
    if len(points) < count:
        raise ValueError(f"{path} ends before its {count} points.")
    return points


def _read_ply(path: Path) -> Mesh | np.ndarray:
    columns, polygons = read_ply(path)
    if not columns:
        return np.empty((0, 3))
    if not {*"xyz"} <= {*columns}:
        raise ValueError(f"{path} has no vertices x y z; theirs are {' '.join(columns)}.")
    points = np.stack([columns[name] for name in "xyz"], axis=1)
    if len(polygons):
        return as_mesh(path, points, polygons)
    normals = [columns[name][:, None] for name in ("nx", "ny", "nz") if name in columns]
    return np.hstack([points, *normals]) if len(normals) == 3 else points


def _read_off(path: Path) -> Mesh:
    """Our own, because trimesh 5.2 fails on faces of more than four corners."""
    try:
        text = re.sub("#.*", "", path.read_text(encoding="utf-8")).lstrip()
        if not re.match("(ST)?C?N?OFF", text):
            raise ValueError("it does not begin with OFF")
        # Many of ModelNet40's files have the counts glued to the first word: OFF490 518 0.
        counts, *lines = [line for line in text.split("OFF", 1)[1].splitlines() if line and not line.isspace()]
        V, F = (int(word) for word in counts.split()[:2])
        if len(lines) < V + F:
            raise ValueError(f"it ends before its {V} vertices and {F} faces")
        vertices = np.loadtxt(lines[:V], usecols=(0, 1, 2), ndmin=2) if V else np.empty((0, 3))
        polygons: np.ndarray | list[list[int]] = []
        if F and all(line.split(None, 1)[0] == "3" for line in lines[V : V + F]):
            polygons = np.loadtxt(lines[V : V + F], usecols=(1, 2, 3), dtype=np.int64, ndmin=2)
        else:
            polygons = [[int(word) for word in line.split()[1 : 1 + int(line.split()[0])]] for line in lines[V : V + F]]
    except ValueError as error:
        raise unreadable(path, error) from error
    return as_mesh(path, vertices, polygons)


_READERS: dict[str, Callable[[Path], Mesh | np.ndarray]] = {
    ".off": _read_off,
    **dict.fromkeys((".obj", ".stl", ".glb", ".gltf", ".dae", ".3mf"), read_scene),
    ".ply": _read_ply,
    ".pcd": _read_pcd,
    **dict.fromkeys((".las", ".laz"), _read_las),
    **dict.fromkeys((".txt", ".csv", ".xyz", ".pts"), read_table),
    **dict.fromkeys((".npy", ".npz"), _read_numpy_cloud),
    **dict.fromkeys((".h5", ".hdf5"), _read_h5_cloud),
}
