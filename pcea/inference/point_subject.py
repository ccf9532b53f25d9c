"""A mesh or cloud, and what a trained network attends to and predicts in it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pcea.inference.base import evaluating
from pcea.inference.points import PointPredictor, points_shown
from pcea.inference.pose import PosedLogits
from pcea.inference.recording import record_on_cpu
from pcea.io.points import Normalization, Points
from pcea.io.surroundings import choose_points
from pcea.visualization.point_weights import interpolate_tokens
from pcea.visualization.subject import Subject
from pcea.visualization.views import SHOWN_CLASSES, View, view_class, view_parts, view_values

if TYPE_CHECKING:
    from pcea.inference.parts import PartPrediction, PartPredictor


class PointSubject(Subject):
    """A cloud, what a network attends to in it, and its class.

    Args:
        source: The name of the file, for titles and messages.
        cloud: Its points, T, in the file's unit and orientation, with normals if the network needs them.
        predictor: The network.
        up: The file's upward axis, or auto; None for what `predict` takes by default. The cloud is drawn upright.
        kept: Which of the points are of the shape, (T,), N of them: others, as of ground, are not drawn. None for all.
        posed: What a classifier says of the file, and its pose; None asks it about the points that it is shown.
        points_per_pass: Points that the network sees, a random subset; None for as many as it was trained for, 0 for
            all.
        seed: Decides the subset.

    Raises:
        ValueError: If the network cannot take the cloud, or has no attention.
    """

    def __init__(
        self,
        source: str,
        cloud: Points,
        predictor: PointPredictor | PartPredictor,
        *,
        up: str | None = None,
        kept: Tensor | None = None,
        posed: PosedLogits | None = None,
        points_per_pass: int | None = None,
        seed: int = 0,
    ):
        self.source, self.file_points, self.predictor = source, cloud, predictor
        self._numbers = torch.arange(len(cloud.points)) if kept is None else kept.nonzero().squeeze(1)
        self.source_points = cloud = cloud if kept is None else choose_points(cloud, kept)
        self._up, self._posed, self._points_per_pass, self._seed = up, posed, points_per_pass, seed
        about = predictor.description
        shown = points_shown(about.num_points, points_per_pass)
        chosen = torch.arange(len(cloud.points))
        if shown is not None and shown < len(chosen):
            chosen = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:shown]
        try:
            rotation, measured = self._find_rotation(cloud, chosen)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        turned = cloud.points @ rotation.T.to(cloud.points)
        normalization = Normalization.of(turned[measured])
        points = normalization.apply(turned).float()
        turn_back = rotation.double().T
        self._frame = torch.cat(
            [turn_back * normalization.scale.double(), turn_back @ normalization.center.double().T], dim=1
        )
        normals = None if cloud.normals is None else cloud.normals @ rotation.T
        # What the network sees: points (1, n, 3), and normals (1, n, 3) if it takes them.
        given = normals[chosen][None].to(predictor.device) if about.has_normals and normals is not None else None
        self._shown = points[chosen][None].to(predictor.device), given
        try:
            with record_on_cpu(predictor.network) as layers:
                name = self._run()
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        for layer, attention in layers.items():
            # A network that does not locate its tokens has one token per point that it saw.
            if attention.points is None and attention.weights.shape[-2] == len(chosen):
                layers[layer] = attention._replace(points=points[chosen][None])
        super().__init__(points, layers, name=name, normals=normals, color_bases=about.color_bases)

    def _find_rotation(self, cloud: Points, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What makes the cloud upright, (3, 3), and the numbers of the points by which it is normalized.

        A class is that of the points that the network sees, (n,): others, such as a stray one, have no part in it.
        """
        assert isinstance(self.predictor, PointPredictor)
        posed = self._posed or self.predictor.pose(choose_points(cloud, seen), up=self._up or "auto")
        self._class = self.predictor.rank(posed.logits, SHOWN_CLASSES, score=posed.score, pose=posed.name)
        return posed.rotation, seen

    def _run(self) -> str:
        """Show the network the cloud and return the title."""
        self.predictor.network(*self._shown)
        return f"{Path(self.source).stem}: {self._class.title}"

    @property
    def file_name(self) -> str:
        """The name of the file without its ending."""
        return Path(self.source).stem

    @property
    def numbers(self) -> Tensor:
        """The number in the file of each point, (N,) int64."""
        return self._numbers

    @property
    def frame(self) -> Tensor:
        """From the coordinates of `points` to those of the file: a matrix and an offset, (3, 4) fp64."""
        return self._frame

    @property
    def note(self) -> str:
        """The probabilities of the likeliest classes, and how the file lies."""
        likely = zip(self._class.class_names[:3], self._class.probabilities)
        pose = f" (in the file: {self._class.pose})" if self._class.pose else ""
        return f"{', '.join(f'{name} {100 * p:.1f} %' for name, p in likely)}{pose}."

    @property
    def modes(self) -> tuple[str, ...]:
        """What `view` can show; `critical` if the network says which centres decide its pooled channels."""
        critical = ("critical",) if hasattr(self.predictor.network, "pooled_centers") else ()
        return (*super().modes, *critical, "prediction")

    def _view_result(self, mode: str) -> View:
        """The probabilities of the cloud's classes, or what each point decides."""
        if mode == "critical":
            return view_values(self.points, self._decided_channels, label="channels decided by the nearest centre")
        return view_class(self.points, dict(zip(self._class.class_names, self._class.probabilities)))

    @cached_property
    def _decided_channels(self) -> Tensor:
        """How many channels of the max-pooled feature the nearest centre of each point decides, (N,)."""
        with torch.no_grad(), evaluating(self.predictor.network):
            centers, winner = self.predictor.network.pooled_centers(*self._shown)  # type: ignore[operator]
        counts = winner[0].bincount(minlength=centers.shape[1]).float().cpu()
        return interpolate_tokens(counts[:, None], centers[0].cpu(), self.points, k=1)[:, 0]

    def find_query(self, text: str) -> int:
        """Index of the query point, given by its number in the file, or as x,y,z for the point nearest to it there.

        Raises:
            ValueError: If it is neither, or the point is not drawn.
        """
        try:
            numbers = [float(word) for word in text.split(",")]
        except ValueError:
            numbers = []
        last = len(self.file_points.points) - 1
        if len(numbers) == 1 and numbers[0].is_integer():
            if not 0 <= numbers[0] <= last:
                raise ValueError(f"query must be the number of a point, 0..{last}, or x,y,z, got {text}.")
            found = (self._numbers == int(numbers[0])).nonzero()
            if not len(found):
                raise ValueError(f"query: point {text} is not drawn, as it is no part of the shape.")
            return int(found)
        if len(numbers) != 3 or not np.isfinite(numbers).all():
            raise ValueError(f"query must be the number of a point or x,y,z, got {text!r}.")
        return int(
            (self.source_points.points.double() - torch.tensor(numbers, dtype=torch.float64)).norm(dim=1).argmin()
        )


