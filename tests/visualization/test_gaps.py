import time

import pytest
import torch
from pictures import ORANGE, SKY_BLUE, one_color, sphere

from pcea.visualization.gaps import Bridges, bridge_gaps
from pcea.visualization.views import View

# Points one apart: the eighth neighbour in the wall is sqrt(2) away.
WALL = torch.cartesian_prod(torch.arange(30.0), torch.arange(30.0), torch.zeros(1))


def rod(*places, height=50.0):
    """Points of a line above the wall."""
    x = torch.tensor(places, dtype=torch.float)
    return torch.stack([x, torch.full_like(x, height), torch.zeros_like(x)], dim=1)


GAP = rod(*range(10), *range(16, 30))


def test_a_gap_by_hand():
    """7 wide, it takes nine points, so that they are no more than half of sqrt(2) apart."""
    bridges = bridge_gaps(torch.cat([WALL, GAP]))
    torch.testing.assert_close(bridges.points, rod(*(9 + 0.7 * i for i in range(1, 10))))
    assert bridges.nearest.tolist() == [909] * 4 + [910] * 5


def test_a_gap_is_found_in_any_order_and_pose():
    points = torch.cat([WALL, GAP]).double()
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    order = torch.randperm(len(points))
    bridges = bridge_gaps(1e-3 * points[order] @ rotation.T + 5)
    found = (bridges.points - 5) @ rotation * 1e3
    torch.testing.assert_close(found[found[:, 0].argsort()], rod(*(9 + 0.7 * i for i in range(1, 10))).double())


def test_points_that_touch_need_no_bridge():
    for closed in (rod(*range(30)), rod(*range(10), 10.6, *range(12, 30))):  # 1.2 sqrt(2) is 1.697
        assert not len(bridge_gaps(torch.cat([WALL, closed])).points)


OTHERS = {
    "a hole": WALL[((WALL - torch.tensor([15.0, 15, 0])).norm(dim=1) > 6)],
    "a slit": torch.cat([WALL, WALL + torch.tensor([35.0, 0, 0])]),
    "two rods": torch.cat([WALL, rod(*range(30)), rod(*range(30), height=54.0)]),
    "outliers": torch.cat([WALL, torch.rand(60, 3, generator=torch.Generator().manual_seed(0)) * 40]),
    "a far outlier": torch.cat([WALL, torch.tensor([[1e9, 0, 0]])]).double(),
    "a far outlier in line with a rod": torch.cat([WALL, rod(*range(30), 1e7)]),
    "a sparse wall": torch.cat([WALL, WALL * 4 + torch.tensor([0.0, 0, 9])]),
    "a volume": torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)),
    "noise": torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)),
    "equal": torch.cat([torch.zeros(50, 3), torch.eye(3)]),
    "two": torch.eye(3)[:2],
    "one": torch.zeros(1, 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_rod_stays_as_it_is(name):
    assert not len(bridge_gaps(OTHERS[name]).points)


def test_points_between_look_like_the_nearest():
    colors = torch.tensor([ORANGE, SKY_BLUE], dtype=torch.uint8)
    view = View(rod(0, 9), colors, "title", marker=torch.ones(3), normals=torch.eye(3)[:2], values=torch.arange(2))
    bridges = Bridges(rod(3, 6, 7).double(), torch.tensor([0, 1, 1]))
    drawn = bridges.add_to(view)
    assert drawn.points.equal(rod(0, 9, 3, 6, 7))
    assert drawn.colors.equal(colors[[0, 1, 0, 1, 1]])
    assert drawn.normals.equal(torch.eye(3)[[0, 1, 0, 1, 1]])
    assert (drawn.title, drawn.marker, drawn.values) == ("title", view.marker, None)
    assert bridges.add_to(view._replace(normals=None)).normals is None


@pytest.mark.slow
def test_a_million_points_take_seconds():
    """Measured: 6 s on one core of a busy machine."""
    points = one_color(sphere(1_000_000), ORANGE).points
    start = time.monotonic()
    bridge_gaps(points)
    assert time.monotonic() - start < 30
