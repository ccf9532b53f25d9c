"""Draw clouds with Open3D in a hidden window, without a display; and check whether this machine can do that."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from pcea.io.readers import SYSTEM_PACKAGES, import_open3d
from pcea.visualization.camera import AZIMUTH, ELEVATION, FIELD_OF_VIEW, Camera, place_camera, point_size, shade
from pcea.visualization.views import View

# Open3D draws points as squares. Drawn this many times larger and then averaged, they have smooth edges.
_OVERSAMPLING = 2
# Pixels. Open3D ends the process, or fails without a reason, somewhere above 6600.
_MAX_SIZE = 4096


class Renderer:
    """A hidden Open3D window that draws one view after another. Use it in a `with` statement.

    Args:
        size: Side of its square pictures, in pixels.

    Raises:
        OSError: If Open3D cannot draw on this machine.
    """

    def __init__(self, size: int):
        check_rendering()
        load_triton()
        self._open3d = import_open3d()
        self.size = size
        with _silence(self._open3d):
            self._window = self._open3d.visualization.Visualizer()
            side = size * _OVERSAMPLING
            if not self._window.create_window(width=side, height=side, visible=False):
                raise OSError(_cannot_draw_message("no window could be made"))

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *error: object) -> None:
        self._window.destroy_window()

    def draw(self, view: View, *, azimuth: float = AZIMUTH, elevation: float = ELEVATION) -> np.ndarray:
        """Draw the points on white, without title and legend, (size, size, 3) uint8; angles as in `place_camera`."""
        from PIL import Image

        camera = place_camera(view.points, azimuth=azimuth, elevation=elevation)
        colors = shade(view, camera)
        o3d, window = self._open3d, self._window
        cloud = o3d.geometry.PointCloud(to_vectors(o3d, view.points))
        cloud.colors = to_vectors(o3d, colors.double() / 255)
        window.clear_geometries()
        window.add_geometry(cloud)
        if view.marker is not None:
            window.add_geometry(marker_ball(o3d, view))
        window.get_render_option().point_size = point_size(view.points, camera, self.size * _OVERSAMPLING)
        self._look(camera)
        pixels = np.asarray(window.capture_screen_float_buffer(do_render=True))
        picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.BOX))

    def _look(self, camera: Camera) -> None:
        o3d = self._open3d
        side = self.size * _OVERSAMPLING
        focal = side / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2))
        parameters = o3d.camera.PinholeCameraParameters()
        middle = side / 2 - 0.5
        parameters.intrinsic = o3d.camera.PinholeCameraIntrinsic(side, side, focal, focal, middle, middle)
        extrinsic = np.eye(4)
        extrinsic[:3, :3] = camera.rotation
        extrinsic[:3, 3] = -camera.rotation @ camera.center + (0, 0, camera.distance)
        parameters.extrinsic = extrinsic
        self._window.get_view_control().convert_from_pinhole_camera_parameters(parameters, allow_arbitrary=True)


def check_size(size: int) -> None:
    """Check the side of a picture in pixels.

    Raises:
        ValueError: If it is not positive, or too large for Open3D.
    """
    if not 1 <= size <= _MAX_SIZE:
        raise ValueError(f"size must be in 1..{_MAX_SIZE} pixels, got {size}.")


def to_vectors(open3d: Any, values: Tensor) -> Any:
    """Convert rows, (N, 3), to Open3D's type."""
    return open3d.utility.Vector3dVector(values.double().cpu().numpy())


def marker_ball(open3d: Any, view: View) -> Any:
    """A red ball at the marker of a view."""
    assert view.marker is not None
    radius = 0.02 * float((view.points.amax(0) - view.points.amin(0)).max())
    ball = open3d.geometry.TriangleMesh.create_sphere(radius)
    ball.translate(view.marker.double().cpu().numpy())
    ball.paint_uniform_color((1, 0, 0.1))
    return ball


def load_triton() -> None:
    """Import Triton before drawing, if it is installed: loading its LLVM after that of Mesa's driver ends the process.

    PyTorch imports it late, for example at the first step of an optimizer.
    """
    with suppress(ImportError):
        import triton  # noqa: F401


@contextmanager
def _silence(open3d: Any) -> Iterator[None]:
    """Keep Open3D, and the libraries that look for a display, from printing that they found none."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@cache
def check_rendering() -> None:
    """Try to draw in a child process, because Open3D may end the process if a library is missing.

    Raises:
        OSError: If it cannot draw. The message names the packages that are probably missing.
    """
    reason = probe_open3d("picture", seconds=120)
    if reason:
        raise OSError(_cannot_draw_message(reason))


def probe_open3d(task: Literal["picture", "window"], *, seconds: float) -> str:
    """Run `probe.py` in a process of its own, to see whether Open3D works on this machine.

    Args:
        task: What to try: to draw a picture, or to open a window.
        seconds: Time limit.

    Returns:
        Why it failed, or "".
    """
    probe = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    try:
        done = subprocess.run([sys.executable, "-c", probe, task], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:.0f} s"
    words = re.sub(r"\x1b\[[0-9;]*m|\[Open3D \w+\]", "", done.stderr + done.stdout)
    lines = [line.strip().rstrip(".") for line in words.splitlines() if line.strip()]
    return "" if done.returncode == 0 else lines[-1] if lines else f"it ended with {done.returncode}"


def _cannot_draw_message(reason: str) -> str:
    return (
        f"Open3D cannot draw on this machine: {reason}. Write a page for a browser instead: --output page.html. Or, on "
        f"Debian or Ubuntu: {SYSTEM_PACKAGES}"
    )
