"""The interactive window: a `Navigator` drawn by Open3D's graphical interface."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from pcea.io.readers import SYSTEM_PACKAGES, import_open3d
from pcea.nn.recording import AttentionMap
from pcea.visualization.camera import FIELD_OF_VIEW, place_camera, point_size, shade
from pcea.visualization.gaps import bridge_gaps
from pcea.visualization.legends import draw_legend
from pcea.visualization.navigator import Navigator
from pcea.visualization.pages import Page, make_page
from pcea.visualization.renderer import load_triton, marker_ball, probe_open3d, to_vectors
from pcea.visualization.subject import first_mode, subject_of
from pcea.visualization.titles import draw_title

# What the keys and the mouse do, as listed in the window.
CONTROLS = {
    "M": "next mode",
    "L": "next layer",
    "S": "next slot",
    "F": "next file",
    "shift + key": "back",
    "shift + click": "query that point",
    "drag, wheel": "turn, zoom",
    "R": "reset camera",
    "+ -": "point size",
    "H": "hide this list",
    "Q": "close",
}
# Pixels.
_WIDTH, _HEIGHT = 1100, 800
_LEGEND_HEIGHT = 400
# Multiple of the font size.
_PANEL_WIDTH = 17
ALTERNATIVE = "Write a page for a browser instead: --output page.html, or `pcea.visualization.make_page` in Python."


def show(
    points: Tensor,
    attention: AttentionMap | Mapping[str, AttentionMap],
    *,
    slot: int | None = None,
    query: int | None = None,
    cloud: int | None = None,
) -> Page | None:
    """Show what the points of a cloud attend to: in a notebook as a page, elsewhere in a window, which lists its keys.

    Example:
        with record_attention(model) as attention:
            model(points)
        show(points[0], attention)                                    # all layers
        show(points[0], attention["encoder.blocks.3.attention"], slot=5)

    Args:
        points: One cloud, (N, 3), y up, in the coordinates that the model was given. They need not be the model's
            tokens.
        attention: The maps of all layers, from `record_attention`, or the map of one layer.
        slot: Show the weights for this slot first.
        query: Show first how each point relates to the point with this index.
        cloud: Index of the cloud in the recorded batch; required if the batch has several.

    Returns:
        In a notebook the page, which it displays at the end of a cell. Elsewhere None, once the window is closed.

    Raises:
        ValueError: If the arguments do not match each other or the attention.
        OSError: If there is no display, or Open3D cannot open a window on it. `make_page` and `render` need none.
    """
    if in_notebook():
        return make_page(points, attention, slot=slot, query=query, cloud=cloud)
    subject = subject_of(points, attention, cloud=cloud)
    open_window(Navigator([subject], mode=first_mode(slot, query), slot=slot, query=query))
    return None


def in_notebook() -> bool:
    """Whether this runs in a Jupyter notebook, or another place that displays HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def open_window(navigator: Navigator) -> None:
    """Show what a navigator selects in a window, until the window is closed.

    Raises:
        OSError: If there is no display, or Open3D cannot open a window on it.
    """
    check_display()
    load_triton()
    Window(navigator, import_open3d()).run()


