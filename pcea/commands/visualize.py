"""Draw what a trained network attends to and predicts in mesh, cloud and picture files."""

from __future__ import annotations

import os
from itertools import chain, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcea.commands.predict import (
    DEFAULT_WEIGHTS,
    check_files,
    newest_checkpoint_of,
    refuse,
    refuse_pictures,
    with_normals,
)
from pcea.datasets.images import read_image
from pcea.inference.image_subject import study_picture
from pcea.inference.images import check_pictures
from pcea.inference.networks import TrainedDetector, TrainedImageNetwork, TrainedNetwork, load_network
from pcea.inference.parts import find_category, read_clouds
from pcea.inference.point_subject import StudiedFile
from pcea.io.ply import write_ply
from pcea.io.points import Points
from pcea.visualization.camera import AZIMUTH, ELEVATION
from pcea.visualization.navigator import Navigator
from pcea.visualization.picture_files import save_gif, save_png
from pcea.visualization.renderer import check_rendering, check_size
from pcea.visualization.sheets import draw_sheet
from pcea.visualization.subject import ATTENTION_MODES, Subject, shared_views
from pcea.visualization.views import View
from pcea.visualization.window import check_display, open_window

_FRAMES = 36


def visualize(
    files: list[Path],
    *,
    checkpoint: str = DEFAULT_WEIGHTS,
    config: str | None = None,
    mode: str | None = None,
    layer: int | None = None,
    slot: int | None = None,
    query: str | None = None,
    head: int | None = None,
    grid: bool = False,
    output: Path | None = None,
    animate: Path | None = None,
    category: str | None = None,
    up: str = "y",
    num_points: int = 40_000,
    points_per_pass: int | None = None,
    size: int | None = None,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    seed: int = 0,
) -> None:
    """Show what a network attends to and predicts: in a window, or with --output or --animate in a file.

    Args:
        files: Meshes (OFF, OBJ, STL, PLY, GLB, ...) or clouds (XYZ, TXT, NPY, PLY, PCD, LAS, ...); with a network for
            images pictures (JPG, PNG, ...), which are drawn with --output only.
        checkpoint: A checkpoint of `pcea fit`, a weights file, or the name of weights that come with pcea.
        config: Take the newest checkpoint of this configuration instead.
        mode: slots: the strongest memory slot of each point. slot: the weights for one slot. query: what a point has to
            do with each other point. critical: how many channels of the pooled feature the
            centre nearest to each point decides. prediction:
            the class, or how sure the network is of each point's part. parts: the part of each point. By default query
            or slot where one is given, else slots. Pictures have the same for their pixels, without critical and parts;
            prediction is then the class, or that of each pixel.
        layer: Attention layer, counted from 0; by default the last one.
        slot: Memory slot, counted from 0; by default the strongest one of most points.
        query: Number of a point, counted from 0, or x,y,z in the file's coordinates for the point nearest to it; by
            default the point farthest from the middle. With an equals sign where it begins with a minus: --query=-1,0,2
            For pictures a pixel x,y, by default the one in the middle.
        head: Pictures only: attention head, counted from 0; by default the mean over all.
        grid: One file: a sheet of all layers and modes. Several files: a sheet of all files.
        output: Picture (.png), or the coloured points in the file's coordinates (.ply).
        animate: Write a turntable, .gif.
        category: Part networks only: what the files show, such as Chair.
        up: The files' upward axis: x, y, z or, with an equals sign, --up=-x, --up=-y, --up=-z.
        num_points: Points sampled on each mesh. Clouds are shown whole.
        points_per_pass: Points that the network sees at once, a random subset; attention is interpolated to the others.
            By default as many as it was trained for; 0 for all.
        size: Side of each view in pixels, of a picture the longer one; by default 800, and 300 in a grid.
        azimuth: Degrees around the upward axis from which it is seen.
        elevation: Degrees above the horizon.
        seed: Decides which points are sampled, and the subset.
    """
    files = check_files(files, up=up)
    mode = mode or ("query" if query is not None else "slot" if slot is not None else "slots")
    has_all_modes = grid and len(files) == 1
    for name, value in (("slot", slot), ("query", query)):
        if value is not None and mode != name and not has_all_modes:
            raise ValueError(f"--{name} is for --mode {name}, got --mode {mode}.")
    size = (300 if grid else 800) if size is None else size
    _check_outputs(output, animate, size, grid=grid, files=files)
    trained = load_network(newest_checkpoint_of(config) or checkpoint)
    if not isinstance(trained, TrainedNetwork):
        refuse("is for pictures", animate=animate, category=category, points_per_pass=points_per_pass)
        _draw_pictures(
            files, trained, output, mode=mode, layer=layer, slot=slot, query=query, head=head, grid=grid, size=size
        )
        return
    refuse_pictures(files)
    refuse("is for meshes and clouds", head=head)
    category = find_category(trained.parts, category)
    if output is None and animate is None:
        check_display()
    elif animate is not None or (output is not None and output.suffix.lower() == ".png"):
        check_rendering()
    clouds = read_clouds(files, num_points=num_points, seed=seed)
    if trained.has_normals:
        clouds = with_normals(clouds, files)
    subjects = [
        StudiedFile(file, cloud, trained, category=category, up=up, points_per_pass=points_per_pass, seed=seed)
        for file, cloud in zip(files, clouds)
    ]
    queries = [_find_query(query, cloud.points) for cloud in clouds]
    layer = len(subjects[0].layers) - 1 if layer is None else layer
    if output is None and animate is None:
        open_window(Navigator(subjects, mode=mode, layer=layer, slot=slot, query=queries[0]))
        return
    if has_all_modes:
        views, columns = _all_views(subjects[0], slot=slot, query=queries[0])
    else:
        views, columns = shared_views(subjects, mode, layer=layer, slot=slot, queries=queries), None
    if output is not None and output.suffix.lower() == ".ply":
        _write_cloud(output, clouds[0], views[0], mode)
        print(f"{output}: {len(clouds[0].points)} points")
    pictures = draw_sheet(
        views,
        size=size,
        columns=columns,
        shared_legend=len(files) > 1 and mode != "prediction",
        angles=[azimuth + 360 * i / _FRAMES for i in range(_FRAMES if animate else 1)],
        elevation=elevation,
    )
    if output is not None and output.suffix.lower() == ".png":
        first = next(pictures)
        save_png(output, first)
        print(f"{output}: {first.shape[1]} x {first.shape[0]} pixels")
        pictures = chain([first], pictures)
    if animate is not None:
        save_gif(animate, list(pictures))
        print(f"{animate}: {_FRAMES} pictures")


