import subprocess
import sys

import numpy as np
import pytest
import torch
from pictures import GREEN, ORANGE, SKY_BLUE, WHITE, draw, grid, is_color, one_color, project, sphere

from pcea.nn.recording import AttentionMap
from pcea.visualization import palette, renderer
from pcea.visualization.camera import place_camera
from pcea.visualization.renderer import Renderer, check_rendering
from pcea.visualization.views import View, view_points


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


def test_nothing_is_too_near_to_be_drawn(can_draw):
    """Open3D cuts off what is nearer than a hundredth of the cloud's extent: here the point before a wall."""
    points = torch.cat([grid(50) - 0.5, torch.tensor([[0, 0, 0.5 / np.tan(np.radians(15))]])])
    colors = torch.tensor([ORANGE] * 2500 + [SKY_BLUE], dtype=torch.uint8)
    picture = draw(View(points, colors), azimuth=0, elevation=0)
    assert is_color(picture, SKY_BLUE)[50, 50]
    assert is_color(picture, ORANGE).any()


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
        one_color(grid(50), GREEN, marker=torch.zeros(3)),
        one_color(grid(50), SKY_BLUE),
    ]
    with Renderer(60) as renderer:
        pictures = [renderer.draw(view, azimuth=0, elevation=0) for view in (*views, views[0])]
    assert [tuple(picture[30, 30]) for picture in pictures] == [ORANGE, GREEN, SKY_BLUE, ORANGE]
    assert (pictures[0] == pictures[3]).all()  # no mark is left


# Machines that cannot draw


# Without the cache of earlier results.
check_again = check_rendering.__wrapped__


def test_without_egl_the_packages_are_named(monkeypatch, capfd):
    """A real probe, whose process inherits the environment."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nonexistent")
    with pytest.raises(OSError, match=r"Open3D cannot draw on this machine: .*EGL") as raised:
        check_again()
    message = str(raised.value)
    assert message.endswith(
        "page.html. Or, on Debian or Ubuntu: apt-get install libegl1 libgl1 libgomp1 libx11-6 libusb-1.0-0"
    )
    assert message.isprintable()  # one line, without colours of the terminal
    assert capfd.readouterr() == ("", "")


def answer(monkeypatch, code, *, stdout="", stderr=""):
    done = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(renderer.subprocess, "run", lambda *_, **__: done)


def test_a_probe_that_crashes_or_hangs(monkeypatch):
    answer(monkeypatch, 0)
    check_again()
    answer(monkeypatch, -11)
    with pytest.raises(
        OSError, match=r"cannot draw on this machine: it ended with -11\. Write a page .* on Debian .*libegl1"
    ):
        check_again()
    answer(monkeypatch, 1, stderr="first\n\x1b[1;33mno window\x1b[0;m.\n\n")
    with pytest.raises(OSError, match=r"cannot draw on this machine: no window\. Write a page"):
        check_again()

    def hangs(*_, **__):
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(renderer.subprocess, "run", hangs)
    with pytest.raises(OSError, match="cannot draw on this machine: it took more than 120 s"):
        check_again()


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