def check_display() -> None:
    """Try to open a window in a child process, because a failing Open3D may end the process, or never return.

    Raises:
        OSError: If there is no display, or Open3D cannot open a window on it.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise OSError(f"There is no display to open a window on. {ALTERNATIVE}")
    reason = probe_open3d("window", seconds=60)
    if reason:
        raise OSError(
            f"Open3D cannot open a window on this display ({reason}); it needs Vulkan. On Debian or Ubuntu: "
            f"{SYSTEM_PACKAGES} libvulkan1 mesa-vulkan-drivers. {ALTERNATIVE}"
        )


class Window:
    """The cloud on the left; its legend and the list of keys on the right.

    Args:
        navigator: Selects what is shown.
        open3d: The module.
    """

    def __init__(self, navigator: Navigator, open3d: Any):
        self._navigator, self._open3d = navigator, open3d
        self._gui, self._rendering = open3d.visualization.gui, open3d.visualization.rendering
        gui = self._gui
        self._app = gui.Application.instance
        self._app.initialize()
        self._window = self._app.create_window("pcea", _WIDTH, _HEIGHT)
        self._scene = gui.SceneWidget()
        self._scene.scene = self._rendering.Open3DScene(self._window.renderer)
        self._scene.scene.set_background((1, 1, 1, 1))
        # It would change colours, which would then differ from the legend.
        self._scene.scene.view.set_post_processing(False)
        self._scene.set_on_mouse(self._on_mouse)
        margin = round(self._window.theme.font_size)
        self._title, self._legend, self._controls = gui.WidgetProxy(), gui.WidgetProxy(), gui.VGrid(2, 0)
        self._state = self._label("")
        for text in chain.from_iterable(CONTROLS.items()):
            self._controls.add_child(self._label(text))
        self._panel = gui.Vert(margin, gui.Margins(margin))
        self._panel.background_color = gui.Color(1, 1, 1)
        for widget in (self._title, self._state, self._legend, self._controls):
            self._panel.add_child(widget)
        self._window.add_child(self._scene)
        self._window.add_child(self._panel)
        self._window.set_on_layout(self._layout)
        self._window.set_on_key(self._on_key)
        self._is_shift_down = False
        self._point_scale = 1.0
        self._bridges = lru_cache(1)(bridge_gaps)  # found once for all views of a cloud
        self._update(reset_camera=True)

    def run(self) -> None:
        """Show the window until it is closed."""
        try:
            self._app.run()
        except BaseException:
            # An error in a callback leaves the window open, and the process could not end.
            self._window.close()
            self._app.run_one_tick()
            raise

    def _update(self, *, reset_camera: bool = False) -> None:
        """Draw the view that the navigator selects."""
        view = self._navigator.view()
        view = self._bridges(view.points).add_to(view)
        camera = place_camera(view.points)
        colors = shade(view, camera)
        cloud = self._open3d.geometry.PointCloud(to_vectors(self._open3d, view.points))
        cloud.colors = to_vectors(self._open3d, colors.double() / 255)
        material = self._rendering.MaterialRecord()
        material.shader = "defaultUnlit"
        material.point_size = self._point_size = self._point_scale * point_size(view.points, camera, _HEIGHT)
        self._scene.scene.clear_geometry()
        self._scene.scene.add_geometry("cloud", cloud, material)
        if view.marker is not None:
            self._scene.scene.add_geometry("marker", marker_ball(self._open3d, view), material)
        if reset_camera:
            bounds = self._scene.scene.bounding_box
            center = camera.center.astype(np.float32)
            eye = camera.center - camera.distance * camera.rotation[2]
            self._scene.setup_camera(FIELD_OF_VIEW, bounds, center)
            self._scene.look_at(center, eye.astype(np.float32), -camera.rotation[1].astype(np.float32))
        navigator = self._navigator
        last = len(navigator.subject.layers) - 1
        self._state.text = f"mode: {navigator.mode}\nlayer: {navigator.layer} of 0..{last}"
        # Open3D's font has Latin letters alone, and its labels would widen the panel.
        title_width = round((_PANEL_WIDTH - 2) * self._window.theme.font_size)
        for place, picture in (
            (self._title, draw_title(view.title, width=title_width)),
            (self._legend, draw_legend(view, height=_LEGEND_HEIGHT)),
        ):
            place.set_widget(self._gui.ImageWidget(self._open3d.geometry.Image(picture)))
        self._window.set_needs_layout()
        self._window.post_redraw()

    def _label(self, text: str) -> Any:
        label = self._gui.Label(text)
        label.text_color = self._gui.Color(0, 0, 0)
        return label

    def _layout(self, context: Any) -> None:
        area = self._window.content_rect
        # The same width for most views, so that the scene does not move.
        panel = self._panel.calc_preferred_size(context, self._gui.Widget.Constraints()).width
        panel = max(panel, round(_PANEL_WIDTH * self._window.theme.font_size))
        self._scene.frame = self._gui.Rect(area.x, area.y, area.width - panel, area.height)
        self._panel.frame = self._gui.Rect(area.get_right() - panel, area.y, panel, area.height)

    def _on_key(self, event: Any) -> bool:
        names = self._gui.KeyName
        is_down = event.type == self._gui.KeyEvent.Type.DOWN
        if event.key in (names.LEFT_SHIFT, names.RIGHT_SHIFT):
            self._is_shift_down = is_down
            return False
        if not is_down:
            return False
        if event.key in (names.Q, names.ESCAPE):
            self._window.close()
        elif event.key == names.R:
            self._update(reset_camera=True)
        elif event.key == names.H:
            self._controls.visible = not self._controls.visible
            self._window.set_needs_layout()
        elif event.key in (names.PLUS, names.EQUALS, names.MINUS):
            self._point_scale *= 1 / 1.25 if event.key == names.MINUS else 1.25
            self._update()
        elif event.key < 128 and self._navigator.press(chr(event.key), back=self._is_shift_down):
            self._update(reset_camera=chr(event.key) == "f")
        else:
            return False
        return True

    def _on_mouse(self, event: Any) -> Any:
        results = self._gui.Widget.EventCallbackResult
        is_click = event.type == self._gui.MouseEvent.Type.BUTTON_DOWN
        if not (is_click and event.is_modifier_down(self._gui.KeyModifier.SHIFT)):
            return results.IGNORED
        points = self._navigator.subject.points
        frame, camera = self._scene.frame, self._scene.scene.camera
        matrix = camera.get_projection_matrix() @ camera.get_view_matrix()
        cursor = (event.x - frame.x) / frame.width, (event.y - frame.y) / frame.height
        drawn = self._point_size / frame.height
        index = pick_point(points, matrix, cursor, aspect=frame.width / frame.height, size=drawn)
        if index is not None:
            self._navigator.pick(points[index])
            self._update()
        return results.CONSUMED


def pick_point(
    points: Tensor, matrix: np.ndarray, cursor: tuple[float, float], *, aspect: float, size: float
) -> int | None:
    """Find the point under the cursor, of several the nearest to the camera.

    Points are drawn as squares. One that covers the cursor hides those behind it, however far away its middle is.

    Args:
        points: (N, 3).
        matrix: From the coordinates of the points to clip space, (4, 4).
        cursor: Distance from the left and from the top of the picture, in 0..1.
        aspect: Width of the picture divided by its height.
        size: Side of the drawn squares divided by the picture's height.

    Returns:
        Index of the point, or None if no square covers the cursor and no point lies within 2 % of the picture's height.
    """
    clip = np.c_[points.double().cpu().numpy(), np.ones(len(points))] @ np.asarray(matrix, dtype=np.float64).T
    in_front = np.flatnonzero(clip[:, 3] > 0)
    depth = clip[in_front, 3]
    x, y = (clip[in_front, :2] / depth[:, None]).T  # in -1..1, y up
    across, down = (x - (2 * cursor[0] - 1)) * aspect / 2, (y - (1 - 2 * cursor[1])) / 2
    is_covered = np.maximum(np.abs(across), np.abs(down)) < size / 2
    near = np.flatnonzero(is_covered | (np.hypot(across, down) < 0.02))
    return None if not len(near) else int(in_front[near[depth[near].argmin()]])
