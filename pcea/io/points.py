"""Any mesh or cloud file -> points and normals."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from pcea.io.readers import Mesh, import_open3d, read_file

Normals = Literal["none", "file", "usable", "estimate", "required"]
_InTable = Literal["none", "file", "usable", "required"]

# New x, y, z: which old axis each one is, and with which sign. Every one is a rotation (determinant 1).
_ORIENTATIONS = {
    "x": ((1, 0, 2), (-1, 1, 1)),
    "y": ((0, 1, 2), (1, 1, 1)),
    "z": ((0, 2, 1), (1, 1, -1)),
    "-x": ((1, 0, 2), (1, -1, 1)),
    "-y": ((0, 1, 2), (1, -1, -1)),
    "-z": ((0, 2, 1), (1, -1, 1)),
}
# Neighbours that give a point's plane, and those it agrees with on a side. More of either reach through thin parts: on
# 57 shapes of Labeled PSB 94 % of the sides are right and 81 % of the labels, with 30 and 30 only 83 % and 73 %.
_NORMAL_NEIGHBORS = 12
_SIDE_NEIGHBORS = 8
# Points whose sides are found one from another, which takes time and memory. With 100,000 of them 98 % of the points of
# a thin chair look to the right side, with 50,000 only 75 %.
_MAX_ORIENTED = 100_000


class Normalization(NamedTuple):
    """The move and the scale that bring a cloud's mean to the origin and its farthest point to distance 1.

    Made by `Normalization.of`. The center is kept as one of the points and the way from there, so that equal points
    become exact zeros and clouds far from the origin keep their digits.

    Attributes:
        origin: The first point, (..., 1, 3).
        offset: The mean relative to it, (..., 1, 3).
        scale: Distance of the farthest point from the mean, (..., 1, 1); 1 where all points are equal.
    """

    origin: Tensor
    offset: Tensor
    scale: Tensor

    @classmethod
    def of(cls, points: Tensor, *, mask: Tensor | None = None) -> Normalization:
        """The normalization of points (..., N, 3), in their dtype; in float64 where squares would leave float32.

        Of padded clouds only the real points count, where a mask (..., N) is True; each has at least one.
        """
        if mask is not None:  # padding becomes the first real point, and so zero
            first = mask.int().argmax(-1)[..., None, None].expand(*points.shape[:-2], 1, 3)
            points = torch.where(mask.unsqueeze(-1), points, points.gather(-2, first))
        if points.dtype == torch.float32 and points.numel() and not 1e-10 < points.abs().max() < 1e15:
            points = points.double()
        origin = points[..., :1, :]
        points = points - origin
        offset = points.mean(-2, keepdim=True)
        if mask is not None:
            offset = offset * (mask.shape[-1] / mask.sum(-1)[..., None, None])
        radius = (points - offset).norm(dim=-1, keepdim=True).amax(-2, keepdim=True)
        return cls(origin, offset, radius.masked_fill(radius == 0, 1))

    @property
    def center(self) -> Tensor:
        """The mean of the points, (..., 1, 3)."""
        return self.origin + self.offset

    def apply(self, points: Tensor) -> Tensor:
        """Points (..., M, 3) of the cloud's coordinates in those of the unit sphere."""
        return (points - self.origin - self.offset) / self.scale

    def restore(self, points: Tensor) -> Tensor:
        """Points (..., M, 3) of the unit sphere in the cloud's coordinates."""
        return points * self.scale + self.offset + self.origin


class TooFewPointsError(ValueError):
    """A file holds fewer points than are asked for.

    Attributes:
        count: How many it holds.
    """

    count = 0


class Points(NamedTuple):
    """One cloud.

    Attributes:
        points: Coordinates, (N, 3), float32; float64 where that would lose digits, as with UTM (see `as_points`).
        normals: Unit normals, (N, 3), float32, or None. A normal that is zero in the file stays zero.
    """

    points: Tensor
    normals: Tensor | None = None

    @property
    def normalization(self) -> Normalization:
        """What brings the points into the unit sphere, as networks expect them, and results back."""
        return Normalization.of(self.points)


