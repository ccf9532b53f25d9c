import pytest
import torch
from examples import SLOTS, self_attention, subject

from pcea.nn.recording import AttentionMap
from pcea.visualization import ColorBar, palette, view_query, view_slots, view_values, weights_at
from pcea.visualization.subject import SharedColors, Subject, shared_views

MIDDLE, BRIGHT = [32, 144, 140], [253, 231, 36]


def test_a_subject_is_coloured_in_each_mode():
    points, attention = torch.randn(7, 3), AttentionMap(torch.rand(2, 5, 3), points=torch.randn(2, 5, 3))
    normals = torch.randn(7, 3)
    layers = {"a": AttentionMap(torch.rand(2, 7, 3)), "b": attention}
    seen = Subject(points, layers, name="n", normals=normals, cloud=1)
    weights = weights_at(points, attention, cloud=1)
    expected = view_slots(points, weights, ranking=SharedColors([seen]).ranking(1, None))
    view = seen.view("slots", layer=1)
    assert view.colors.equal(expected.colors)
    assert (view.title, view.legend_title) == ("n", "strongest slot, layer 1")
    assert view.normals is normals
    view = seen.view("slot", layer=1, slot=2)
    assert view.values.equal(weights[:, 2])
    assert view.color_bar.label == "weight of slot 2, layer 1"
    assert (view.title, view.legend_title) == ("n", "")
    view = seen.view("query", layer=1, query=4)
    assert view.values.equal(view_query(points, attention, 4, cloud=1).values)
    assert view.color_bar.label == "likeness to the query, layer 1"
    assert view.marker.equal(points[4])


def test_defaults_of_slot_and_query():
    points = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-3, 0, 0], [0, 0, 2.0]])
    seen = subject(points=points)
    assert seen.default_query() == 3
    assert seen.view("query", layer=0).marker.equal(points[3])
    assert seen.view("slot", layer=0).color_bar.label.startswith("weight of slot 2")
    assert seen.view("slot", layer=1).color_bar.label.startswith("weight of slot 1")


def test_weights_are_those_of_the_layer_asked_for():
    seen = subject()
    for layer, slots in ((0, "a"), (1, "b"), (0, "a")):
        assert seen.weights(layer).argmax(1).tolist() == SLOTS[slots]
    assert seen.weights(0) is seen.weights(0)


def test_one_head():
    points, attention = torch.randn(5, 3), AttentionMap(torch.rand(2, 4, 5, 3))
    seen = Subject(points, {"a": attention}, cloud=1, head=2)
    assert seen.view("slot", layer=0, slot=1).values.equal(attention.weights[1, 2, :, 1])
    expected = view_query(points, attention, 3, cloud=1, head=2)
    assert seen.view("query", layer=0, query=3).values.equal(expected.values)
    other = Subject(points, {"a": attention, "b": AttentionMap(torch.rand(2, 5, 3))}, cloud=1, head=2)
    with pytest.raises(ValueError, match=r"head must be in 0\.\.0, got 2"):
        other.view("slot", layer=1, slot=1)


def test_modes():
    assert subject().modes == ("colors", "slots", "slot", "query")
    assert self_attention().modes == ("colors", "query")
    mixed = {
        "a": AttentionMap(torch.rand(1, 5, 3)),
        "b": AttentionMap(torch.rand(1, 5, 5), slots_are_tokens=True),
    }
    assert Subject(torch.randn(5, 3), mixed).modes == ("colors", "query")


class WithHeight(Subject):
    """Adds a mode that is the same for all layers."""

    @property
    def modes(self):
        return (*super().modes, "height")

    def _view_result(self, mode):
        assert mode == "height"
        return view_values(self.points, self.points[:, 1], label="height")


def test_a_subclass_adds_a_mode():
    points, normals, picture = torch.randn(6, 3), torch.randn(6, 3), torch.zeros(2, 3, 3, dtype=torch.uint8)
    layers = {"a": AttentionMap(torch.rand(1, 6, 3))}
    seen = WithHeight(points, layers, name="n", normals=normals, picture=picture)
    view = seen.view("height", layer=0)
    assert view.values.equal(points[:, 1])
    assert (view.title, view.color_bar.label) == ("n", "height")
    assert view.normals.equal(normals)
    assert view.picture is None
    # Colours of the attention are laid over the picture.
    assert [seen.view(mode, layer=0).picture.equal(picture) for mode in seen.modes[:-1]] == [True] * 4
    with pytest.raises(ValueError, match=r"layer must be one of 0 \(a\), got 1"):
        seen.view("height", layer=1)
    with pytest.raises(ValueError, match="has the modes colors, slots, slot, query, height, not 'parts'"):
        seen.view("parts", layer=0)


