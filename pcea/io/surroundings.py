"""What a file may hold beside its shape: points far away, the ground or pedestal that it stands on, and a wall."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pcea.io.points import Points, sample_points

Rows = NDArray[np.float64]

# Strays are at most this share of the points, and without them the shape is that much smaller. They lie further from
# others than half the distance within which nearly all points lie. A sample of fewer points says nothing, and all pairs
# of more take too much memory.
_STRAYS, _SMALLER, _APART, _FEWEST, _MOST = 0.05, 0.8, 0.5, 96, 4096
# Of a whole file they are looked for among so many points, and those that are farthest from the middle of all.
_LOOKED_AT, _FARTHEST = 1024, 16
# Ground has at least this share of the points and is wider than what stands on it; lengths are in radii of the cloud:
# half its thickness, and how deep something else may reach below it at so small a share of the points.
_GROUND, _WIDER, _THIN, _DEEP, _BELOW = 0.08, 1.1, 0.02, 0.08, 0.015
# Where nearly all points are of one plane, what stands on it may be low, and is looked for above a thinner one.
_FLAT, _THINNER = 0.9, 0.004
# Points of a file by which ground is measured once it is found; planes that are tried, and followed.
_DENSE, _TRIED, _FOLLOWED = 65_536, 150, 25
# The top of a pedestal has at least this share of the points, and so has what is below; their outlines differ by less.
_TOP, _SAME_OUTLINE = 0.05, 0.1
# The cosine up to which a plane is level.
_UPRIGHT = 0.9
# Fewest points that are a shape of their own; planes that may be around one.
_STANDING, _PLANES = 64, 2
# What has been left out with so many planes, of ground or wall and of pedestals.
_NAMES = {
    (1, 0): "the ground under it",
    (2, 0): "the ground and the wall around it",
    (0, 1): "the pedestal under it",
    (0, 2): "the pedestals under it",
    (1, 1): "the ground and the pedestal under it",
}


class SupportPlane(NamedTuple):
    """A plane that a shape stands on, or before.

    Attributes:
        point: On the plane, (3,).
        normal: Towards the shape, of unit length, (3,).
        thickness: Points nearer to the plane belong to it.
        width: Ratio of the area of its outline to that of what stands on it.
        is_pedestal: Whether it is the top of a pedestal, all of which is below the plane.
    """

    point: Rows
    normal: Rows
    thickness: float
    width: float
    is_pedestal: bool = False

    def enlarged(self, center: Rows, radius: float) -> SupportPlane:
        """The same plane in the coordinates of a cloud that was brought into the unit ball."""
        return self._replace(point=self.point * radius + center, thickness=self.thickness * radius)

    def is_under(self, points: Tensor) -> Tensor:
        """Which points are of the ground, or below it: (N,) for (N, 3)."""
        height = (points.double().numpy() - self.point) @ self.normal
        return torch.from_numpy(height <= self.thickness)


class SurroundedShape(Points):
    """The cloud of a file, and what is left of it without the planes around it.

    Attributes:
        planes: The ground, and what is found when that is left out, as a wall; each may also be a part of the shape,
            as of a table that lies on its top.
        standing: For each, the cloud without it and those before it, resampled to the same number of points where the
            file has enough.
        reach: Points of the file that are further from the middle of the cloud are strays.
    """

    planes: tuple[SupportPlane, ...] = ()
    standing: tuple[Points, ...] = ()
    reach: float = math.inf

    def includes(self, points: Tensor, num_planes: int = 0) -> Tensor:
        """Which points of the same file are no strays, and not of the first planes or behind them: (N,) for (N, 3)."""
        included = (points - self.points.mean(0)).norm(dim=1) <= self.reach
        for plane in self.planes[:num_planes]:
            included &= ~plane.is_under(points)
        if num_planes:  # the highest points of rough ground lie far from all of the shape
            rest = self.standing[num_planes - 1].points
            included &= (points - rest.mean(0)).norm(dim=1) <= _reach(rest)
        return included

    def stands_on(self, num_planes: int, up: Tensor) -> bool:
        """Whether one of the first planes is below, with an upward direction (3,)."""
        return any(float(up.double().numpy() @ plane.normal) > _UPRIGHT for plane in self.planes[:num_planes])

    def name_of_planes(self, num_planes: int) -> str:
        """What the first planes are, such as "the ground under it"."""
        pedestals = sum(plane.is_pedestal for plane in self.planes[:num_planes])
        return _NAMES[num_planes - pedestals, pedestals]

    def choose(self, others: Points, num_planes: int = 0) -> Points:
        """Those of other points of the same file that the shape includes."""
        included = self.includes(others.points, num_planes)
        return others if included.all() else choose_points(others, included)


def leave_out_strays(cloud: Points, name: str) -> SurroundedShape:
    """A cloud without the few points that lie far from all others, with a warning that names the file.

    Of fewer than 96 points none is left out: they say nothing about where the shape ends.
    """
    if len(cloud.points) <= _MOST:
        strays = find_strays(cloud.points)
    else:
        far = ~shape_of(cloud, seed=0).includes(cloud.points)
        strays = far if far.any() else None
    if strays is not None:
        share = f"{100 * strays.double().mean():.1f} % of the points"  # of a sample of the file
        warnings.warn(f"{name}: {share} lie far from all others and are left out.", stacklevel=3)
    return shape_without(cloud, strays)


def shape_of(cloud: Points, *, seed: int) -> SurroundedShape:
    """A sample of the shape in a whole cloud, without strays; these are looked for among the outermost points too."""
    sample = sample_points(cloud, min(len(cloud.points), _LOOKED_AT), seed=seed)
    far = (cloud.points - sample.points.median(0).values).norm(dim=1).topk(min(len(cloud.points), _FARTHEST)).indices
    strays = find_strays(torch.cat([sample.points, cloud.points[far]]))
    return shape_without(sample, None if strays is None else strays[: len(sample.points)])


def shape_without(cloud: Points, strays: Tensor | None) -> SurroundedShape:
    """A cloud without its strays, (N,), if there are any."""
    if strays is None:
        return SurroundedShape(*cloud)
    shape = SurroundedShape(*choose_points(cloud, ~strays))
    shape.reach = _reach(shape.points)
    return shape


def _reach(points: Tensor) -> float:
    """How far from the middle of a sample other points of its shape may lie."""
    return 1.1 * float((points - points.mean(0)).norm(dim=1).max())


def find_standing(
    shape: SurroundedShape, load: Callable[[int], Points], num_points: int, *, seed: int, pedestals: bool = True
) -> None:
    """Look for the ground or pedestal that a shape stands on, for a wall, and for what is left without them.

    Args:
        shape: A sample of a file; what is found is added to it.
        load: Gives a sample of so many points, or all that there are.
        num_points: Points of what stands on the ground.
        seed: Decides which.
        pedestals: Whether pedestals are looked for too.
    """
    rest, dense = Points(*shape), None
    for _ in range(_PLANES):
        ground = find_ground(rest.points) or (find_pedestal(rest.points) if pedestals else None)
        if ground is None:
            break
        if dense is None:
            # Of strays so few that the sample has none, some are among many points.
            with warnings.catch_warnings():  # what is wrong with the file was said when the sample was read
                warnings.simplefilter("ignore")
                dense = shape.choose(load(_DENSE))
            dense = shape_of(dense, seed=seed).choose(dense)
        rows = dense.points.double().numpy()
        ground = _measure(rows, ground)
        above = ~ground.is_under(dense.points)
        if above.sum() < _STANDING:
            break
        ground = ground._replace(width=_width(rows, ground.normal, above.numpy()))
        if ground.width < _WIDER:
            break
        dense = choose_points(dense, above)
        # Of rough ground some points are left, which are strays then.
        dense = shape_of(dense, seed=seed).choose(dense)
        rest = sample_points(dense, min(num_points, len(dense.points)), seed=seed)
        shape.planes += (ground,)
        shape.standing += (rest,)


def find_ground(points: Tensor) -> SupportPlane | None:
    """The plane at one end of a cloud (N, 3) with the most points, if it is wider than all else; or None."""
    from scipy.spatial import KDTree

    rows, center, radius = _in_unit_ball(points)
    if len(rows) < 4 * _STANDING:
        return None
    # Planes through neighbourhoods of random points, and the sides of the box around the cloud.
    chosen = np.random.default_rng(0).permutation(len(rows))[:_TRIED]
    near = rows[KDTree(rows).query(rows[chosen], k=16)[1]]
    middle = near.mean(1)
    normals = np.linalg.svd(near - middle[:, None], full_matrices=False)[2][:, 2]
    normals = np.concatenate([normals, np.eye(3), np.eye(3)])
    offsets = np.concatenate([(middle * normals[: len(middle)]).sum(1), rows.min(0), rows.max(0)])
    distance = np.abs(rows @ normals.T - offsets)
    found = _largest(rows, distance, _THIN)
    if found is None and (distance <= _THINNER).mean(0).max() >= _FLAT:
        found = _largest(rows, distance, _THINNER)
    return None if found is None else found.enlarged(center, radius)


def find_pedestal(points: Tensor) -> SupportPlane | None:
    """The top of a pedestal under a shape (N, 3): of the levels along the axes that may be one, that of most points.

    It is as wide as all below it, and wider than all above.
    """
    rows, center, radius = _in_unit_ball(points)
    best, most = None, max(_TOP * len(rows), 8)
    for direction in np.concatenate([np.eye(3), -np.eye(3)]):
        height = rows @ direction
        for level in _levels(height):
            flat = np.abs(height - level) <= _THIN / 2
            above, below = height > level + _THIN, height < level - _THIN / 2
            if flat.sum() <= most or above.sum() < _STANDING or below.sum() < most:
                continue
            width = _width(rows, direction, above, flat)
            if width >= _WIDER and abs(_width(rows, direction, below, flat) - 1) <= _SAME_OUTLINE:
                best, most = SupportPlane(level * direction, direction, _THIN, width, is_pedestal=True), int(flat.sum())
    return None if best is None else best.enlarged(center, radius)


def _in_unit_ball(points: Tensor) -> tuple[Rows, Rows, float]:
    """Points less their mean and over their greatest distance from it; these two."""
    rows = points.double().numpy()
    center = rows.mean(0)
    radius = float(np.linalg.norm(rows - center, axis=1).max())
    return (rows - center) / radius, center, radius


def _levels(height: Rows) -> Rows:
    """Heights at which there are more points than just above and below."""
    bins = np.arange(height.min() - _THIN / 2, height.max() + _THIN, _THIN / 2)
    count = np.histogram(height, bins)[0]
    around = count[:-1] + count[1:]  # of the edges between two bins
    is_peak = (around[1:-1] >= around[:-2]) & (around[1:-1] >= around[2:]) & (around[1:-1] >= _TOP * len(height))
    return bins[2:-2][is_peak]


def _largest(rows: Rows, distance: Rows, thin: float) -> SupportPlane | None:
    """The plane with the most points (N, 3), of those at the distances (N, P) from them, that may be ground."""
    inside = distance <= thin
    best, most = None, 0
    for number in inside.sum(0).argsort()[::-1][:_FOLLOWED]:
        found = _follow(rows, inside[:, number], thin)
        if found is None:
            continue
        middle, normal, height = found
        count, above = int((np.abs(height) <= thin).sum()), height > 2 * thin
        if count < max(most + 1, _GROUND * len(rows)) or (height < -_DEEP).mean() > _BELOW or above.sum() < 2:
            continue
        width = math.inf if above.sum() < 16 else _width(rows, normal, above, height <= thin)
        if width >= _WIDER:
            best, most = SupportPlane(middle, normal, thin, width), count
    return best


def _follow(rows: Rows, inside: NDArray[np.bool_], thin: float) -> tuple[Rows, Rows, Rows] | None:
    """Fit a plane to the points inside, and again to those then near it: its middle, normal, and all heights above."""
    for _ in range(3):
        if inside.sum() < max(8, _GROUND * len(rows) / 2):
            return None
        middle, normal = _fit(rows[inside])
        height = (rows - middle) @ normal
        if (height > thin).sum() < (height < -thin).sum():
            height, normal = -height, -normal
        inside = np.abs(height) <= thin
    return middle, normal, height


def _fit(rows: Rows) -> tuple[Rows, Rows]:
    """Middle and unit normal of the plane nearest to points."""
    middle = rows.mean(0)
    return middle, np.linalg.eigh(np.cov((rows - middle).T))[1][:, 0]


def _measure(rows: Rows, ground: SupportPlane) -> SupportPlane:
    """The plane fitted anew to many points, and no thicker than they make it."""
    for _ in range(3):
        height = (rows - ground.point) @ ground.normal
        flat, above = np.abs(height) <= ground.thickness, height > ground.thickness
        if flat.sum() < 16 or above.sum() < _STANDING:
            break
        flat &= height >= np.median(height[flat])  # its upper side, if it is a slab
        middle, normal = _fit(rows[flat])
        normal = normal if normal @ ground.normal > 0 else -normal
        height = np.abs((rows[flat] - middle) @ normal)
        size = np.linalg.norm(rows[above] - rows[above].mean(0), axis=1).max()
        thickness = min(ground.thickness, 2 * float(np.quantile(height, 0.75)) + 0.01 * float(size))
        ground = ground._replace(point=middle, normal=normal, thickness=thickness)
    return ground


def _width(rows: Rows, normal: Rows, above: NDArray[np.bool_], below: NDArray[np.bool_] | None = None) -> float:
    """Ratio of the outline's area of what is below to that of what is above, along the normal; 0 if one is a line."""
    from scipy.spatial import ConvexHull, QhullError

    flat = rows @ np.linalg.svd(normal[None])[2][1:].T
    try:
        wide, narrow = (ConvexHull(flat[kept]).volume for kept in (~above if below is None else below, above))
    except QhullError:  # a line
        return 0.0
    return float(wide / narrow)


