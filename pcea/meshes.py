"""Any mesh or cloud file -> points and normals."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MESH_EXTENSIONS = (".off", ".obj", ".stl", ".ply", ".glb", ".gltf", ".dae", ".3mf")

# New x, y, z: which old axis each one is, and with which sign. Every one is a rotation (determinant 1).
_ORIENTATIONS = {
    "x": ((1, 0, 2), (-1, 1, 1)),
    "y": ((0, 1, 2), (1, 1, 1)),
    "z": ((0, 2, 1), (1, 1, -1)),
    "-x": ((1, 0, 2), (1, -1, 1)),
    "-y": ((0, 1, 2), (1, -1, -1)),
    "-z": ((0, 2, 1), (1, -1, 1)),
}


class Points(NamedTuple):
    """One cloud.

    Attributes:
        points: Coordinates, (N, 3), float32.
        normals: Unit normals, (N, 3), or None. A normal that is zero in the file stays zero.
    """

    points: Tensor
    normals: Tensor | None = None


def read_points(
    path: str | Path,
    *,
    num_points: int | None,
    min_points: int | None = None,
    seed: int = 0,
    up: str = "y",
    with_normals: bool = False,
) -> Points:
    """Read a mesh or cloud file as points, in the file's own unit.

    Meshes are sampled uniformly by area; clouds give a random subset. See `MESH_EXTENSIONS` and `CLOUD_EXTENSIONS`.

    Args:
        path: The file. Text, .npy and .h5 (`data`) hold x y z, or x y z nx ny nz, a row; a part label may follow.
        num_points: How many points to return, N. None keeps all points of a cloud, in order.
        min_points: A cloud of fewer than `num_points` is returned whole if it has this many. None accepts no fewer.
        seed: Decides the sample.
        up: The file's upward axis: x, y, z, -x, -y or -z. The result is rotated so that y is up.
        with_normals: Also return normals: those of the faces, or those that the cloud's file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not what its extension says, or does not hold the points asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    if num_points is not None and num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}.")
    extension = path.suffix.lower()
    if extension in MESH_EXTENSIONS:
        content = _read_geometry(path)
    elif extension in CLOUD_EXTENSIONS:
        content = CLOUD_EXTENSIONS[extension](path)
    else:
        known = " ".join(sorted({*MESH_EXTENSIONS, *CLOUD_EXTENSIONS}))
        raise ValueError(f"{path} has an unknown extension {extension!r}; known are {known}.")
    if isinstance(content, np.ndarray):
        if num_points is not None and min_points is not None:
            num_points = max(min_points, min(num_points, len(content)))
        cloud = as_points(content, path=path, with_normals=with_normals)
        cloud = sample_points(cloud, num_points, seed=seed, path=path)
    else:
        cloud = as_points(_sample_mesh(content, num_points, seed, path), path=path, with_normals=with_normals)
    return Points(orient(cloud.points, up), None if cloud.normals is None else orient(cloud.normals, up))


