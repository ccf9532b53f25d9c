from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcea.nn.attention import ExternalAttention
from pcea.nn.recording import AttentionMap, record_attention
from pcea.visualization import (
    ColorBar,
    palette,
    render,
    view_class,
    view_parts,
    view_points,
    view_query,
    view_slot,
    view_slots,
    view_values,
    weights_at,
)
from pcea.visualization.renderer import check_rendering
from pcea.visualization.views import GREY, rank_slots, share_scale

ORANGE, SKY_BLUE, GREEN = (230, 159, 0), (86, 180, 233), (0, 158, 115)
DARK, BRIGHT = [68, 1, 84], [253, 231, 36]


def on_a_line(*x):
    return torch.tensor([[float(value), 0, 0] for value in x])


# Slots


def one_hot(slots, count):
    return torch.nn.functional.one_hot(torch.tensor(slots), count).float()


def test_slots_are_ranked_over_all_clouds():
    # Slot 2 has 2 + 1 points, slots 0 and 3 two each, slot 1 none.
    assert rank_slots([one_hot([2, 2, 3], 4), one_hot([0, 3, 0, 2], 4)]) == [2, 0, 3]


def test_the_strongest_slots_in_colours():
    weights = torch.tensor([[0.1, 0.2, 0.7], [0.4, 0.3, 0.3], [0.3, 0.2, 0.5], [0.0, 0.0, 1.0]])
    points = torch.randn(4, 3)
    view = view_slots(points, weights, title="a title")
    assert view.points is points
    assert view.colors.dtype == torch.uint8
    assert [tuple(color) for color in view.colors.tolist()] == [ORANGE, SKY_BLUE, ORANGE, ORANGE]
    assert view.values.tolist() == [2, 0, 2, 2]
    assert view.legend == (("slot 2", ORANGE), ("slot 0", SKY_BLUE))
    assert (view.title, view.legend_title, view.color_bar) == ("a title", "strongest slot", None)


def test_a_given_ranking_decides_the_colours():
    view = view_slots(torch.randn(3, 3), one_hot([3, 0, 2], 4), ranking=[0, 1, 2])
    assert [tuple(color) for color in view.colors.tolist()] == [GREY, ORANGE, GREEN]
    # Slot 1 does not occur.
    assert view.legend == (("slot 0", ORANGE), ("slot 2", GREEN), ("other slots", GREY))


def test_beyond_twelve_slots_the_rest_is_grey():
    slots = [slot for slot in range(14) for _ in range(20 - slot)]
    view = view_slots(torch.randn(len(slots), 3), one_hot(slots, 16))
    expected = torch.cat([palette(12), torch.tensor([GREY, GREY], dtype=torch.uint8)])
    assert view.colors.equal(expected[slots])
    assert [name for name, _ in view.legend] == [*(f"slot {slot}" for slot in range(12)), "other slots"]
    twelve = view_slots(torch.randn(12, 3), one_hot(list(range(12)), 16))
    assert len(twelve.colors.unique(dim=0)) == len(twelve.legend) == 12


def test_one_slot():
    weights = torch.tensor([[0.1, 0.0], [0.1, 0.5], [0.1, 0.25]])
    view = view_slot(torch.randn(3, 3), weights, 1)
    assert view.values.tolist() == [0, 0.5, 0.25]
    assert view.colors.tolist() == [DARK, BRIGHT, [32, 144, 140]]
    assert view.color_bar == ColorBar("weight of slot 1", 0.0, 0.5)
    assert view.legend == ()
    # On the scale of another cloud.
    view = view_slot(torch.randn(3, 3), weights, 1, high=1.0)
    assert view.colors[1].tolist() == [32, 144, 140]
    assert view.color_bar.high == 1
    for slot in (2, -1):
        with pytest.raises(ValueError, match=rf"slot must be in 0\.\.1, got {slot}"):
            view_slot(torch.randn(3, 3), weights, slot)


# Queries