def load_points(
    path: str | Path,
    num_points: int | None = None,
    *,
    mesh_points: int = 10_000,
    min_points: int | None = None,
    seed: int = 0,
    up: str = "y",
    normals: Normals = "none",
) -> Points:
    """Load a mesh or cloud file as points, in the file's own unit.

    Meshes (OFF, OBJ, STL, PLY, GLB, glTF, DAE, 3MF) are sampled uniformly by area; those without faces are clouds.
    Clouds (also PCD, LAS, LAZ, TXT, CSV, XYZ, ASC, XYZN, XYZRGB, PTS, NPY, NPZ, H5) give all of their points in order,
    or a random subset. In text, columns x y z and perhaps nx ny nz are found by name if there is a header, else they
    come first; columns 4 to 6 of .xyzrgb, and those of .pts unless it has six, are intensity and colours. .npy files
    have rows x y z or x y z nx ny nz, or fields of these names; .npz and .h5 files hold arrays `points` or `data`, and
    perhaps `normals`. Points of NaN in PCD and PLY clouds are left out with a warning; in other files, where nobody
    writes them on purpose, they are an error. Points at 0, 0, 0 are left out of all clouds with a warning, if they are
    more than one and more than 1 %.

    Args:
        path: The file.
        num_points: How many points to return, N. None: all points of a cloud, and `mesh_points` of a mesh.
        mesh_points: How many points to sample on a mesh if `num_points` is None.
        min_points: A cloud of fewer than `num_points` is returned whole if it has this many. None accepts no fewer.
        seed: Decides the sample.
        up: The file's upward axis: x, y, z, -x, -y or -z. The result is rotated so that y is up.
        normals: `none`; `file`: those of a mesh's faces or that a cloud's file holds, None if it holds none;
            `usable`: the same, but None also if some are NaN or infinite, which otherwise is an error; `required`: an
            error if it holds none; `estimate`: by `estimate_normals` of the points that are returned if it holds none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not what its extension says, or does not hold the points asked for.
        ImportError: If the format needs a package that cannot be imported.
    """
    path = Path(path)
    for name, count in (("num_points", num_points), ("mesh_points", mesh_points)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    if normals not in get_args(Normals):
        raise ValueError(f"normals must be one of {', '.join(get_args(Normals))}, got {normals!r}.")
    content = read_file(path)
    wanted = "file" if normals == "estimate" else normals
    if isinstance(content, Mesh):
        points, of_faces = _sample_mesh(content, mesh_points if num_points is None else num_points, seed, path)
        cloud = as_points(points, path=path)
        if wanted != "none":
            if not of_faces.isfinite().all():
                raise ValueError(f"{path} has faces of which no normals can be computed: too large, or too small.")
            cloud = cloud._replace(normals=of_faces)
    else:
        cloud = leave_out_empty(as_points(content, path=path, normals=wanted), str(path))
        cloud = sample_points(cloud, num_points, min_points=min_points, seed=seed, path=path)
    if normals == "estimate" and cloud.normals is None:
        cloud = cloud._replace(normals=estimate_normals(cloud.points))
    return Points(orient(cloud.points, up), None if cloud.normals is None else orient(cloud.normals, up))


def as_points(table: np.ndarray, *, path: Path, normals: _InTable = "none") -> Points:
    """Check the rows of one cloud and split them into coordinates and normals.

    Args:
        table: x y z, or x y z nx ny nz, a row, and at most 10 columns in all, of which the others are ignored, (N, C).
        path: Where it came from, for the message.
        normals: `none`, `file`, `usable` or `required`, as for `load_points`. They are scaled to unit length; columns 4
            to 6 are taken for normals if most nearly have it.

    Returns:
        The points; in float32 if it moves none by more than 2^-22 of the cloud's extent, as it does not unless the
        origin is several times as far as the cloud is large, else in float64.

    Raises:
        ValueError: If the rows are not points: wrong rank, columns or type, fewer than two, NaN or infinite.
    """
    if table.size == 0:
        raise ValueError(f"{path} is empty or unreadable: it holds no points.")
    transposed = ": transpose it" if table.ndim == 2 and table.shape[0] in (3, 6) else ""
    if table.ndim != 2 or not 3 <= table.shape[1] <= 10 or table.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} must hold numbers in rows of x y z or x y z nx ny nz, (N, 3) or (N, 6), perhaps with columns "
            f"behind, 10 at most; got {table.dtype} of shape {table.shape}{transposed}."
        )
    if len(table) == 1:
        raise ValueError(f"{path} holds one point; a cloud needs at least two.")
    exact = table[:, :3].astype(np.float64, order="C")
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    bad = int((~np.isfinite(rounded)).any(1).sum())
    if bad:
        raise ValueError(f"{path}: {bad} of {len(table)} points have NaN or infinite coordinates. Remove them.")
    is_exact = np.abs(rounded - exact).max() <= np.ptp(exact, axis=0).max() * 2.0**-22
    points = torch.from_numpy(rounded if is_exact else exact)
    return Points(points, None if normals == "none" else _find_normals(table, path, normals))


