"""Name the class of mesh, cloud and picture files, that of each of their points or pixels, or the objects in them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pcea.datasets.cache import summarize
from pcea.datasets.images import read_image
from pcea.inference.images import (
    ENDINGS,
    LONGEST_SIDE,
    PixelPrediction,
    check_pictures,
    classify_picture,
    is_picture,
    label_pixels,
    write_pixels,
)
from pcea.inference.networks import TrainedDetector, TrainedImageNetwork, TrainedNetwork, load_network
from pcea.inference.objects import (
    OBJECT_ENDINGS,
    OBJECTS_FILE,
    ObjectPrediction,
    add_to_coco,
    coco_dataset,
    find_objects,
    write_objects,
)
from pcea.inference.parts import PartPrediction, find_category, predict_parts, read_clouds, write_parts
from pcea.io.checkpoints import newest_checkpoint
from pcea.io.configs import runs_folder
from pcea.io.output_folder import atomic_folder, check_output
from pcea.io.points import Points, estimate_normals, load_points, normalize_points, orient
from pcea.io.readers import import_open3d
from pcea.models.point_segmenter import PointTransformerSegmenter
from pcea.models.point_transformer import PointTransformerClassifier

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
    top: int | None = None,
    category: str | None = None,
    num_points: int | None = None,
    points_per_pass: int | None = None,
    longest_side: int | None = None,
    threshold: float | None = None,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Print the class of each file, the share of each part or class in it, or its objects, as the network finds them.

    Args:
        files: Meshes (OFF, OBJ, STL, PLY, GLB, ...) or clouds (XYZ, TXT, NPY, PLY, PCD, LAS, ...); with a network for
            images pictures (JPG, PNG, ...).
        weights: A weights file, or the name of weights that come with pcea.
        config: Take the newest checkpoint of this configuration instead.
        ckpt_path: Take this checkpoint of `pcea fit` instead.
        up: The files' upward axis: x, y, z or, with an equals sign, --up=-x, --up=-y, --up=-z. The
            networks know shapes that stand upright, facing along the x or z axis.
        top: Classes only: how many are shown for each file, 3 by default.
        category: Parts only: what all the files show, such as Chair. A network of several categories must be told.
        num_points: Parts only: points sampled on each mesh, 10000 by default. Clouds are labelled whole.
        points_per_pass: Parts only: points that the network sees at once; larger clouds go through in random subsets.
            By default as many as it was trained for. 0 for all points in one pass, which is worse where a cloud is much
            denser than those of the training.
        longest_side: Pixels only: a larger picture is shown to the network scaled down to so many pixels along its
            longer side, 1024 by default. The result has the size of the picture.
        threshold: Objects only: those with a lower score, in 0..1, are left out; 0.5 by default.
        seed: Decides which points are sampled, and the subsets.
        output: Also write the result. Classes: to this CSV file. Parts: into this folder, for each file a coloured
            NAME.ply and a NAME.npz with the label and confidence of every point. Pixels: into this folder, for each
            picture a NAME.png, whose pixels are numbers of classes, and a NAME_overlay.jpg to look at. Objects: into
            this folder, for each picture a NAME_objects.jpg, and for all an objects.json in the format of COCO.
    """
    files = check_files(files, up=up)
    trained = load_network(ckpt_path or newest_checkpoint_of(config) or weights)
    if not isinstance(trained, TrainedNetwork):
        of_points = {"category": category, "num_points": num_points, "points_per_pass": points_per_pass}
        refuse("is for pictures", up=None if up == "y" else up, **of_points)
    if isinstance(trained, TrainedDetector):
        refuse("finds objects", top=top, longest_side=longest_side)
        _print_objects(files, trained, threshold=0.5 if threshold is None else threshold, output=output)
        return
    refuse("finds no objects", threshold=threshold)
    if isinstance(trained, TrainedImageNetwork):
        if trained.labels_pixels:
            refuse("names the class of every pixel", top=top)
            longest_side = LONGEST_SIDE if longest_side is None else longest_side
            _print_pixels(files, trained, longest_side=longest_side, output=output)
        else:
            refuse("names the class of a picture", longest_side=longest_side)
            check_classes_output(output)
            _print_classes(classify_pictures(files, trained, top=3 if top is None else top), output)
        return
    refuse_pictures(files)
    refuse("is for meshes and clouds", longest_side=longest_side)
    if isinstance(trained.network, PointTransformerSegmenter):
        refuse("names the parts of points", top=top)
        _print_parts(
            files,
            trained,
            category=category,
            up=up,
            num_points=10_000 if num_points is None else num_points,
            points_per_pass=points_per_pass,
            seed=seed,
            output=output,
        )
    else:
        refuse("names the class of a file", category=category, num_points=num_points, points_per_pass=points_per_pass)
        check_classes_output(output)
        _print_classes(classify_files(files, trained, up=up, top=3 if top is None else top, seed=seed), output)