def test_likeness_to_the_query_by_hand():
    weights = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]])
    points = torch.randn(4, 3)
    view = view_query(points, AttentionMap(weights[None]), 1)
    deviation = weights.double().numpy() - [0.4, 0.2, 0.4]  # from the mean
    expected = [a @ deviation[1] / np.linalg.norm(a) / np.linalg.norm(deviation[1]) for a in deviation]
    np.testing.assert_allclose(view.values, expected, atol=1e-6)
    assert view.values[1].item() == pytest.approx(1)
    assert view.values[3] < 0
    assert view.colors[1].tolist() == BRIGHT
    assert view.colors[3].tolist() == DARK
    assert view.color_bar == ColorBar("likeness to the query", 0.0, 1.0)
    assert view.marker.equal(points[1])


def test_the_likeness_is_that_of_one_head_or_of_their_mean():
    weights, points = torch.rand(1, 3, 7, 5), torch.randn(7, 3)
    mean = view_query(points, AttentionMap(weights.mean(1)), 2)
    assert view_query(points, AttentionMap(weights), 2).values.allclose(mean.values)
    first = view_query(points, AttentionMap(weights[:, 0]), 2)
    assert view_query(points, AttentionMap(weights), 2, head=0).values.allclose(first.values)


def test_self_attention_shows_the_row_of_the_query():
    weights, points = torch.tensor([[[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]]), torch.randn(3, 3)
    view = view_query(points, AttentionMap(weights, slots_are_tokens=True), 1)
    assert view.values.tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert view.color_bar.label == "weight of the query"
    assert view.color_bar.high == pytest.approx(0.7)


def test_a_query_between_tokens():
    """Halfway between two tokens their rows are mixed, and values halfway between tokens are mixed too."""
    centers = on_a_line(0, 2, 100, 102)[None]
    weights = torch.tensor([[[0.9, 0.1, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]])
    attention = AttentionMap(weights, points=centers, slots_are_tokens=True)
    view = view_query(on_a_line(0, 1, 2), attention, 1)
    torch.testing.assert_close(view.values, torch.tensor([0.7, 0.5, 0.3]), atol=1e-3, rtol=0)


def test_errors_of_queries():
    attention = AttentionMap(torch.rand(1, 5, 7))
    for query in (5, -1):
        with pytest.raises(ValueError, match=rf"query must be the number of a point, 0\.\.4, got {query}"):
            view_query(torch.randn(5, 3), attention, query)


# Values, parts and classes


def test_values():
    view = view_values(torch.randn(3, 3), torch.tensor([1.0, 3.0, 2.0]), label="height", low=1.0, title="t")
    assert view.colors.tolist() == [DARK, BRIGHT, [32, 144, 140]]
    assert (view.color_bar, view.title) == (ColorBar("height", 1.0, 3.0), "t")


def test_share_scale():
    points = torch.randn(1, 3)
    low, high = (view_values(points, torch.tensor([value]), label="v") for value in (1.0, 2.0))
    slots = view_slots(points, torch.ones(1, 1))
    shared = share_scale([low, slots, high])
    assert [view.colors.tolist() for view in shared] == [[[32, 144, 140]], [list(ORANGE)], [BRIGHT]]
    assert [view.color_bar for view in shared] == [ColorBar("v", 0.0, 2.0), None, ColorBar("v", 0.0, 2.0)]
    assert share_scale([slots]) == [slots]


def test_parts():
    view = view_parts(torch.randn(4, 3), torch.tensor([7, 9, 7, 2]), {7: "seat", 2: "leg", 9: "arm"}, title="chair")
    assert [tuple(color) for color in view.colors.tolist()] == [ORANGE, GREEN, ORANGE, SKY_BLUE]
    assert view.legend == (("seat", ORANGE), ("leg", SKY_BLUE), ("arm", GREEN))
    assert (view.title, view.legend_title, view.values.tolist()) == ("chair", "part", [7, 9, 7, 2])
    with pytest.raises(ValueError, match=r"part_label must be one of \[7, 2\], got 9"):
        view_parts(torch.randn(2, 3), torch.tensor([7, 9]), {7: "seat", 2: "leg"})


def test_a_class():
    view = view_class(torch.randn(5, 3), {"chair": 0.912, "sofa": 0.05}, title="file")
    assert view.colors.tolist() == [list(ORANGE)] * 5
    assert view.legend == (("chair 91.2 %", ORANGE), ("sofa 5.0 %", GREY))
    assert (view.title, view.legend_title) == ("file", "class")


# view_points


def test_view_points_chooses_by_its_arguments():
    points, attention = torch.randn(5, 3), AttentionMap(torch.rand(2, 3, 5, 7))
    weights = weights_at(points, attention, cloud=1, head=2)
    options = {"cloud": 1, "head": 2, "title": "t"}

    def same(view, expected):
        return view.colors.equal(expected.colors) and view[2:6] == expected[2:6] and view.title == "t"

    assert same(view_points(points, attention, **options), view_slots(points, weights, title="t"))
    assert same(view_points(points, attention, slot=3, **options), view_slot(points, weights, 3, title="t"))
    expected = view_query(points, attention, 4, **options)
    found = view_points(points, attention, query=4, **options)
    assert same(found, expected)
    assert found.marker.equal(points[4])


def test_your_own_colours():
    points, colors = torch.randn(5, 3), torch.randint(0, 256, (5, 3), dtype=torch.uint8)
    view = view_points(points, colors=colors, title="t")
    assert view.colors.equal(colors)
    assert (view.title, view.legend, view.color_bar) == ("t", (), None)


def test_without_attention_points_are_coloured_by_height():
    points = torch.tensor([[0, 5, 0], [9, 7, 0], [9, 6, -9.0]])
    view = view_points(points)
    assert view.values.tolist() == [0, 2, 1]
    assert view.colors.tolist() == [DARK, BRIGHT, [32, 144, 140]]
    assert view.color_bar == ColorBar("height", 0.0, 2.0)


def test_errors_of_view_points():
    points, attention = torch.randn(5, 3), AttentionMap(torch.rand(1, 5, 7))
    colors = torch.zeros(5, 3, dtype=torch.uint8)
    for wrong in (torch.randn(2, 5, 3), torch.randn(5, 2), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match=r"points must be one cloud, \(N, 3\), got"):
            view_points(wrong, attention)
    for two in ({"slot": 0, "query": 0}, {"slot": 0, "colors": colors}, {"query": 0, "colors": colors}):
        with pytest.raises(ValueError, match="Give one of slot, query and colors"):
            view_points(points, attention, **two)
    for wrong in (colors[:4], colors.float()):
        with pytest.raises(ValueError, match=r"colors must be \(5, 3\) uint8, got"):
            view_points(points, colors=wrong)
    for one in ({"slot": 0}, {"query": 0}):
        with pytest.raises(ValueError, match="slot and query need attention"):
            view_points(points, **one)
    with pytest.raises(TypeError, match=r"the map of one layer, such as maps\[name\], got dict"):
        view_points(points, {"a layer": attention})


# Attention drawn is attention computed


class Output(NamedTuple):
    tokens: Tensor
    centers: Tensor


class HalfSpace(nn.Module):
    """A user's own network, whose tokens say whether a point has x > 0.5; memory slot 4 looks for those that have."""

    SLOT = 4

    def __init__(self, *, stride=1):
        super().__init__()
        self.attention = ExternalAttention(2, memory_units=7)
        self.stride = stride
        key = torch.tensor([[0.0, 20.0]]).repeat(7, 1)
        key[self.SLOT] = torch.tensor([20.0, 0.0])
        self.attention.key = nn.Parameter(key)

    def forward(self, points):
        centers = points[:, :: self.stride]
        right = (centers[..., 0] > 0.5).float()
        return Output(self.attention(torch.stack([right, 1 - right], dim=-1)), centers)


def two_boxes(count, *, seed):
    """Points with x in 0..0.2 or 0.8..1, in random order."""
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))
    points[:, 0] = points[:, 0] * 0.2 + (points[:, 0] > 0.07) * 0.8
    return points


