from __future__ import annotations

import math

import numpy as np
import pytest

from pcea.datasets.surfaces import Surface, box, hollow, lathe, prism, ring, rod

MANY = 20_000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def assert_share(is_inside: np.ndarray, expected: float) -> None:
    """A share of points lies within four standard deviations of its binomial expectation."""
    assert abs(is_inside.mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / len(is_inside))


def test_box_points_lie_on_faces_and_normals_leave_it(rng):
    points, normals = box(2, 3, 5).sample(rng, MANY)

    def distance(query: np.ndarray) -> np.ndarray:
        return (np.abs(query - (0, 1.5, 0)) - (1, 1.5, 2.5)).max(axis=1)

    np.testing.assert_allclose(distance(points), 0, atol=1e-12)
    np.testing.assert_allclose(distance(points + 0.1 * normals), 0.1, atol=1e-12)


def test_box_faces_share_points_by_area(rng):
    piece = box(2, 3, 5)
    _, normals = piece.sample(rng, MANY)
    assert piece.area == pytest.approx(2 * (2 * 3 + 3 * 5 + 2 * 5))
    for axis, area in enumerate((3 * 5, 2 * 5, 2 * 3)):
        assert_share(normals[:, axis] > 0.5, area / 62)
        assert_share(normals[:, axis] < -0.5, area / 62)


@pytest.mark.parametrize("outline", [[(0, 0), (3, 0), (0, 3)], [(0, 0), (0, 3), (3, 0)]])
def test_prism_is_uniform_on_its_caps_whichever_way_the_outline_turns(rng, outline):
    piece = prism(outline, 0.5)
    points, normals = piece.sample(rng, MANY)
    assert piece.area == pytest.approx(9 + 0.5 * (6 + math.sqrt(18)))
    top = points[normals[:, 1] == 1]
    assert (top[:, 1] == 0.5).all()
    assert (points[normals[:, 1] == -1][:, 1] == 0).all()
    assert_share(top[:, 0] + top[:, 2] < 1.5, 1 / 4)
    slanted = np.abs(points[:, 0] + points[:, 2] - 3) + np.abs(normals[:, 1]) < 1e-9
    np.testing.assert_allclose(normals[slanted], [[math.sqrt(0.5), 0, math.sqrt(0.5)]] * slanted.sum(), atol=1e-12)
    assert_share(slanted, 0.5 * math.sqrt(18) / piece.area)


def test_frustum_lies_on_its_cone_with_the_slanted_normal(rng):
    points, normals = lathe([(5, 0), (2, 4)]).sample(rng, MANY)
    radius = np.hypot(points[:, 0], points[:, 2])
    np.testing.assert_allclose(radius, 5 - 0.75 * points[:, 1], atol=1e-12)
    radial = np.stack((points[:, 0] / radius, points[:, 2] / radius), axis=1)
    np.testing.assert_allclose(normals[:, [0, 2]], 0.8 * radial, atol=1e-12)
    np.testing.assert_allclose(normals[:, 1], 0.6, atol=1e-12)


def test_frustum_is_uniform_by_area(rng):
    piece = lathe([(5, 0), (2, 4)])
    points, _ = piece.sample(rng, MANY)
    assert piece.area == pytest.approx(math.pi * (5 + 2) * 5)
    assert_share(points[:, 1] < 2, (5 + 3.5) / (5 + 3.5 + 3.5 + 2))
    assert_share(points[:, 0] > 0, 1 / 2)


def test_shell_has_normals_away_from_the_material(rng):
    points, normals = lathe(hollow([(0, 0), (2, 0), (2, 3)], 0.5)).sample(rng, MANY)
    radius = np.hypot(points[:, 0], points[:, 2])
    outwards = (points[:, [0, 2]] * normals[:, [0, 2]]).sum(axis=1) / radius
    is_wall = (points[:, 1] > 0.6) & (points[:, 1] < 2.9)
    np.testing.assert_allclose(outwards[is_wall], np.where(radius[is_wall] > 1.75, 1, -1), atol=1e-9)
    assert set(radius[is_wall].round(9)) == {1.5, 2.0}
    is_floor = radius < 1.4
    np.testing.assert_allclose(normals[is_floor, 1], np.where(points[is_floor, 1] > 0.25, 1, -1), atol=1e-9)


def test_ring_lies_on_its_torus(rng):
    points, normals = ring(3, 1).sample(rng, MANY)
    circle = points * (1, 1, 0) * (3 / np.hypot(points[:, 0], points[:, 1]))[:, None]
    np.testing.assert_allclose(points - circle, normals, atol=1e-12)


def test_ring_is_uniform_by_area(rng):
    piece = ring(3, 1)
    points, _ = piece.sample(rng, MANY)
    assert piece.area == pytest.approx(4 * math.pi**2 * 3)
    assert_share(np.hypot(points[:, 0], points[:, 1]) > 3, 1 / 2 + 1 / (3 * math.pi))


def test_part_of_a_ring_is_centred_on_x(rng):
    piece = ring(3, 1, degrees=90)
    angles = np.degrees(np.arctan2(*piece.sample(rng, MANY)[0][:, [1, 0]].T))
    assert piece.area == pytest.approx(math.pi**2 * 3)
    assert angles.min() == pytest.approx(-45, abs=0.1)
    assert angles.max() == pytest.approx(45, abs=0.1)


@pytest.mark.parametrize(
    ("axis", "expected"), [("x", (1, -3, 2)), ("y", (3, 2, -1)), ("z", (-2, 1, 3))], ids=["x", "y", "z"]
)
def test_turn_is_counter_clockwise(rng, axis, expected):
    dot = Surface(1.0, lambda _, n: (np.tile((1.0, 2.0, 3.0), (n, 1)), np.tile((1.0, 2.0, 3.0), (n, 1))))
    points, normals = dot.turn(axis, 90).at(10, 20, 30).sample(rng, 1)
    np.testing.assert_allclose(points, np.add([expected], (10, 20, 30)), atol=1e-12)
    np.testing.assert_allclose(normals, [expected], atol=1e-12)


@pytest.mark.parametrize("end", [(1, 5, 2), (1, -1, 2), (4, 2, 9)], ids=["up", "down", "slanted"])
def test_rod_runs_from_start_to_end(rng, end):
    start = np.array((1.0, 2.0, 2.0))
    length = np.linalg.norm(end - start)
    direction = (end - start) / length
    points, normals = rod(tuple(start), end, 0.1).sample(rng, MANY)
    along = (points - start) @ direction
    away = points - start - along[:, None] * direction
    is_side = np.abs(normals @ direction) < 1e-9
    np.testing.assert_allclose(away[is_side], 0.1 * normals[is_side], atol=1e-12)
    np.testing.assert_allclose(along[normals @ direction > 0.5], length, atol=1e-12)
    np.testing.assert_allclose(along[normals @ direction < -0.5], 0, atol=1e-12)
