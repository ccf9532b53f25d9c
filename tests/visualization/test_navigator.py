import pytest
import torch
from examples import one_hot, self_attention, subject

from pcea.nn.recording import AttentionMap
from pcea.visualization.color_basis import fit_color_basis
from pcea.visualization.navigator import Navigator
from pcea.visualization.subject import SharedColors, Subject, shared_views


def state(navigator):
    return navigator.subject_index, navigator.mode, navigator.layer, navigator.slot, navigator.query


def test_a_navigator_begins_with_the_last_layer():
    assert state(Navigator([subject()])) == (0, "colors", 1, None, None)
    assert state(Navigator([subject()], mode="query", layer=0, slot=2, query=3)) == (0, "query", 0, 2, 3)


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "parts"}, {"layer": 2}, {"mode": "slot", "slot": 3}, {"mode": "query", "query": 5}],
)
def test_a_wrong_argument_is_noticed_at_once(wrong):
    (name,) = list(wrong)[-1:]
    with pytest.raises(ValueError, match=name):
        Navigator([subject()], **wrong)


def pressed(navigator, key, name, *, times, back=False):
    found = []
    for _ in range(times):
        assert navigator.press(key, back=back)
        navigator.view()
        found.append(getattr(navigator, name))
    return found


def test_m_steps_through_the_modes():
    navigator = Navigator([subject()])
    assert pressed(navigator, "m", "mode", times=5) == ["slots", "slot", "query", "colors", "slots"]
    assert pressed(navigator, "m", "mode", times=3, back=True) == ["colors", "query", "slot"]


def test_l_steps_through_the_layers():
    navigator = Navigator([subject(slots={"a": [0] * 5, "b": [1] * 5, "c": [2] * 5})], mode="slot")
    assert pressed(navigator, "l", "layer", times=4) == [0, 1, 2, 0]
    assert pressed(navigator, "l", "layer", times=3, back=True) == [2, 1, 0]
    assert navigator.view().values.tolist() == [1] * 5


def test_s_steps_through_the_slots():
    navigator = Navigator([subject()], layer=0)
    # The first press goes to the slot mode, with the slot that it shows of its own: 2 of 0..2.
    assert pressed(navigator, "s", "slot", times=4) == [2, 0, 1, 2]
    assert navigator.mode == "slot"
    assert pressed(navigator, "s", "slot", times=4, back=True) == [1, 0, 2, 1]
    # Back from another mode, the slot is still the same.
    navigator.press("m")
    assert pressed(navigator, "s", "slot", times=2) == [1, 2]


def test_s_steps_from_the_slot_that_is_shown():
    assert pressed(Navigator([subject()], mode="slot", layer=0), "s", "slot", times=2) == [0, 1]
    assert pressed(Navigator([subject()], mode="slot", layer=0), "s", "slot", times=1, back=True) == [1]


def test_f_steps_through_the_files():
    navigator = Navigator([subject(name="x"), subject(name="y"), subject(name="z")], mode="query", query=3)
    assert pressed(navigator, "f", "subject_index", times=4) == [1, 2, 0, 1]
    assert navigator.view().title == "y"
    assert navigator.query is None  # a point of another cloud
    assert pressed(navigator, "f", "subject_index", times=3, back=True) == [0, 2, 1]


def test_a_slot_that_the_next_layer_lacks_is_reset():
    maps = {"wide": AttentionMap(torch.rand(1, 5, 7)), "narrow": AttentionMap(one_hot([1] * 5, 3))}
    navigator = Navigator([Subject(torch.randn(5, 3), maps)], mode="slot", layer=0, slot=3)
    assert navigator.press("l")
    assert navigator.view().color_bar.label == "weight of slot 1, layer 1"
    navigator = Navigator([Subject(torch.randn(5, 3), maps)], mode="slot", layer=0, slot=2)
    navigator.press("l")
    assert navigator.slot == 2


def test_keys_without_effect():
    navigator = Navigator([self_attention()], mode="query")
    before = state(navigator)
    assert not [key for key in "lsfxq" for back in (False, True) if navigator.press(key, back=back)]
    assert state(navigator) == before


def random_subjects(head=None, **options):
    """Three clouds whose slots differ in strength, seen with two heads."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(1, 2, 20, 6, generator=generator) ** (1 + i) for i in range(3)]
    maps = [AttentionMap(each * torch.rand(6, generator=generator)) for each in weights]
    points = torch.randn(20, 3, generator=generator)
    return [Subject(points, {"a": attention}, name=str(i), head=head, **options) for i, attention in enumerate(maps)]


@pytest.mark.parametrize("mode", ["colors", "slots", "slot", "query"])
@pytest.mark.parametrize("head", [None, 1])
def test_colours_mean_the_same_in_all_files(mode, head):
    subjects = random_subjects(head)
    navigator = Navigator(subjects, mode=mode)
    for expected in shared_views(subjects, mode, layer=0):
        shown = navigator.view()
        assert (shown.title, shown.legend, shown.color_bar) == (expected.title, expected.legend, expected.color_bar)
        assert shown.colors.equal(expected.colors)
        navigator.press("f")


def test_a_basis_is_of_the_head_that_is_asked_for():
    """A page also shows the heads that `head` does not name, and their mean."""
    stored = {"a": torch.rand(3, 6).tolist()}
    with_bases, without = random_subjects(1, color_bases=stored), random_subjects(1)
    assert SharedColors(with_bases).basis(with_bases[0], 0, None).tolist() == torch.tensor(stored["a"]).tolist()
    for head in (None, 0, 1):
        weights = [each.layers["a"].weights[0] for each in without]
        expected = fit_color_basis([w.mean(0) if head is None else w[head] for w in weights])
        torch.testing.assert_close(SharedColors(without).basis(without[0], 0, head), expected)
        if head is not None:
            torch.testing.assert_close(SharedColors(with_bases).basis(with_bases[0], 0, head), expected)


def test_pick():
    points = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-3, 0, 0], [0, 0, 2.0]])
    navigator = Navigator([subject(points=points)])
    navigator.pick(torch.tensor([0.2, 0.9, 0.1], dtype=torch.float64))
    assert state(navigator) == (0, "query", 1, None, 2)
    assert navigator.view().marker.equal(points[2])