class PartSubject(PointSubject):
    """A cloud, what a network attends to in it, and its parts.

    Args:
        source: As for `PointSubject`.
        cloud: As for `PointSubject`.
        predictor: The network.
        category: What the cloud shows; None for a network without categories.
        up: As for `PointSubject`.
        kept: As for `PointSubject`.
        points_per_pass: As for `PointSubject`.
        seed: As for `PointSubject`.
    """

    predictor: PartPredictor

    def __init__(
        self,
        source: str,
        cloud: Points,
        predictor: PartPredictor,
        *,
        category: str | None = None,
        up: str | None = None,
        kept: Tensor | None = None,
        points_per_pass: int | None = None,
        seed: int = 0,
    ):
        self._category = category
        super().__init__(source, cloud, predictor, up=up, kept=kept, points_per_pass=points_per_pass, seed=seed)

    def _find_rotation(self, cloud: Points, seen: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """As the parts are found: by the whole cloud."""
        self._rotation = self.predictor.rotation(cloud, up=self._up)
        return self._rotation, torch.arange(len(cloud.points))

    @property
    def note(self) -> str:
        """The category, if the network knows several."""
        return f"{self._category}." if self._category else ""

    def _run(self) -> str:
        self.predictor.network(*self._shown, category=self.predictor.category_number(self._category))
        return Path(self.source).stem

    @property
    def modes(self) -> tuple[str, ...]:
        """What `view` can show."""
        return (*super().modes, "parts")

    def _view_result(self, mode: str) -> View:
        if mode == "critical":
            return super()._view_result(mode)
        if mode == "parts":
            parts = {part: self._prediction.short_name(part) for part in self._prediction.parts}
            return view_parts(self.points, self._prediction.part_label, parts)
        return view_values(self.points, self._prediction.confidence, label="probability of the part", high=1.0)

    @cached_property
    def _prediction(self) -> PartPrediction:
        return self.predictor.label(
            self.source_points,
            category=self._category,
            rotation=self._rotation,
            points_per_pass=self._points_per_pass,
            seed=self._seed,
        )
