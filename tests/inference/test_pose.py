"""Poses found by a network whose answers are worked out by hand: it knows two shapes by their third moments."""

import math

import pytest
import torch
from torch import Tensor, nn

from pcea.inference.points import PointPredictor, check_shape, make_denser
from pcea.inference.pose import find_pose, log_odds, oblique_frames, pose_name, up_rotation
from pcea.io.description import NetworkDescription
from pcea.io.points import Points, normalize_points, orient
from pcea.transforms.points import axis_rotations, rotation_of

UPS = ("x", "y", "z", "-x", "-y", "-z")


def shape(sizes: tuple[float, float, float], N: int = 600) -> Tensor:
    """Points that thin out along every axis, each another length, so that no two poses are alike."""
    steps = torch.rand(N, 3, generator=torch.Generator().manual_seed(0)) ** 3
    return normalize_points(steps * torch.tensor(sizes))


SHAPES = torch.stack([shape((1.0, 0.6, 0.3)), shape((0.3, 1.0, 0.5))])


def moments(points: Tensor) -> Tensor:
    """The mean of the cubes of the coordinates, with their sign, (B, 3)."""
    cubes = points.pow(3).mean(1)
    return cubes.sign() * cubes.abs().pow(1 / 3)


class Moments(nn.Module):
    """Knows `SHAPES`, upright; the third class is the background."""

    num_classes = 3

    def forward(self, points: Tensor, *_: object, **__: object) -> Tensor:
        far = torch.cdist(moments(points), moments(SHAPES))
        return torch.cat([8 - 400 * far, torch.zeros(len(points), 1)], dim=1)


def predictor(**about: object) -> PointPredictor:
    description = NetworkDescription("points", "own.network", {}, ("tall", "wide"), 600, background=True)
    return PointPredictor(Moments(), description._replace(**about))


@pytest.mark.parametrize("number", range(2))
def test_each_of_the_24_poses_is_found(number: int) -> None:
    network = predictor()
    for rotation in axis_rotations():
        posed = network.pose(Points(SHAPES[number] @ rotation.T))
        assert torch.allclose(posed.rotation @ rotation, torch.eye(3))
        assert int(posed.logits.argmax()) == number
        assert posed.score > 3


def test_a_shape_that_lies_along_no_axis_is_found_by_its_own_axes() -> None:
    turned = rotation_of(nn.functional.normalize(torch.tensor([[0.7, 0.3, -0.5, 0.2]]), dim=1))[0]
    posed = predictor().pose(Points(SHAPES[0] @ turned.T))
    assert torch.allclose(posed.rotation @ turned, torch.eye(3), atol=0.1)
    assert int(posed.logits.argmax()) == 0
    assert posed.name.startswith("up ")
    along_axes = log_odds(Moments()(SHAPES[0] @ turned.T @ axis_rotations().mT), 1.0)
    assert along_axes.logsumexp(1).max() < posed.score - 1


def test_the_axes_of_a_shape() -> None:
    turned = rotation_of(nn.functional.normalize(torch.tensor([[0.7, 0.3, -0.5, 0.2]]), dim=1))[0]
    box = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0])
    frames = oblique_frames(box @ turned.T)
    assert len(frames) == 2
    for frame in frames:
        assert float(torch.linalg.det(frame)) == pytest.approx(1, abs=1e-5)
        extents = (box @ turned.T @ frame.T).aminmax(dim=0)
        assert sorted((extents.max - extents.min).tolist()) == pytest.approx([1, 2, 3], abs=0.3)
    assert oblique_frames(box) == []  # its axes are the file's already


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sizes", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1e-9)])
def test_what_is_flat_or_nothing_has_axes_too_or_none(sizes: tuple[float, ...]) -> None:
    for N in (1, 3, 100):
        for frame in oblique_frames(torch.rand(N, 3) * torch.tensor(sizes)):
            assert frame.isfinite().all()
            assert torch.allclose(frame @ frame.T, torch.eye(3), atol=1e-4)


def test_a_file_is_as_it_is_unless_another_pose_says_otherwise() -> None:
    """Where all poses look alike, the prior decides: as the network knows shapes, and then z up."""
    posed = find_pose(lambda rotations, _: torch.zeros(len(rotations), 3), torch.rand(50, 3))
    assert posed.name == "y up"
    assert posed.rotation.equal(torch.eye(3))
    assert posed.logits[0] == posed.logits[1]
    assert posed.score == pytest.approx(math.log(2))


def test_files_stand_along_y_or_z_rather_than_along_x() -> None:
    """Where poses are about as likely by the shape, those with y or z up win, whichever way they face."""
    lying, z_up = up_rotation("x"), torch.tensor([0.0, 0, 1])
    standing = next(r for r in axis_rotations() if r[1].equal(z_up) and not r.equal(up_rotation("z")))

    def judge(rotations: Tensor, _: int) -> Tensor:
        odds = sum(((rotations - pose).abs().amax((1, 2)) < 1e-6) * odds for pose, odds in ((standing, 9), (lying, 10)))
        return odds[:, None] * torch.tensor([1.0, 0.0])

    assert find_pose(judge, torch.rand(50, 3)).rotation.equal(standing)