def test_errors_of_a_subject():
    with pytest.raises(ValueError, match=r"points must be one cloud, \(N, 3\), got \(1, 5, 3\)"):
        Subject(torch.randn(1, 5, 3), {})
    with pytest.raises(ValueError, match="No attention was recorded: run the model inside"):
        Subject(torch.randn(5, 3), {})
    with pytest.raises(ValueError, match="Layer b: The attention is that of 4 tokens, but there are 5 points"):
        subject(slots={"a": [0] * 5, "b": [0] * 4})
    seen = subject()
    for layer in (2, -1):
        with pytest.raises(ValueError, match=rf"layer must be one of 0 \(a\), 1 \(b\), got {layer}"):
            seen.view("slots", layer=layer)
    with pytest.raises(ValueError, match="has the modes colors, slots, slot, query, not 'parts'"):
        seen.view("parts", layer=0)
    with pytest.raises(ValueError, match="has the modes colors, query, not 'slot'"):
        self_attention().view("slot", layer=0)


# Several clouds in one picture


def color_of_slot(view):
    """The colour of the points of each slot."""
    return {slot: view.colors[view.values == slot].unique(dim=0).tolist() for slot in view.values.unique().tolist()}


def test_a_slot_has_the_same_colour_in_all_clouds():
    # Alone, slot 1 would be the first of the left cloud, and slot 2 of the right one. Together slot 2 leads.
    left, right = subject(slots={"a": [1, 1, 1, 2, 2]}), subject(slots={"a": [2, 2, 2, 0, 0]})
    colors = palette(3).tolist()
    first, second = (color_of_slot(view) for view in shared_views([left, right], "slots", layer=0))
    assert first == {1: [colors[1]], 2: [colors[0]]}
    assert second == {0: [colors[2]], 2: [colors[0]]}


def test_a_slot_has_one_scale_in_all_clouds():
    maps = [AttentionMap(torch.tensor([[[0.25, 0.75], [high, 1 - high]]])) for high in (0.5, 1.0)]
    subjects = [Subject(torch.randn(2, 3), {"a": attention}) for attention in maps]
    low, high = shared_views(subjects, "slot", layer=0, slot=0)
    assert low.color_bar == high.color_bar == ColorBar("weight of slot 0, layer 0", 0.0, 1.0)
    assert low.colors[1].tolist() == MIDDLE
    assert high.colors[1].tolist() == BRIGHT
    # By default; alone, slot 1 would be that of the left cloud.
    left, right = subject(slots={"a": [1, 1, 1, 2, 2]}), subject(slots={"a": [2, 2, 2, 0, 0]})
    labels = [view.color_bar.label for view in shared_views([left, right], "slot", layer=0)]
    assert labels == ["weight of slot 2, layer 0"] * 2
    with pytest.raises(ValueError, match=r"slot must be in 0\.\.1, got 2"):
        shared_views(subjects, "slot", layer=0, slot=2)


def test_queries_have_one_scale_in_all_clouds():
    maps = [AttentionMap(torch.tensor([[[1 - high, high]] * 2]), slots_are_tokens=True) for high in (0.5, 1.0)]
    subjects = [Subject(torch.randn(2, 3), {"a": attention}) for attention in maps]
    low, high = shared_views(subjects, "query", layer=0, queries=[0, 1])
    assert low.color_bar == high.color_bar == ColorBar("weight of the query, layer 0", 0.0, 1.0)
    assert low.colors.tolist() == [MIDDLE, MIDDLE]
    assert low.marker.equal(subjects[0].points[0])
    assert high.marker.equal(subjects[1].points[1])
    farthest = shared_views(subjects, "query", layer=0)
    assert farthest[1].marker.equal(subjects[1].points[subjects[1].default_query()])
