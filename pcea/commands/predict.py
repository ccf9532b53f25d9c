"""`pcea predict`: apply a trained network to files and print each result as it comes."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pcea.commands.input_files import Share, find_files
from pcea.commands.predict_output import open_output
from pcea.datasets.images import IMAGE_SUFFIXES
from pcea.inference.base import Predictor, check_output_folder
from pcea.inference.examples import read_examples
from pcea.inference.networks import DEFAULT_WEIGHTS, load
from pcea.io.failures import message_of, summarize
from pcea.io.ply import write_ply
from pcea.io.reader_processes import read_files
from pcea.io.readers import ENDINGS

OPTIONS = {
    "meshes and clouds": ("up", "seed"),
    "classes of meshes and clouds": ("like", "explain"),
    "parts of meshes and clouds": ("category", "num_points", "points_per_pass"),
    "classes of clouds and of images": ("top",),
    "pixels of images": ("longest_side",),
    "objects in images": ("threshold",),
}
"""Options for one kind of network only, by kind; all others are for every network."""

# From so many files on, other processes read them, and a bar shows how far it is.
_MANY_FILES = 100
_MOST_WORKERS = 8


def predict(
    files: list[Path],
    *,
    weights: str = DEFAULT_WEIGHTS,
    device: str = "auto",
    trust: list[str] | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    strict: bool = False,
    workers: int | None = None,
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
            images JPG, PNG, ... Also folders, with the folders in them; patterns in quotes, such as 'scans/**/*.stl';
            and @list.txt, a list of all these, one per line, relative to the current folder.
        weights: Name of weights that come with pcea, a weights file, a checkpoint, or a configuration's name (its
            newest run).
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        trust: A package besides pcea that the weights may import their network from; repeat for several. Importing it
            runs its code.
        output: Also write the results. Classes go to this CSV file; or to a .parquet file, and a .csv beside it as they
            come. Others go into this folder: for parts a coloured NAME.ply and a NAME.npz with the label and confidence
            of every point (label -1: of no part, as the ground); for pixels a NAME.png of class numbers and a
            NAME_overlay.jpg to look at; for objects a NAME_objects.jpg each, and one objects.json in COCO format; and
            predictions.csv, a table of all files. What an earlier run of the same network and options wrote, from the
            same working folder, is kept, and its files are skipped.
        overwrite: Start the output anew.
        strict: Stop at the first file that cannot be read.
        workers: Processes that read files, so that a damaged one cannot end the run, nor one that takes longer than
            10 minutes. By default none for fewer than 100 files, else one less than there are cores, from 1 to 8.
        up: The files' upward axis: x, y, z or, with an equals sign, --up=-x, --up=-y, --up=-z; where shapes face is
            then taken as it is. auto finds both, by default for classes if the network can (modelnet40_pointea_files
            can); else that of the files it was trained on, mostly y.
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
        threshold: Objects with a lower score, in 0..1, are left out; 0.5 by default. The network itself leaves out what
            is below its score_threshold, mostly 0.05.
    """
    share = Share.of_environment()
    predictor = load(weights, device=_device_of_process(device), trust=trust or ())
    all_files = find_files(files, endings=IMAGE_SUFFIXES if predictor.sees_images else ENDINGS, output=output)
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
    if like is not None and up is not None:
        raise ValueError("--up is not for --like, which compares shapes in all poses: leave one of them out.")
    if explain and like is not None:
        raise ValueError("--explain is for the classes of the network: leave --like out.")
    if explain:
        check_output_folder(
            output.parent if output else Path(), all_files, endings=("_explained.png", "_explained.ply")
        )
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}.")
    predictor.check(**options)
    tell_of_pose(predictor, up)
    if like is not None:
        options["like"] = read_examples(predictor, like, seed=seed or 0)  # type: ignore[arg-type]
    files, errors = share.of(all_files), []
    with (
        nullcontext()
        if output is None
        else open_output(predictor, output, all_files, options, share=share, overwrite=overwrite)
    ) as written:
        waiting = files
        if written is not None:
            waiting = [file for file in files if not written.has(file)]
            errors = [error for file in files if (error := written.error(file))]
            if len(waiting) < len(files):
                unexplained = ", and are not explained again" if explain else ""
                kept = f"{len(files) - len(waiting)} of {len(files)} files are in {written.table.path} already"
                print(f"Kept: {kept}{unexplained}.")
        width = max((len(str(file)) for file in waiting), default=0)
        with show_progress(len(waiting)) as advance:
            for batch in predict_files(predictor, weights, waiting, options, workers=workers):
                for file, prediction in batch:
                    if isinstance(prediction, Exception):
                        message = message_of(prediction, file)
                        if strict:
                            raise ValueError(message)
                        errors.append(message)
                        if written is not None:
                            written.table.add_error(file, message)
                        continue
                    print(f"{file!s:{width}}  {prediction}", flush=True)
                    if written is not None:
                        written.add(file, prediction)
                    if explain:
                        try:
                            print_explanation(predictor, file, output, up=up, seed=seed)
                        except ValueError as error:
                            if strict:
                                raise
                            errors.append(str(error))
                if written is not None:
                    written.table.save()
                advance(len(batch))
        places = None if written is None else written.finish()
    # torchrun ends the other processes when one of them fails.
    may_fail = "TORCHELASTIC_RUN_ID" not in os.environ
    if errors and len(errors) == len(files) and may_fail:
        raise ValueError(errors[0] if len(files) == 1 else summarize(errors, len(files)))
    if places is not None:
        print(f"Written: {places}")
    if errors:
        print(f"pcea: error: {summarize(errors, len(files))}", file=sys.stderr)
        if may_fail:
            sys.exit(1)


