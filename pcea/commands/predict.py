"""`pcea predict`: apply a trained network to files and print each result as it comes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from pcea.datasets.cache import summarize
from pcea.inference.base import Predictor, check_output_folder
from pcea.inference.examples import read_examples
from pcea.inference.networks import DEFAULT_WEIGHTS, load
from pcea.io.ply import write_ply

OPTIONS = {
    "meshes and clouds": ("up", "seed"),
    "classes of meshes and clouds": ("like", "explain"),
    "parts of meshes and clouds": ("category", "num_points", "points_per_pass"),
    "classes of clouds and of images": ("top",),
    "pixels of images": ("longest_side",),
    "objects in images": ("threshold",),
}
"""Options for one kind of network only, by kind; all others are for every network."""


def predict(
    files: list[Path],
    *,
    weights: str = DEFAULT_WEIGHTS,
    device: str = "auto",
    trust: list[str] | None = None,
    output: Path | None = None,
    up: str | None = None,
    seed: int | None = None,
    category: str | None = None,
    num_points: int | None = None,
    points_per_pass: int | None = None,
    top: int | None = None,
    like: Path | None = None,
    explain: bool = False,
    longest_side: int | None = None,
    threshold: float | None = None,
) -> None:
    """Print what a trained network finds in each file: its class, its parts, the classes of its pixels, or its objects.

    A file that cannot be read does not stop the others: it is named at the end, and the exit code is 1.

    Args:
        files: Meshes (OFF, OBJ, STL, PLY, GLB, ...) or clouds (XYZ, TXT, NPY, PLY, PCD, LAS, ...); for networks of
            images JPG, PNG, ...
        weights: Name of weights that come with pcea, a weights file, a checkpoint, or a configuration's name (its
            newest run).
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        trust: A package besides pcea that the weights may import their network from; repeat for several. Importing it
            runs its code.
        output: Also write the results. Classes go to this CSV file. Others go into this folder: for parts a coloured
            NAME.ply and a NAME.npz with the label and confidence of every point; for pixels a NAME.png of class numbers
            and a NAME_overlay.jpg to look at; for objects a NAME_objects.jpg each, and one objects.json in COCO format.
        up: The files' upward axis: x, y, z or, with an equals sign, --up=-x, --up=-y, --up=-z; auto finds it. By
            default auto for classes, y for parts.
        seed: Decides which points are sampled, 0 by default.
        category: What all the files show, such as Chair. Required if the network has several categories.
        num_points: Points sampled on each mesh, 10000 by default. Clouds are labelled whole.
        points_per_pass: Points that the network sees at once, by default as many as it was trained for; larger clouds
            go through in random subsets. 0 shows all at once, which is worse if a cloud is much denser than in
            training.
        top: How many classes are shown for each file, 3 by default.
        like: A folder with folders of examples: names the one whose files are most alike, without any training.
        explain: Also print what decided: the regions of the shape, and what it would be without each; and draw them,
            beside the output or into the current folder.
        longest_side: A larger image is scaled down to this many pixels along its longer side for the network, 1024
            by default. The result has the size of the image.
        threshold: Objects with a lower score, in 0..1, are left out; 0.5 by default.
    """
    files = check_files(files)
    predictor = load(weights, device=device, trust=trust or ())
    options = applicable(
        predictor,
        predictor.predict,
        up=up,
        seed=seed,
        category=category,
        num_points=num_points,
        points_per_pass=points_per_pass,
        top=top,
        like=like,
        longest_side=longest_side,
        threshold=threshold,
    )
    if explain and not hasattr(predictor, "explain"):
        raise ValueError(f"This network {predictor.purpose}: --explain is not for it.")
    if explain and like is not None:
        raise ValueError("--explain is for the classes of the network: leave --like out.")
    if explain:
        check_output_folder(output.parent if output else Path(), files, endings=("_explained.png", "_explained.ply"))
    predictor.check(**options)
    if like is not None:
        options["like"] = read_examples(predictor, like, seed=seed or 0)  # type: ignore[arg-type]
    width = max(len(str(file)) for file in files)
    unreadable: list[str] = []
    with nullcontext(None) if output is None else predictor.writing(output, files) as write:
        for file in files:
            try:
                prediction = predictor.predict(file, **options)
            except (ValueError, OSError) as error:
                unreadable.append(str(error) if str(file) in str(error) else f"{file}: {error}")
                continue
            except MISFITS as error:
                raise misfit(predictor, weights, error) from error
            print(f"{file!s:{width}}  {prediction}", flush=True)
            if explain:
                print_explanation(predictor, file, output, up=up, seed=seed)
            if write is not None:
                write(file, prediction)
        if len(unreadable) == len(files):
            raise ValueError(unreadable[0] if len(files) == 1 else summarize(unreadable, len(files)))
    if output is not None:
        written = [str(output / f"<name>{ending}") for ending in predictor.endings] or [str(output)]
        print(f"Written: {', '.join(written)}")
    if unreadable:
        print(f"pcea: error: {summarize(unreadable, len(files))}", file=sys.stderr)
        sys.exit(1)


@cache
def can_draw() -> bool:
    """Whether Open3D can draw pictures here; it takes seconds to try."""
    from pcea.visualization import renderer

    try:
        renderer.check_rendering()
    except OSError:
        return False
    return True


def print_explanation(predictor: Any, file: Path, output: Path | None, **options: Any) -> None:
    """Print what decided the class of a file, and draw it: a picture, or coloured points where nothing can be drawn."""
    from pcea.visualization.picture_files import save_png
    from pcea.visualization.sheets import draw_sheet

    explanation = predictor.explain(file, **{name: value for name, value in options.items() if value is not None})
    view = explanation.view()
    path = (output.parent if output else Path()) / f"{file.stem}_explained.png"
    if can_draw():
        save_png(path, next(draw_sheet([view], size=600)))
    else:
        path = path.with_suffix(".ply")
        write_ply(
            path, dict(zip(("x", "y", "z", "red", "green", "blue"), [*view.points.numpy().T, *view.colors.numpy().T]))
        )
    print(f"{explanation}\n  {path}", flush=True)


# What a network that is not what its file says may end in.
MISFITS = (TypeError, AttributeError, IndexError, KeyError, RuntimeError)


def misfit(predictor: Predictor, weights: str, error: Exception) -> ValueError:
    """The error of a network that does not take, or give, what a network for its task does."""
    task, reason = predictor.description.task, (str(error).splitlines() or [""])[0]
    return ValueError(
        f"The network of {weights} does not work as one for the task {task!r} ({type(error).__name__}: {reason}). Set "
        "PCEA_TRACEBACK=1 to see where."
    )


def check_files(files: Sequence[str | Path]) -> list[Path]:
    """The files as paths.

    Raises:
        FileNotFoundError: If some are missing.
        ValueError: If some are folders.
    """
    paths = [Path(file) for file in files]
    folders = [str(path) for path in paths if path.is_dir()]
    if folders:
        raise ValueError(f"Files are expected, got the folder {', '.join(folders)}.")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing)}.")
    return paths


def applicable(predictor: Predictor, method: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """The options that were given, those that are not None.

    Args:
        predictor: The network.
        method: The method of it that takes the options it has as arguments.
        **options: All options.

    Raises:
        ValueError: If one was given that the network does not take.
    """
    given = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(method).parameters
    for name in given:
        if name not in known:
            raise ValueError(f"This network {predictor.purpose}: --{name} is not for it.")
    return given
