"""`pcea visualize`: what a trained network attends to and predicts in files, in a window, on a page or in a picture."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcea.commands.input_files import find_files
from pcea.commands.predict import MISFITS, applicable, misfit, tell_of_pose
from pcea.datasets.images import IMAGE_SUFFIXES
from pcea.inference.base import Predictor, check_not_read
from pcea.inference.networks import DEFAULT_WEIGHTS, load
from pcea.io.failures import message_of, summarize
from pcea.io.ply import write_ply
from pcea.io.readers import ENDINGS
from pcea.visualization.camera import AZIMUTH, ELEVATION
from pcea.visualization.picture_files import save_gif, save_png
from pcea.visualization.renderer import check_rendering, check_size
from pcea.visualization.sheets import draw_sheet
from pcea.visualization.subject import ATTENTION_MODES, Subject, first_mode, shared_views
from pcea.visualization.views import GREY, View

if TYPE_CHECKING:
    from pcea.inference.point_subject import PointSubject

_FRAMES = 36

OPTIONS = {
    "meshes and clouds": (
        "up", "seed", "num_points", "points_per_pass", "animate", "azimuth", "elevation",
    ),
    "parts of meshes and clouds": ("category",),
    "images": ("head",),
}  # fmt: skip
"""Options for one kind of network only, by kind; all others are for every network."""


def visualize(
    files: list[Path],
    *,
    weights: str = DEFAULT_WEIGHTS,
    compare: str | None = None,
    device: str = "auto",
    trust: list[str] | None = None,
    output: Path | None = None,
    mode: str | None = None,
    layer: int | None = None,
    slot: int | None = None,
    query: str | None = None,
    grid: bool = False,
    size: int | None = None,
    up: str | None = None,
    seed: int | None = None,
    num_points: int | None = None,
    points_per_pass: int | None = None,
    animate: Path | None = None,
    azimuth: float | None = None,
    elevation: float | None = None,
    category: str | None = None,
    head: int | None = None,
) -> None:
    """Show what a network attends to and predicts: in a window, or with --output or --animate in a file.

    Where no window can be opened, a page for a browser is written into the current folder.

    Args:
        files: Meshes (OFF, OBJ, STL, PLY, GLB, ...) or clouds (XYZ, TXT, NPY, PLY, PCD, LAS, ...); for networks of
            images JPG, PNG, ...; also folders, patterns and @lists, as for `pcea predict`.
        weights: Name of weights that come with pcea, a weights file, a checkpoint, or a configuration's name (its
            newest run).
        compare: Weights of a second network, which the page shows beside the first.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        trust: A package besides pcea that the weights may import their network from; repeat for several. Importing it
            runs its code.
        output: A page for a browser (.html), which shows everything and needs nothing else; a picture (.png); or the
            coloured points in the file's coordinates (.ply).
        mode: What is shown. colors: points whose attention deviates from the mean in the same way have the same
            colour, in all files. slots: the strongest memory slot of each point. slot: the weights for one slot.
            query: how alike the attention of each point and of the query point is. critical: how many channels of the
            pooled feature the nearest centre decides. prediction: the class, or how sure the network is of each point's
            part.
            parts: the part of each point. By default query or slot if that option is given, else colors.
            Images have colors, slots, slot, query and prediction (the class, the class of each pixel, or the objects).
        layer: Attention layer, counted from 0; by default the last one.
        slot: Memory slot, counted from 0; by default the one that is strongest at the most points.
        query: Number of a point, counted from 0, or x,y,z in the file's coordinates for the point nearest to it; by
            default the point farthest from the middle. For images a pixel x,y, by default the one in the middle. With
            an equals sign if it begins with a minus, --query=-1,0,2.
        grid: One file gives a sheet of all layers and modes, several files a sheet of all files.
        size: Side of each view in pixels, of an image the longer one; by default 800, and 300 in a grid.
        up: The files' upward axis: x, y, z or, with an equals sign, --up=-x, --up=-y, --up=-z; where shapes face is
            then taken as it is. auto finds both, by default for classes if the network can (modelnet40_pointea_files
            can); else that of the files it was trained on, mostly y.
        seed: Decides which points are sampled and shown to the network, 0 by default.
        num_points: Points sampled on each mesh, 40000 by default. Clouds are drawn whole.
        points_per_pass: Points that the network sees, a random subset; attention is interpolated to the others. By
            default as many as it was trained for; 0 for all.
        animate: Write a turntable, .gif.
        azimuth: Viewing direction of a picture, in degrees around the upward axis; 35 by default.
        elevation: Viewing direction of a picture, in degrees above the horizon; 20 by default.
        category: What the files show, such as Chair.
        head: Attention head, counted from 0; by default the mean over all.
    """
    predictor = load(weights, device=device, trust=trust or ())
    files = find_files(files, endings=IMAGE_SUFFIXES if predictor.sees_images else ENDINGS, output=output)
    has_all_modes = grid and len(files) == 1
    for name, value in (("mode", mode), ("layer", layer)):
        if value is not None and has_all_modes:
            raise ValueError(f"--grid of one file shows all layers and modes: leave --{name} out.")
    mode = mode or first_mode(slot, query)
    suffix = "" if output is None else output.suffix.lower()
    page = output if suffix == ".html" else None
    for name, value in (("slot", slot), ("query", query)):
        if value is not None and mode != name and not has_all_modes:
            raise ValueError(f"--{name} is for --mode {name}, got --mode {mode}.")
    is_picture = suffix == ".png" or animate is not None
    drawing = {"size": size, "azimuth": azimuth, "elevation": elevation}
    drawing_given = [name for name, number in drawing.items() if number is not None]
    size = (300 if grid else 800) if size is None else size
    azimuth, elevation = AZIMUTH if azimuth is None else azimuth, ELEVATION if elevation is None else elevation
    _check_outputs(output, animate, size, grid=grid, files=files)
    if compare is not None and (suffix == ".ply" or is_picture):
        raise ValueError("--compare is for a page: give --output page.html.")
    if compare == weights:
        raise ValueError(f"--compare must be other weights than --weights, got {compare} twice.")
    given = {
        "up": up, "seed": seed, "num_points": num_points, "points_per_pass": points_per_pass, "category": category,
        "head": head,
    }  # fmt: skip
    other = None if compare is None else load(compare, device=device, trust=trust or ())
    if other is not None and other.sees_images != predictor.sees_images:
        raise ValueError(f"--compare {compare} {other.purpose}, but {weights} {predictor.purpose}: no file suits both.")
    options = _options(predictor, size, given, beside=other)
    other_options = {} if other is None else _options(other, size, given, beside=predictor)
    for name in drawing_given:
        if not is_picture and not predictor.sees_images:
            raise ValueError(f"--{name} is for a picture: give --output drawn.png or --animate turn.gif.")
        if predictor.sees_images and name != "size":
            raise ValueError(f"This network {predictor.purpose}: --{name} is not for it.")
    if predictor.sees_images:
        if animate is not None:
            raise ValueError(f"This network {predictor.purpose}: --animate is not for it.")
        if suffix == ".ply":
            raise ValueError("Images have no coordinates: give --output page.html or drawn.png.")
    is_shown = output is None and animate is None
    is_window = is_shown and compare is None and not predictor.sees_images and _has_window()
    if is_shown and not is_window:
        page = _default_page(files)
    if not predictor.sees_images and is_picture:
        check_rendering()
    subjects = _make_subjects(predictor, weights, files, options)
    queries = [None if query is None else subject.find_query(query) for subject in subjects]
    layer = len(subjects[0].layers) - 1 if layer is None else layer
    if is_window:
        from pcea.visualization.navigator import Navigator
        from pcea.visualization.window import open_window

        open_window(Navigator(subjects, mode=mode, layer=layer, slot=slot, query=queries[0]))
        return
    if page is not None:
        from pcea.visualization.pages import Page, open_in_browser

        networks = {weights: subjects}
        if compare is not None:
            networks[compare] = _make_subjects(other, compare, files, other_options)
        title = ", ".join(file.stem for file in files) if len(files) < 4 else f"{len(files)} files"
        Page(networks, mode=mode, layer=layer, slot=slot, query=queries[0], title=title).save(page)
        print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in any browser")
        if output is None:
            open_in_browser(page)
        return
    if has_all_modes:
        views, columns = _all_views(subjects[0], slot=slot, query=queries[0])
    else:
        views, columns = shared_views(subjects, mode, layer=layer, slot=slot, queries=queries), None
    if output is not None and suffix == ".ply":
        _write_cloud(output, subjects[0], views[0], mode)
        print(f"{output}: {len(subjects[0].file_points.points)} points")
    draw = partial(
        draw_sheet,
        views,
        size=size,
        columns=columns,
        shared_legend=len(files) > 1 and mode != "prediction",
        elevation=elevation,
    )
    if output is not None and suffix == ".png":
        picture = next(draw(angles=[azimuth]))
        save_png(output, picture)
        print(f"{output}: {picture.shape[1]} x {picture.shape[0]} pixels")
    if animate is not None:
        turn = [azimuth + 360 * i / _FRAMES for i in range(_FRAMES)]
        sides = turn[:: _FRAMES // 4]  # drawn first, for the colours of all
        pictures = draw(angles=sides + turn)
        save_gif(animate, pictures, sample=list(islice(pictures, len(sides))))
        print(f"{animate}: {_FRAMES} pictures")


def _options(
    predictor: Predictor, size: int, given: dict[str, Any], *, beside: Predictor | None = None
) -> dict[str, Any]:
    """The options that a network takes; one that is neither for it nor for the network beside it is refused."""
    known, taken = ({} if p is None else inspect.signature(p.subject).parameters for p in (predictor, beside))
    given = {name: value for name, value in given.items() if name in known or name not in taken}
    options = applicable(predictor, predictor.subject, **given)
    if predictor.sees_images:
        options["size"] = size
    predictor.check(**options)
    tell_of_pose(predictor, given.get("up"))
    return options


def _has_window() -> bool:
    """Whether Open3D can open a window here; if not, why is printed."""
    from pcea.visualization.window import ALTERNATIVE, check_display

    try:
        check_display()
    except (OSError, ImportError) as error:
        print(f"pcea: no window, but a page: {str(error).removesuffix(ALTERNATIVE).strip()}", file=sys.stderr)
        return False
    return True


def _default_page(files: list[Path]) -> Path:
    """Where the page goes if no place was given: into the current folder, or where that cannot be written."""
    name = f"{files[0].stem}_attention.html"
    return Path(name) if os.access(Path.cwd(), os.W_OK) else Path(tempfile.mkdtemp(prefix="pcea_")) / name


def _make_subjects(predictor: Any, weights: str, files: list[Path], options: dict[str, Any]) -> list[Any]:
    """The network's output for each file; all are needed before the first is drawn, as they share colours."""
    subjects, unreadable = [], []
    for file in files:
        try:
            subjects.append(predictor.subject(file, **options))
        except (ValueError, OSError) as error:
            unreadable.append(message_of(error, file))
        except MISFITS as error:
            raise misfit(predictor, weights, error) from error
    if unreadable:
        raise ValueError(unreadable[0] if len(files) == 1 else summarize(unreadable, len(files)))
    return subjects


