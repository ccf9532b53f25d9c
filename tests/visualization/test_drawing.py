import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pcea.nn.attention import AttentionMap
from pcea.visualization import ColorBar, View, drawing, palette, render, save_gif, save_png, view_points
from pcea.visualization.drawing import (
    Camera,
    Renderer,
    check_rendering,
    draw_legend,
    draw_sheet,
    place_camera,
    point_size,
    shade,
)

WHITE, ORANGE, SKY_BLUE, GREEN = (255, 255, 255), (230, 159, 0), (86, 180, 233), (0, 158, 115)
ANGLES = [(35, 20), (0, 0), (90, 0), (215, -60), (130, 89)]


@pytest.fixture
def can_draw():
    try:
        check_rendering()
    except (OSError, ImportError) as error:
        pytest.skip(str(error))


# The camera


def project(points, camera):
    """Where a pinhole camera sees points: from -1 (left, top) to 1 (right, bottom)."""
    x, y, z = camera.rotation @ (points.double().numpy() - camera.center).T + [[0], [0], [camera.distance]]
    assert (z > 0).all()
    return np.stack([x, y], axis=1) / z[:, None] / np.tan(np.radians(15))


BOX = torch.rand(300, 3, generator=torch.Generator().manual_seed(1))
CLOUDS = {
    "box": BOX,
    "long": BOX * torch.tensor([0.1, 5.0, 1.0]),
    "flat": BOX * torch.tensor([1.0, 0.0, 1.0]),
    "wall": BOX * torch.tensor([1.0, 1.0, 0.0]),
    "line": BOX[:, :1] * torch.tensor([1.0, 2.0, -1.0]),
    "skew": BOX**4,
    "far": BOX + torch.tensor([5000.0, -9000.0, 0.0]),
    "large": BOX * 1e6,
    "small": BOX * 1e-4,
    "two": torch.tensor([[0.0, 0, 0], [3, 1, 2]]),
}


@pytest.mark.parametrize("angles", ANGLES)
@pytest.mark.parametrize("name", CLOUDS)
def test_the_camera_sees_the_cloud_as_large_as_possible(name, angles):
    points = CLOUDS[name]
    seen = project(points, place_camera(points, azimuth=angles[0], elevation=angles[1]))
    low, high = seen.min(0), seen.max(0)
    assert low.min() > -1
    assert high.max() < 1
    assert (high - low).max() / 2 > 0.85
    assert np.abs(low + high).max() / 2 < 0.02  # 1 % of the picture's side


def test_what_cannot_be_seen():
    for points in (torch.tensor([[3.0, -4, 5]]), torch.full((7, 3), 2.0)):
        with pytest.raises(ValueError, match=f"nothing to see: all {len(points)} points of the cloud are equal"):
            place_camera(points)
    with pytest.raises(ValueError, match=r"must be degrees, got nan and 20\.0"):
        place_camera(torch.rand(5, 3), azimuth=float("nan"))


@pytest.mark.parametrize("angles", ANGLES)
def test_the_camera_is_turned_and_not_mirrored(angles):
    rotation = place_camera(torch.rand(7, 3), azimuth=angles[0], elevation=angles[1]).rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert rotation[0, 1] == 0  # the horizon is level
    assert rotation[1, 1] < 0  # and y is up


