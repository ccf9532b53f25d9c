"""Pictures: what their tokens attend to lies where the tokens are, and is drawn there."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pcea.nn.layers import ExternalAttention2d
from pcea.nn.recording import AttentionMap, record_attention
from pcea.visualization import palette, render_picture, view_picture
from pcea.visualization.images import blend, draw_overlay, pixel_index, resize_picture, to_greyscale
from pcea.visualization.point_weights import interpolate_grid, pixel_points, weights_at
from pcea.visualization.sheets import draw_sheet
from pcea.visualization.views import View

WHITE, RED = [255, 255, 255], [255, 0, 25]


def picture_of(height, width, seed=0):
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def attention_of(cells, *, before=0, heads=0):
    """The map of a grid of cells, (H, W), each of which attends to one of 5 slots; with tokens before, to slot 4."""
    label = torch.cat([torch.full((before,), 4), cells.flatten()])
    weights = F.one_hot(label, 5).float()[None]
    if heads:
        # One head sees this, the others nothing.
        weights = torch.stack([torch.full_like(weights, 0.2)] * (heads - 1) + [weights], dim=1)
    return AttentionMap(weights, grid=tuple(cells.shape))


# Where the pixels are


def test_pixels_are_points_row_by_row():
    expected = [[-2 / 3, 0.5], [0, 0.5], [2 / 3, 0.5], [-2 / 3, -0.5], [0, -0.5], [2 / 3, -0.5]]
    points = pixel_points(2, 3)
    torch.testing.assert_close(points, torch.tensor([[*place, 0.0] for place in expected]))


@pytest.mark.parametrize("size", [(7, 5), (14, 10), (23, 31), (3, 2)])
def test_tokens_are_interpolated_at_pixels_bilinearly(size, generator):
    features = torch.randn(7 * 5, 3, generator=generator)
    expected = F.interpolate(features.T.view(1, 3, 7, 5), size, mode="bilinear")[0].flatten(1).T
    torch.testing.assert_close(interpolate_grid(features, (7, 5), pixel_points(*size)), expected)


def test_pixel_index():
    assert pixel_index((3, 1), (4, 5), (4, 5)) == 1 * 5 + 3
    assert pixel_index((3, 1), (4, 5), (8, 10)) == 3 * 10 + 7  # 1.5 of 4 rows, 3.5 of 5 columns
    assert pixel_index((9, 19), (20, 10), (2, 1)) == 1
    for place in ((5, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match=r"pixel x,y with x in 0\.\.4 and y in 0\.\.3, got"):
            pixel_index(place, (4, 5), (8, 10))


@pytest.mark.parametrize(
    ("shape", "side", "expected"), [((30, 20), 15, (15, 10)), ((2, 3), 9, (6, 9)), ((1, 500), 8, (1, 8))]
)
def test_resize_picture(shape, side, expected):
    flat = torch.tensor([10, 200, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, *shape)
    fitted = resize_picture(flat, side)
    assert fitted.shape == (3, *expected)
    assert fitted.flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 30]


def test_to_greyscale_by_hand():
    picture = torch.tensor([[[255, 0, 100]], [[0, 255, 100]], [[0, 0, 100]]], dtype=torch.uint8)
    assert to_greyscale(picture).tolist() == [[[76] * 3, [150] * 3, [100] * 3]]


# What is seen


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("heads", [0, 2])
def test_a_slot_of_a_region_is_drawn_exactly_there(before, heads):
    """A band of two columns of cells, and everything else; tokens before those of the image are not seen."""
    cells = torch.ones(4, 6, dtype=torch.int64)
    cells[:, 2:4] = 3
    attention = attention_of(cells, before=before, heads=heads)
    view = view_picture(picture_of(20, 30), attention, head=heads - 1 if heads else None)
    inside = torch.zeros(20, 30, dtype=torch.bool)
    inside[:, 10:20] = True
    assert torch.equal(view.values.view(20, 30) == 3, inside)
    assert torch.equal(view.values.view(20, 30) == 1, ~inside)
    assert [name for name, _ in view.legend] == ["slot 1", "slot 3"]
    colors = view.colors.view(20, 30, 3)
    assert colors[inside].unique(dim=0).tolist() == palette(2)[1:].tolist()
    weight = view_picture(picture_of(20, 30), attention, slot=3, head=heads - 1 if heads else None).values.view(20, 30)
    assert weight[inside].min() > 0.5 > weight[~inside].max()


def test_rows_and_columns_are_not_swapped_or_mirrored():
    """The upper left cell of a grid that is wider than high."""
    cells = torch.ones(2, 3, dtype=torch.int64)
    cells[0, 0] = 2
    weight = view_picture(picture_of(20, 30), attention_of(cells), slot=2).values.view(20, 30)
    assert weight[4:6, 4:6].min() > 0.9
    assert weight[:5, :5].min() == 1  # up to the middle of the outermost cell
    assert weight[15:].max() == weight[:, 20:].max() == 0


def test_an_image_of_a_batch():
    first, second = torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), 4)
    weights = torch.cat([attention_of(first).weights, attention_of(second).weights])
    attention = AttentionMap(weights, grid=(2, 2))
    for number, slot in ((0, 0), (1, 4)):
        assert view_picture(picture_of(5, 7), attention, cloud=number).values.unique().tolist() == [slot]


def test_pixels_with_the_same_attention_are_like_the_query():
    """The pixel lies in the right one of two halves."""
    cells = torch.ones(3, 4, dtype=torch.int64)
    cells[:, 2:] = 3
    view = view_picture(picture_of(30, 40), attention_of(cells, before=1), query=(33, 7))
    values = view.values.view(30, 40)
    # Up to the middles of the cells next to the border, between which weights are mixed.
    torch.testing.assert_close(values[:, 25:], torch.ones(30, 15))
    torch.testing.assert_close(values[:, :15], -torch.ones(30, 15))
    assert view.marker.tolist() == pixel_points(30, 40)[7 * 40 + 33].tolist()
    assert view.color_bar == ("likeness to the query", 0, 1)


def test_self_attention_shows_the_row_of_the_query():
    """A class token and a grid of 2 x 3; the token of the lower right cell attends to the lower left one."""
    weights = torch.eye(7)
    weights[6] = F.one_hot(torch.tensor(4), 7).float()
    attention = AttentionMap(weights[None], slots_are_tokens=True, grid=(2, 3))
    values = view_picture(picture_of(20, 30), attention, query=(29, 19)).values.view(20, 30)
    assert values[15:, :5].min() == 1
    assert values[:5].max() == values[:, 15:].max() == 0
    with pytest.raises(ValueError, match="self-attention, which has no slots: give a query"):
        view_picture(picture_of(20, 30), attention)


def test_what_the_network_sees_red_is_drawn_on_the_red_square():
    """From the pixels through a layer of the library to the picture: a slot that was planted for red."""
    block = ExternalAttention2d(3, memory_units=2).eval()
    with torch.no_grad():
        block.conv_in.weight.copy_(torch.eye(3)[..., None, None])
        block.conv_in.bias.zero_()
        block.attention.key.copy_(torch.tensor([[20.0, 0, 0], [0, 20.0, 20.0]]))
    picture = torch.tensor([0, 120, 200], dtype=torch.uint8).view(3, 1, 1).repeat(1, 33, 47)
    picture[:, 5:14, 20:41] = torch.tensor([220, 10, 10], dtype=torch.uint8).view(3, 1, 1)
    with record_attention(block) as maps, torch.inference_mode():
        block(picture[None] / 255)
    view = view_picture(picture, maps["attention"])
    square = torch.zeros(33, 47, dtype=torch.bool)
    square[5:14, 20:41] = True
    assert torch.equal(view.values.view(33, 47) == 0, square)
    # And so in the picture that is written: without title and legend it begins five pixels from the border.
    drawn = render_picture(picture, maps["attention"], size=47)[5:38, 5:52]
    slots = dict(view.legend)
    for slot, place in ((0, square), (1, ~square)):
        color = torch.tensor(slots[f"slot {slot}"], dtype=torch.uint8).expand(33, 47, 3)
        assert np.array_equal(drawn[place], blend(color, to_greyscale(picture))[place].numpy())


# What is drawn


def test_colours_lie_half_transparent_over_the_picture():
    colors, below = (torch.tensor(c, dtype=torch.uint8).expand(2, 2, 3) for c in ((200, 100, 0), (50, 50, 50)))
    assert blend(colors, below).unique(dim=0).flatten().unique(sorted=True).tolist() == [20, 80, 140]


def test_the_query_is_marked():
    picture = torch.zeros(60, 90, 3, dtype=torch.uint8)
    points = pixel_points(60, 90)
    drawn = draw_overlay(View(points, picture.flatten(0, 1), picture=picture, marker=points[20 * 90 + 70]))
    assert drawn[20, 70].tolist() == RED
    rows, columns = np.nonzero((drawn != 0).any(-1))
    assert (rows.mean(), columns.mean()) == pytest.approx((20, 70), abs=0.01)
    assert np.ptp(rows) == np.ptp(columns) == 2
    assert {tuple(color) for color in drawn[drawn.any(-1)]} == {tuple(RED), tuple(WHITE)}


def test_a_sheet_of_pictures_of_different_shapes():
    """Each in the middle of its place, with its title above; nothing touches."""
    views = []
    for (height, width), value in (((40, 80), 10), ((80, 20), 90), ((30, 30), 200)):
        colors = torch.full((height, width, 3), value, dtype=torch.uint8)
        views.append(View(pixel_points(height, width), colors.flatten(0, 1), title="name", picture=colors))
    sheet = next(draw_sheet(views, shared_legend=True))
    assert sheet.shape == (2 * (80 + 10 + 30), 2 * (80 + 10), 3)
    for number, (height, width, value) in enumerate(((40, 80, 10), (80, 20, 90), (30, 30, 200))):
        top, left = number // 2 * 120 + 30, number % 2 * 90
        place = sheet[top : top + 90, left : left + 90]
        rows, columns = np.nonzero((place == value).all(-1))
        assert (rows.min(), columns.min()) == ((90 - height) // 2, (90 - width) // 2)
        assert len(rows) == height * width
        assert (place != 255).any(-1).sum() == height * width
        assert (sheet[top - 30 : top, left : left + 90] < 128).any()  # the title


def test_pictures_need_no_open3d():
    code = (
        "import sys; sys.modules['open3d'] = None; import torch; from pcea.nn.recording import AttentionMap\n"
        "from pcea.visualization import render_picture\n"
        "attention = AttentionMap(torch.rand(1, 6, 4), grid=(2, 3))\n"
        "print(render_picture(torch.zeros(3, 20, 30, dtype=torch.uint8), attention, slot=1, size=300).shape[0])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "210\n"


@pytest.mark.parametrize(
    ("picture", "options", "message"),
    [
        (torch.zeros(3, 4, 5), {}, r"picture must be \(3, H, W\) uint8, got \(3, 4, 5\) torch.float32"),
        (picture_of(4, 5)[0], {}, r"picture must be \(3, H, W\) uint8, got \(4, 5\)"),
        (picture_of(4, 5), {"slot": 5}, r"slot must be in 0\.\.4, got 5"),
        (picture_of(4, 5), {"head": 2}, r"head must be in 0\.\.1, got 2"),
        (picture_of(4, 5), {"query": (5, 0)}, r"x in 0\.\.4 and y in 0\.\.3, got 5,0"),
        (picture_of(4, 5), {"slot": 1, "query": (0, 0)}, "Give one of slot, query"),
    ],
)
def test_errors(picture, options, message):
    attention = attention_of(torch.zeros(2, 2, dtype=torch.int64), heads=2)
    with pytest.raises(ValueError, match=message):
        view_picture(picture, attention, **options)


def test_a_map_without_a_grid():
    attention = attention_of(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"set `grid` of the attention map, `attention._replace\(grid=\(H, W\)\)`"):
        view_picture(picture_of(4, 5), attention._replace(grid=None))
    assert weights_at(pixel_points(4, 6), attention).shape == (24, 5)
