"""What a file holds beside its shape: strays, and the ground under it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from examples import POINT_SIZES
from torch import Tensor, nn

import pcea
from pcea.inference.parts import PartPredictor, write_parts
from pcea.inference.points import PointPredictor, load_cloud, read_shape
from pcea.io.description import NetworkDescription
from pcea.io.points import Points
from pcea.io.surroundings import find_ground, find_pedestal, leave_out_strays

UP = torch.tensor([0.0, 1.0, 0.0])


def box(count: int, *sides: float) -> Tensor:
    """Points on the surface of a box that stands on y = 0."""
    sizes = torch.tensor(sides)
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(count)) - 0.5
    face = torch.arange(count) % 3
    points[torch.arange(count), face] = 0.5 * points[torch.arange(count), face].sign()
    return points * sizes + UP * sides[1] / 2


def on_plate(count: int = 3000, width: float = 3.0) -> Tensor:
    """A pole on a plate, a third of the points on the plate, shuffled."""
    points = torch.cat([box(2 * count // 3, 0.4, 2.0, 0.4), box(count // 3, width, 0.01, width) - 0.01 * UP])
    return points[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


def before_wall() -> Tensor:
    """A pole of 6,000 points on a plate, and a wall behind it."""
    wall = box(3000, 3.0, 3.0, 0.01) - torch.tensor([0, 0, 1.5])
    points = torch.cat([on_plate(9000), wall])
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))]


def rotation(seed: int) -> Tensor:
    found = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))).Q
    return found * torch.linalg.det(found)


@pytest.mark.parametrize("seed", range(4))
def test_the_ground_is_found_in_any_pose_and_unit(seed: int) -> None:
    points, turn = on_plate()[:1024], rotation(seed)
    ground = find_ground(1000 * points @ turn.T + 5e4)
    assert ground is not None
    assert float(torch.from_numpy(ground.normal).float() @ (turn @ UP)) > 0.999
    under = ground.is_under(1000 * points @ turn.T + 5e4)
    assert under[points[:, 1] < 0].all()
    assert not under[points[:, 1] > 0.05].any()


@pytest.mark.parametrize("sides", [(1.0, 1.0, 1.0), (0.4, 2.0, 0.4), (2.0, 1.0, 1.0)])
def test_a_shape_alone_has_no_ground(sides: tuple[float, ...]) -> None:
    assert find_ground(box(1024, *sides)) is None
    assert find_ground(nn.functional.normalize(torch.randn(1024, 3), dim=1)) is None


def test_what_stands_on_the_ground_has_as_many_points() -> None:
    cloud = read_shape(on_plate(9000), num_points=1024, with_normals=False, seed=0)
    [standing] = cloud.standing
    assert len(cloud.points) == len(standing.points) == 1024
    assert (standing.points[:, 1] > 0.0).all()
    alone = read_shape(box(9000, 0.4, 2.0, 0.4), num_points=1024, with_normals=False, seed=0)
    assert not alone.standing


def test_a_wall_behind_it_is_found_after_the_ground() -> None:
    cloud = read_shape(before_wall(), num_points=1024, with_normals=False, seed=0)
    on_ground, alone = cloud.standing
    assert not (on_ground.points[:, 1] < 0).any() or not (on_ground.points[:, 2] < -1).any()
    assert len(alone.points) == 1024
    assert alone.points.abs().amax(0).tolist() == pytest.approx([0.2, 2.0, 0.2], abs=0.05)
    # without the pole's bottom, which is on the ground
    assert len(cloud.choose(Points(before_wall()), num_planes=2).points) == pytest.approx(5000, abs=100)


def test_of_slabs_the_upper_sides_are_measured() -> None:
    """Fitted to both sides of a floor, and cut by the wall before it, the plane is tilted and leaves some of it."""
    floor = box(20000, 3.0, 0.06, 3.0) - 0.06 * UP
    wall = box(20000, 3.0, 3.0, 0.06) - torch.tensor([0, 0, 1.53])
    points = torch.cat([box(8000, 0.5, 1.8, 0.3), floor, wall])
    points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))]
    cloud = read_shape(points, num_points=1024, with_normals=False, seed=0)
    alone = cloud.standing[1]
    assert len(alone.points) == 1024
    assert alone.points.abs().amax(0).tolist() == pytest.approx([0.25, 1.8, 0.15], abs=0.02)
    assert [ground.thickness < 0.05 for ground in cloud.planes] == [True, True]


def test_what_is_small_on_wide_ground_is_found() -> None:
    thing = box(2000, 1.0, 0.3, 0.6)
    ground = torch.rand(150_000, 3, generator=torch.Generator().manual_seed(0)) * 24 - 12
    points = torch.cat([thing, ground * torch.tensor([1.0, 0, 1])])
    points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(1))]
    [standing] = read_shape(points, num_points=1024, with_normals=False, seed=0).standing
    assert standing.points.abs().amax(0).tolist() == pytest.approx([0.5, 0.3, 0.3], abs=0.02)
    assert find_ground(torch.rand(1024, 3) * torch.tensor([1.0, 0, 1])) is None  # a sheet alone
    assert find_ground(torch.rand(1024, 3) * torch.tensor([1.0, 0.01, 1])) is None


def on_pedestal(count: int = 12000) -> Tensor:
    """A pole of a third of the points on a pedestal."""
    points = torch.cat([box(count // 3, 0.4, 2.0, 0.4), box(2 * count // 3, 1.5, 1.0, 1.5) - UP])
    return points[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (0, 2, 1)])
def test_the_pedestal_under_a_shape_is_found(axes: tuple[int, ...]) -> None:
    points = 50 * on_pedestal()[:, axes] - 1000
    assert find_ground(points[:1024]) is None
    found = find_pedestal(points[:1024])
    assert found is not None
    assert found.is_pedestal
    assert found.width == pytest.approx(1.5**2 / 0.4**2, rel=0.2)
    cloud = read_shape(points, num_points=1024, with_normals=False, seed=0)
    alone = (cloud.standing[0].points + 1000)[:, [axes.index(axis) for axis in range(3)]] / 50
    assert len(alone) == 1024
    assert (alone[:, 1] > 0).all()
    assert alone.abs().amax(0).tolist() == pytest.approx([0.2, 2.0, 0.2], abs=0.02)
    assert cloud.name_of_planes(1) == "the pedestal under it"


ANGLE = 2.4 * torch.arange(1024)


@pytest.mark.parametrize(
    "points",
    [
        box(1024, 1.0, 1.0, 1.0),
        nn.functional.normalize(torch.randn(1024, 3, generator=torch.Generator().manual_seed(0)), dim=1),
        torch.linspace(0.01, 1, 1024)[:, None].sqrt()
        * torch.stack([ANGLE.cos(), -torch.ones(1024), ANGLE.sin()], dim=1),
    ],
)
def test_of_these_nothing_is_a_pedestal(points: Tensor) -> None:
    assert find_pedestal(points) is None


@pytest.mark.parametrize("count", [1000, 9000])
def test_strays_are_left_out_with_a_warning(count: int) -> None:
    points = torch.cat([box(count, 1, 1, 1), 20 + 0.1 * torch.rand(12, 3)])
    with pytest.warns(UserWarning, match=rf"x.ply: {1200 / len(points):.1f} % of the points lie far from all others"):
        kept = leave_out_strays(Points(points, points), "x.ply")
    assert kept.points.equal(points[:count])
    assert kept.normals is not None
    assert len(kept.normals) == count
    assert kept.choose(Points(points)).points.equal(points[:count])


@pytest.mark.parametrize(
    "points",
    [
        box(1000, 1, 1, 1),
        torch.cat([box(800, 1, 1, 1), 5 + box(200, 1, 1, 1)]),  # two things
        torch.cat([box(990, 1, 1, 1), torch.linspace(0, 2, 40)[:, None] * UP]),  # an antenna
        torch.rand(50, 3),
        torch.zeros(200, 3),
    ],
)
def test_nothing_else_is_a_stray(points: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert leave_out_strays(Points(points), "x.ply").points is points


@pytest.mark.parametrize("in_memory", [True, False])
def test_pixels_without_depth_are_left_out(tmp_path: Path, in_memory: bool) -> None:
    points = torch.cat([5 + box(1000, 1, 1, 1), torch.zeros(100, 3)])
    np.save(tmp_path / "depth.npy", points.numpy())
    with pytest.warns(UserWarning, match=r"100 of 1100 points are 0, 0, 0, .* left out"):
        cloud = load_cloud(points if in_memory else tmp_path / "depth.npy")
    assert cloud.points.equal(points[:1000])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one in a hundred may be at the origin
        assert len(load_cloud(torch.cat([box(1000, 1, 1, 1), torch.zeros(10, 3)])).points) == 1010


class Likes(nn.Module):
    """Knows what is high and narrow (+1), or wide and low (-1); everything else is background."""

    num_classes = 2

    def __init__(self, sign: float):
        super().__init__()
        self.sign = sign

    def forward(self, points: Tensor, *_: object) -> Tensor:
        low, high = points.aminmax(dim=1)
        size = high - low
        width, depth, height = size[:, 0], size[:, 2], size[:, 1]
        slender, wide = height - torch.maximum(width, depth), torch.minimum(width, depth) - height
        liked = slender if self.sign > 0 else wide
        return torch.stack([10 * liked, torch.zeros_like(liked)], dim=1)


def likes(sign: float) -> PointPredictor:
    return PointPredictor(Likes(sign), NetworkDescription("points", "own", {}, ("thing",), 1024, background=True))


def test_a_class_is_of_what_the_network_is_surer_of() -> None:
    points = on_plate(9000)
    pole, plate = likes(1).predict(points), likes(-1).predict(points)
    assert pole.pose.endswith(", without the ground under it")
    assert "ground" not in plate.pose
    alone = likes(1).predict(points[points[:, 1] > 0.01])
    assert pole.score == pytest.approx(alone.score, abs=0.5)
    assert likes(1).predict(points, up="y").pose == "without the ground under it"
    assert likes(1).predict(on_pedestal(), up="y").pose == "without the pedestal under it"
    assert "pedestal" not in likes(-1).predict(on_pedestal(), up="y").pose
    pole = likes(1).predict(before_wall())
    assert pole.pose.endswith(", without the ground and the wall around it")
    assert pole.score == pytest.approx(alone.score, abs=0.5)


def test_the_wider_the_ground_the_likelier_it_is_left_out() -> None:
    """Of one that is twice as wide as what stands on it the surer one counts."""
    cloud = read_shape(on_plate(9000), num_points=1024, with_normals=False, seed=0)
    [ground] = cloud.planes
    assert ground.width == pytest.approx(3.0**2 / 0.4**2, rel=0.05)
    network = likes(-1)  # sure of the plate, and what stands on it is background
    whole, rest = (float(network.pose(each, up="y").logits.logsumexp(0)) for each in (cloud, *cloud.standing))
    even = 2 * np.exp(whole - rest)
    for width, planes in ((0.98 * even, 0), (1.02 * even, 1)):
        cloud.planes = (ground._replace(width=width),)
        assert network.pose_standing(cloud, up="y")[1] == planes


def test_what_is_left_stands_on_the_ground() -> None:
    """Not on its head, nor on its side."""
    assert likes(1).predict(on_plate(9000), up="y").pose == "without the ground under it"
    for up in ("-y", "x"):
        assert "ground" not in likes(1).predict(on_plate(9000), up=up).pose


def test_it_is_drawn_without_the_ground_too() -> None:
    points = on_plate(9000)
    with pytest.warns(UserWarning, match="The array is drawn without the ground under it"):
        explanation = likes(1).explain(points)
    assert 4900 < len(explanation.points) < 6000  # without the pole's bottom, which is on the ground
    assert len(likes(-1).explain(points).points) == 9000
    with pytest.warns(UserWarning, match="The array is drawn without the ground and the wall around it"):
        assert len(likes(1).explain(before_wall()).points) == pytest.approx(5000, abs=100)


class LikesParts(Likes):
    """The same for parts: every point is of the first of two, surely where the shape is liked."""

    def __init__(self, sign: float):
        super().__init__(sign)
        self.attention = pcea.ExternalAttention(4)

    def forward(self, points: Tensor, *_: object, **__: object) -> Tensor:
        self.attention(points @ torch.eye(3, 4))
        logits = super().forward(points).clamp_min(0.1)
        return logits[:, None].expand(-1, points.shape[1], -1)


def likes_parts(sign: float) -> PartPredictor:
    names, parts = ("pole/top", "pole/rest"), {"pole": (0, 1)}
    return PartPredictor(LikesParts(sign), NetworkDescription("parts", "own", {}, names, 1024, parts=parts))


def test_the_ground_has_no_part_if_the_network_is_surer_of_the_rest(tmp_path: Path) -> None:
    points = on_plate(9000)
    with_part = likes_parts(-1).predict(points)
    assert with_part.has_part.all()
    assert not with_part.around
    found = likes_parts(1).predict(points)
    assert found.points.equal(points)
    assert found.has_part.equal(found.part_label == 0)
    high = points[:, 1] > 0.03
    assert (found.has_part == high).float().mean() > 0.99
    assert found.confidence[found.has_part].min() > 0.99
    assert not found.confidence[~found.has_part].any()
    left = int((~found.has_part).sum())
    assert f"9000 points ({left} of no part: the ground under it)  top 100.0 %  rest 0.0 %" in str(found)
    write_parts(tmp_path, "x", found)
    assert (
        b"part_label -1 no part (the ground under it): red 160 green 160 blue 160" in (tmp_path / "x.ply").read_bytes()
    )
    colors = trimesh.load(tmp_path / "x.ply").colors[:, :3]
    assert ((colors == 160).all(1) == ~found.has_part.numpy()).all()
    with pytest.warns(UserWarning, match="The array is drawn without the ground under it, which has no part"):
        subject = likes_parts(1).subject(points)
    assert len(subject.points) == 9000 - left


def test_what_is_found_of_parts_does_not_depend_on_how_the_file_lies_or_its_unit() -> None:
    points, expected = on_plate(9000), likes_parts(1).predict(on_plate(9000)).has_part
    for up, turned in (("z", points[:, [2, 0, 1]]), ("x", points[:, [1, 2, 0]])):
        assert likes_parts(1).predict(1000 * turned + 70, up=up).has_part.equal(expected)


def test_strays_have_no_part() -> None:
    pole = box(6000, 0.4, 2.0, 0.4)
    with pytest.warns(UserWarning, match="The array: 60 points lie far from all others: no part"):
        found = likes_parts(1).predict(torch.cat([pole, 20 + 0.1 * torch.rand(60, 3)]))
    assert found.has_part.tolist() == [True] * 6000 + [False] * 60
    assert found.around == "far from all others"
    assert found.confidence[:6000].equal(likes_parts(1).predict(pole).confidence)
    with pytest.warns(UserWarning, match="60 points lie far"):
        both = likes_parts(1).predict(torch.cat([on_plate(9000), 20 + 0.1 * torch.rand(60, 3)]))
    assert both.around == "the ground under it and far from all others"


def test_strays_are_not_drawn() -> None:
    points = torch.cat([box(6000, 0.4, 2.0, 0.4), 20 + 0.1 * torch.rand(60, 3)])
    network = pcea.eat_classifier(3, **POINT_SIZES).eval()
    for predictor in (likes(1), PointPredictor(network, NetworkDescription("points", "own", {}, (), 128))):
        with pytest.warns(UserWarning, match="lie far from all others"):
            assert len(predictor.explain(points).points) == 6000
    with pytest.warns(UserWarning, match="lie far from all others"):
        assert len(predictor.subject(points).points) == 6000


def test_a_few_strays_hide_no_ground_and_are_not_drawn() -> None:
    """So few that samples have none of them."""
    far = torch.cat([on_plate(9000), torch.full((2, 3), 100.0) + torch.rand(2, 3)])
    assert [likes(1).predict(far, seed=seed).pose[-25:] for seed in range(3)] == [
        "without the ground under it"[-25:]
    ] * 3
    pole = torch.cat([box(9000, 0.4, 2.0, 0.4), far[-2:]])
    with pytest.warns(UserWarning, match="The array is drawn without 2 points far from all others"):
        assert len(likes(1).explain(pole).points) == 9000


@pytest.mark.parametrize("count", [9000, 60000])
def test_what_sticks_out_of_rough_ground_has_no_part_either(count: int) -> None:
    """A few points as wide as the ground would make the shape small for the network."""
    points = on_plate(count)
    rough = points[:, 1] <= 0
    points[rough, 1] += 0.012 * torch.randn(int(rough.sum()), generator=torch.Generator().manual_seed(0))
    found = likes_parts(1).predict(points)
    outside = points[:, [0, 2]].abs().amax(1) > 0.6
    assert outside.sum() > count / 5
    assert not found.has_part[outside].any()
    assert found.confidence[found.has_part].min() > 0.99
    assert found.has_part[(points[:, 1] > 0.2) & ~outside].all()