def test_where_the_camera_stands():
    def stands(**angles):
        camera = place_camera(torch.rand(7, 3), **angles)
        return -camera.rotation[2]  # from the middle towards the camera

    np.testing.assert_allclose(stands(azimuth=0, elevation=0), [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(stands(azimuth=90, elevation=0), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(stands(azimuth=0, elevation=30), [0, 0.5, 0.75**0.5], atol=1e-12)


def test_nothing_is_too_near_to_be_drawn(can_draw):
    """Open3D cuts off what is nearer than a hundredth of the cloud's extent: here the point before a wall."""
    points = torch.cat([grid(50) - 0.5, torch.tensor([[0, 0, 0.5 / np.tan(np.radians(15))]])])
    colors = torch.tensor([ORANGE] * 2500 + [SKY_BLUE], dtype=torch.uint8)
    picture = draw(View(points, colors), azimuth=0, elevation=0)
    assert is_color(picture, SKY_BLUE)[50, 50]
    assert is_color(picture, ORANGE).any()


# Shading and the size of points


def test_shade_by_hand():
    camera = Camera(np.eye(3), np.zeros(3), 1.0)  # looks along z
    normals = torch.tensor([[0, 0, 1.0], [0, 0, -1], [1, 0, 0], [0, 0.8, 0.6], [0, 0, 0]])
    colors = torch.tensor([[200, 100, 10]], dtype=torch.uint8).repeat(5, 1)
    view = View(torch.rand(5, 3), colors, normals=normals)
    # From the side 0.7 of the colour; 0.7 + 0.3 * 0.6 = 0.88; without a normal all of it.
    expected = [[200, 100, 10], [200, 100, 10], [140, 70, 7], [176, 88, 9], [200, 100, 10]]
    assert shade(view, camera).tolist() == expected
    # Where lightness means something, 0.9 and 0.96.
    expected = [[200, 100, 10], [200, 100, 10], [180, 90, 9], [192, 96, 10], [200, 100, 10]]
    assert shade(view._replace(color_bar=ColorBar("weight", 0, 1)), camera).tolist() == expected
    assert shade(view._replace(normals=None), camera).equal(colors)


def grid(side):
    place = torch.linspace(0, 1, side)
    return torch.cartesian_prod(place, place, torch.zeros(1))


def test_point_size():
    camera = Camera(np.eye(3), np.zeros(3), 1.0)
    size = point_size(grid(256), camera, 800)
    # More than the distance of the points, as if half of them were on the far side, and not coarse.
    assert 800 / 256 * 2**0.5 < size < 5 * 800 / 256
    # Four times the points are half as large, and so are those in a picture of half the side.
    assert point_size(grid(512), camera, 800) == pytest.approx(size / 2)
    assert point_size(grid(256), camera, 400) == pytest.approx(size / 2)
    # What is empty needs no points: a quarter of the square holds a quarter of them.
    corner = torch.cat([grid(128) * 127 / 255, torch.tensor([[1.0, 1, 0]])])
    assert point_size(corner, camera, 800) == pytest.approx(size, rel=0.05)
    assert point_size(grid(512), camera, 100) == 2  # no smaller
    for few in (grid(2), torch.zeros(1, 3)):
        assert point_size(few, camera, 800) == 20  # no larger than a 40th of the picture


# Pictures


def one_color(points, color, **fields):
    return View(points, torch.tensor(color, dtype=torch.uint8).repeat(len(points), 1), **fields)


def draw(view, *, size=100, **angles):
    with Renderer(size) as renderer:
        return renderer.draw(view, **angles)


def is_color(picture, color):
    return (picture == np.array(color)).all(-1)


def sphere(count):
    return torch.nn.functional.normalize(torch.randn(count, 3), dim=1)


def test_a_cloud_of_one_colour_on_white(can_draw):
    picture = draw(one_color(sphere(20_000), ORANGE), size=200)
    assert (picture.shape, picture.dtype) == ((200, 200, 3), np.uint8)
    y, x = np.mgrid[:200, :200] - 99.5
    radius = np.hypot(x, y)
    # A ball that fills the picture but for 3 % on each side, and whose points close up.
    outer = np.flatnonzero(~is_color(picture, WHITE).all(0))
    assert 1 <= outer.min() <= 8
    assert 191 <= outer.max() <= 198
    assert is_color(picture, WHITE)[radius > 100].all()
    assert is_color(picture, ORANGE)[radius < 85].mean() > 0.999


def test_colours_are_exact(can_draw):
    for color in [(0, 0, 0), (1, 2, 3), (68, 1, 84), (190, 190, 190), *map(tuple, palette(16).tolist())]:
        assert is_color(draw(one_color(grid(64), color), azimuth=0, elevation=0), color)[50, 50]


def test_what_is_up_is_drawn_up(can_draw):
    points = torch.rand(5000, 3)
    view = view_points(points)  # coloured by height
    dark, bright = (np.nonzero(is_color(draw(view), color))[0] for color in ([68, 1, 84], [253, 231, 36]))
    assert len(dark)
    assert len(bright)
    assert bright.mean() < dark.mean() - 50


def test_left_is_not_right(can_draw):
    x_end = torch.randn(500, 3) / 20 + torch.tensor([1.0, 0, 0])
    z_end = torch.randn(500, 3) / 20 + torch.tensor([0, 0, 1.0])
    colors = torch.tensor([ORANGE, SKY_BLUE], dtype=torch.uint8).repeat_interleave(500, 0)
    view = View(torch.cat([x_end, z_end]), colors)

    def columns(azimuth):
        picture = draw(view, azimuth=azimuth, elevation=0)
        return [np.nonzero(is_color(picture, color))[1].mean() for color in (ORANGE, SKY_BLUE)]

    # From +z, +x is on the right; from +x, +z is on the left; from -x, on the right.
    x, z = columns(0)
    assert x > z + 20
    x, z = columns(90)
    assert z < x - 20
    x, z = columns(-90)
    assert z > x + 20


def test_what_is_near_hides_what_is_far(can_draw):
    walls = torch.cat([grid(50), grid(50) - torch.tensor([0, 0, 1.0])])
    view = View(walls, torch.tensor([ORANGE, SKY_BLUE], dtype=torch.uint8).repeat_interleave(2500, 0))
    for azimuth, front, back in ((0, ORANGE, SKY_BLUE), (180, SKY_BLUE, ORANGE)):
        picture = draw(view, azimuth=azimuth, elevation=0)
        assert is_color(picture, front)[20:80, 20:80].all()
        assert not is_color(picture, back).any()


def test_normals_shade(can_draw):
    view = one_color(grid(50), (200, 100, 10), normals=torch.tensor([[1.0, 0, 0]]).repeat(2500, 1))
    assert is_color(draw(view, azimuth=0, elevation=0), (140, 70, 7))[50, 50]


def test_the_queried_point_is_a_red_ball(can_draw):
    points = torch.rand(2000, 3)
    query = int(points[:, 2].argmax())  # the nearest to the camera, so that none hides it
    view = view_points(points, AttentionMap(torch.rand(1, 2000, 5)), query=query)
    picture = draw(view, size=200, azimuth=0, elevation=0).astype(int)
    red = (picture[..., 0] > 120) & (picture[..., 1:].max(-1) < 0.3 * picture[..., 0])
    assert 10 < red.sum() < 200
    expected = project(points[query : query + 1], place_camera(points, azimuth=0, elevation=0))[0]
    y, x = (place.mean() for place in np.nonzero(red))
    np.testing.assert_allclose([x, y], 99.5 + 100 * expected, atol=2)


def test_one_renderer_draws_many(can_draw):
    views = [
        one_color(grid(50), ORANGE),
        one_color(grid(50), GREEN, mark=torch.zeros(3)),
        one_color(grid(50), SKY_BLUE),
    ]
    with Renderer(60) as renderer:
        pictures = [renderer.draw(view, azimuth=0, elevation=0) for view in (*views, views[0])]
    assert [tuple(picture[30, 30]) for picture in pictures] == [ORANGE, GREEN, SKY_BLUE, ORANGE]
    assert (pictures[0] == pictures[3]).all()  # no mark is left


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


# Sheets


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


def test_every_angle_is_a_picture(can_draw):
    view = View(grid(50), grid(50).mul(255).to(torch.uint8), title="t")
    first, second, third = draw_sheet([view], size=50, angles=[0, 60, 360], elevation=0)
    assert first.shape == second.shape == (80, 50, 3)
    assert (first != second).any()
    assert (first == third).all()


def ink(picture):
    return (picture < 250).any(-1)


def test_long_titles_are_shortened(can_draw):
    for title in ("W" * 100, "a long name of a file, " * 9 + "end", "$_$" * 40):
        picture = sheet([one_color(grid(2), ORANGE, title=title)] * 2, columns=2, size=150)
        heading = ink(picture[:30])
        assert heading.any()
        assert not heading[:, [0, 1, 148, 149, 150, 151, 298, 299]].any()  # nor do two run into each other
        assert not heading[[0, -1]].any()


def test_a_title_is_no_formula(can_draw):
    pictures = [sheet([one_color(grid(2), ORANGE, title=title)], size=150)[:30] for title in ("a$x^2$", "ax^2", "$_$")]
    assert [ink(picture).any() for picture in pictures] == [True] * 3
    assert ink(pictures[0]).any(0).sum() > ink(pictures[1]).any(0).sum()


# Legends and colour bars


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


def test_no_meaning_is_no_legend():
    assert (draw_legend(view_of_legend([]), height=50) == 255).all()


# Files


def test_a_picture_is_written_and_read_back(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for path in (tmp_path / "a.png", str(tmp_path / "b.png")):
        save_png(path, picture)
        assert (np.asarray(Image.open(path)) == picture).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_an_animation_is_written_and_read_back(tmp_path):
    colors = [ORANGE, SKY_BLUE, GREEN, WHITE]
    pictures = [np.full((5, 7, 3), color, dtype=np.uint8) for color in colors]
    for path in (tmp_path / "a.gif", str(tmp_path / "b.gif")):
        save_gif(path, pictures, seconds=2.0)
        with Image.open(path) as animation:
            assert (animation.n_frames, animation.size, animation.info["loop"]) == (4, (7, 5), 0)
            for number, color in enumerate(colors):
                animation.seek(number)
                assert animation.info["duration"] == 500
                assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - color).max() <= 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "b.gif"]


@pytest.mark.parametrize("save", [save_png, lambda path, picture: save_gif(path, [picture, picture])])
def test_a_failure_leaves_nothing_behind(tmp_path, save):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with pytest.raises((TypeError, ValueError)):
        save(path, np.zeros((5, 7, 9), dtype=np.float64))
    assert path.read_bytes() == b"before"
    with pytest.raises(FileNotFoundError, match="missing"):
        save(tmp_path / "missing" / "a.png", np.zeros((5, 7, 3), dtype=np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


# Machines that cannot draw


# Without the memory of earlier results.
check_again = check_rendering.__wrapped__


def test_without_egl_the_packages_are_named(monkeypatch, capfd):
    """A real probe, whose process inherits the environment."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nonexistent")
    with pytest.raises(OSError, match=r"Open3D cannot draw on this machine: .*EGL") as raised:
        check_again()
    message = str(raised.value)
    assert message.endswith(". On Debian or Ubuntu: apt-get install libegl1 libgl1 libgomp1 libx11-6 libusb-1.0-0")
    assert message.isprintable()  # one line, without colours of the terminal
    assert capfd.readouterr() == ("", "")


def answer(monkeypatch, code, *, stdout="", stderr=""):
    done = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(drawing.subprocess, "run", lambda *_, **__: done)


def test_a_killed_or_hanging_process_is_a_machine_that_cannot_draw(monkeypatch):
    answer(monkeypatch, 0)
    check_again()
    answer(monkeypatch, -11)
    with pytest.raises(OSError, match=r"cannot draw on this machine: it ended with -11\. On Debian .*libegl1"):
        check_again()
    answer(monkeypatch, 1, stderr="first\n\x1b[1;33mno window\x1b[0;m.\n\n")
    with pytest.raises(OSError, match=r"cannot draw on this machine: no window\. On Debian"):
        check_again()

    def hangs(*_, **__):
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(drawing.subprocess, "run", hangs)
    with pytest.raises(OSError, match="cannot draw on this machine: it took more than 120 s"):
        check_again()


MILLION = """
import resource, sys, torch
from pcea.nn.attention import AttentionMap
from pcea.visualization import render
points = torch.rand(1_000_000, 3)
weights = torch.randn(1, 1024, 64).softmax(-1)
picture = render(points, AttentionMap(weights, points=points[None, :1024]), size=800)
assert (picture != 255).any(-1)[:, :800].mean() > 0.3
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_million_points_fit_in_memory(can_draw):
    """Measured: 2.6 GB, of which torch and Open3D take 0.7."""
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True, timeout=900)
    assert int(done.stdout.split()[-1]) < 4e6  # kB


AFTERWARDS = """
import torch
from pcea.visualization import render
render(torch.rand(50, 3), size=40)
parameter = torch.nn.Parameter(torch.ones(1))
parameter.sum().backward()
torch.optim.SGD([parameter], lr=0.1).step()
import torch._dynamo
"""


def test_torch_can_be_used_after_drawing(can_draw):
    """It loads Triton late, whose LLVM must not meet that of Mesa's driver."""
    done = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
