"""The part of every point of a mesh or cloud."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.inference.base import Predictor, in_evaluation
from pcea.inference.points import CloudSource, check_num_points, check_seed, load_cloud, name_of, points_shown
from pcea.inference.pose import up_rotation
from pcea.io.ply import write_ply
from pcea.io.points import Points, check_axis, normalize_points, sample_points
from pcea.io.surroundings import SurroundedShape, choose_points, find_standing, shape_of
from pcea.models.subsets import classify_in_subsets
from pcea.visualization.colors import color_parts

if TYPE_CHECKING:
    from pcea.inference.point_subject import PartSubject

# Points of the shape without its ground.
_LOOKED_AT = 1024
# A plane is no part of the shape if the network is so much surer of the rest without it than with it. Of 380 shapes of
# Labeled PSB 43 have such a plane, but the network is surer of none that stands on it without; of 76 training shapes
# with ground under them it is surer by 0.026 or more.
_SURER = 0.02
# Without a second plane it must be surer by so much again. Where those 76 have ground alone, what is found as a second
# plane, such as the back of a chair, adds up to 0.053; a wall behind them adds more, but for 5 of 65.
_SURER_AGAIN = 0.06
# Grey of points of no part.
_NO_PART = 160


class PartPrediction(NamedTuple):
    """The part of every point of one cloud. `print` shows what the command prints.

    Attributes:
        points: Coordinates as in the file, (N, 3), float32 or float64 as in `Points`.
        normals: Unit normals, (N, 3), or None.
        part_label: Class of each point, (N,) int64; a position in `part_names`. -1 for points of no part: far from all
            others, or of ground or a wall around the shape.
        confidence: Probability of that class among those of the category, (N,), in 0..1; 0 for points of no part.
        part_names: Names of all classes of the network.
        category: The category, or "" if the network has none.
        parts: The classes of the category; all classes if there is no category.
        around: What the points of no part are, such as "the ground under it"; "" if there are none.
    """

    points: Tensor
    normals: Tensor | None
    part_label: Tensor
    confidence: Tensor
    part_names: tuple[str, ...]
    category: str
    parts: tuple[int, ...]
    around: str = ""

    def __str__(self) -> str:
        shares = [f"{name} {100 * share:.1f} %" for name, share in self.shares.items()]
        category = [self.category] if self.category else []
        confidence = f"mean confidence {100 * float(self.confidence[self.has_part].mean()):.1f} %"
        count = f"{len(self.points)} points"
        if self.around:
            count += f" ({int((~self.has_part).sum())} of no part: {self.around})"
        return "  ".join([*category, count, *shares, confidence])

    @property
    def has_part(self) -> Tensor:
        """Whether each point is of a part, (N,)."""
        return self.part_label >= 0

    @property
    def shares(self) -> dict[str, float]:
        """Share of each part of the category in the points that are of one, by its short name, in 0..1."""
        found = self.part_label[self.has_part]
        counts = found.bincount(minlength=len(self.part_names)) / len(found)
        return {self.short_name(part): float(counts[part]) for part in self.parts}

    def short_name(self, part: int) -> str:
        """Name of a class without the name of its category."""
        return self.part_names[part].removeprefix(f"{self.category}/")


class PartFile(NamedTuple):
    """A cloud whose parts are wanted.

    Attributes:
        cloud: All of its points.
        shape: A sample of the shape in it, which tells what is around it.
    """

    cloud: Points
    shape: SurroundedShape


class PartPredictor(Predictor):
    """Names the part of every point of meshes and clouds."""

    purpose: ClassVar[str] = "names the parts of points"
    endings: ClassVar[tuple[str, ...]] = (".ply", ".npz")

    @in_evaluation
    def predict(
        self,
        source: CloudSource,
        *,
        category: str | None = None,
        up: str | None = None,
        num_points: int = 10_000,
        points_per_pass: int | None = None,
        seed: int = 0,
    ) -> PartPrediction:
        """Name the part of every point.

        Points that lie far from all others are of no part; nor are those of ground wider than the shape, or of a wall
        behind it, if the network is surer of the rest without them.

        Args:
            source: A file; or points (N, 3), or with normals (N, 6), in any unit.
            category: What it shows, such as Chair; required if the network has several categories.
            up: Its upward axis: x, y, z, -x, -y or -z; or auto, if a classifier that comes with pcea is to find it.
                None for that of the files that the network was trained on, mostly y.
            num_points: Points sampled on a mesh. All points of a cloud are labelled.
            points_per_pass: Points that the network sees at once; larger clouds go through in random subsets. None for
                as many as it was trained for; 0 for all points in one pass, which is worse where a cloud is much
                denser than in training.
            seed: Decides the sampled points and the subsets.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no points, or an argument does not fit the network.
        """
        self.check(category=category, up=up, num_points=num_points, points_per_pass=points_per_pass, seed=seed)
        file = self._load(source, num_points=num_points, seed=seed)
        return self.predict_contents([file], category=category, up=up, points_per_pass=points_per_pass, seed=seed)[0]

    def reader(self, *, num_points: int = 10_000, seed: int = 0, **_: Any) -> Callable[[Path], PartFile]:
        """See `Predictor.reader`."""
        about = self.description
        return partial(
            read_object if about.parts else read_scene,
            usual=about.num_points,
            mesh_points=num_points,
            seed=seed,
            with_normals=about.has_normals,
        )

    def predict_contents(
        self,
        contents: Sequence[PartFile],
        *,
        category: str | None = None,
        up: str | None = None,
        points_per_pass: int | None = None,
        seed: int = 0,
        **_: Any,
    ) -> list[PartPrediction]:
        """The parts of clouds that have been read, one after the other."""
        category = find_category(self.description.parts, category)
        return [
            self._label_shape(each, category=category, up=up, points_per_pass=points_per_pass, seed=seed)
            for each in contents
        ]

    def _label_shape(
        self, file: PartFile, *, category: str | None, up: str | None, points_per_pass: int | None, seed: int
    ) -> PartPrediction:
        """Name the parts of what the shape includes."""
        rotation = self.rotation(file.shape, up=up)
        num_planes = self._count_planes(file.shape, category=category, rotation=rotation)
        cloud, included = file.cloud, file.shape.includes(file.cloud.points, num_planes)
        found = self.label(
            cloud if included.all() else choose_points(cloud, included),
            category=category,
            rotation=rotation,
            points_per_pass=points_per_pass,
            seed=seed,
        )
        if included.all():
            return found
        part_label = torch.full(included.shape, -1).masked_scatter(included, found.part_label)
        confidence = torch.zeros(included.shape).masked_scatter(included, found.confidence)
        around = ([file.shape.name_of_planes(num_planes)] if num_planes else []) + (
            ["far from all others"] if file.shape.reach < math.inf else []
        )
        return PartPrediction(
            *cloud, part_label, confidence, found.part_names, found.category, found.parts, " and ".join(around)
        )

    def _count_planes(self, shape: SurroundedShape, *, category: str | None, rotation: Tensor) -> int:
        """How many of the planes around a shape are no part of it."""
        if not shape.standing:
            return 0
        look = partial(self.label, category=category, rotation=rotation, points_per_pass=0, seed=0)
        whole, best, needed = look(shape).confidence, 0, _SURER
        for count, standing in enumerate(shape.standing, 1):
            if not shape.stands_on(count, rotation[1]):
                continue
            rest = whole[shape.includes(shape.points, count)]
            if len(rest) and len(standing.points) >= int(getattr(self.network, "min_points", 1)):
                gain = float(look(standing).confidence.mean() - rest.mean())
                if gain > needed:
                    best, needed = count, gain + _SURER_AGAIN
        return best

    def check(
        self,
        *,
        category: str | None = None,
        up: str | None = None,
        num_points: int = 10_000,
        points_per_pass: int | None = None,
        seed: int = 0,
        **_: Any,
    ) -> None:
        """Raise a ValueError for invalid options."""
        check_seed(seed)
        find_category(self.description.parts, category)
        if up not in (None, "auto"):
            check_axis(up)
        check_num_points(num_points, points_per_pass)

    def _load(self, source: CloudSource, *, num_points: int, seed: int) -> PartFile:
        return self.reader(num_points=num_points, seed=seed)(source)  # type: ignore[arg-type]

    @in_evaluation
    def label(
        self, cloud: Points, *, category: str | None, rotation: Tensor, points_per_pass: int | None, seed: int
    ) -> PartPrediction:
        """Name the part of every point of a cloud that has been read; arguments as for `predict`, and `rotation`'s."""
        about, device = self.description, self.device
        parts = tuple(range(len(self.class_names))) if category is None else tuple(about.parts[category])
        turn = rotation.T
        normals = (cloud.normals @ turn).to(device) if about.has_normals and cloud.normals is not None else None
        number = self.category_number(category)
        probabilities = classify_in_subsets(
            self.network,
            normalize_points(cloud.points @ turn.to(cloud.points)).to(device),
            normals,
            category=None if number is None else number[0],
            classes=parts,
            num_points=points_shown(about.num_points, points_per_pass),
            generator=torch.Generator().manual_seed(seed),
        ).cpu()
        best = probabilities.max(1)
        part_label = torch.tensor(parts)[best.indices]
        return PartPrediction(
            cloud.points, cloud.normals, part_label, best.values, self.class_names, category or "", parts
        )

    def rotation(self, cloud: Points, *, up: str | None) -> Tensor:
        """What makes a cloud upright, or the shape in it, (3, 3): points @ rotation.T. `up` is that of `predict`."""
        if up != "auto":
            return up_rotation(up or self.description.up or "y")
        finder = self._pose_finder.to(self.device)
        if not isinstance(cloud, SurroundedShape):
            cloud = sample_points(cloud, min(len(cloud.points), finder.description.num_points))
        rotation: Tensor = finder.pose_standing(cloud)[0].rotation
        return rotation

    @cached_property
    def _pose_finder(self) -> Any:
        from pcea.inference.networks import DEFAULT_WEIGHTS, load

        return load(DEFAULT_WEIGHTS)

    def category_number(self, category: str | None) -> Tensor | None:
        """Number of a category, (1,); None if the network does not take one."""
        if category is None or not getattr(self.network, "num_categories", 0):
            return None
        return torch.tensor([list(self.description.parts).index(category)], device=self.device)

    def write(self, folder: Path, stem: str, prediction: PartPrediction) -> None:
        """Write `<stem>.npz` and `<stem>.ply`; see `write_parts`."""
        write_parts(folder, stem, prediction)

    def subject(
        self,
        source: CloudSource,
        *,
        category: str | None = None,
        up: str | None = None,
        num_points: int = 40_000,
        points_per_pass: int | None = None,
        seed: int = 0,
    ) -> PartSubject:
        """What the network attends to in a cloud, and its parts; arguments as for `pcea visualize`."""
        from pcea.inference.point_subject import PartSubject

        category, name = find_category(self.description.parts, category), name_of(source)
        cloud, shape = self._load(source, num_points=num_points, seed=seed)
        num_planes = self._count_planes(shape, category=category, rotation=self.rotation(shape, up=up))
        if num_planes:
            warnings.warn(
                f"{name} is drawn without {shape.name_of_planes(num_planes)}, which has no part.", stacklevel=2
            )
        options: dict[str, Any] = {"points_per_pass": points_per_pass, "seed": seed}
        kept = shape.includes(cloud.points, num_planes)
        return PartSubject(name, cloud, self, category=category, up=up, kept=kept, **options)


