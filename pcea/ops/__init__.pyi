from .grouping import gather_points, group_neighbors
from .interpolation import interpolate_features
from .neighbors import BallNeighbors, Neighbors, ball_query, knn
from .pooling import max_neighbors, max_quadratic
from .sampling import farthest_point_sample

__all__ = [
    "BallNeighbors",
    "Neighbors",
    "ball_query",
    "farthest_point_sample",
    "gather_points",
    "group_neighbors",
    "interpolate_features",
    "knn",
    "max_neighbors",
    "max_quadratic",
]