def check_files(files: Sequence[str | Path], *, up: str) -> list[Path]:
    """The files as paths.

    Raises:
        FileNotFoundError: If some are not there.
        ValueError: If `up` is no axis, which is not the files' fault.
    """
    paths = [Path(file) for file in files]
    folders = [str(path) for path in paths if path.is_dir()]
    if folders:
        raise ValueError(f"Files are expected, got the folder {', '.join(folders)}.")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing)}.")
    orient(torch.zeros(3), up)
    return paths


def refuse_pictures(files: Sequence[Path]) -> None:
    """For networks of points.

    Raises:
        ValueError: If a file is a picture.
    """
    pictures = [file for file in files if is_picture(file)]
    if pictures:
        raise ValueError(
            f"{pictures[0]} is a picture, and the network is for meshes and clouds. Give the checkpoint of one for "
            "images."
        )


def newest_checkpoint_of(config: str | None) -> str | None:
    """The last checkpoint of the newest run of a configuration; None without one."""
    if config is None:
        return None
    return str(newest_checkpoint(runs_folder(config)))


def refuse(what: str, **options: object) -> None:
    """Refuse options that a network has no use for.

    Args:
        what: What the network does, or is for.
        **options: The options; None for those that were not given.

    Raises:
        ValueError: If one was given.
    """
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"This network {what}: --{name} is not for it.")


def check_classes_output(output: Path | None) -> None:
    """Refuse a folder for what is a table.

    Raises:
        ValueError: If it is one.
    """
    if output is not None and output.is_dir():
        raise ValueError(f"--output {output} is a folder: a network that names the class of a file writes a CSV file.")


def _print_classes(predictions: list[Prediction], output: Path | None) -> None:
    width = max(len(str(prediction.file)) for prediction in predictions)
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


def _print_parts(
    files: list[Path],
    trained: TrainedNetwork,
    *,
    category: str | None,
    up: str,
    num_points: int,
    points_per_pass: int | None,
    seed: int,
    output: Path | None,
) -> None:
    category = find_category(trained.parts, category)
    if output is not None:
        check_output(output, files, endings=(".ply", ".npz"))
    clouds = read_clouds(files, num_points=num_points, seed=seed)
    if trained.has_normals:
        clouds = with_normals(clouds, files)
    width = max(len(str(file)) for file in files)
    with nullcontext() if output is None else atomic_folder(output) as folder:
        for file, cloud in zip(files, clouds):
            prediction = predict_parts(
                cloud, trained, category=category, up=up, points_per_pass=points_per_pass, seed=seed
            )
            print(f"{file!s:{width}}  {_describe(prediction)}", flush=True)
            if folder is not None:
                write_parts(folder, file.stem, prediction)
    if output is not None:
        print(f"Labels of every point: {output / '<name>'}.ply and .npz")


def _print_pixels(files: list[Path], trained: TrainedImageNetwork, *, longest_side: int, output: Path | None) -> None:
    if output is not None:
        check_output(output, files, endings=ENDINGS)
    check_pictures(files)
    width = max(len(str(file)) for file in files)
    with nullcontext() if output is None else atomic_folder(output) as folder:
        for file in files:
            prediction = label_pixels(read_image(file), trained, longest_side=longest_side)
            print(f"{file!s:{width}}  {_describe_pixels(prediction)}", flush=True)
            if folder is not None:
                write_pixels(folder, file.stem, prediction)
    if output is not None:
        print(f"Class of every pixel: {output / '<name>'}{ENDINGS[0]}, and to look at: <name>{ENDINGS[1]}")


def _print_objects(files: list[Path], trained: TrainedDetector, *, threshold: float, output: Path | None) -> None:
    if output is not None:
        check_output(output, files, endings=OBJECT_ENDINGS)
    check_pictures(files)
    width = max(len(str(file)) for file in files)
    found = coco_dataset(trained.class_names, trained.category_ids)
    with nullcontext() if output is None else atomic_folder(output) as folder:
        for file in files:
            prediction = find_objects(read_image(file), trained, threshold=threshold)
            print(f"{file!s:{width}}  {_describe_objects(prediction)}", flush=True)
            if folder is not None:
                write_objects(folder, file.stem, prediction)
                add_to_coco(found, file.name, prediction)
        if folder is not None:
            (folder / OBJECTS_FILE).write_text(json.dumps(found), encoding="utf-8")
    if output is not None:
        print(f"Objects: {output / OBJECTS_FILE}, and to look at: <name>{OBJECT_ENDINGS[0]}")