def attention_of(points, **options):
    model = HalfSpace(**options)
    with record_attention(model) as maps:
        model(points)
    return maps["attention"]


def check_colors(points, attention, cloud):
    """The points with x > 0.5, and no others, are bright in the slot's view, and of one colour among all slots."""
    right = points[:, 0] > 0.5
    view = view_points(points, attention, slot=HalfSpace.SLOT, cloud=cloud)
    expected = torch.where(right[:, None], torch.tensor(BRIGHT), torch.tensor(DARK)).to(torch.uint8)
    assert view.colors.equal(expected)
    view = view_points(points, attention, cloud=cloud)
    color = torch.tensor(dict(view.legend)[f"slot {HalfSpace.SLOT}"], dtype=torch.uint8)
    assert (view.colors == color).all(1).equal(right)


def test_attention_drawn_is_attention_computed():
    clouds = torch.stack([two_boxes(101, seed=1), two_boxes(101, seed=2)])
    attention = attention_of(clouds)
    for cloud in (0, 1):
        check_colors(clouds[cloud], attention, cloud)


def test_permuted_points_have_permuted_colours():
    points, order = two_boxes(101, seed=1), torch.randperm(101)
    for options in ({}, {"slot": HalfSpace.SLOT}, {"query": 0}):
        moved = {"query": int((order == 0).nonzero())} if "query" in options else options
        expected = view_points(points, attention_of(points[None]), **options)
        found = view_points(points[order], attention_of(points[None, order]), **moved)
        assert found.colors.equal(expected.colors[order])
        assert found.legend == expected.legend