def find_strays(points: Tensor) -> Tensor | None:
    """Which of a sample of points (N, 3) are few and far from all others, (N,).

    None if there are none, and for fewer than 96 points or more than 4,096.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    rows = points.double().numpy()
    if not _FEWEST <= len(rows) <= _MOST:
        return None
    distance = np.linalg.norm(rows - np.median(rows, axis=0), axis=1)
    usual = np.quantile(distance, 1 - _STRAYS)
    if not _SMALLER * distance.max() > usual > 0:  # as of nearly all files
        return None
    pairs = KDTree(rows).query_pairs(_APART * usual, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs), bool), pairs.T), (len(rows), len(rows)))
    group = connected_components(links, directed=False)[1]
    kept = (np.bincount(group) > _STRAYS * len(rows))[group]
    if kept.all() or (~kept).mean() > _STRAYS:
        return None
    return torch.from_numpy(~kept) if _radius(rows[kept]) < _SMALLER * _radius(rows) else None


def _radius(rows: Rows) -> float:
    return float(np.linalg.norm(rows - rows.mean(0), axis=1).max())


def choose_points(cloud: Points, kept: Tensor) -> Points:
    """The points, with their normals, that a mask (N,) or their numbers choose."""
    return Points(cloud.points[kept], None if cloud.normals is None else cloud.normals[kept])
