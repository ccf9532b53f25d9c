"""Clouds to draw, and how to find their colours in a picture."""

import numpy as np
import torch

from pcea.visualization.renderer import Renderer
from pcea.visualization.views import View

WHITE, ORANGE, SKY_BLUE, GREEN = (255, 255, 255), (230, 159, 0), (86, 180, 233), (0, 158, 115)


def grid(side):
    """side x side points of a unit square that faces +z, (side², 3)."""
    place = torch.linspace(0, 1, side)
    return torch.cartesian_prod(place, place, torch.zeros(1))


def sphere(count):
    """Random points of the unit sphere, (count, 3)."""
    return torch.nn.functional.normalize(torch.randn(count, 3), dim=1)


def one_color(points, color, **fields):
    return View(points, torch.tensor(color, dtype=torch.uint8).repeat(len(points), 1), **fields)


def draw(view, *, size=100, **angles):
    with Renderer(size) as renderer:
        return renderer.draw(view, **angles)


def is_color(picture, color):
    return (picture == np.array(color)).all(-1)


def ink(picture):
    """The pixels that are not white."""
    return (picture < 250).any(-1)


def project(points, camera):
    """Positions of points in a picture of a pinhole camera, from -1 (left, top) to 1 (right, bottom)."""
    x, y, z = camera.rotation @ (points.double().numpy() - camera.center).T + [[0], [0], [camera.distance]]
    assert (z > 0).all()
    return np.stack([x, y], axis=1) / z[:, None] / np.tan(np.radians(15))