def _find_normals(table: np.ndarray, path: Path, normals: _InTable) -> Tensor | None:
    columns = torch.from_numpy(table[:, 3:6].astype(np.float32))
    # Colours in 0..1 are about as long, but differ in it, or have no negative value.
    is_unit = columns.shape[1] == 3 and float((columns.norm(dim=1) - 1).abs().nanmedian()) < 0.1
    if is_unit and (normals == "required" or not _are_pure_colors(columns)):
        bad = int((~columns.isfinite()).any(1).sum())
        if bad and normals == "usable":
            return None
        if bad:
            raise ValueError(f"{path}: {bad} of {len(columns)} normals are NaN or infinite. Remove or repair them.")
        return torch.nn.functional.normalize(columns, dim=1)
    if normals in ("file", "usable"):
        return None
    if columns.shape[1] < 3:
        raise ValueError(f"{path} has no normals. Read it without them.")
    raise ValueError(f"{path}: columns 4 to 6 are not unit normals (colours?). Read it without them.")


def _are_pure_colors(columns: Tensor) -> bool:
    """Whether columns (N, 3) are grey, or have no negative value and differ: normals that are alike are a plane's."""
    if not (columns >= 0).all():
        return False
    return bool((columns == columns[:, :1]).all()) or bool((columns != columns[:1]).any())


def leave_out_empty(cloud: Points, name: str) -> Points:
    """A cloud without points that stand for nothing; arguments and errors as for `empty_points`."""
    is_empty = empty_points(cloud.points, name)
    if is_empty is None:
        return cloud
    return Points(cloud.points[~is_empty], None if cloud.normals is None else cloud.normals[~is_empty])


def empty_points(points: Tensor, name: str) -> Tensor | None:
    """Which points are 0, 0, 0 as where a depth camera saw nothing; None if there are no more than by chance.

    Args:
        points: One cloud, (N, 3).
        name: The file, for messages; there is a warning that counts them.

    Returns:
        A mask, (N,), or None.

    Raises:
        ValueError: If all others are in one place.
    """
    is_empty = (points == 0).all(1)
    rest = points
    if max(1, 0.01 * len(points)) < int(is_empty.sum()) < len(points):  # one may be there by chance
        rest = points[~is_empty]
        warnings.warn(
            f"{name}: {int(is_empty.sum())} of {len(is_empty)} points are 0, 0, 0, as where a depth camera saw "
            "nothing, and are left out.",
            stacklevel=3,
        )
    if (rest == rest[0]).all():
        raise ValueError(f"{name}: all {len(rest)} points are in one place, so there is no shape.")
    return None if rest is points else is_empty


def sample_points(
    cloud: Points, num_points: int | None, *, min_points: int | None = None, seed: int = 0, path: Path | None = None
) -> Points:
    """Keep a random subset of a cloud, without replacement.

    Args:
        cloud: N points.
        num_points: How many to keep, M. None keeps all; as many as there are keeps all in another order.
        min_points: A cloud of fewer than M is kept whole, in another order, if it has at least this many.
        seed: Decides which.
        path: Where the cloud came from, for the message.

    Raises:
        ValueError: If M exceeds N, and `min_points` too.
    """
    if num_points is None:
        return cloud
    least = num_points if min_points is None else min(min_points, num_points)
    if least > len(cloud.points):
        error = TooFewPointsError(
            f"{path or 'The cloud'} holds {len(cloud.points)} points, fewer than num_points={least}."
        )
        error.count = len(cloud.points)
        raise error
    keep = torch.randperm(len(cloud.points), generator=torch.Generator().manual_seed(seed))[:num_points]
    return Points(cloud.points[keep], None if cloud.normals is None else cloud.normals[keep])


