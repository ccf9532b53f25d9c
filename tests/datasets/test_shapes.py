from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pcea.datasets.shapes import (
    BUILDERS,
    CATEGORIES,
    CELLS,
    HELD_OUT_CELLS,
    PARTS,
    SEEN_CELLS,
    Parameters,
    ShapeArrays,
    Shapes,
    ShapesParts,
    make_shapes,
    sample_shape,
)
from pcea.datasets.surfaces import Surface, box, rod

L, N = 23, 101
MANY = 20_000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def made() -> ShapeArrays:
    return make_shapes("train", num_shapes=20 * len(CATEGORIES), num_points=1024, seed=0)


@pytest.fixture(scope="module")
def parts() -> ShapesParts:
    return ShapesParts("train", num_shapes=20 * len(CATEGORIES), num_points=1024)


def assert_share(is_inside: np.ndarray, expected: float) -> None:
    """A share of points lies within four standard deviations of its binomial expectation."""
    assert abs(is_inside.mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / len(is_inside))


class TestParameters:
    class Half:
        def random(self) -> float:
            return 0.5

    @pytest.mark.parametrize(("held_out", "expected"), [(True, 3.1), (False, 2.9)])
    def test_value_by_hand(self, held_out, expected):
        # The middle cell is 5 of (1, 5, 9) and 4 of (0, 2, 3, 4, 6, 7, 8).
        assert Parameters(self.Half(), held_out=held_out).between(2, 4) == pytest.approx(expected)

    @pytest.mark.parametrize(("split", "cells"), [("train", SEEN_CELLS), ("val", SEEN_CELLS), ("test", HELD_OUT_CELLS)])
    def test_every_range_of_every_category_keeps_to_the_cells_of_its_split(self, monkeypatch, split, cells):
        drawn, between = [], Parameters.between

        def record(self: Parameters, low: float, high: float) -> float:
            value = between(self, low, high)
            drawn.append(math.floor(CELLS * (value - low) / (high - low)))
            return value

        monkeypatch.setattr(Parameters, "between", record)
        Shapes(split, num_shapes=10 * len(CATEGORIES), num_points=2)
        assert set(drawn) == set(cells)
        assert not set(SEEN_CELLS) & set(HELD_OUT_CELLS)


