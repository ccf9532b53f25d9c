"""Geometry of batched point clouds, on any device."""

from pcea.ops.grouping import gather_points, group_neighbors
from pcea.ops.interpolation import interpolate_features
from pcea.ops.neighbors import BallNeighbors, Neighbors, ball_query, knn
from pcea.ops.sampling import farthest_point_sample

__all__ = [
    "BallNeighbors",
    "Neighbors",
    "ball_query",
    "farthest_point_sample",
    "gather_points",
    "group_neighbors",
    "interpolate_features",
    "knn",
]