def normalize_points(points: Tensor) -> Tensor:
    """Move the mean to the origin and scale the farthest point to distance 1.

    Args:
        points: Coordinates, (..., N, 3).

    Returns:
        Coordinates in the unit sphere, as networks take them, (..., N, 3), float32. All zeros where all points of a
        cloud are equal.

    Raises:
        ValueError: If a coordinate is NaN or infinite.
    """
    normalized = Normalization.of(points).apply(points).float()
    if not normalized.isfinite().all():
        raise ValueError("Points with NaN or infinite coordinates cannot be normalized.")
    return normalized


def orient(points: Tensor, up: str) -> Tensor:
    """Rotate points or normals, (..., 3), so that the axis `up` (x, y, z, -x, -y or -z) becomes y.

    Raises:
        ValueError: If `up` is none of the six.
    """
    check_axis(up)
    axes, signs = _ORIENTATIONS[up]
    return points[..., axes] * points.new_tensor(signs)


def check_axis(up: str) -> None:
    """Refuse an upward axis that is none of x, y, z, -x, -y and -z."""
    if up not in _ORIENTATIONS:
        raise ValueError(f"up must be one of {', '.join(_ORIENTATIONS)}, got {up!r}.")


def estimate_normals(points: Tensor) -> Tensor:
    """Unit normals of the planes through each point and its neighbours, pointing outwards where that can be told.

    Args:
        points: Coordinates of one cloud, (N, 3).

    Returns:
        Normals, (N, 3), float32.

    Raises:
        ImportError: If Open3D cannot be imported.

    Source:
        Hoppe et al., 1992, for the side, as in Open3D; it leaves the side of the whole to chance. We turn it so that
        the outermost points of 200 directions look outwards. Of a large cloud a random part is treated so, and all
        other points look to the side of the nearest of these.
    """
    open3d = import_open3d()
    xyz = normalize_points(points).double().numpy()
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(_NORMAL_NEIGHBORS))
    chosen = np.random.default_rng(0).permutation(len(xyz))[:_MAX_ORIENTED]
    some = cloud.select_by_index(chosen) if len(chosen) < len(xyz) else cloud
    try:
        some.orient_normals_consistent_tangent_plane(_SIDE_NEIGHBORS)
    except RuntimeError:  # a flat cloud has no tetrahedra, and no outside
        some.orient_normals_to_align_with_direction()
    normals = np.array(cloud.normals)
    if some is not cloud:
        from scipy.spatial import KDTree

        nearest = KDTree(np.asarray(some.points)).query(xyz)[1]
        normals[(normals * np.asarray(some.normals)[nearest]).sum(1) < 0] *= -1
    directions = np.random.default_rng(0).normal(size=(200, 3))
    outermost = [int((xyz @ direction).argmax()) for direction in directions]
    side = -1 if (normals[outermost] * directions).sum() < 0 else 1
    return torch.from_numpy(side * normals).float()


def _sample_mesh(mesh: Mesh, num_points: int, seed: int, path: Path) -> tuple[np.ndarray, Tensor]:
    """Points uniform by area, (N, 3), and the normals of their faces, (N, 3) float32."""
    import trimesh

    if not len(mesh.faces):
        raise ValueError(f"{path} is a mesh without faces, or not a {path.suffix.lower()} file at all.")
    if not np.isfinite(mesh.vertices[mesh.faces]).all():
        raise ValueError(f"{path} has vertices with NaN or infinite coordinates.")
    surface = trimesh.Trimesh(*mesh, process=False)
    if not surface.area > 0:
        raise ValueError(f"{path} is a mesh of zero area: it has no surface to sample.")
    points, face = trimesh.sample.sample_surface(surface, num_points, seed=seed)
    corners = surface.triangles[face]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return points, torch.from_numpy(normals).float()