def with_normals(clouds: list[Points], files: list[Path]) -> list[Points]:
    """Estimate the normals of the clouds that have none, and say so."""
    bare = [file for file, cloud in zip(files, clouds) if cloud.normals is None]
    if not bare:
        return clouds
    names = ", ".join(map(str, bare[:3])) + (", ..." if len(bare) > 3 else "")
    why = f"the network needs normals, and {len(bare)} of {len(files)} files have none ({names})"
    try:
        import_open3d()
    except ImportError as error:
        raise ImportError(f"{why}; Open3D, which estimates them, cannot be imported: {error}") from error
    print(f"pcea: note: {why}: they are estimated by Open3D, which costs accuracy.", file=sys.stderr)
    return [c if c.normals is not None else c._replace(normals=estimate_normals(c.points)) for c in clouds]


def _describe(prediction: PartPrediction) -> str:
    shares = [f"{name} {100 * share:.1f} %" for name, share in prediction.shares.items()]
    columns = [
        *([prediction.category] if prediction.category else []),
        f"{len(prediction.points)} points",
        *shares,
        f"mean confidence {100 * float(prediction.confidence.mean()):.1f} %",
    ]
    return "  ".join(columns)


def _describe_pixels(prediction: PixelPrediction) -> str:
    H, W = prediction.label.shape
    seen = "" if prediction.shown == (H, W) else f", seen as {prediction.shown[1]} x {prediction.shown[0]}"
    shares = [f"{prediction.class_names[c]} {100 * share:.1f} %" for c, share in prediction.shares.items()]
    confidence = f"mean confidence {100 * float(prediction.confidence.mean()):.1f} %"
    return "  ".join([f"{W} x {H} pixels{seen}", *shares, confidence])


def _describe_objects(prediction: ObjectPrediction) -> str:
    H, W = prediction.picture.shape[1:]
    found = [f"{number} {name}" for name, number in prediction.numbers.items()]
    return "  ".join([f"{W} x {H} pixels", *(found or ["no objects"])])


@torch.inference_mode()
def classify_files(
    files: list[Path], trained: TrainedNetwork, *, up: str = "y", top: int = 3, seed: int = 0
) -> list[Prediction]:
    """Find the most probable classes of each file with a trained classifier; the other arguments as for `predict`.

    Raises:
        ValueError: If files hold no usable shape; they are counted and named, and none is classified.
    """
    network = trained.network
    if not isinstance(network, PointTransformerClassifier):
        raise ValueError(f"The network is a {type(network).__name__}, not a classifier.")
    _check_top(top)
    fewest = max((count for count in network.encoder.num_centers if count is not None), default=1)
    clouds, unreadable = [], []
    for file in files:
        try:
            clouds.append(
                load_points(
                    file,
                    trained.num_points,
                    min_points=fewest,
                    seed=seed,
                    up=up,
                    normals="required" if trained.has_normals else "none",
                )
            )
        except ValueError as error:
            unreadable.append(str(error))
    if unreadable:
        raise ValueError(summarize(unreadable, len(files)))
    predictions = []
    for file, cloud in zip(files, clouds):
        features = None if cloud.normals is None else cloud.normals[None]
        probabilities = network(normalize_points(cloud.points)[None], features).softmax(-1)[0]
        predictions.append(_rank(Path(file), probabilities, trained.class_names, top))
    return predictions


def classify_pictures(files: list[Path], trained: TrainedImageNetwork, *, top: int = 3) -> list[Prediction]:
    """Find the `top` most probable classes of each picture with a trained classifier of images.

    Raises:
        ValueError: If pictures cannot be read; they are counted and named, and none is classified.
    """
    _check_top(top)
    check_pictures(files)
    predictions = []
    for file in files:
        try:
            probabilities = classify_picture(read_image(file), trained)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        predictions.append(_rank(Path(file), probabilities, trained.class_names, top))
    return predictions


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")


def _rank(file: Path, probabilities: Tensor, class_names: Sequence[str], top: int) -> Prediction:
    best = probabilities.topk(min(top, len(class_names)))
    return Prediction(file, tuple(class_names[i] for i in best.indices), tuple(best.values.tolist()))
