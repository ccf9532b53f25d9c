import os
import shutil
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from pcea.nn.recording import AttentionMap
from pcea.visualization import renderer, show
from pcea.visualization.window import CONTROLS, check_display, pick_point

PATIENCE = 240  # seconds, on a machine that is busy with other things
RED = (255, 0, 26)


# Picking. The camera is at the origin and looks along -z; a point at depth d is seen at (x / d, y / d), in -1..1.
CAMERA = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, -1, 0]])


def pick(points, x, y, *, aspect=1.0, size=0.0):
    """The point under a cursor at (x, y), in -1..1 with y up."""
    return pick_point(torch.tensor(points), CAMERA, ((x + 1) / 2, (1 - y) / 2), aspect=aspect, size=size)


def test_the_point_under_the_cursor():
    points = [[0.5, 0, -1.0], [0, 0.5, -1], [-1, 0, -2], [0, -1, -2]]
    assert [pick(points, *cursor) for cursor in ((0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5))] == [0, 1, 2, 3]
    assert pick(points, 0, 0) is None


def test_of_several_points_the_nearest_to_the_camera():
    points = [[0.5, 0.5, -5.0], [0.1, 0.1, -1.0], [0.3, 0.3, -3.0]]
    assert pick(points, 0.1, 0.1) == 1
    # Though another lies closer to the cursor.
    assert pick([[0, 0, -2.0], [0.02, 0, -1.0]], 0, 0) == 1


def test_points_behind_the_camera_are_not_seen():
    assert pick([[0.1, 0.1, 1.0], [-0.1, -0.1, 1.0]], 0.1, 0.1) is None
    # Nor those beside it, whose place would be infinite.
    assert pick([[0, 0, 0.0], [0.1, 0, 0.0], [0, 0, -1]], 0, 0) == 2


def test_the_cursor_reaches_two_percent_of_the_height():
    # In -1..1 that is 0.04. In a picture twice as wide as high, 0.02 of the half width is as far.
    for aspect in (1.0, 2.0):
        for near, far in ((0.0399, 0.0401), (-0.0399, -0.0401)):
            assert pick([[0, near, -1.0]], 0, 0, aspect=aspect) == 0
            assert pick([[0, far, -1.0]], 0, 0, aspect=aspect) is None
            assert pick([[near / aspect, 0, -1.0]], 0, 0, aspect=aspect) == 0
            assert pick([[far / aspect, 0, -1.0]], 0, 0, aspect=aspect) is None


def test_a_point_is_hit_where_its_square_is_drawn():
    """One seen between the middles of large squares, which hide it, is not."""
    for aspect in (1.0, 2.0):
        for x, y in ((0.099, 0), (-0.099, 0.099)):
            points = [[x / aspect, y, -1.0], [0, 0, -2.0]]
            assert pick(points, 0, 0, aspect=aspect) == 1
            assert pick(points, 0, 0, aspect=aspect, size=0.1) == 0
            assert pick(points, 0, 0, aspect=aspect, size=0.098) == 1


# Machines without a display


@pytest.fixture
def no_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_display_there_is_one_clear_line(no_display):
    for call in (check_display, lambda: show(torch.rand(5, 3), AttentionMap(torch.rand(1, 5, 3)))):
        with pytest.raises(
            OSError, match=r"There is no display to open a window on\. Write a page for a browser instead"
        ) as raised:
            call()
        assert str(raised.value).isprintable()