Outcome = tuple[Path, Any]
"""A file with its prediction, or with the ValueError or OSError that says why there is none."""


def predict_files(
    predictor: Predictor, weights: str, files: Sequence[Path], options: Mapping[str, Any], *, workers: int | None = None
) -> Iterator[list[Outcome]]:
    """Show files to a network, many of them in batches, as they are read.

    Args:
        predictor: The network.
        weights: Its name, for messages.
        files: The files.
        options: The options of `predict`.
        workers: Processes that read files; None for what suits the number of files and cores.

    Yields:
        Files, in their order, with their predictions or errors.

    Raises:
        ValueError: If the network does not do what its description says.
    """
    has_many = len(files) >= _MANY_FILES
    if workers is None:
        workers = _free_cores() if has_many else 0
    size = predictor.batch_size if has_many else 1
    contents = read_files(files, predictor.reader(**options), workers=workers, ahead=size + workers)
    try:
        while batch := list(islice(contents, size)):
            yield _predict_batch(predictor, weights, batch, options)
    except MISFITS as error:
        raise misfit(predictor, weights, error) from error


def _predict_batch(
    predictor: Predictor, weights: str, batch: Sequence[Outcome], options: Mapping[str, Any]
) -> list[Outcome]:
    """Replace what was read of each file by the prediction, or the error."""
    readable = [content for _, content in batch if not isinstance(content, Exception)]
    predictions: Iterable[Any]
    try:
        predictions = iter(predictor.predict_contents(readable, **options) if readable else ())
    except (ValueError, OSError, RuntimeError) as error:
        if len(batch) > 1:  # find the one that the network refuses
            return [outcome for one in batch for outcome in _predict_batch(predictor, weights, [one], options)]
        if isinstance(error, RuntimeError):  # perhaps of this file alone, which is too thin or too large
            if os.environ.get("PCEA_TRACEBACK"):
                raise
            error = misfit(predictor, weights, error)
        predictions = iter([error])
    return [(file, content if isinstance(content, Exception) else next(predictions)) for file, content in batch]


def _free_cores() -> int:
    """Cores that this process has for others, without its own: from 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1) - 1))


def _device_of_process(device: str) -> str:
    """With `auto` under torchrun, each process of a machine takes a GPU of its own."""
    rank, count = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    return f"cuda:{rank % count}" if device == "auto" and count > 1 else device


@contextmanager
def show_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, for many files and where the errors go to a terminal.

    Yields:
        A function that takes the number of files that are done in addition.
    """
    if total < _MANY_FILES or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    # Lines that go into a file must not go through the bar, which would write them to the terminal.
    is_seen = sys.stdout.isatty()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=is_seen, transient=True) as bar:
        task = bar.add_task("pcea predict", total=total)
        yield lambda done: bar.advance(task, done)


def tell_of_pose(predictor: Predictor, up: str | None) -> None:
    """Warn if `--up auto` is given to a network that cannot find poses."""
    if up == "auto" and predictor.description.task == "points" and not predictor.description.background:
        print(
            "pcea: this network cannot find poses, as it was trained without background: "
            f"{predictor.description.up or 'y'} is up. Give another axis by --up if it is not.",
            file=sys.stderr,
        )


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
    """Print what decided the class of a file, and draw it: a picture, or coloured points where nothing can be drawn.

    Raises:
        ValueError: If it cannot be explained, or the drawing not be written.
    """
    try:
        _explain(predictor, file, output, **options)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: no explanation: {error}") from error


def _explain(predictor: Any, file: Path, output: Path | None, **options: Any) -> None:
    from pcea.visualization.picture_files import save_png
    from pcea.visualization.sheets import draw_sheet

    explanation = predictor.explain(file, **{name: value for name, value in options.items() if value is not None})
    view = explanation.view(title=f"{file.stem}: {explanation.prediction.title}")
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
