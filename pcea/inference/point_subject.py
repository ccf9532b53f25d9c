"""A mesh or cloud file, and what a trained network attends to and predicts in it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pcea.inference.networks import TrainedNetwork
from pcea.inference.parts import PartPrediction, points_shown, predict_parts
from pcea.io.points import Points, normalize_points, orient
from pcea.models.point_segmenter import PointTransformerSegmenter
from pcea.nn.attention import record_attention
from pcea.visualization.subject import Subject
from pcea.visualization.views import View, spread, view_class, view_parts, view_values

_CLASSES = 5


class StudiedFile(Subject):
    """A file as a subject to look at.

    Args:
        file: Where it came from.
        cloud: Its points, N, in the file's coordinates, with normals if the network needs them.
        trained: The network.
        category: Part networks: what the cloud shows.
        up: The file's upward axis.
        points_per_pass: Points that the network sees, a random subset; None for as many as it was trained for, 0 for
            all.
        seed: Decides which.

    Raises:
        ValueError: If the network cannot take the cloud.
    """

    def __init__(
        self,
        file: Path,
        cloud: Points,
        trained: TrainedNetwork,
        *,
        category: str | None = None,
        up: str = "y",
        points_per_pass: int | None = None,
        seed: int = 0,
    ):
        points = normalize_points(orient(cloud.points, up)).float()
        normals = None if cloud.normals is None else orient(cloud.normals, up)
        self._cloud, self._trained, self._category = cloud, trained, category
        self._up, self._points_per_pass, self._seed = up, points_per_pass, seed
        shown = points_shown(trained, points_per_pass)
        chosen = torch.arange(len(points))
        if shown is not None and shown < len(points):
            chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:shown]
        # What the network is shown: (1, n, 3), and normals (1, n, 3) if it takes them.
        given = normals[chosen][None] if trained.has_normals and normals is not None else None
        self._shown = points[chosen][None], given
        try:
            with record_attention(trained.network) as layers, torch.inference_mode():
                if self._is_segmenter:
                    trained.network(*self._shown, category=self._number())
                    name = file.stem
                else:
                    self._probabilities = trained.network(*self._shown)[0].softmax(0)
                    best = int(self._probabilities.argmax())
                    name = f"{file.stem}: {trained.class_names[best]} {100 * float(self._probabilities[best]):.0f} %"
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        super().__init__(points, layers, name=name, normals=normals)

    def _number(self) -> Tensor | None:
        """The category's number, (1,), if the network wants it."""
        if self._category is None or not getattr(self._trained.network, "num_categories", 0):
            return None
        return torch.tensor([list(self._trained.parts).index(self._category)])

    @property
    def _is_segmenter(self) -> bool:
        return isinstance(self._trained.network, PointTransformerSegmenter)

    @property
    def modes(self) -> tuple[str, ...]:
        """What `view` can show."""
        return (*super().modes, "critical", "prediction", *(["parts"] if self._is_segmenter else []))

    def _view_result(self, mode: str) -> View:
        """What the network makes of the whole cloud."""
        if mode == "critical":
            return view_values(self.points, self._decided_channels, label="channels decided by the nearest centre")
        if not self._is_segmenter:
            best = self._probabilities.topk(min(_CLASSES, len(self._probabilities)))
            names = [self._trained.class_names[i] for i in best.indices]
            return view_class(self.points, dict(zip(names, best.values.tolist())))
        if mode == "parts":
            parts = {part: self._prediction.short_name(part) for part in self._prediction.parts}
            return view_parts(self.points, self._prediction.part_label, parts)
        return view_values(self.points, self._prediction.confidence, label="probability of the part", high=1.0)

    @cached_property
    def _prediction(self) -> PartPrediction:
        return predict_parts(
            self._cloud,
            self._trained,
            category=self._category,
            up=self._up,
            points_per_pass=self._points_per_pass,
            seed=self._seed,
        )

    @cached_property
    @torch.inference_mode()
    def _decided_channels(self) -> Tensor:
        """How many channels of the max-pooled feature the nearest centre of each point decides, (N,)."""
        encoder = self._trained.network.encoder
        outputs, centers, _ = encoder(*self._shown)
        winner = encoder.fuse_outputs(outputs)[0].argmax(0)  # (D,): the centre that each channel's maximum comes from
        counts = winner.bincount(minlength=centers.shape[1]).float()
        return spread(counts[:, None], centers[0], self.points, k=1)[:, 0]