def test_attention_of_a_few_tokens_is_drawn_at_all_points():
    """The network says where its tokens are; points that it was not given are coloured too."""
    clouds = torch.stack([two_boxes(404, seed=1), two_boxes(404, seed=2)])
    attention = attention_of(clouds, stride=4)
    assert attention.weights.shape == (2, 101, 7)
    for cloud in (0, 1):
        check_colors(clouds[cloud], attention, cloud)
        check_colors(two_boxes(57, seed=3), attention, cloud)


def test_attention_rendered_is_attention_computed():
    try:
        check_rendering()
    except (OSError, ImportError) as error:
        pytest.skip(str(error))
    points = two_boxes(3000, seed=1) * torch.tensor([1.0, 1, 0])  # a wall before the camera: no shading
    picture = render(points, attention_of(points[None]), slot=HalfSpace.SLOT, size=200, azimuth=0, elevation=0)
    dark, bright = (np.flatnonzero((picture[:, :200] == color).all(2).any(0)) for color in (DARK, BRIGHT))
    # From +z, x is on the right; between the boxes all is white.
    assert 0 < dark.min() < 20
    assert dark.max() < 60
    assert bright.min() > 140
    assert 180 < bright.max() < 200


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (torch.rand(5, 2), ValueError, r"one cloud, \(N, 3\), got \(5, 2\)"),
        (torch.rand(2, 5, 3), ValueError, r"one cloud, \(N, 3\), got \(2, 5, 3\)"),
        (torch.zeros(0, 3), ValueError, r"one cloud, \(N, 3\), got \(0, 3\)"),
        (torch.tensor([[0.0, 1, 2], [0, float("nan"), 2]]), ValueError, "1 of 2 points have NaN or infinite"),
        (torch.rand(5, 3).numpy(), TypeError, "must be a torch.Tensor, got ndarray"),
    ],
)
def test_points_that_are_not_one_cloud(points, error, message):
    with pytest.raises(error, match=message):
        view_points(points)


def test_points_with_a_gradient_can_be_drawn():
    assert not view_points(torch.rand(5, 3, requires_grad=True)).points.requires_grad