def _check_outputs(output: Path | None, animate: Path | None, size: int, *, grid: bool, files: list[Path]) -> None:
    """Refuse outputs that could not be written, before anything is computed."""
    suffix = "" if output is None else output.suffix.lower()
    if output is not None and suffix not in (".html", ".png", ".ply"):
        raise ValueError(
            f"--output must end in .html, .png or .ply, got {output}. Turntables (.gif) are for --animate."
        )
    if animate is not None and animate.suffix.lower() != ".gif":
        raise ValueError(f"--animate must end in .gif, got {animate}.")
    check_size(size)
    if suffix == ".ply" and (grid or len(files) > 1):
        raise ValueError(f"--output {output} holds the points of one file in one view: give one file, without --grid.")
    if (animate or suffix == ".png") and len(files) > 1 and not grid:
        raise ValueError(
            f"{len(files)} files make one picture only as a sheet: add --grid, give one file, or --output page.html."
        )
    if suffix == ".html" and (grid or animate):
        raise ValueError(f"--output {output} shows all layers and modes as it is: leave out --grid and --animate.")
    if grid and output is None and animate is None:
        raise ValueError("--grid is a picture: add --output sheet.png or --animate sheet.gif.")
    for path in filter(None, (output, animate)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"No folder {path.parent} to write {path.name} into.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder.")
        check_not_read(path, files)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"The folder {path.parent} cannot be written to.")


