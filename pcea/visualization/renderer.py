"""Clouds drawn by Open3D in a hidden window, which needs no display; and whether this machine can do that."""

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
import torch
from torch import Tensor

from pcea.io.readers import SYSTEM_PACKAGES, import_open3d
from pcea.visualization.camera import AZIMUTH, ELEVATION, FIELD_OF_VIEW, Camera, place_camera, point_size, shade
from pcea.visualization.views import View

# Open3D draws points as squares; drawn this many times larger and averaged, their edges are smooth.
_OVERSAMPLING = 2
# Open3D ends the process, or fails without a reason, somewhere above 6600.
_LARGEST = 4096


class Renderer:
    """An Open3D window, hidden, that draws one view after the other. Use it with `with`.

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
        with _quiet(self._open3d):
            self._window = self._open3d.visualization.Visualizer()
            side = size * _OVERSAMPLING
            if not self._window.create_window(width=side, height=side, visible=False):
                raise OSError(_cannot_draw("no window could be made"))

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *error: object) -> None:
        self._window.destroy_window()

    def draw(self, view: View, *, azimuth: float = AZIMUTH, elevation: float = ELEVATION) -> np.ndarray:
        """The points on white, (size, size, 3) uint8, without title and legend; angles as in `place_camera`."""
        from PIL import Image

        camera = place_camera(view.points, azimuth=azimuth, elevation=elevation)
        colors = shade(view, camera)
        o3d, window = self._open3d, self._window
        cloud = o3d.geometry.PointCloud(vectors(o3d, view.points))
        cloud.colors = vectors(o3d, colors.double() / 255)
        window.clear_geometries()
        window.add_geometry(cloud)
        if view.mark is not None:
            window.add_geometry(mark(o3d, view))
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
    """Refuse a picture that is too large, or has no size."""
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"size must be in 1..{_LARGEST} pixels, got {size}.")


def estimate_normals(points: Tensor) -> Tensor | None:
    """Normals of either side for shading; None of too few points."""
    if len(points) < 4:
        return None
    open3d = import_open3d()
    cloud = open3d.geometry.PointCloud(vectors(open3d, points))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(12))
    return torch.from_numpy(np.array(cloud.normals))


def vectors(open3d: Any, values: Tensor) -> Any:
    """Rows (N, 3) as Open3D wants them."""
    return open3d.utility.Vector3dVector(values.double().cpu().numpy())


def mark(open3d: Any, view: View) -> Any:
    """A red ball at the marked point of a view."""
    assert view.mark is not None
    radius = 0.02 * float((view.points.amax(0) - view.points.amin(0)).max())
    ball = open3d.geometry.TriangleMesh.create_sphere(radius)
    ball.translate(view.mark.double().cpu().numpy())
    ball.paint_uniform_color((1, 0, 0.1))
    return ball


def load_triton() -> None:
    """Import Triton, if it is there, before drawing: to load its LLVM beside that of Mesa's driver ends the process.

    PyTorch imports it late, at the first step of an optimizer for example.
    """
    with suppress(ImportError):
        import triton  # noqa: F401


@contextmanager
def _quiet(open3d: Any) -> Iterator[None]:
    """Keep Open3D, and the libraries that look for a display, from printing that there is none."""
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
    """Try to draw in a child process, as Open3D may end the process where a library is missing.

    Raises:
        OSError: If it cannot draw; with the packages that are missing, probably.
    """
    reason = try_in_child("picture", seconds=120)
    if reason:
        raise OSError(_cannot_draw(reason))


def try_in_child(what: Literal["picture", "window"], *, seconds: float) -> str:
    """Run `probe.py` in a process of its own.

    Args:
        what: What to try.
        seconds: How long it may take.

    Returns:
        Why it failed, or "".
    """
    probe = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    try:
        done = subprocess.run([sys.executable, "-c", probe, what], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:.0f} s"
    words = re.sub(r"\x1b\[[0-9;]*m|\[Open3D \w+\]", "", done.stderr + done.stdout)
    lines = [line.strip().rstrip(".") for line in words.splitlines() if line.strip()]
    return "" if done.returncode == 0 else lines[-1] if lines else f"it ended with {done.returncode}"


def _cannot_draw(reason: str) -> str:
    return f"Open3D cannot draw on this machine: {reason}. On Debian or Ubuntu: {SYSTEM_PACKAGES}"
