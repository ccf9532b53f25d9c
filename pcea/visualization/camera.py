"""Where a cloud is seen from, how large its points are, and how they are shaded."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.visualization.views import View

# In degrees.
AZIMUTH, ELEVATION = 35.0, 20.0
FIELD_OF_VIEW = 30.0
# Empty space around the outline of a cloud, as a share of the side of the picture.
_BORDER = 0.03
# Pixels.
_SMALLEST_POINT = 2


class Camera(NamedTuple):
    """Where a picture is taken from.

    Attributes:
        rotation: From the coordinates of the points to x right, y down, z forwards, (3, 3).
        center: The point in the middle of the picture, (3,).
        distance: Between camera and center.
    """

    rotation: np.ndarray
    center: np.ndarray
    distance: float


def place_camera(points: Tensor, *, azimuth: float = AZIMUTH, elevation: float = ELEVATION) -> Camera:
    """Place a camera so that the points fill a square picture, and are in its middle.

    Args:
        points: (N, 3), y up.
        azimuth: Degrees around the y axis; 0 looks from +z, 90 from +x.
        elevation: Degrees above the horizon.

    Raises:
        ValueError: If all points are equal, so that there is nothing to see, or an angle is not finite.
    """
    if not (math.isfinite(azimuth) and math.isfinite(elevation)):
        raise ValueError(f"azimuth and elevation must be degrees, got {azimuth} and {elevation}.")
    if (points == points[0]).all():
        raise ValueError(f"There is nothing to see: all {len(points)} points of the cloud are equal.")
    a, e = math.radians(azimuth), math.radians(elevation)
    backwards = np.array([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
    right = np.array([math.cos(a), 0, -math.sin(a)])
    rotation = np.stack([right, np.cross(right, backwards), -backwards])  # x right, y down, z forwards
    seen = points.double().cpu().numpy() @ rotation.T
    across, depth = seen[:, :2], seen[:, 2:]
    slope = math.tan(math.radians(FIELD_OF_VIEW / 2)) / (1 + 2 * _BORDER)
    # The picture holds a point if |across - eye| <= slope * (depth - eye's depth). As near as that allows
    # for all points in both directions, but outside the cloud.
    right, left = (across - slope * depth).max(0), (-across - slope * depth).max(0)
    eye, nearest = (right - left) / 2, depth.min() - (0.02 * np.ptp(seen, axis=0).max() or 1)
    eye_depth = min(-(right + left).max() / 2 / slope, nearest)
    away = depth[:, 0] - eye_depth
    # Where there is room left, each step centres the two points at the ends of the outline.
    for _ in range(5):
        outline = (across - eye) / away[:, None]
        low, high = outline.argmin(0), outline.argmax(0)
        low_end, high_end = across[low, (0, 1)], across[high, (0, 1)]
        eye = (low_end * away[high] + high_end * away[low]) / (away[low] + away[high])
    middle = (depth.min() + depth.max()) / 2
    return Camera(rotation, np.array([*eye, middle]) @ rotation, float(middle - eye_depth))


def shade(view: View, camera: Camera) -> Tensor:
    """Shade the colours of a view, (N, 3) uint8: surfaces seen from the side are darker, as if lit from the camera.

    Hues stay those of the legend. Colours that stand for values are darkened less, because their lightness has a
    meaning. Points without a normal, or with a zero normal, keep their colour.
    """
    if view.normals is None:
        return view.colors.cpu()
    normals = view.normals.double().cpu()
    facing = (normals @ torch.from_numpy(camera.rotation[2])).abs()
    darkest = 0.7 if view.color_bar is None else 0.9
    light = torch.where(normals.any(1), darkest + (1 - darkest) * facing, 1.0)
    return (view.colors.double().cpu() * light[:, None]).round().to(torch.uint8)


def point_size(points: Tensor, camera: Camera, side: int) -> float:
    """Size of a point in pixels at which the points of a surface leave no gaps, from the area of the outline.

    Args:
        points: (N, 3).
        camera: The camera.
        side: Side of the picture, in pixels.
    """
    seen = points.double().cpu().numpy() @ camera.rotation[:2].T
    cells = 64
    low, extent = seen.min(0), max(float(np.ptp(seen, axis=0).max()), 1e-9)
    place = ((seen - low) / extent * (cells - 1)).astype(int)
    covered = len(np.unique(place[:, 0] * cells + place[:, 1])) / cells**2
    # About half of the points lie on the far side.
    return float(np.clip(2.7 * side * math.sqrt(2 * covered / len(seen)), _SMALLEST_POINT, side / 25))
