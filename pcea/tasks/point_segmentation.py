"""Point-cloud segmentation: parts of objects, or classes of the points in a scene."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from pcea.datasets.batches import PointBatch
from pcea.io.description import NetworkDescription
from pcea.metrics.part_iou import PartIoU
from pcea.models.subsets import classify_in_subsets
from pcea.tasks.base import SchedulerCallable, Task, vote_scales
from pcea.transforms.points import check_share


class PointSegmentationTask(Task):
    """Train and test a point-cloud segmenter.

    Objects with categories are measured with `PartIoU`, in both of its conventions; scenes with mean IoU and overall
    accuracy over all their points. Every point of a cloud is measured: if a cloud has more points than the data's
    `num_points`, the network sees it in random subsets of that size.

    Args:
        network: Maps points (B, N, 3), normals and category to logits (B, N, num_classes); has the attributes
            `num_classes` and `num_categories`.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the schedule from the optimizer and the total number of steps.
        label_smoothing: As in PyTorch: the share spread over all classes that take part.
        own_parts: Whether loss and accuracy of a shape are taken over the parts of its own category alone, among which
            prediction chooses. The network then says nothing about other parts, so that the metrics `..._all_parts` are
            left out. No effect without categories.
        scales: Test passes, each of the cloud scaled by one factor, whose probabilities are averaged. (1.0,) is the
            protocol to compare by; PCT's paper tests with 0.7, 0.8, ..., 1.4.
        votes: Test passes of each scale whose probabilities are averaged: the cloud as it is, then copies scaled by a
            random factor in [0.8, 1.25], each in its own subsets. 1 means no voting.
        encoder_rate: Learning rate of the encoder as a share of that of the rest; see `Task`.

    Attributes:
        parts: The classes of each category, taken from the data module or the checkpoint. Where the trainer is given
            dataloaders, set them before; {} means scenes.
    """

    kind = "parts"

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: SchedulerCallable | None = None,
        *,
        label_smoothing: float = 0.0,
        own_parts: bool = True,
        scales: Sequence[float] = (1.0,),
        votes: int = 1,
        encoder_rate: float = 1.0,
    ):
        super().__init__(network, optimizer, scheduler, encoder_rate=encoder_rate)
        if votes < 1:
            raise ValueError(f"votes must be at least 1, got {votes}.")
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be one or more positive numbers, got {list(scales)}.")
        self.votes, self.scales = votes * len(scales), tuple(scales)
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        self._votes_per_scale, self.own_parts = votes, own_parts
        self.parts: dict[str, tuple[int, ...]] = {}
        self.part_iou: PartIoU | None = None

    @property
    def convention(self) -> str:
        """How to read the mean IoU of the record."""
        if not self.parts:
            return "miou: mean over the classes of the IoU over all points"
        if self.own_parts:
            return (
                "argmax over the category's own parts; a part absent from prediction and truth counts 1; all points of "
                "a cloud are measured"
            )
        return (
            "instance_miou and category_miou: argmax over the category's own parts; with _all_parts: over all parts; "
            "a part absent from prediction and truth counts 1; all points of a cloud are measured"
        )

    def setup(self, stage: str) -> None:
        """Take classes, categories and the network's number of points from the data."""
        super().setup(stage)
        if self.data is not None:
            self.parts, self.num_points = self.data.parts, self.data.num_points
        parts, num_categories = self.parts, int(getattr(self.network, "num_categories", 0))
        if self.data is not None and num_categories and len(parts) != num_categories:
            raise ValueError(
                f"The data has {len(parts)} categories, but the network has num_categories={num_categories}. "
                f"Set model.init_args.network.init_args.num_categories to {len(parts)}."
            )
        num_classes = self._num_classes
        metrics: dict[str, Metric | MetricCollection] = {
            "overall_accuracy": MulticlassAccuracy(num_classes, average="micro")
        }
        if parts:
            self.part_iou = PartIoU(parts, num_classes)
        else:
            metrics["miou"] = MulticlassJaccardIndex(num_classes)
        # A metric added to a finished collection would only be updated by the first batch.
        self.point_metrics = MetricCollection(metrics)

    @property
    def _num_classes(self) -> int:
        return int(self.network.num_classes)  # type: ignore[arg-type]

    def forward(self, batch: PointBatch) -> Tensor:
        """Logits (B, N, num_classes) of a batch."""
        return self.network(batch.points, batch.normals, category=self._category(batch), mask=batch.mask)

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy of the real points of one batch."""
        logits, label = _real(self(batch).float(), batch), _real(batch.label, batch)
        if self.own_parts and self.parts:
            takes_part = _real(self._own_parts(batch).unsqueeze(1).expand(*batch.label.shape, -1), batch)
            loss = cross_entropy_among(logits, label, takes_part, label_smoothing=self.label_smoothing)
            logits = logits.detach().masked_fill(~takes_part, -torch.inf)
        else:
            loss = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        log = partial(self.log, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.label))
        log("train/loss", loss.detach(), prog_bar=True)
        log("train/overall_accuracy", (logits.detach().argmax(1) == label).float().mean())
        return loss

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch."""
        self._count(self.probabilities(batch), batch)

    def test_step(self, batch: PointBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch, averaged over scales and votes."""
        self.num_test_points = self.num_points or batch.points.shape[1]
        scales = [scale * vote for scale in self.scales for vote in vote_scales(self._votes_per_scale)]
        passes = [batch._replace(points=scale * batch.points) for scale in scales]
        self._count(torch.stack([self.probabilities(each, seed) for seed, each in enumerate(passes)]).mean(0), batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all batches."""
        self._log_metrics("val/")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all batches, and keep the table of categories."""
        if self.part_iou is not None:
            with self.part_iou.sync_context():
                self.by_category = self.part_iou.by_category()
        self._log_metrics("test/")

    def describe_network(self) -> NetworkDescription | None:
        """How the network is built, and the parts of its categories."""
        description = super().describe_network()
        return description and description._replace(parts=self.parts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what prediction needs besides the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["parts"] = {name: list(classes) for name, classes in self.parts.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what prediction needs, and refuse another architecture."""
        super().on_load_checkpoint(checkpoint)
        self.parts = {name: tuple(classes) for name, classes in checkpoint.get("parts", {}).items()}

    def _own_parts(self, batch: PointBatch) -> Tensor:
        """Which classes are parts of each cloud's category, (B, num_classes)."""
        assert batch.category is not None
        table = torch.zeros(len(self.parts), self._num_classes, dtype=torch.bool)
        for number, classes in enumerate(self.parts.values()):
            table[number, list(classes)] = True
        return table.to(batch.category.device)[batch.category]

    def _category(self, batch: PointBatch) -> Tensor | None:
        return batch.category if getattr(self.network, "num_categories", 0) else None

    def probabilities(self, batch: PointBatch, seed: int = 0) -> Tensor:
        """Probabilities (B, N, num_classes) of all points of a batch.

        The seed decides the subsets, of each cloud for itself: its result does not depend on the others.
        """
        among_own = self.own_parts and bool(self.parts)
        if not 0 < self.num_points < batch.points.shape[1]:
            logits = self(batch).float()
            if among_own:
                logits = logits.masked_fill(~self._own_parts(batch).unsqueeze(1), -torch.inf)
            return logits.softmax(-1)
        out = batch.points.new_zeros(*batch.points.shape[:2], self._num_classes, dtype=torch.float32)
        categories = self._category(batch)
        parts, own = list(self.parts.values()), batch.category if among_own else None
        for b in range(len(out)):
            real = slice(None) if batch.mask is None else batch.mask[b]
            classes = list(range(self._num_classes) if own is None else parts[int(own[b])])
            found = classify_in_subsets(
                self.network,
                batch.points[b, real],
                None if batch.normals is None else batch.normals[b, real],
                category=None if categories is None else categories[b],
                classes=classes,
                num_points=self.num_points,
                generator=torch.Generator().manual_seed(seed),
            )
            out[b, real] = out[b, real].index_copy(1, torch.tensor(classes, device=out.device), found)
        return out

    def _count(self, probabilities: Tensor, batch: PointBatch) -> None:
        self.point_metrics.update(_real(probabilities, batch).argmax(-1), _real(batch.label, batch))
        if self.part_iou is not None:
            assert batch.category is not None
            self.part_iou.update(probabilities, batch.label, batch.category, batch.mask)

    def _log_metrics(self, prefix: str) -> None:
        values = self.point_metrics.compute()
        self.point_metrics.reset()
        if self.part_iou is not None:
            values |= self.part_iou.compute()
            self.part_iou.reset()
        if self.own_parts:
            values = {name: value for name, value in values.items() if not name.endswith("_all_parts")}
        for name, value in values.items():
            # Equal on all devices already: the metrics are.
            self.log(f"{prefix}{name}", value.float(), prog_bar=name in ("instance_miou", "miou"), sync_dist=True)


def cross_entropy_among(logits: Tensor, label: Tensor, takes_part: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy where each row has its own classes.

    Args:
        logits: (T, C).
        label: (T,) int64, one of the classes that take part.
        takes_part: Which classes exist for each row, (T, C) bool.
        label_smoothing: The share spread over the classes that take part.
    """
    log_probability = logits.masked_fill(~takes_part, -torch.inf).log_softmax(-1)
    of_label = log_probability.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    mean = log_probability.masked_fill(~takes_part, 0).sum(-1) / takes_part.sum(-1)
    return -((1 - label_smoothing) * of_label + label_smoothing * mean).mean()


def _real(values: Tensor, batch: PointBatch) -> Tensor:
    """The rows of (B, N, ...) that belong to real points, (T, ...)."""
    return values.flatten(0, 1) if batch.mask is None else values[batch.mask]
