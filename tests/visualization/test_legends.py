import numpy as np
import pytest
import torch
from pictures import GREEN, ORANGE, ink, is_color

from pcea.visualization import palette
from pcea.visualization.legends import draw_legend, merge_legends
from pcea.visualization.views import ColorBar, View, view_slots


def view_of_legend(legend, **fields):
    return View(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.uint8), legend=tuple(legend), **fields)


def test_a_legend_from_top_to_bottom():
    key = draw_legend(view_of_legend([("seat", ORANGE), ("leg", GREEN)], legend_title="part"), height=200)
    assert key.shape[0] == 200
    orange, green = (np.nonzero(is_color(key, color)) for color in (ORANGE, GREEN))
    assert 0 < orange[0].mean() < green[0].mean() < 200
    assert orange[0].mean() + green[0].mean() == pytest.approx(200, abs=40)  # in the middle
    # The text is right of the patches.
    assert ink(key)[:, orange[1].max() + 2 :].any()


@pytest.mark.parametrize("names", [["WWWWWWWWWWWWWWWWWW"], ["$_$", "_hidden"], ["l"], [f"part {i}" for i in range(40)]])
def test_legends_fit(names):
    colors = [tuple(color) for color in palette(len(names)).tolist()]
    key = draw_legend(view_of_legend(zip(names, colors), legend_title="parts, layer 3"), height=300)
    for color in colors:
        assert is_color(key, color).any()
    assert not ink(key)[[0, -1]].any()
    assert not ink(key)[:, [0, 1, -2, -1]].any()


def test_a_colour_bar():
    key = draw_legend(view_of_legend([], color_bar=ColorBar("weight of slot 13, layer 3", 0.0, 0.04)), height=300)
    dark, bright = (np.nonzero(np.abs(key.astype(int) - color).max(-1) < 12) for color in ([68, 1, 84], [253, 231, 36]))
    assert bright[0].mean() < 100 < 200 < dark[0].mean()
    assert abs(bright[1].mean() - dark[1].mean()) < 1


@pytest.mark.parametrize("high", [0.0, 3e-9, 1.5e-4, 0.00175, 0.0181, 1.0, 350.0, 123456.0])
def test_colour_bars_fit(high):
    key = draw_legend(view_of_legend([], color_bar=ColorBar("weight of slot 13, layer 3", 0.0, high)), height=300)
    assert not ink(key)[:, [0, 1, -2, -1]].any()
    assert not ink(key)[[0, -1]].any()
    # The label stands apart from the numbers: a white column is between them.
    columns = ink(key).any(0)
    label = np.flatnonzero(columns).max()
    assert not columns[label - 30 : label].all()


def test_a_bar_of_equal_values_has_two_ends():
    keys = [draw_legend(view_of_legend([], color_bar=ColorBar("a", 0.0, high)), height=300) for high in (0.0, 1.0)]
    assert (keys[0] == keys[1]).all()


def test_a_view_without_legend_is_blank():
    assert (draw_legend(view_of_legend([]), height=50) == 255).all()


def test_merged_legends_end_with_the_other_slots():
    weights = [torch.eye(20)[slots] for slots in ([0, 2, 19], [1, 3, 3])]
    views = [view_slots(torch.rand(3, 3), w, ranking=range(13)) for w in weights]
    names = [name for name, _ in merge_legends(views).entries]
    assert names == ["slot 0", "slot 2", "slot 1", "slot 3", "other slots"]
