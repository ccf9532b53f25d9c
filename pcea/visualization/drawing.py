"""Pictures of views: points by Open3D, off-screen where there is no display; titles and legends by Matplotlib."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.io.atomic import atomic_file
from pcea.io.readers import SYSTEM_PACKAGES, import_open3d
from pcea.nn.attention import AttentionMap
from pcea.visualization.images import lay_over, view_picture
from pcea.visualization.views import GREY, ColorBar, View, view_points

AZIMUTH, ELEVATION = 35.0, 20.0
FIELD_OF_VIEW = 30.0
# Around the outline of a cloud, of the picture's side.
_BORDER = 0.03
# Open3D draws points as squares; drawn this many times larger and averaged, their edges are smooth.
_OVERSAMPLING = 2
# Open3D ends the process, or fails without a reason, somewhere above 6600.
_LARGEST = 4096
# Pixels an inch, of a line of text, and beside a picture.
_DPI, _LINE, _MARGIN = 100, 30, 10
# Of all text, in points, up to pictures of so many pixels.
_FONT_SIZE, _PLAIN = 10.0, 800


class Camera(NamedTuple):
    """Where a picture is taken from.

    Attributes:
        rotation: From the points' coordinates to x right, y down, z forwards, (3, 3).
        center: The point that is seen in the middle of the picture, (3,).
        distance: Between camera and center.
    """

    rotation: np.ndarray
    center: np.ndarray
    distance: float


def place_camera(points: Tensor, *, azimuth: float = AZIMUTH, elevation: float = ELEVATION) -> Camera:
    """A camera that sees all points as large as possible in a square picture, and in the middle.

    Args:
        points: (N, 3), y up.
        azimuth: Degrees around the y axis; 0 looks from +z, 90 from +x.
        elevation: Degrees above the horizon.

    Raises:
        ValueError: If all points are equal, so that there is nothing to see, or an angle is not a number.
    """
    if not (math.isfinite(azimuth) and math.isfinite(elevation)):
        raise ValueError(f"azimuth and elevation must be degrees, got {azimuth} and {elevation}.")
    if (points == points[0]).all():
        raise ValueError(f"There is nothing to see: all {len(points)} points of the cloud are equal.")
    a, e = math.radians(azimuth), math.radians(elevation)
    backwards = np.array([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
    right = np.array([math.cos(a), 0, -math.sin(a)])
    rotation = np.stack([right, np.cross(right, backwards), -backwards])  # x right, y down, z forwards
    seen = points.double().cpu().numpy() @ rotation.T
    across, depth = seen[:, :2], seen[:, 2:]
    slope = math.tan(math.radians(FIELD_OF_VIEW / 2)) / (1 + 2 * _BORDER)
    # The picture holds a point if |across - eye| <= slope * (depth - eye's depth). As near as that allows
    # for all points in both directions, but not in the cloud.
    right, left = (across - slope * depth).max(0), (-across - slope * depth).max(0)
    eye, nearest = (right - left) / 2, depth.min() - (0.02 * np.ptp(seen, axis=0).max() or 1)
    eye_depth = min(-(right + left).max() / 2 / slope, nearest)
    away = depth[:, 0] - eye_depth
    # Where there is room left, each step centres the two points at the ends of the outline.
    for _ in range(5):
        outline = (across - eye) / away[:, None]
        low, high = outline.argmin(0), outline.argmax(0)
        low_end, high_end = across[low, (0, 1)], across[high, (0, 1)]
        eye = (low_end * away[high] + high_end * away[low]) / (away[low] + away[high])
    middle = (depth.min() + depth.max()) / 2
    return Camera(rotation, np.array([*eye, middle]) @ rotation, float(middle - eye_depth))


def shade(view: View, camera: Camera) -> Tensor:
    """The colours of a view, (N, 3) uint8, darker where a surface is seen from the side, as by a lamp at the camera.

    Hues stay those of the legend. Values are told by lightness too: their colours are hardly darkened. Points without a
    normal, or with one of zero, keep their colour.
    """
    if view.normals is None:
        return view.colors.cpu()
    normals = view.normals.double().cpu()
    facing = (normals @ torch.from_numpy(camera.rotation[2])).abs()
    darkest = 0.7 if view.color_bar is None else 0.9
    light = torch.where(normals.any(1), darkest + (1 - darkest) * facing, 1.0)
    return (view.colors.double().cpu() * light[:, None]).round().to(torch.uint8)


def point_size(points: Tensor, camera: Camera, side: int) -> float:
    """Pixels a point, so that the points of a surface close up: by the area of the cloud's outline.

    Args:
        points: (N, 3).
        camera: Where the picture is taken from.
        side: Of the picture, in pixels.
    """
    seen = points.double().cpu().numpy() @ camera.rotation[:2].T
    cells = 64
    low, extent = seen.min(0), max(float(np.ptp(seen, axis=0).max()), 1e-9)
    place = ((seen - low) / extent * (cells - 1)).astype(int)
    covered = len(np.unique(place[:, 0] * cells + place[:, 1])) / cells**2
    # About half of the points lie on the far side.
    return float(np.clip(2.7 * side * math.sqrt(2 * covered / len(seen)), _OVERSAMPLING, side / 40))


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


def render(
    points: Tensor,
    attention: AttentionMap | None = None,
    *,
    size: int = 600,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    **options: Any,
) -> np.ndarray:
    """Draw a cloud: what its points attend to, or in colours of your own. Needs no display.

    Example:
        with record_attention(model) as attention:
            model(points)
        picture = render(points[0], attention["encoder.blocks.3.attention"], slot=5)

    Args:
        points: As for `view_points`.
        attention: As for `view_points`.
        size: Height of the picture in pixels, and its width without the legend.
        azimuth: Degrees around the y axis; 0 looks from +z, 90 from +x.
        elevation: Degrees above the horizon.
        **options: Those of `view_points`: slot, query, colors, cloud, head, title.

    Returns:
        Red, green and blue, (H, W, 3) uint8.

    Raises:
        ValueError: If the arguments do not fit.
        OSError: If Open3D cannot draw on this machine.
    """
    view = view_points(points, attention, **options)
    return next(draw_sheet([view], size=size, angles=[azimuth], elevation=elevation))


def render_picture(
    picture: Tensor,
    attention: AttentionMap,
    *,
    query: tuple[int, int] | None = None,
    size: int = 600,
    **options: Any,
) -> np.ndarray:
    """Draw what the tokens of an image attend to over a picture of it.

    Example:
        with record_attention(model) as attention:
            model(images)
        drawn = render_picture(picture, attention["attention.attention"], slot=5)

    Args:
        picture: Colours of what the model was given, (3, H, W) uint8, of any size.
        attention: What `record_attention` recorded of one layer.
        query: Colour by what the pixel x, y of the picture has to do with each other one.
        size: Longest side of the picture as it is drawn, in pixels.
        **options: Those of `view_points`: slot, head, title, and as cloud the number of the image in the recorded batch.

    Returns:
        Red, green and blue, (H', W', 3) uint8.

    Raises:
        ValueError: If the arguments do not fit.
    """
    return next(draw_sheet([view_picture(picture, attention, query=query, size=size, **options)]))


def draw_sheet(
    views: Sequence[View],
    *,
    size: int = 600,
    columns: int | None = None,
    shared_legend: bool = False,
    angles: Sequence[float] = (AZIMUTH,),
    elevation: float = ELEVATION,
) -> Iterator[np.ndarray]:
    """Draw views side by side with titles and legends, once for each angle.

    Args:
        views: What to draw, row by row: clouds, or pictures.
        size: Side of each view in pixels, at most 4096. Pictures are drawn as large as they are.
        columns: Views in a row; None for about as many as rows.
        shared_legend: All views have the same meaning of colours: one legend for all, of all that occurs.
        angles: Azimuths, in degrees.
        elevation: Degrees above the horizon.

    Yields:
        A picture for each angle, (H, W, 3) uint8, all of one size.

    Raises:
        ValueError: If the size is too large, or not positive.
        OSError: If Open3D cannot draw on this machine.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_size(size)
    columns = columns or math.ceil(math.sqrt(len(views)))
    rows = math.ceil(len(views) / columns)
    pictures = [lay_over(view) for view in views if view.picture is not None]
    down, across = size, size
    if pictures:
        # Clouds have a border; pictures must not touch.
        down, across = (max(picture.shape[axis] for picture in pictures) + _MARGIN for axis in (0, 1))
    heading = _LINE if any(view.title for view in views) else 0
    keys = [_shared_key(views)] if shared_legend else [_key(view) for view in views]
    panel = max(key.width for key in keys)
    # Text grows with large views. From here on lengths are those of a sheet so many times smaller.
    scale = 1.0 if pictures else max(1.0, size / _PLAIN)
    high, wide = down / scale, across / scale
    tile = (wide if shared_legend else wide + panel, high + heading)
    width, height = columns * tile[0] + (panel if shared_legend else 0), rows * tile[1]
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI * scale, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    images = []
    for i, view in enumerate(views):
        left, top = i % columns * tile[0], i // columns * tile[1]
        axes = figure.add_axes((left / width, 1 - (top + heading + high) / height, wide / width, high / height))
        axes.set_axis_off()
        images.append(axes.imshow(np.full((down, across, 3), 255, np.uint8), interpolation="none"))
        place = (left + wide / 2) / width, 1 - (top + 0.6 * heading) / height
        title = _shorten(view.title, wide - _MARGIN)
        figure.text(*place, title, ha="center", va="center", fontsize=_FONT_SIZE, parse_math=False)
        if not shared_legend:
            keys[i].draw(figure, left + wide, top + heading, high)
    if shared_legend:
        keys[0].draw(figure, columns * tile[0], heading, height - heading)
    if pictures:
        for image, picture in zip(images, pictures):
            image.set_data(_center(picture, down, across))
        yield _pixels(canvas)
        return
    views = [view if view.normals is not None else view._replace(normals=_normals(view.points)) for view in views]
    with Renderer(size) as renderer:
        for angle in angles:
            for image, view in zip(images, views):
                image.set_data(renderer.draw(view, azimuth=angle, elevation=elevation))
            yield _pixels(canvas)