def _all_views(subject: Subject, *, slot: int | None, query: int | None) -> tuple[list[View], int]:
    """Every layer in every mode, one mode per row; then what does not depend on the layer."""
    columns = len(subject.layers)
    by_layer = [mode for mode in ATTENTION_MODES if mode in subject.modes]
    views = [
        subject.view(mode, layer=layer, slot=slot, query=query)._replace(title=f"{mode}, layer {layer}")
        for mode, layer in product(by_layer, range(columns))
    ]
    others = [mode for mode in subject.modes if mode not in by_layer]
    views += [subject.view(mode, layer=0)._replace(title=mode) for mode in others]
    views[0] = views[0]._replace(title=f"{subject.name}: {views[0].title}")
    return views, columns


def _write_cloud(path: Path, subject: PointSubject, view: View, mode: str) -> None:
    """Write the points in the file's order and coordinates, with the colours of a view and their legend.

    Points that are not drawn, as of ground, are grey and have the value -1.
    """
    cloud, numbers = subject.file_points, subject.numbers.numpy()
    columns = dict(zip("xyz", cloud.points.numpy().T))
    if cloud.normals is not None:
        columns |= dict(zip(("nx", "ny", "nz"), cloud.normals.numpy().T))
    rgb = np.full((len(cloud.points), 3), GREY, np.uint8)
    rgb[numbers] = view.colors.numpy()
    columns |= dict(zip(("red", "green", "blue"), rgb.T))
    if view.values is not None:
        values = (view.values.float() if view.values.is_floating_point() else view.values.int()).cpu().numpy()
        column = np.full(len(cloud.points), -1, values.dtype)
        column[numbers] = values
        columns[{"slots": "slot", "parts": "part_label"}.get(mode, "value")] = column
    legend = view.legend
    if len(numbers) < len(cloud.points):
        legend = (*legend, ("left out", GREY))
    lines = [f"{name}: red {r} green {g} blue {b}" for name, (r, g, b) in legend]
    write_ply(path, columns, [view.title, *lines])
