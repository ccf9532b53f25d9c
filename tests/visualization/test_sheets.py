import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from pictures import GREEN, ORANGE, SKY_BLUE, WHITE, draw, grid, ink, is_color, one_color, sphere
from scipy.ndimage import label

from pcea.nn.recording import AttentionMap
from pcea.visualization.colors import palette
from pcea.visualization.legends import text_width
from pcea.visualization.point_weights import pixel_points
from pcea.visualization.sheets import draw_sheet, render
from pcea.visualization.views import ColorBar, View

# One cloud


def test_render(can_draw):
    colors = torch.tensor(ORANGE, dtype=torch.uint8).repeat(2500, 1)
    picture = render(grid(50), colors=colors, size=120, azimuth=0, elevation=0)
    assert (picture.shape, picture.dtype) == ((120, 120, 3), np.uint8)
    assert is_color(picture, ORANGE)[60, 60]
    assert is_color(picture, WHITE)[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    titled = render(grid(50), colors=colors, size=120, azimuth=0, elevation=0, title="a title")
    assert (titled[-120:] == picture).all()
    assert (titled[:-120] < 128).any()
    # Seen along the wall it is a line.
    assert (render(grid(50), colors=colors, size=120, azimuth=90, elevation=0) != 255).any(0).any(1).sum() < 12
    assert (render(grid(50), colors=colors, size=120, azimuth=0, elevation=89) != 255).any(1).any(1).sum() < 12
    weights = AttentionMap(torch.rand(1, 2500, 5))
    with_legend = render(grid(50), weights, slot=3, size=120)
    assert with_legend.shape[0] == 120
    assert with_legend.shape[1] > 120


def test_render_estimates_normals(can_draw):
    """A ball gets darker towards its outline; a cloud of too few points for normals is drawn all the same."""
    points = sphere(20_000)
    colors = torch.tensor([200, 100, 10], dtype=torch.uint8).repeat(20_000, 1)
    picture = render(points, colors=colors, size=100)
    assert np.abs(picture[48:52, 48:52].astype(int) - [200, 100, 10]).max() <= 6
    assert picture[50, 8, 0] < 180
    assert is_color(render(points[:3], colors=colors[:3], size=100), (200, 100, 10)).any()


def test_thin_rods_have_no_gaps(can_draw):
    """A wall, and above it a rod whose samples leave a gap."""
    x = torch.linspace(0, 1, 50)
    rod = torch.stack([x, torch.full_like(x, 1.5), torch.zeros_like(x)], dim=1)
    points = torch.cat([grid(50), rod[(x < 0.44) | (x > 0.56)]])
    picture = render(points, colors=torch.zeros_like(points).byte(), size=200, azimuth=0, elevation=0)
    assert label(ink(picture))[1] == 2


def test_errors_of_rendering(can_draw):
    for size in (0, -5, 4097):
        with pytest.raises(ValueError, match=rf"size must be in 1\.\.4096 pixels, got {size}"):
            render(torch.rand(5, 3), size=size)
    with pytest.raises(ValueError, match="Give one of slot, query and colors"):
        render(torch.rand(5, 3), AttentionMap(torch.rand(1, 5, 7)), slot=1, query=2)


def test_libraries_do_not_write_to_the_terminal(can_draw, capfd):
    render(torch.rand(5, 3), size=10)
    assert capfd.readouterr() == ("", "")
    os.write(2, b"of others")
    assert capfd.readouterr().err == "of others"


MILLION = """
import torch
from pcea.nn.recording import AttentionMap
from pcea.visualization import render
points = torch.rand(1_000_000, 3)
weights = torch.randn(1, 1024, 64).softmax(-1)
picture = render(points, AttentionMap(weights, points=points[None, :1024]), size=800)
assert (picture != 255).any(-1)[:, :800].mean() > 0.3
# Not `getrusage`, whose peak may be that of the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_a_million_points_fit_in_memory(can_draw):
    """Measured: 2.6 GB, of which torch and Open3D take 0.7."""
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True, timeout=900)
    assert int(done.stdout.split()[-1]) < 4e6  # kB


# Several


def sheet(views, **options):
    return next(draw_sheet(views, angles=[0], elevation=0, **{"size": 100, **options}))


def test_views_are_laid_out_row_by_row(can_draw):
    colors = [ORANGE, SKY_BLUE, GREEN]
    picture = sheet([one_color(grid(50), color) for color in colors])
    assert picture.shape == (200, 200, 3)
    assert [tuple(picture[y, x]) for y, x in ((50, 50), (50, 150), (150, 50), (150, 150))] == [*colors, WHITE]
    picture = sheet([one_color(grid(50), color) for color in colors], columns=3)
    assert picture.shape == (100, 300, 3)
    assert [tuple(picture[50, x]) for x in (50, 150, 250)] == colors


@pytest.mark.parametrize("size", [57, 113, 100])
def test_a_sheet_keeps_every_pixel(can_draw, size):
    """Not resampled, also where size / dpi * dpi is not size."""
    view = one_color(sphere(300), ORANGE, title="t", legend=(("a", ORANGE),), normals=torch.zeros(300, 3))
    picture = sheet([view, view], size=size, columns=1)
    alone = draw(view, size=size, azimuth=0, elevation=0)
    assert (picture[30 : 30 + size, :size] == alone).all()
    assert (picture[60 + size :, :size] == alone).all()


def test_each_view_has_its_legend(can_draw):
    views = [
        one_color(grid(50), color, legend=((name, color),), legend_title="part")
        for name, color in (("seat", ORANGE), ("leg", SKY_BLUE))
    ]
    picture = sheet(views, columns=2)
    tile = picture.shape[1] // 2
    first, second = picture[:, 100:tile], picture[:, tile + 100 :]
    assert is_color(first, ORANGE).any()
    assert not is_color(first, SKY_BLUE).any()
    assert is_color(second, SKY_BLUE).any()
    assert not is_color(second, ORANGE).any()


def test_a_shared_legend_has_all_that_occurs(can_draw):
    both, one = (("seat", ORANGE), ("leg", SKY_BLUE)), (("seat", ORANGE), ("arm", GREEN))
    views = [one_color(grid(50), ORANGE, legend=legend, legend_title="part") for legend in (both, one)]
    picture = sheet(views, columns=2, shared_legend=True)
    legend = picture[:, 200:]
    rows = [np.nonzero(is_color(legend, color))[0].mean() for color in (ORANGE, SKY_BLUE, GREEN)]
    assert rows == sorted(rows)
    assert (legend[:, -1] == 255).all()


def test_each_angle_gives_a_picture(can_draw):
    view = View(grid(50), grid(50).mul(255).to(torch.uint8), title="t")
    first, second, third = draw_sheet([view], size=50, angles=[0, 60, 360], elevation=0)
    assert first.shape == second.shape == (80, 50, 3)
    assert (first != second).any()
    assert (first == third).all()


def test_long_titles_are_shortened(can_draw):
    for title in ("W" * 100, "a long name of a file, " * 9 + "end", "$_$" * 40):
        picture = sheet([one_color(grid(2), ORANGE, title=title)] * 2, columns=2, size=150)
        heading = ink(picture[:30])
        assert heading.any()
        assert not heading[:, [0, 1, 148, 149, 150, 151, 298, 299]].any()  # nor do two run into each other
        assert not heading[[0, -1]].any()


def test_a_title_is_not_read_as_a_formula(can_draw):
    pictures = [sheet([one_color(grid(2), ORANGE, title=title)], size=150)[:30] for title in ("a$x^2$", "ax^2", "$_$")]
    assert [ink(picture).any() for picture in pictures] == [True] * 3
    assert ink(pictures[0]).any(0).sum() > ink(pictures[1]).any(0).sum()


@pytest.mark.parametrize("shared", [False, True])
def test_the_legend_of_a_wide_picture_is_large_enough_to_be_read(shared):
    """Twelve lines, and beside them a picture of 20 rows, which stays below its title."""
    colors = [tuple(color) for color in palette(11).tolist()]
    view = one_color(pixel_points(20, 300), WHITE, legend=tuple((f"class {i}", c) for i, c in enumerate(colors)))
    view = view._replace(title="t", legend_title="class", picture=torch.zeros(20, 300, 3, dtype=torch.uint8))
    picture = sheet([view, view], columns=1, shared_legend=shared)
    legend = picture[:, 310:] if shared else picture[: len(picture) // 2, 310:]
    rows = [np.nonzero(is_color(legend, color))[0].mean() for color in colors]
    assert np.diff(rows).min() > 14  # pixels
    assert not ink(legend)[[0, -1]].any()
    assert is_color(picture[35:55, 5:305], (153, 153, 153)).all()


def test_the_colour_bar_of_a_wide_picture_is_large_enough_to_be_read():
    bar = ColorBar("weight of slot 13, layer 3", 0.0, 1.0)
    view = one_color(pixel_points(20, 300), WHITE, color_bar=bar)
    picture = sheet([view._replace(picture=torch.zeros(20, 300, 3, dtype=torch.uint8))])
    last = ink(picture).any(0).nonzero()[0].max()
    label = ink(picture[:, last - 5 : last]).any(1).nonzero()[0]
    assert np.ptp(label) > 0.65 * text_width(bar.label)
    assert 0 < label.min() < label.max() < len(picture) - 1
