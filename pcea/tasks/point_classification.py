"""Point-cloud classification."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pcea.datasets.batches import PointBatch
from pcea.tasks.base import SchedulerCallable, Task
from pcea.transforms.points import RandomScale


class PointClassificationTask(Task):
    """Train and test a point-cloud classifier.

    Args:
        network: Maps points (B, N, 3) and normals to logits (B, num_classes); has the attribute `num_classes`.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the schedule from the optimizer and the total number of steps.
        label_smoothing: As in PyTorch: the share spread over all classes.
        votes: Test passes whose probabilities are averaged: the cloud as it is, then copies scaled by a random factor
            in [0.8, 1.25]. 1 means no voting, the protocol to compare by.
    """

    kind = "points"

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: SchedulerCallable | None = None,
        *,
        label_smoothing: float = 0.0,
        votes: int = 1,
    ):
        super().__init__(network, optimizer, scheduler)
        if votes < 1:
            raise ValueError(f"votes must be at least 1, got {votes}.")
        self.votes, self.label_smoothing = votes, label_smoothing
        num_classes = int(network.num_classes)  # type: ignore[arg-type]
        metrics = MetricCollection(
            {
                "overall_accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "mean_class_accuracy": MulticlassAccuracy(num_classes, average="macro"),
            }
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    def forward(self, batch: PointBatch) -> Tensor:
        """Logits (B, num_classes) of a batch."""
        return self.network(batch.points, batch.normals, mask=batch.mask)

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy of one batch."""
        self.num_points = batch.points.shape[1]
        logits = self(batch).float()
        loss = F.cross_entropy(logits, batch.label, label_smoothing=self.label_smoothing)
        accuracy = (logits.detach().argmax(1) == batch.label).float().mean()
        log = partial(self.log, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.label))
        log("train/loss", loss.detach(), prog_bar=True)
        log("train/overall_accuracy", accuracy)
        return loss

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch."""
        self.val_metrics.update(self(batch).float(), batch.label)
        for name, metric in self.val_metrics.items():
            self.log(name, metric, prog_bar=name == "val/overall_accuracy", batch_size=len(batch.label))

    def test_step(self, batch: PointBatch, batch_idx: int) -> None:
        """Count one batch, averaged over the votes."""
        self.num_test_points = batch.points.shape[1]
        generator = torch.Generator(batch.points.device).manual_seed(batch_idx)
        scale = RandomScale(low=0.8, high=1.25, anisotropic=False)
        probabilities = self(batch).float().softmax(1)
        for _ in range(self.votes - 1):
            probabilities += self(scale(batch, generator=generator)).float().softmax(1)
        self.test_metrics.update(probabilities / self.votes, batch.label)
        self.log_dict(self.test_metrics, batch_size=len(batch.label))

    def predict_step(self, batch: PointBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Probabilities, (B, num_classes)."""
        return self(batch).float().softmax(1)
