"""What is seen of a cloud from the neighbours of its points: surfaces, and gaps where thin rods get too few samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.visualization.views import View

# How many neighbours of a point, besides itself, show how dense the cloud is there and in which direction a rod goes.
_NEIGHBORS = 8
# Points farther apart than this multiple of the usual distance to the last of these neighbours do not touch when drawn.
_CONTACT = 1.2
# Points farther apart than this multiple are outliers, not ends of a gap.
_LONGEST = 100
# Points whose neighbours are held at the same time.
_CHUNK = 1 << 16


class Bridges(NamedTuple):
    """Points that close the gaps of a cloud's rods.

    Attributes:
        points: (M, 3).
        nearest: The point of the cloud that is nearest to each, (M,) int64.
    """

    points: Tensor
    nearest: Tensor

    def add_to(self, view: View) -> View:
        """The view with these points, each coloured like the nearest of its own; to draw only, so without `values`."""
        return view._replace(
            points=torch.cat([view.points, self.points.to(view.points)]),
            colors=torch.cat([view.colors, view.colors[self.nearest]]),
            normals=None if view.normals is None else torch.cat([view.normals, view.normals[self.nearest]]),
            values=None,
        )


def bridge_gaps(points: Tensor) -> Bridges:
    """Find the gaps of thin rods, and points that close them in straight lines.

    There is a gap between two neighbours if they do not touch, no neighbour of either lies between them, and all their
    neighbours lie close to one line. So surfaces, holes, outliers and the noise of scans stay as they are.

    Args:
        points: One cloud, (N, 3).
    """
    table = points.double().cpu().numpy()
    distance, index = find_neighbors(table)
    usual = float(np.median(distance[:, -1]))
    # If most points coincide, nothing is known about the distance of the others.
    start, column = np.nonzero((distance > _CONTACT * usual) & (distance < _LONGEST * usual))
    end = index[start, column]
    for side in (0, 1):  # one after the other, because few pairs pass the first
        keep = _is_gap(table, start, end, index[(start, end)[side]], usual)
        start, end = start[keep], end[keep]
    # A gap can be found from both of its ends.
    start, end = np.unique(np.sort([start, end], axis=0), axis=1)
    length = np.linalg.norm(table[end] - table[start], axis=1)
    added = np.ceil(2 * length / (usual or 1.0)).astype(int) - 1
    gap = np.repeat(np.arange(len(added)), added)
    number = np.arange(len(gap)) - np.repeat(added.cumsum() - added, added) + 1
    share = (number / (added[gap] + 1))[:, None]
    bridges = (1 - share) * table[start[gap]] + share * table[end[gap]]
    nearest = np.where(share[:, 0] < 0.5, start[gap], end[gap])
    return Bridges(torch.from_numpy(bridges).to(points.dtype), torch.from_numpy(nearest))


def surface_normals(points: Tensor) -> Tensor | None:
    """Estimate normals for shading: the direction in which the neighbours of a point spread least.

    Args:
        points: One cloud, (N, 3).

    Returns:
        Unit vectors, (N, 3) fp32, of arbitrary sign; None if there are fewer than four points.
    """
    if len(points) < 4:
        return None
    table = points.double().cpu().numpy()
    near, normals = find_neighbors(table)[1], []
    for chunk in np.array_split(near, math.ceil(len(near) / _CHUNK)):
        offsets = table[chunk] - table[chunk].mean(1, keepdims=True)
        spread = torch.from_numpy(np.einsum("nki,nkj->nij", offsets, offsets))
        normals.append(torch.linalg.eigh(spread).eigenvectors[..., 0].float())  # eigenvalues ascend
    return torch.cat(normals)


def find_neighbors(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distances and the indices of each point's nearest points, (N, K) each: itself and the eight next, in order.

    K is less than nine in a cloud of fewer than nine points.

    Args:
        points: (N, 3).
    """
    from scipy.spatial import KDTree

    tree = KDTree(points)
    # Neighbours one after another: at a million points that takes half of the time.
    found = tree.query(points[tree.indices], k=np.arange(min(1 + _NEIGHBORS, len(points))) + 1)
    distance, index = (np.empty_like(values) for values in found)
    distance[tree.indices], index[tree.indices] = found
    return distance, index


def _is_gap(points: np.ndarray, start: np.ndarray, end: np.ndarray, near: np.ndarray, width: float) -> np.ndarray:
    """Whether the points `near`, (E, K), of each pair lie along its line, but not between the two, (E,)."""
    line = points[end] - points[start]
    length = np.linalg.norm(line, axis=1, keepdims=True)
    offset = points[near] - points[start][:, None]
    along = (offset @ (line / length)[..., None])[..., 0]
    # Not by Pythagoras, which would cancel far along the line.
    squared_distance = ((offset - along[..., None] * (line / length)[:, None]) ** 2).sum(2)
    is_between = (along > 1e-9 * length) & (along < (1 - 1e-9) * length)
    return ((squared_distance < width**2) & ~is_between).all(1)