def test_a_stated_axis_is_exact() -> None:
    network, points = predictor(), SHAPES[0]
    for up in UPS:
        posed = network.pose(Points(points), up=up)
        expected = log_odds(Moments()(normalize_points(orient(points, up))[None])[0], 1.0)
        torch.testing.assert_close(posed.logits, expected)
        assert posed.name == ""
        assert torch.allclose(points @ posed.rotation.T, orient(points, up))


def test_without_a_background_y_is_up() -> None:
    network = predictor(background=False, class_names=("tall", "wide", "none"))
    posed = network.pose(Points(SHAPES[0]))
    torch.testing.assert_close(posed.logits, Moments()(SHAPES[:1])[0])
    assert posed.score == pytest.approx(float(posed.logits.logsumexp(0)))


def test_the_temperature_divides_the_logits() -> None:
    cold, warm = (predictor(temperature=t).pose(Points(SHAPES[0]), up="y") for t in (1.0, 2.0))
    torch.testing.assert_close(cold.logits, 2 * warm.logits)


def test_names() -> None:
    for up in UPS:
        assert pose_name(up_rotation(up)) == f"{up} up"
    assert pose_name(axis_rotations()[2]) == "y up"  # turned about y
    turned = rotation_of(nn.functional.normalize(torch.tensor([[0.7, 0.3, -0.5, 0.2]]), dim=1))[0]
    assert pose_name(turned) == f"up {', '.join(f'{value:.2f}' for value in turned[1].tolist())}"


def test_what_is_printed() -> None:
    network = predictor(known_above=2.0)
    lying = orient(SHAPES[1], "x")
    found = network.predict(lying)
    assert found.class_names[0] == "wide"
    assert found.is_known
    assert found.pose.endswith(" up")
    assert str(found).endswith(f"  ({found.pose})")
    strange = network.predict(torch.rand(600, 3, generator=torch.Generator().manual_seed(0)))
    assert not strange.is_known
    assert str(strange).startswith("unsure: nothing it knows (closest: ")
    assert strange.title.startswith("unsure (")
    assert str(network.predict(SHAPES[1], up="y")).startswith("wide 100.0%")


def test_what_is_no_shape() -> None:
    with pytest.raises(ValueError, match="x holds no shape: 5 points, all in one place"):
        check_shape(torch.ones(5, 3), "x")
    with pytest.warns(UserWarning, match="x is a line, not a shape"):
        check_shape(torch.linspace(0, 1, 50)[:, None] * torch.ones(3), "x")
    one = torch.rand(512, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="x seems to hold 3 things far apart"):
        check_shape(torch.cat([one, one + 3, one - 3]), "x")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "points", [torch.rand(64, 3) * torch.tensor([1.0, 1.0, 0.0]), torch.randn(1024, 3), torch.rand(64, 3)]
)
def test_what_is_a_shape(points: Tensor) -> None:
    check_shape(points, "x")


def test_points_added_to_a_cloud_lie_between_its_own() -> None:
    sphere = nn.functional.normalize(torch.randn(3, 60, 3), dim=-1)
    dense = make_denser(sphere, 300)
    assert dense.shape == (3, 300, 3)
    assert torch.equal(dense[:, :60], sphere)
    # Between near points a sphere is nearly flat; between any three of its points it is not.
    added = dense[:, 60:]
    assert added.norm(dim=-1).max() <= 1
    assert added.norm(dim=-1).mean() > 0.9
    assert torch.cdist(added, sphere).amin(-1).mean() > 0.1
    # Turned alike, and whatever else is in the batch.
    turn = axis_rotations()[5]
    torch.testing.assert_close(make_denser(sphere[1:2] @ turn, 300), dense[1:2] @ turn)
    # Two points are enough.
    line = make_denser(torch.tensor([[[0.0, 0, 0], [2, 0, 0]]]), 10)[0]
    assert line[:, 0].min() >= 0
    assert line[:, 0].max() <= 2
    assert not line[:, 1:].any()


class Counting(nn.Module):
    """Says how many points it sees."""

    num_classes = 3

    def forward(self, points: Tensor, *_: object, **__: object) -> Tensor:
        return torch.tensor([points.shape[1], 0.0, 0.0]).expand(len(points), -1)


@pytest.mark.parametrize(("count", "seen"), [(75, (75 + 300) / 2), (2, (2 + 300) / 2), (76, 76), (600, 600), (1, 1)])
def test_clouds_of_few_points_are_judged_twice(count: int, seen: float) -> None:
    """As they are and half as dense as those that the network was trained with."""
    network = PointPredictor(Counting(), predictor().description)
    cloud = Points(torch.rand(count, 3))
    assert float(network.pose(cloud, up="y").logits[0]) == seen
    assert float(network.pose(cloud).logits[0]) == pytest.approx(seen, abs=5)  # the poses add their odds
