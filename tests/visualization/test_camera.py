import numpy as np
import pytest
import torch
from pictures import grid, project

from pcea.visualization.camera import Camera, place_camera, point_size, shade
from pcea.visualization.views import ColorBar, View

ANGLES = [(35, 20), (0, 0), (90, 0), (215, -60), (130, 89)]

BOX = torch.rand(300, 3, generator=torch.Generator().manual_seed(1))
CLOUDS = {
    "box": BOX,
    "long": BOX * torch.tensor([0.1, 5.0, 1.0]),
    "flat": BOX * torch.tensor([1.0, 0.0, 1.0]),
    "wall": BOX * torch.tensor([1.0, 1.0, 0.0]),
    "line": BOX[:, :1] * torch.tensor([1.0, 2.0, -1.0]),
    "skew": BOX**4,
    "far": BOX + torch.tensor([5000.0, -9000.0, 0.0]),
    "large": BOX * 1e6,
    "small": BOX * 1e-4,
    "two": torch.tensor([[0.0, 0, 0], [3, 1, 2]]),
}


@pytest.mark.parametrize("angles", ANGLES)
@pytest.mark.parametrize("name", CLOUDS)
def test_the_camera_sees_the_cloud_as_large_as_possible(name, angles):
    points = CLOUDS[name]
    seen = project(points, place_camera(points, azimuth=angles[0], elevation=angles[1]))
    low, high = seen.min(0), seen.max(0)
    assert low.min() > -1
    assert high.max() < 1
    assert (high - low).max() / 2 > 0.85
    assert np.abs(low + high).max() / 2 < 0.02  # 1 % of the picture's side


def test_errors_of_place_camera():
    for points in (torch.tensor([[3.0, -4, 5]]), torch.full((7, 3), 2.0)):
        with pytest.raises(ValueError, match=f"nothing to see: all {len(points)} points of the cloud are equal"):
            place_camera(points)
    with pytest.raises(ValueError, match=r"must be degrees, got nan and 20\.0"):
        place_camera(torch.rand(5, 3), azimuth=float("nan"))


@pytest.mark.parametrize("angles", ANGLES)
def test_the_camera_is_turned_and_not_mirrored(angles):
    rotation = place_camera(torch.rand(7, 3), azimuth=angles[0], elevation=angles[1]).rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert rotation[0, 1] == 0  # the horizon is level
    assert rotation[1, 1] < 0  # and y is up


def test_where_the_camera_stands():
    def stands(**angles):
        camera = place_camera(torch.rand(7, 3), **angles)
        return -camera.rotation[2]  # from the middle towards the camera

    np.testing.assert_allclose(stands(azimuth=0, elevation=0), [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(stands(azimuth=90, elevation=0), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(stands(azimuth=0, elevation=30), [0, 0.5, 0.75**0.5], atol=1e-12)


def test_shade_by_hand():
    camera = Camera(np.eye(3), np.zeros(3), 1.0)  # looks along z
    normals = torch.tensor([[0, 0, 1.0], [0, 0, -1], [1, 0, 0], [0, 0.8, 0.6], [0, 0, 0]])
    colors = torch.tensor([[200, 100, 10]], dtype=torch.uint8).repeat(5, 1)
    view = View(torch.rand(5, 3), colors, normals=normals)
    # From the side 0.7 of the colour; 0.7 + 0.3 * 0.6 = 0.88; without a normal all of it.
    expected = [[200, 100, 10], [200, 100, 10], [140, 70, 7], [176, 88, 9], [200, 100, 10]]
    assert shade(view, camera).tolist() == expected
    # Where lightness means something, 0.9 and 0.96.
    expected = [[200, 100, 10], [200, 100, 10], [180, 90, 9], [192, 96, 10], [200, 100, 10]]
    assert shade(view._replace(color_bar=ColorBar("weight", 0, 1)), camera).tolist() == expected
    assert shade(view._replace(normals=None), camera).equal(colors)


def test_point_size():
    camera = Camera(np.eye(3), np.zeros(3), 1.0)
    size = point_size(grid(256), camera, 800)
    # More than the distance of the points, as if half of them were on the far side, and not coarse.
    assert 800 / 256 * 2**0.5 < size < 5 * 800 / 256
    # Four times the points are half as large, and so are those in a picture of half the side.
    assert point_size(grid(512), camera, 800) == pytest.approx(size / 2)
    assert point_size(grid(256), camera, 400) == pytest.approx(size / 2)
    # What is empty needs no points: a quarter of the square holds a quarter of them.
    corner = torch.cat([grid(128) * 127 / 255, torch.tensor([[1.0, 1, 0]])])
    assert point_size(corner, camera, 800) == pytest.approx(size, rel=0.05)
    assert point_size(grid(512), camera, 100) == 2  # no smaller
    for few in (grid(2), torch.zeros(1, 3)):
        assert point_size(few, camera, 800) == 32  # no larger than a 25th of the picture
