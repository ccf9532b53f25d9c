"""Classify mesh and cloud files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import torch

from pcea.configuration import runs_folder
from pcea.datasets.cache import summarize
from pcea.meshes import normalize_points, orient, read_points
from pcea.models.point_transformer import PointTransformerClassifier, eat_classifier
from pcea.weights import load_weights

DEFAULT_WEIGHTS = "modelnet40_eat_cpu"


class Prediction(NamedTuple):
    """The most probable classes of one file.

    Attributes:
        file: The file.
        class_names: Names, most probable first.
        probabilities: Their probabilities, in 0..1.
    """

    file: Path
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    files: list[Path],
    *,
    weights: str = DEFAULT_WEIGHTS,
    config: str | None = None,
    ckpt_path: str | None = None,
    up: str = "y",
    top: int = 3,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Print the most probable classes of each file.

    Args:
        files: Meshes (OFF, OBJ, STL, PLY, GLB, ...) or clouds (XYZ, TXT, NPY, PLY, PCD, ...).
        weights: A weights file, or the name of weights that come with pcea.
        config: Take the newest checkpoint of this configuration instead.
        ckpt_path: Take this checkpoint of `pcea fit` instead.
        up: The files' upward axis: x, y, z or, with an equals sign, --up=-x, --up=-y, --up=-z. The
            networks know shapes that stand upright, facing along the x or z axis.
        top: Classes shown for each file.
        seed: Decides which points are sampled.
        output: Also write the predictions to this CSV file.
    """
    if config is not None and ckpt_path is None:
        from pcea.training import newest_checkpoint

        ckpt_path = str(newest_checkpoint(runs_folder(config)))
    predictions = classify_files(files, weights=ckpt_path or weights, up=up, top=top, seed=seed)
    width = max(len(str(file)) for file in files)
    for prediction in predictions:
        ranked = zip(prediction.class_names, prediction.probabilities)
        print(f"{prediction.file!s:{width}}  " + "  ".join(f"{n} {100 * p:.1f}%" for n, p in ranked))
    if output is not None:
        with output.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "rank", "class", "probability"])
            for file, names, probabilities in predictions:
                rows = zip(range(1, len(names) + 1), names, probabilities)
                writer.writerows([file, rank, name, f"{p:.4f}"] for rank, name, p in rows)


@torch.inference_mode()
def classify_files(
    files: list[Path], *, weights: str = DEFAULT_WEIGHTS, up: str = "y", top: int = 3, seed: int = 0
) -> list[Prediction]:
    """Find the most probable classes of each file; arguments as for `predict`.

    Raises:
        FileNotFoundError: If a file or the weights are missing.
        ValueError: If files hold no usable shape; they are counted and named, and none is classified.
    """
    missing = [str(file) for file in files if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing)}.")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
    orient(torch.zeros(3), up)  # a wrong axis is not the files' fault
    network, class_names, num_points = load_classifier(weights)
    has_normals = network.encoder.in_channels == 6
    fewest = max(network.encoder.num_centers, default=1)
    clouds, unreadable = [], []
    for file in files:
        try:
            clouds.append(
                read_points(file, num_points=num_points, min_points=fewest, seed=seed, up=up, with_normals=has_normals)
            )
        except ValueError as error:
            unreadable.append(str(error))
    if unreadable:
        raise ValueError(summarize(unreadable, len(files)))
    predictions = []
    for file, cloud in zip(files, clouds):
        features = None if cloud.normals is None else cloud.normals[None]
        probabilities = network(normalize_points(cloud.points)[None], features).softmax(-1)[0]
        best = probabilities.topk(min(top, len(class_names)))
        names = tuple(class_names[i] for i in best.indices)
        predictions.append(Prediction(Path(file), names, tuple(best.values.tolist())))
    return predictions


def load_classifier(weights: str) -> tuple[PointTransformerClassifier, tuple[str, ...], int]:
    """A classifier in evaluation mode with its class names and number of points, from a checkpoint or weights file."""
    if str(weights).endswith(".ckpt"):
        # Lightning takes seconds to import: only a checkpoint needs it.
        from pcea.training import load_task

        task = load_task(weights)
        if not isinstance(task.network, PointTransformerClassifier):
            raise ValueError(f"{weights} holds a {type(task.network).__name__}, not a classifier of point clouds.")
        return task.network.eval(), task.class_names, task.num_points
    about = load_weights(weights)
    return eat_classifier(weights=weights).eval(), about.class_names, about.num_points
