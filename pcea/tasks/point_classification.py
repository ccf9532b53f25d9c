"""Point-cloud classification."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from pcea.datasets.batches import PointBatch
from pcea.io.description import NetworkDescription
from pcea.metrics.calibration import Calibration, Trust
from pcea.metrics.class_accuracy import MeanClassAccuracy
from pcea.tasks.base import SchedulerCallable, Task, vote_scales
from pcea.transforms.points import check_share


class PointClassificationTask(Task):
    """Train and test a point-cloud classifier.

    Each validation fits a temperature, which makes probabilities true frequencies, and the score above which a cloud is
    known; both are stored with the network.

    Args:
        network: Maps points (B, N, 3) and normals to logits (B, num_classes); has the attribute `num_classes`. With
            `background` that is one more than the data has classes. In training an ensemble gives the logits of its M
            members, (B, M, num_classes), and each is trained by its own.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the schedule from the optimizer and the total number of steps.
        label_smoothing: As in PyTorch: the share spread over all classes.
        votes: Test passes whose probabilities are averaged: the cloud as it is, then copies scaled by a random factor
            in [0.8, 1.25]. 1 means no voting, the protocol to compare by.
        encoder_rate: Learning rate of the encoder as a share of that of the rest; see `Task`.
        background: Whether the network has one class more, the last: clouds that are not upright, or nothing that is
            known. Training clouds with the label -1 belong to it, as `RandomBackground` makes them. With it `predict`
            finds the pose of files, and says which are nothing that it knows.
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
        encoder_rate: float = 1.0,
        background: bool = False,
    ):
        super().__init__(network, optimizer, scheduler, encoder_rate=encoder_rate)
        if votes < 1:
            raise ValueError(f"votes must be at least 1, got {votes}.")
        self.votes, self.background = votes, background
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        num_classes = int(network.num_classes) - background  # type: ignore[arg-type]
        if num_classes < 1:
            raise ValueError("A network with background needs num_classes of at least 2: one more than the classes.")
        if num_classes < 2:
            raise ValueError("There is only one class, so there is nothing to tell apart: give at least two.")
        metrics = MetricCollection(
            {
                "overall_accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "mean_class_accuracy": MeanClassAccuracy(num_classes),
            }
        )
        self.val_metrics = metrics.clone(prefix="val/")
        metrics.add_metrics({"calibration_error": MulticlassCalibrationError(num_classes)})
        self.test_metrics = metrics.clone(prefix="test/")
        self.calibration = Calibration()
        self.trust: Trust | None = None

    def forward(self, batch: PointBatch) -> Tensor:
        """Logits (B, P) of the classes; with a background, the logarithms of their odds against it."""
        logits: Tensor = self.network(batch.points, batch.normals, mask=batch.mask).float()
        return logits[:, :-1] - logits[:, -1:] if self.background else logits

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy of one batch."""
        # Augmentation may leave some batches fewer points.
        self.num_points = max(self.num_points, batch.points.shape[1])
        logits, label = self.network(batch.points, batch.normals, mask=batch.mask).float(), batch.label
        if logits.ndim == 3:  # of the members of an ensemble
            label = label.repeat_interleave(logits.shape[1])
            logits = logits.flatten(0, 1)
        is_known = label >= 0
        log = partial(self.log, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(label))
        if self.background:
            loss = self._loss_with_background(logits, label)
            is_right = (logits.detach().argmax(1) < logits.shape[1] - 1) == is_known
            log("train/background_accuracy", is_right.float().mean())
            logits = logits[:, :-1]
        elif not is_known.all():
            raise ValueError("RandomBackground makes clouds of no class: set model.init_args.background to true.")
        else:
            loss = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        is_right = (logits.detach().argmax(1) == label).float().sum()
        log("train/loss", loss.detach(), prog_bar=True)
        log("train/overall_accuracy", is_right / is_known.sum().clamp(min=1))
        return loss

    def _loss_with_background(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy over classes and background; labels are smoothed among the classes, the background is sure."""
        num_classes = logits.shape[1] - 1
        target = F.one_hot(torch.where(label < 0, num_classes, label), num_classes + 1).to(logits.dtype)
        target[:, :-1].mul_(1 - self.label_smoothing).add_((label >= 0)[:, None] * self.label_smoothing / num_classes)
        return F.cross_entropy(logits, target)

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch."""
        logits = self(batch)
        self.calibration.update(logits, batch.label)
        self.val_metrics.update(logits, batch.label)
        for name, metric in self.val_metrics.items():
            self.log(name, metric, prog_bar=name == "val/overall_accuracy", batch_size=len(batch.label))

    def on_validation_epoch_end(self) -> None:
        """Fit the temperature, and the score of what is known."""
        if not self.trainer.sanity_checking:
            self.trust = self.calibration.compute()
        self.calibration.reset()

    def test_step(self, batch: PointBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch, averaged over the votes."""
        self.num_test_points = batch.points.shape[1]
        copies = [batch._replace(points=scale * batch.points) for scale in vote_scales(self.votes)]
        self.test_metrics.update(torch.stack([self._probabilities(copy) for copy in copies]).mean(0), batch.label)
        self.log_dict(self.test_metrics, batch_size=len(batch.label))

    def predict_step(self, batch: PointBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Probabilities, (B, num_classes)."""
        return self._probabilities(batch)

    def _probabilities(self, batch: PointBatch) -> Tensor:
        """(B, P), of the calibrated classes."""
        return (self(batch) / (1 if self.trust is None else self.trust.temperature)).softmax(1)

    def describe_network(self) -> NetworkDescription | None:
        """Describe how the network is built, and how far it is to be trusted."""
        description = super().describe_network()
        if description is None:
            return None
        trust = Trust(1.0, None) if self.trust is None else self.trust
        return description._replace(background=self.background, **trust._asdict())

    def take_description(self, description: NetworkDescription) -> None:
        """Take over what is known of weights that were loaded from a weights file."""
        super().take_description(description)
        self.trust = Trust(description.temperature, description.known_above)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what prediction needs besides the weights."""
        super().on_save_checkpoint(checkpoint)
        # Also in the description of the network, which there is only if the network is from a configuration.
        checkpoint["trust"] = None if self.trust is None else self.trust._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what prediction needs, and refuse the checkpoint of another architecture."""
        super().on_load_checkpoint(checkpoint)
        about = checkpoint.get("trust") or checkpoint.get("network") or {}
        self.trust = Trust(about.get("temperature", 1.0), about.get("known_above"))
