from pathlib import Path

import numpy as np
import pytest

from pcea.io.meshes import as_mesh

DART = [(1, 0), (0, 1), (-1, 0), (0, 0.2)]
L_SHAPE = [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)]
# A square of side 4 with a square hole, which an edge there and back joins to the outline.
KEYHOLE = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 2), (2, 2), (2, 1), (1, 1)]
WITH_STRAIGHT_AND_DOUBLE_CORNERS = [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (1, 1), (1, 2), (0.5, 2), (0, 2), (0, 1)]
TILTED = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3


def areas(vertices, faces):
    """Normals of triangles, (F, 3), as long as their areas."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    return np.cross(b - a, c - a) / 2


@pytest.mark.parametrize(
    ("corners", "area"),
    [(DART, 0.8), (L_SHAPE, 3), (KEYHOLE, 15), (WITH_STRAIGHT_AND_DOUBLE_CORNERS, 3)],
    ids=["dart", "L", "keyhole", "straight"],
)
@pytest.mark.parametrize("way", [1, -1])
def test_concave_polygons_are_covered_once_from_every_corner(corners, area, way):
    for first in range(len(corners)):
        flat = np.roll(corners, first, axis=0)[::way]
        vertices = np.hstack([flat, np.ones((len(flat), 1))]) @ TILTED
        faces = as_mesh(Path("a"), vertices, np.arange(len(flat))[None]).faces
        assert len(faces) == len(flat) - 2
        along = areas(vertices, faces) @ (way * TILTED[2])
        assert along.min() > -1e-12
        assert along.sum() == pytest.approx(area)


def test_only_polygons_whose_fan_is_wrong_are_cut_otherwise():
    vertices = np.array([(*corner, 0) for corner in [*DART, (3, 0), (5, 0), (5, 1), (3, 1), (2, 0.5)]])
    faces = as_mesh(Path("a"), vertices, [[4, 5, 6, 7, 8], [0, 1, 2, 3], [1, 2, 3, 0], [5, 6], [4, 5, 6]]).faces
    fans = [[4, 5, 6], [4, 6, 7], [4, 7, 8]], [[1, 2, 3], [1, 3, 0]], [[4, 5, 6]]
    assert faces[:3].tolist() == fans[0]
    assert sorted(faces[3:5].tolist()) == [[1, 2, 3], [3, 0, 1]]
    assert faces[5:].tolist() == fans[1] + fans[2]


@pytest.mark.parametrize("value", [0, 1e200, np.nan, np.inf])
def test_polygons_without_area_are_fans(value):
    faces = as_mesh(Path("a"), np.full((4, 3), value), [[0, 1, 2, 3]]).faces
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_a_polygon_with_very_many_corners():
    x = np.arange(500)
    comb = [*zip(x, np.where(x % 2, 10, 1)), (499, 0), (0, 0)][::-1]
    vertices = np.array([(*corner, 0) for corner in comb], dtype=float)
    faces = as_mesh(Path("a"), vertices, np.arange(502)[None]).faces
    assert areas(vertices, faces)[:, 2].min() >= 0
    assert areas(vertices, faces).sum() == pytest.approx(499 * 5.5)


def test_a_face_of_a_missing_vertex():
    for polygons in ([[0, 1, 4, 2]], [[0, 1, -1, 2], [0, 1, 2]]):
        with pytest.raises(
            ValueError, match=r"a.ply could not be read as .ply \(a face names a vertex that is not there"
        ):
            as_mesh(Path("a.ply"), np.zeros((3, 3)), polygons)
