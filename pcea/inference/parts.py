"""A part for every point of a mesh or cloud file: read, predict, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.datasets.cache import summarize
from pcea.inference.networks import TrainedNetwork
from pcea.io.ply import write_ply
from pcea.io.points import Points, load_points, normalize_points, orient
from pcea.models.point_segmenter import PointTransformerSegmenter
from pcea.models.subsets import classify_in_subsets
from pcea.visualization import color_parts


class PartPrediction(NamedTuple):
    """The part of every point of one cloud.

    Attributes:
        points: Coordinates as in the file, (N, 3), float32 or float64 as in `Points`.
        normals: Unit normals, (N, 3), or None.
        part_label: Class of each point, (N,) int64; a position in `part_names`.
        confidence: Probability of that class among those of the category, (N,), in 0..1.
        part_names: Names of all classes of the network.
        category: The category, or "" if the network has none.
        parts: The classes of the category; all if there is none.
    """

    points: Tensor
    normals: Tensor | None
    part_label: Tensor
    confidence: Tensor
    part_names: tuple[str, ...]
    category: str
    parts: tuple[int, ...]

    @property
    def shares(self) -> dict[str, float]:
        """The share of the points that each part of the category has, by its short name, in 0..1."""
        counts = self.part_label.bincount(minlength=len(self.part_names)) / len(self.part_label)
        return {self.short_name(part): float(counts[part]) for part in self.parts}

    def short_name(self, part: int) -> str:
        """Name of a class without that of its category."""
        return self.part_names[part].removeprefix(f"{self.category}/")


def find_category(parts: Mapping[str, Sequence[int]], name: str | None) -> str | None:
    """The category that is meant: the one named, the only one, or None where there are none.

    Raises:
        ValueError: If there are several and none is named, or the name is of none.
    """
    if not parts:
        if name is not None:
            raise ValueError(f"The network has no categories: leave --category {name} out.")
        return None
    if name is None and len(parts) == 1:
        return next(iter(parts))
    if name not in parts:
        problem = "Say what the files show" if name is None else f"No category {name!r}"
        raise ValueError(f"{problem}: --category must be one of {', '.join(parts)}.")
    return name


def read_clouds(files: Sequence[Path], *, num_points: int, seed: int = 0) -> list[Points]:
    """Read meshes as points sampled by area and clouds whole and in order, all in their own unit and orientation.

    Args:
        files: The files.
        num_points: Points sampled on each mesh.
        seed: Decides the samples.

    Returns:
        Points, with normals for meshes and for clouds that hold some.

    Raises:
        ValueError: If files cannot be read; they are counted and named.
    """
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}.")
    clouds, unreadable = [], []
    for file in files:
        try:
            clouds.append(load_points(file, mesh_points=num_points, seed=seed, normals="file"))
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
    if unreadable:
        raise ValueError(summarize(unreadable, len(files)))
    return clouds


def points_shown(trained: TrainedNetwork, points_per_pass: int | None) -> int | None:
    """How many points a network is shown at once: those asked for, or as many as it was trained for; None for all.

    Args:
        trained: The network.
        points_per_pass: What was asked for: a number, 0 for all, None for no wish.

    Raises:
        ValueError: If it is negative.
    """
    if points_per_pass is not None and points_per_pass < 0:
        raise ValueError(f"points_per_pass must be at least 1, or 0 for all points, got {points_per_pass}.")
    return (trained.num_points if points_per_pass is None else points_per_pass) or None


@torch.inference_mode()
def predict_parts(
    cloud: Points,
    trained: TrainedNetwork,
    *,
    category: str | None = None,
    up: str = "y",
    points_per_pass: int | None = None,
    seed: int = 0,
) -> PartPrediction:
    """Find the part of every point.

    Args:
        cloud: N points, in any unit, with normals if the network has them.
        trained: A segmenter.
        category: What the cloud shows, one of `trained.parts`; None for a network without categories.
        up: The cloud's upward axis, as for `orient`.
        points_per_pass: Points that the network sees at once, in random subsets; None for the number that it was
            trained for, 0 for all.
        seed: Decides the subsets.

    Raises:
        ValueError: If an argument does not fit the network.
    """
    network = trained.network
    if not isinstance(network, PointTransformerSegmenter):
        raise ValueError(f"The network is a {type(network).__name__}, not a segmenter.")
    if trained.has_normals and cloud.normals is None:
        raise ValueError("The network needs normals; the cloud has none.")
    category = find_category(trained.parts, category)
    parts = tuple(range(network.num_classes)) if category is None else tuple(trained.parts[category])
    number = torch.tensor(list(trained.parts).index(category)) if category and network.num_categories else None
    probabilities = classify_in_subsets(
        network,
        normalize_points(orient(cloud.points, up)),
        orient(cloud.normals, up) if trained.has_normals and cloud.normals is not None else None,
        category=number,
        num_points=points_shown(trained, points_per_pass),
        generator=torch.Generator().manual_seed(seed),
    )[:, list(parts)]
    best = probabilities.max(1)
    # Where all of them are 0 in fp32, the first part gets the point, with confidence 0.
    total = probabilities.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    part_label = torch.tensor(parts)[best.indices]
    return PartPrediction(
        cloud.points, cloud.normals, part_label, best.values / total, trained.class_names, category or "", parts
    )


def write_parts(folder: Path, stem: str, prediction: PartPrediction) -> None:
    """Write `<stem>.npz` and `<stem>.ply`.

    Args:
        folder: Where; it must be there.
        stem: Name of the files.
        prediction: What. The .npz holds its fields except `parts`; the .ply x y z, nx ny nz if there are normals,
            red green blue by part, part_label and confidence, and in its comments the name and colour of each part.
    """
    arrays: dict[str, Any] = {
        "points": prediction.points.numpy(),
        "part_label": prediction.part_label.numpy(),
        "confidence": prediction.confidence.numpy(),
        "part_names": np.array(prediction.part_names),
        "category": np.array(prediction.category),
    }
    columns = dict(zip("xyz", prediction.points.numpy().T))
    if prediction.normals is not None:
        arrays["normals"] = prediction.normals.numpy()
        columns |= dict(zip(("nx", "ny", "nz"), arrays["normals"].T))
    np.savez(folder / f"{stem}.npz", **arrays)
    columns |= dict(zip(("red", "green", "blue"), color_parts(prediction.part_label, prediction.parts).numpy().T))
    columns |= {"part_label": prediction.part_label.int().numpy(), "confidence": prediction.confidence.numpy()}
    colors = color_parts(torch.tensor(prediction.parts), prediction.parts).tolist()
    legend = [
        f"part_label {part} {prediction.short_name(part)}: red {r} green {g} blue {b}"
        for part, (r, g, b) in zip(prediction.parts, colors)
    ]
    write_ply(folder / f"{stem}.ply", columns, [f"category {prediction.category or 'none'}", *legend])