def read_scene(source: CloudSource, *, usual: int, **options: Any) -> PartFile:  # noqa: ARG001
    """Load a cloud that may hold anything; arguments as for `read_object`."""
    cloud = load_cloud(source, **options)
    return PartFile(cloud, SurroundedShape(*cloud))


def read_object(source: CloudSource, *, usual: int, seed: int = 0, **options: Any) -> PartFile:
    """Load a cloud of one object, with a warning if the network cannot see its shape well; and look around it.

    Args:
        source: See `load_cloud`.
        usual: Points that the network was trained on.
        seed: Decides the sample of a mesh.
        **options: Those of `load_cloud`.
    """
    cloud, name = load_cloud(source, seed=seed, **options), name_of(source)
    count = len(cloud.points)
    if count < usual / 8:
        few = f"{count} point{'s' if count > 1 else ''}"
        warnings.warn(
            f"{name}: the network was trained on clouds of {usual} points: of {few} it cannot tell the parts well.",
            stacklevel=3,
        )
    shape = shape_of(cloud, seed=seed)
    if left := int((~shape.includes(cloud.points)).sum()):
        what = "1 point lies" if left == 1 else f"{left} points lie"
        warnings.warn(f"{name}: {what} far from all others: no part.", stacklevel=3)

    def sample(most: int) -> Points:
        return sample_points(cloud, min(most, count), seed=seed)

    find_standing(shape, sample, _LOOKED_AT, seed=seed, pedestals=False)  # which may well be a part
    return PartFile(cloud, shape)