def _draw_pictures(
    files: list[Path],
    trained: TrainedImageNetwork | TrainedDetector,
    output: Path | None,
    *,
    mode: str,
    layer: int | None,
    slot: int | None,
    query: str | None,
    head: int | None,
    grid: bool,
    size: int,
) -> None:
    if output is None or output.suffix.lower() != ".png":
        raise ValueError("Pictures are drawn into a picture: add --output drawn.png.")
    place = _find_pixel(query)
    check_pictures(files)
    subjects = [study_picture(file, read_image(file), trained, size=size, head=head) for file in files]
    queries = [subject.find_pixel(place) for subject in subjects]
    layer = len(subjects[0].layers) - 1 if layer is None else layer
    if grid and len(files) == 1:
        views, columns = _all_views(subjects[0], slot=slot, query=queries[0])
    else:
        views, columns = shared_views(subjects, mode, layer=layer, slot=slot, queries=queries), None
    drawn = next(draw_sheet(views, columns=columns, shared_legend=len(files) > 1 and mode != "prediction"))
    save_png(output, drawn)
    print(f"{output}: {drawn.shape[1]} x {drawn.shape[0]} pixels")


def _check_outputs(output: Path | None, animate: Path | None, size: int, *, grid: bool, files: list[Path]) -> None:
    """Refuse what could not be written, before anything is computed."""
    if output is not None and output.suffix.lower() not in (".png", ".ply"):
        raise ValueError(f"--output must end in .png or .ply, got {output}.")
    if animate is not None and animate.suffix.lower() != ".gif":
        raise ValueError(f"--animate must end in .gif, got {animate}.")
    check_size(size)
    is_cloud = output is not None and output.suffix.lower() == ".ply"
    if is_cloud and (grid or len(files) > 1):
        raise ValueError(f"--output {output} holds the points of one file in one view: give one file, without --grid.")
    if (output or animate) and len(files) > 1 and not grid:
        raise ValueError(f"{len(files)} files make one picture only as a sheet: add --grid, or give one file.")
    if grid and output is None and animate is None:
        raise ValueError("--grid is a picture: add --output sheet.png or --animate sheet.gif.")
    for path in filter(None, (output, animate)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"No folder {path.parent} to write {path.name} into.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder.")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"The folder {path.parent} cannot be written to.")


def _find_query(query: str | None, points: Tensor) -> int | None:
    """The number of the point that is meant."""
    if query is None:
        return None
    try:
        numbers = [float(word) for word in query.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0].is_integer():
        if not 0 <= numbers[0] < len(points):
            raise ValueError(f"--query must be the number of a point, 0..{len(points) - 1}, or x,y,z, got {query}.")
        return int(numbers[0])
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise ValueError(f"--query must be the number of a point or x,y,z, got {query!r}.")
    return int((points.double() - torch.tensor(numbers, dtype=torch.float64)).norm(dim=1).argmin())


def _find_pixel(query: str | None) -> tuple[int, int] | None:
    """The pixel x, y that is meant."""
    if query is None:
        return None
    try:
        x, y = (int(word) for word in query.split(","))
    except ValueError:
        raise ValueError(f"--query must be a pixel x,y, got {query!r}.") from None
    return x, y


def _all_views(subject: Subject, *, slot: int | None, query: int | None) -> tuple[list[View], int]:
    """Every layer in every mode, a mode a row; then what does not depend on the layer."""
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


def _write_cloud(path: Path, cloud: Points, view: View, mode: str) -> None:
    """Write the points in the file's order and coordinates, with the colours of a view and what they stand for."""
    columns = dict(zip("xyz", cloud.points.numpy().T))
    if cloud.normals is not None:
        columns |= dict(zip(("nx", "ny", "nz"), cloud.normals.numpy().T))
    columns |= dict(zip(("red", "green", "blue"), view.colors.numpy().T))
    if view.values is not None:
        values = view.values.float() if view.values.is_floating_point() else view.values.int()
        columns[{"slots": "slot", "parts": "part_label"}.get(mode, "value")] = values.cpu().numpy()
    legend = [f"{name}: red {r} green {g} blue {b}" for name, (r, g, b) in view.legend]
    write_ply(path, columns, [view.title, *legend])