def test_a_display_on_which_no_window_opens(monkeypatch, no_display):
    monkeypatch.setenv("DISPLAY", ":1234567")
    called = []

    def fails(command, **options):
        called.append(options["timeout"])
        return subprocess.CompletedProcess(command, -6, "", "Aborted")

    def hangs(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    for answer in (fails, hangs):
        monkeypatch.setattr(renderer.subprocess, "run", answer)
        with pytest.raises(
            OSError, match=r"needs Vulkan\. On Debian .*libvulkan1.* Write a page for a browser instead"
        ):
            check_display()
    assert called
    monkeypatch.setattr(renderer.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    check_display()


def test_a_wrong_argument_is_noticed_before_a_window_opens(no_display):
    points, attention = torch.rand(5, 3), AttentionMap(torch.rand(1, 5, 3))
    with pytest.raises(ValueError, match=r"slot must be in 0\.\.2, got 3"):
        show(points, attention, slot=3)
    with pytest.raises(ValueError, match=r"query must be the number of a point, 0\.\.4, got 5"):
        show(points, {"a": attention}, query=5)
    with pytest.raises(ValueError, match=r"Layer a: cloud must be in 0\.\.0, got 1"):
        show(points, {"a": attention}, cloud=1)
    with pytest.raises(ValueError, match="No attention was recorded"):
        show(points, {})


def test_every_key_is_explained_once():
    keys = [key.lower() for key in CONTROLS]
    assert len(set(keys)) == len(keys)
    assert {"m", "l", "s", "f", "r", "h", "q", "+ -"} <= set(keys)


# A real window on a virtual display


class Display:
    """A virtual screen, its keyboard and its mouse."""

    def __init__(self, name, screen):
        self.environment = {**os.environ, "DISPLAY": name}
        self._screen = screen

    def picture(self):
        """What is on the screen, (H, W, 3) uint8: the X server keeps it in a file in the format of xwd."""
        content = self._screen.read_bytes()
        header = np.frombuffer(content[:100], ">u4")
        width, height, row, colors = header[[4, 5, 12, 19]]
        pixels = np.frombuffer(content, np.uint8, count=height * row, offset=header[0] + 12 * colors)
        return pixels.reshape(height, row // 4, 4)[:, :width, 2::-1]

    def do(self, *words):
        subprocess.run(["xdotool", *map(str, words)], env=self.environment, check=True, timeout=PATIENCE)

    def wait(self, condition, what):
        """The first picture that meets a condition.

        While it waits it moves the mouse to and fro, as a hand does: Open3D leaves an event waiting until the next one
        comes, now and then on a busy machine.
        """
        end, steps = time.monotonic() + PATIENCE, cycle((1, -1))
        while time.monotonic() < end:
            for _ in range(10):
                picture = self.picture()
                if condition(picture):
                    return picture
                time.sleep(0.5)
            self.do("mousemove_relative", "--", next(steps), 0)
        pytest.fail(f"{what}: not within {PATIENCE} s.")

    def settled(self):
        """A picture that stays as it is."""
        pictures = []

        def is_still(picture):
            pictures.append(picture)
            return len(pictures) > 2 and all((picture == before).all() for before in pictures[-3:])

        return self.wait(is_still, "a still picture")


@pytest.fixture
def display(tmp_path):
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed.")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x960x24", "-fbdir", str(tmp_path)]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            number = pipe.readline().strip()  # empty if it ended
        try:
            assert number, "Xvfb did not start."
            yield Display(f":{number}", tmp_path / "Xvfb_screen0")
        finally:
            server.terminate()


SHOW = """
import torch
from pcea.nn.recording import AttentionMap
from pcea.visualization.navigator import Navigator
from pcea.visualization.subject import Subject
from pcea.visualization.window import open_window
{before}
torch.manual_seed(0)
points = {points}
by_height, by_width = ((points[:, axis] * 1.49 + 1.5).long() for axis in (1, 0))
layers = {{"a": by_height, "b": by_width}}
maps = {{name: AttentionMap(torch.nn.functional.one_hot(slots, 3)[None].float()) for name, slots in layers.items()}}
open_window(Navigator([Subject(points, maps)], mode="slots"))
print("closed")
"""


@pytest.fixture
def opened(display, tmp_path):
    """Opens a window, in a process of its own."""
    processes = []

    def open_window(before="", points="torch.nn.functional.normalize(torch.randn(3000, 3), dim=1)"):
        try:
            check_on(display)
        except OSError as error:
            pytest.skip(str(error))
        log = (tmp_path / "log").open("w+")
        command = [sys.executable, "-c", SHOW.format(before=before, points=points)]
        process = subprocess.Popen(command, env=display.environment, stdout=log, stderr=subprocess.STDOUT)
        processes.append((process, log))
        display.wait(lambda picture: of_color(picture, SLOTS[0]).any() or process.poll() is not None, "a window")
        assert process.poll() is None, Path(log.name).read_text()
        display.do("mousemove", 640, 480)  # without a window manager, keys go to the window under the mouse
        return process

    yield open_window
    for process, log in processes:
        process.kill()
        process.wait()
        log.close()


def check_on(display):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", display.environment["DISPLAY"])
        check_display()


SLOTS = [(230, 159, 0), (86, 180, 233), (0, 158, 115)]


def of_color(picture, color):
    return (np.abs(picture.astype(int) - color) < 4).all(-1)


def places(picture):
    """Where the points of each slot are on average, (3, 2), right of the legend left out."""
    return np.array([np.mean(np.nonzero(of_color(picture[:, :900], color)), axis=1) for color in SLOTS])


@pytest.mark.slow
def test_a_window_is_used(display, opened, tmp_path):
    process = opened()
    first = display.settled()
    # The last layer: slots side by side. They are ranked by their points, so the order of colours is not known.
    height, width = np.ptp(places(first), axis=0)
    assert width > 3 * height

    display.do("key", "l")
    display.wait(lambda picture: (picture != first).mean() > 0.05, "the other layer")
    height, width = np.ptp(places(display.settled()), axis=0)
    assert height > 3 * width

    display.do("key", "shift+l")
    display.wait(lambda picture: (picture == first).all(), "back to the first layer")

    display.do("key", "h")
    display.wait(lambda picture: (picture != first).any(), "a window without the list of keys")
    alone = display.settled()
    assert (alone[600:, 900:] < 100).all(-1).sum() < (first[600:, 900:] < 100).all(-1).sum()

    # A red ball marks the point that was clicked at.
    y, x = (int(place) for place in places(alone)[1])
    display.do("mousemove", x, y, "keydown", "shift", "sleep", 0.5, "mousedown", 1, "sleep", 0.5, "mouseup", 1)
    display.do("keyup", "shift")
    display.wait(lambda picture: is_red(picture).sum() > 20, "a query")
    found = np.mean(np.nonzero(is_red(display.settled())), axis=1)
    assert np.abs(found - (y, x)).max() < 0.04 * 800

    display.do("key", "q")
    assert process.wait(timeout=PATIENCE) == 0
    assert "closed" in (tmp_path / "log").read_text()


def is_red(picture):
    red, green, blue = (picture[:, :900, channel].astype(int) for channel in range(3))
    return (red > 150) & (green < 60) & (blue < 80)


ROD = """
rod = torch.cartesian_prod(torch.linspace(-1, 1, 50), torch.tensor([0.9]), torch.zeros(1))
wall = torch.cartesian_prod(torch.linspace(-1, 1, 50), torch.linspace(-1, 0.5, 38), torch.zeros(1))
"""


@pytest.mark.slow
def test_thin_rods_have_no_gaps(display, opened):
    """A wall, and above it a rod whose samples leave a gap."""
    opened(ROD, "torch.cat([wall, rod[rod[:, 0].abs() > 0.13]])")
    scene = display.settled()[90:870, 100:900]  # of 1280 x 960 pixels, in the middle of which is the window
    assert label((scene < 250).any(-1))[1] == 2


NAMED = """
from functools import partial
Subject = partial(Subject, name={name!r})
"""


@pytest.mark.slow
def test_no_file_name_is_too_long_or_too_foreign_for_the_window(display, opened):
    """It takes nothing of the scene; and a name that is no text at all would end Open3D."""
    with_names = []
    for name in ("chair: chair 91 %", "椅" * 50 + "\udce9" + ": chair 91 %"):
        process = opened(NAMED.format(name=name) + "torch.manual_seed(0)")
        with_names.append(display.settled())
        process.kill()
        process.wait()
    different = np.nonzero((with_names[0] != with_names[1]).any(-1))
    assert different[1].min() > 900  # right of the scene
    assert different[0].max() < 130  # above the legend


@pytest.mark.slow
def test_an_error_in_a_window_ends_it(display, opened, tmp_path):
    """Open3D's event loop would keep the process alive."""
    process = opened(
        "from pcea.visualization.navigator import Navigator\n"
        "def press(*_, **__):\n    raise RuntimeError('a fault')\n"
        "Navigator.press = press"
    )
    display.settled()
    display.do("key", "m")
    assert process.wait(timeout=PATIENCE) == 1
    assert "RuntimeError: a fault" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_display_that_is_not_there(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":1234567")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(
        OSError, match=r"cannot open a window on this display \(no X server answers at DISPLAY=':1234567'\)"
    ):
        check_display()