def find_category(parts: Mapping[str, Sequence[int]], name: str | None) -> str | None:
    """Resolve the category: the one named, the only one, or None if the network has none.

    Raises:
        ValueError: If there are several and none is named, or the name is unknown.
    """
    if not parts:
        if name is not None:
            raise ValueError(f"The network has no categories: leave category {name!r} out.")
        return None
    if name is None and len(parts) == 1:
        return next(iter(parts))
    if name not in parts:
        problem = "Say what the files show" if name is None else f"No category {name!r}"
        raise ValueError(f"{problem}: category must be one of {', '.join(parts)}.")
    return name


def write_parts(folder: Path, stem: str, prediction: PartPrediction) -> None:
    """Write `<stem>.npz` and `<stem>.ply`.

    Args:
        folder: An existing folder.
        stem: Name of the files.
        prediction: The result. The .npz holds its fields except `parts` and `around`; the .ply x y z, nx ny nz if there
            are normals, red green blue by part, part_label and confidence, and in its comments the name and colour of
            each part.
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
    rgb = np.full((len(prediction.points), 3), _NO_PART, np.uint8)
    rgb[prediction.has_part.numpy()] = color_parts(prediction.part_label[prediction.has_part], prediction.parts).numpy()
    columns |= dict(zip(("red", "green", "blue"), rgb.T))
    columns |= {"part_label": prediction.part_label.int().numpy(), "confidence": prediction.confidence.numpy()}
    colors = color_parts(torch.tensor(prediction.parts), prediction.parts).tolist()
    legend = [
        f"part_label {part} {prediction.short_name(part)}: red {r} green {g} blue {b}"
        for part, (r, g, b) in zip(prediction.parts, colors)
    ]
    if prediction.around:
        grey = _NO_PART
        legend.append(f"part_label -1 no part ({prediction.around}): red {grey} green {grey} blue {grey}")
    write_ply(folder / f"{stem}.ply", columns, [f"category {prediction.category or 'none'}", *legend])