def as_points(table: np.ndarray, *, path: Path, with_normals: bool = False) -> Points:
    """Check the rows of one cloud and split them into coordinates and normals.

    Args:
        table: x y z, or x y z nx ny nz, or the same with a part label behind, (N, 3 | 6 | 7).
        path: Where it came from, for the message.
        with_normals: Also return the normals, scaled to unit length.

    Raises:
        ValueError: If the rows are not points: wrong rank, columns or type, fewer than two, NaN or infinite.
    """
    if table.size == 0:
        raise ValueError(f"{path} is empty or unreadable: it holds no points.")
    if table.ndim != 2 or table.shape[1] not in (3, 6, 7) or table.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} must hold numbers in rows of x y z or x y z nx ny nz, (N, 3) or (N, 6), "
            f"got {table.dtype} of shape {table.shape}."
        )
    if len(table) == 1:
        raise ValueError(f"{path} holds one point; a cloud needs at least two.")
    with np.errstate(over="ignore"):
        columns = torch.from_numpy(table[:, :6].astype(np.float32))
    bad = int((~columns[:, :3].isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{path}: {bad} of {len(table)} points have NaN or infinite coordinates. Remove them.")
    if not with_normals:
        return Points(columns[:, :3].contiguous())
    if columns.shape[1] < 6:
        raise ValueError(f"{path} has no normals. Read it without with_normals.")
    length = columns[:, 3:].norm(dim=1)
    if not 0.5 < float(length.median()) < 1.5:
        raise ValueError(f"{path}: columns 4 to 6 are not unit normals (colours?). Read it without with_normals.")
    return Points(columns[:, :3].contiguous(), torch.nn.functional.normalize(columns[:, 3:], dim=1))


def sample_points(cloud: Points, num_points: int | None, *, seed: int = 0, path: Path | None = None) -> Points:
    """Keep a random subset of a cloud, without replacement.

    Args:
        cloud: N points.
        num_points: How many to keep, M. None keeps all; as many as there are keeps all in another order.
        seed: Decides which.
        path: Where the cloud came from, for the message.

    Raises:
        ValueError: If M exceeds N.
    """
    if num_points is None:
        return cloud
    if num_points > len(cloud.points):
        raise ValueError(f"{path or 'The cloud'} holds {len(cloud.points)} points, fewer than num_points={num_points}.")
    keep = torch.randperm(len(cloud.points), generator=torch.Generator().manual_seed(seed))[:num_points]
    return Points(cloud.points[keep], None if cloud.normals is None else cloud.normals[keep])


def normalize_points(points: Tensor) -> Tensor:
    """Move the mean to the origin and scale the farthest point to distance 1.

    Args:
        points: Coordinates, (..., N, 3).

    Returns:
        Coordinates in the unit sphere, (..., N, 3). All zeros where all points of a cloud are equal.
    """
    # Relative to one point first: equal points become exact zeros, and clouds far from the origin keep their digits.
    points = points - points[..., :1, :]
    points = points - points.mean(-2, keepdim=True)
    radius = points.norm(dim=-1, keepdim=True).amax(-2, keepdim=True)
    return points / radius.masked_fill(radius == 0, 1)


def orient(points: Tensor, up: str) -> Tensor:
    """Rotate points or normals, (..., 3), so that the axis `up` (x, y, z, -x, -y or -z) becomes y.

    Raises:
        ValueError: If `up` is none of the six.
    """
    if up not in _ORIENTATIONS:
        raise ValueError(f"up must be one of {', '.join(_ORIENTATIONS)}, got {up!r}.")
    axes, signs = _ORIENTATIONS[up]
    return points[..., axes] * points.new_tensor(signs)


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
            f"Open3D needs a system library that is missing ({error}). "
            "On Debian: apt-get install libusb-1.0-0 libegl1 libgl1 libgomp1 libx11-6"
        ) from error
    return open3d


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
        raise ValueError(f"{path} is not a table of numbers: {_first_line(error).partition(';')[0]}.") from error


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
            missing = [name for name in required if name not in file]
            if missing:
                raise ValueError(f"{path} has no array {missing[0]!r}; it holds {sorted(file) or 'nothing'}.")
            return {name: file[name][()] for name in (*required, *optional) if name in file}
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is truncated or not HDF5 ({_first_line(error)}). Obtain it again.") from error


def _is_row(line: str) -> bool:
    try:
        return len([float(word) for word in line.replace(",", " ").split()]) >= 3
    except ValueError:
        return False


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_numpy(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or the arrays of a .npz file by their names.

    Raises:
        ValueError: If it is neither, or holds Python objects.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return dict(loaded)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a NumPy file of numbers ({_first_line(error)}).") from error


def _read_numpy_cloud(path: Path) -> np.ndarray:
    arrays = read_numpy(path)
    if isinstance(arrays, np.ndarray):
        return arrays
    for name in ("points", "pos", "xyz", "data", *([*arrays] if len(arrays) == 1 else [])):
        if name in arrays:
            return arrays[name]
    raise ValueError(f"{path} must hold an array 'points', got {sorted(arrays)}.")


def _read_h5_cloud(path: Path) -> np.ndarray:
    data = read_h5(path)["data"]
    if data.ndim == 3 and len(data) != 1:
        raise ValueError(f"{path} holds {len(data)} clouds; one cloud a file is expected here, (N, 3) or (1, N, 3).")
    return data[0] if data.ndim == 3 else data


def _read_pcd(path: Path) -> np.ndarray:
    cloud = import_open3d().io.read_point_cloud(str(path))
    points = np.asarray(cloud.points)
    return np.hstack([points, np.asarray(cloud.normals)]) if cloud.has_normals() else points


def _read_geometry(path: Path) -> Any:
    """A trimesh.Trimesh, or a table where a PLY file holds a cloud."""
    import trimesh

    try:
        # process=False keeps NaN coordinates, which trimesh would drop without a word.
        if path.suffix.lower() == ".off":
            mesh = trimesh.Trimesh(*_read_off(path), process=False)
        else:
            loaded = trimesh.load(path, process=False)
            mesh = loaded.to_mesh() if isinstance(loaded, trimesh.Scene) else loaded
    except Exception as error:  # trimesh raises whatever its parsers raise
        message = f"{path} could not be read as {path.suffix.lower()} ({_first_line(error)})."
        raise ValueError(message) from error
    if path.suffix.lower() == ".ply" and not len(getattr(mesh, "faces", ())):
        columns = mesh.metadata.get("_ply_raw", {}).get("vertex", {}).get("data", {})
        names = columns if isinstance(columns, dict) else columns.dtype.names  # of text and of binary files
        normals = [np.reshape(columns[name], (-1, 1)) for name in ("nx", "ny", "nz") if name in names]
        return np.hstack([mesh.vertices, *normals])
    return mesh


def _read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and triangles (F, 3). Our own, because trimesh 5.2 fails on faces of more than four corners."""
    text = re.sub("#.*", "", path.read_text(encoding="utf-8")).lstrip()
    if not text.startswith(("OFF", "COFF")):
        raise ValueError("it does not begin with OFF")
    # Many of ModelNet40's files have the counts glued to the first word: OFF490 518 0.
    counts, *lines = [line for line in text.split("OFF", 1)[1].splitlines() if line and not line.isspace()]
    V, F = (int(word) for word in counts.split()[:2])
    if len(lines) < V + F:
        raise ValueError(f"it ends before its {V} vertices and {F} faces")
    if not V or not F:
        return np.zeros((V, 3)), np.zeros((0, 3), dtype=np.int64)
    vertices = np.loadtxt(lines[:V], usecols=(0, 1, 2), ndmin=2)
    if all(line.split(None, 1)[0] == "3" for line in lines[V : V + F]):
        faces = np.loadtxt(lines[V : V + F], usecols=(1, 2, 3), dtype=np.int64, ndmin=2)
    else:
        polygons = [[int(word) for word in line.split()[1 : 1 + int(line.split()[0])]] for line in lines[V : V + F]]
        faces = np.array([(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)], dtype=np.int64)
    if faces.size and not 0 <= faces.min() <= faces.max() < V:
        raise ValueError("a face names a vertex that is not there")
    return vertices, faces.reshape(-1, 3)


def _sample_mesh(mesh: Any, num_points: int | None, seed: int, path: Path) -> np.ndarray:
    """Points uniform by area and the normals of their faces, (N, 6)."""
    import trimesh

    if num_points is None:
        raise ValueError(f"{path} is a mesh, which is sampled: num_points must be a number.")
    if not len(getattr(mesh, "faces", ())):
        raise ValueError(f"{path} is a mesh without faces, or not a {path.suffix.lower()} file at all.")
    if not np.isfinite(mesh.vertices).all():
        raise ValueError(f"{path} has vertices with NaN or infinite coordinates.")
    if not mesh.area > 0:
        raise ValueError(f"{path} is a mesh of zero area: it has no surface to sample.")
    points, face = trimesh.sample.sample_surface(mesh, num_points, seed=seed)
    corners = mesh.triangles[face]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.hstack([points, normals])


CLOUD_EXTENSIONS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _read_numpy_cloud,
    ".npz": _read_numpy_cloud,
    **dict.fromkeys((".txt", ".csv", ".xyz", ".pts"), read_table),
    ".h5": _read_h5_cloud,
    ".hdf5": _read_h5_cloud,
    ".pcd": _read_pcd,
}