class TestSampleShape:
    @pytest.mark.parametrize("category", CATEGORIES)
    def test_builder_makes_the_documented_parts(self, rng, category):
        assert tuple(BUILDERS[category](Parameters(rng, held_out=False))) == PARTS[category]

    def test_parts_share_points_by_area_in_random_order(self):
        pieces = BUILDERS["mug"](Parameters(np.random.default_rng(1), held_out=False))
        body, handle = (sum(piece.area for piece in pieces[name]) for name in PARTS["mug"])
        shape = sample_shape("mug", Parameters(np.random.default_rng(1), held_out=False), num_points=MANY)
        assert_share(shape.part == 1, handle / (body + handle))
        assert_share(shape.part[: MANY // 10] == 1, handle / (body + handle))

    def test_points_lie_on_their_part_after_centring_scaling_and_turning(self, monkeypatch, rng):
        top, stem = box(4, 1, 2).at(0, 3, 0), rod((0, 0, 0), (0, 3, 0), 0.5)
        bare = {"top": [top], "legs": [stem], "shelf": [], "drawers": []}
        monkeypatch.setitem(BUILDERS, "table", lambda _: bare)
        shape = sample_shape("table", Parameters(rng, held_out=False), num_points=MANY)
        scale = 4 / np.ptp(shape.points[:, 1])
        assert set(np.unique(shape.part)) == {0, 1}
        legs = shape.part == 1
        side = legs & (np.abs(shape.normals[:, 1]) < 1e-9)
        axis = (shape.points[side] - 0.5 / scale * shape.normals[side])[:, [0, 2]]
        np.testing.assert_allclose(axis, np.broadcast_to(axis[0], axis.shape), atol=1e-9)
        assert np.ptp(shape.points[legs, 1]) * scale == pytest.approx(3)
        assert np.ptp(shape.points[~legs, 1]) * scale == pytest.approx(1)

    def test_yaw_turns_objects_but_not_beyond_twenty_degrees(self, monkeypatch):
        arrow = Surface(1.0, lambda _, n: (np.zeros((n, 3)), np.tile((0.0, 0.0, 1.0), (n, 1))))
        monkeypatch.setitem(BUILDERS, "mug", lambda _: {"body": [arrow], "handle": []})
        normals = np.concatenate(
            [
                sample_shape("mug", Parameters(np.random.default_rng(k), held_out=False), num_points=1).normals
                for k in range(200)
            ]
        )
        yaw = np.degrees(np.arctan2(normals[:, 0], normals[:, 2]))
        assert -20 <= yaw.min() < -18
        assert 14 < yaw.max() < 16  # cell 9 is held out: 20 degrees less a tenth of the range


class TestShapes:
    def test_first_shapes_do_not_depend_on_how_many_are_asked(self):
        short, long = (Shapes("val", num_shapes=n, num_points=N, seed=3) for n in (11, L))
        for name in ("points", "normals", "label"):
            assert torch.equal(getattr(short, name), getattr(long, name)[:11])

    def test_seed_and_split_change_every_shape(self):
        base = Shapes("train", num_shapes=L, num_points=N)
        for other in (Shapes("train", num_shapes=L, num_points=N, seed=1), Shapes("val", num_shapes=L, num_points=N)):
            assert (base.points != other.points).flatten(1).any(dim=1).all()
            assert torch.equal(base.label, other.label)

    def test_categories_take_turns(self):
        data = Shapes("test", num_shapes=L, num_points=N)
        assert data.label.tolist() == [i % len(CATEGORIES) for i in range(L)]
        assert data.class_names == CATEGORIES
        assert data.points.shape == data.normals.shape == (L, N, 3)

    def test_classes_and_parts_describe_the_same_points(self):
        whole = Shapes("train", num_shapes=L, num_points=N)
        split = ShapesParts("train", num_shapes=L, num_points=N)
        assert torch.equal(whole.points.flatten(0, 1), split.points)
        assert torch.equal(whole.normals.flatten(0, 1), split.normals)
        assert torch.equal(whole.label, split.category)
        assert split.sizes.tolist() == [N] * L
        assert tuple(split.parts) == CATEGORIES
        assert Shapes("train", num_shapes=2, num_points=N, with_normals=False).normals is None
        assert ShapesParts("train", num_shapes=2, num_points=N, with_normals=False).normals is None

    def test_points_are_centred_in_the_unit_sphere_and_normals_have_unit_length(self, made):
        points, normals, _, _ = made
        assert points.dtype == normals.dtype == torch.float32
        torch.testing.assert_close(points.mean(dim=1), torch.zeros(len(points), 3), atol=1e-6, rtol=0)
        torch.testing.assert_close(points.norm(dim=-1).amax(dim=1), torch.ones(len(points)))
        torch.testing.assert_close(normals.norm(dim=-1), torch.ones(len(points), 1024))

    def test_part_labels_belong_to_their_category_and_all_occur(self, parts):
        assert parts.class_names == tuple(f"{category}/{part}" for category in PARTS for part in PARTS[category])
        for label, category in zip(parts.label.view(-1, 1024), parts.category):
            owners = {parts.class_names[part].split("/")[0] for part in label.unique()}
            assert owners == {CATEGORIES[category]}
        assert parts.label.unique().tolist() == list(range(len(parts.class_names)))

    def test_named_parts_are_where_they_should_be(self, parts):
        for below, above in (("chair/legs", "chair/back"), ("lamp/base", "lamp/shade"), ("bottle/body", "bottle/cap")):
            low, high = parts.class_names.index(below), parts.class_names.index(above)
            for points, label in zip(parts.points.view(-1, 1024, 3), parts.label.view(-1, 1024)):
                if (label == high).any():
                    assert points[label == low, 1].mean() < points[label == high, 1].mean()

    def test_one_point_is_the_origin(self):
        assert torch.equal(Shapes("train", num_shapes=13, num_points=1).points, torch.zeros(13, 1, 3))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_shapes": 0}, "num_shapes must be at least 1, got num_shapes=0"),
            ({"num_points": 0}, "num_points must be at least 1, got num_points=0"),
            ({"seed": -1}, "seed must be at least 0, got seed=-1"),
            ({"split": "valid"}, "split must be one of train, val, test, got 'valid'"),
        ],
    )
    def test_errors_name_the_rule(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Shapes(**{"split": "train", "num_shapes": 2, **arguments})


def test_table_of_builders_and_parts_agree():
    assert tuple(BUILDERS) == CATEGORIES == tuple(PARTS)
    assert len(CATEGORIES) >= 10
    assert all(2 <= len(names) <= 5 for names in PARTS.values())