def _center(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture in the middle of a white one."""
    centered = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    centered[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return centered


def _pixels(canvas: Any) -> np.ndarray:
    """What was drawn on a Matplotlib canvas, (H, W, 3) uint8."""
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def check_size(size: int) -> None:
    """Refuse a picture that is too large, or has no size."""
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"size must be in 1..{_LARGEST} pixels, got {size}.")


def _normals(points: Tensor) -> Tensor | None:
    """Normals of either side for shading; None of too few points."""
    if len(points) < 4:
        return None
    open3d = import_open3d()
    cloud = open3d.geometry.PointCloud(vectors(open3d, points))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(12))
    return torch.from_numpy(np.array(cloud.normals))


def draw_legend(view: View, *, height: int) -> np.ndarray:
    """The meaning of a view's colours alone, (height, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key = _key(view)
    figure = Figure(figsize=(max(key.width, 1) / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    key.draw(figure, 0, 0, height)
    return _pixels(canvas)


class Legend(NamedTuple):
    """The meaning of the colours, drawn beside a picture."""

    legend: tuple[tuple[str, tuple[int, int, int]], ...]
    title: str
    color_bar: ColorBar | None

    @property
    def width(self) -> int:
        """Pixels that it takes."""
        names = [self.title, *(name for name, _ in self.legend)]
        legend = math.ceil(max(map(_text_width, names))) + 60 if self.legend else 0
        return max(legend, 130 if self.color_bar else 0)

    def draw(self, figure: Any, left: float, top: float, height: float) -> None:
        """Draw it on a Matplotlib figure with its upper left corner at (left, top), in pixels."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.patches import Patch

        W, H = figure.get_size_inches() * _DPI
        left += _MARGIN
        if self.legend:
            # As large as all lines fit.
            font_size = min(_FONT_SIZE, _FONT_SIZE * height / (24 * (len(self.legend) + 1)))
            handles = [Patch(color=(r / 255, g / 255, b / 255), label=name) for name, (r, g, b) in self.legend]
            corner = (left / W, 1 - (top + height / 2) / H)
            legend = figure.legend(
                handles=handles,
                title=self.title,
                alignment="left",
                loc="center left",
                bbox_to_anchor=corner,
                frameon=False,
                handlelength=1.2,
                fontsize=font_size,
                title_fontsize=font_size,
            )
            for text in (legend.get_title(), *legend.get_texts()):
                text.set_parse_math(False)
        if self.color_bar is not None:
            label, low, high = self.color_bar
            bar = min(height * 0.6, 300)
            axes = figure.add_axes((left / W, 1 - (top + (height + bar) / 2) / H, 15 / W, bar / H))
            # A bar needs two ends, also where all values are equal.
            scale = Normalize(low, high if high > low else low + 1)
            font_size = min(_FONT_SIZE, _FONT_SIZE * height / (_text_width(label) + _MARGIN))
            color_bar = figure.colorbar(ScalarMappable(scale, "viridis"), cax=axes, format="{x:.3g}")
            color_bar.set_label(label, fontsize=font_size)
            color_bar.ax.tick_params(labelsize=font_size)


def _key(view: View) -> Legend:
    return Legend(view.legend, view.legend_title, view.color_bar)


def _shared_key(views: Sequence[View]) -> Legend:
    entries = dict.fromkeys(entry for view in views for entry in view.legend)
    legend = sorted(entries, key=lambda entry: entry[1] == GREY)  # what has no colour of its own comes last
    return Legend(tuple(legend), views[0].legend_title, views[0].color_bar)


def _shorten(text: str, width: float) -> str:
    """Leave out letters before the last seven until the text is so many pixels wide."""
    shortened, kept = text, len(text) - 11
    while _text_width(shortened) > width and kept > 0:
        shortened, kept = f"{text[:kept]}...{text[-7:]}", kept - 1
    return shortened


def _text_width(text: str) -> float:
    """Pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=_FONT_SIZE)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] * _DPI / 72


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


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture, (H, W, 3) uint8; nothing is left half-written.

    Raises:
        OSError: If the folder is not there or cannot be written to.
    """
    from PIL import Image

    with atomic_file(Path(path)) as part:
        Image.fromarray(picture).save(part, format="PNG", optimize=True)


def save_gif(path: str | Path, pictures: Sequence[np.ndarray], *, seconds: float = 4.0) -> None:
    """Write pictures of one size, (H, W, 3) uint8, as an animation without end that takes so long a round.

    Raises:
        OSError: If the folder is not there or cannot be written to.
    """
    from PIL import Image

    palette = reduced_palette(np.concatenate(pictures[:: max(1, len(pictures) // 4)]))
    first, *rest = [Image.fromarray(p).quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    with atomic_file(Path(path)) as part:
        duration = round(1000 * seconds / len(pictures))
        first.save(part, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0, optimize=True)


def reduced_palette(picture: np.ndarray) -> Any:
    """256 colours for an animation: the 64 most frequent, those of the legend among them, as they are."""
    from PIL import Image

    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    others = Image.fromarray(picture).quantize(256 - 64).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*colors[counts.argsort()[::-1][:64]].ravel().tolist(), *others])
    return palette
