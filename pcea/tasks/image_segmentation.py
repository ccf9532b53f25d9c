"""Semantic segmentation of images: one class per pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from pcea.datasets.batches import IGNORE, ImageBatch
from pcea.tasks.base import ImageTask, SchedulerCallable
from pcea.transforms.points import check_share


class ImageSegmentationTask(ImageTask):
    """Train and test a semantic segmenter.

    Pixels with the label 255 are ignored. Images are measured at full size, all of a split together: the mean IoU is
    the mean over classes of the IoU over all pixels, without classes absent from both prediction and truth.

    Args:
        network: Maps images (B, 3, H, W) to logits (B, num_classes, H, W); has the attribute `num_classes`.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the schedule from the optimizer and the total number of steps.
        class_weights: Weight of each class in the loss; None weighs all alike.
        label_smoothing: As in PyTorch: the share spread over all classes.
        scales: Test passes, each of the image scaled by one factor, whose probabilities are averaged. (1.0,) is the
            protocol to compare by; the paper tests VOC with 0.5, 0.75, ..., 1.75.
        flip: Whether to test the mirrored image too, at each scale.
    """

    kind = "masks"

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: SchedulerCallable | None = None,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ):
        super().__init__(network, optimizer, scheduler)
        num_classes = int(network.num_classes)  # type: ignore[arg-type]
        if class_weights is not None and (len(class_weights) != num_classes or min(class_weights) < 0):
            raise ValueError(
                f"class_weights must be {num_classes} numbers, one per class and none negative, got "
                f"{list(class_weights)}."
            )
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be one or more positive numbers, got {list(scales)}.")
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        self.scales, self.flip = tuple(scales), flip
        self.votes = len(self.scales) * (2 if flip else 1)
        weights = torch.ones(num_classes) if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.class_weights: Tensor
        self.register_buffer("class_weights", weights, persistent=False)
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE)

    @property
    def convention(self) -> str:
        """How to read the mean IoU of the record."""
        return "miou: mean over the classes of the IoU over all pixels of the split, at full size"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of normalized images (B, 3, H, W)."""
        # Convolutions keep this layout; on a CPU they are faster in it (EANet-50 trains in 0.7 of the time).
        return self.network(images.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy of the pixels of one batch."""
        logits, label = self(batch.images).float(), batch.label
        counted = label != IGNORE
        total = F.cross_entropy(
            logits,
            label,
            self.class_weights,
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        # Not PyTorch's mean, which is NaN if all pixels of a batch are ignored.
        weight = torch.where(counted, self.class_weights[label.where(counted, 0)], 0)
        loss = total / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
        log = partial(self.log, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(label))
        log("train/loss", loss.detach(), prog_bar=True)
        correct = (logits.detach().argmax(1) == label).sum()
        log("train/pixel_accuracy", correct / counted.sum().clamp_min(1))
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch."""
        self.confusion.update(self(batch.images).argmax(1), batch.label)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch, averaged over scales and mirror images."""
        self.confusion.update(self.probabilities(batch.images).argmax(1), batch.label)

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Class of each pixel, (B, H, W)."""
        return self.probabilities(batch.images).argmax(1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (B, num_classes, H, W) of normalized images (B, 3, H, W), averaged over all passes."""
        H, W = images.shape[-2:]
        mean = torch.zeros((), device=images.device)
        for scale in self.scales:
            size = max(1, round(scale * H)), max(1, round(scale * W))
            scaled = images if size == (H, W) else F.interpolate(images, size, mode="bilinear", antialias=scale < 1)
            for flipped in (False, True) if self.flip else (False,):
                logits = self(scaled.flip(-1)).flip(-1) if flipped else self(scaled)
                if size != (H, W):
                    logits = F.interpolate(logits.float(), (H, W), mode="bilinear")
                mean = mean + logits.float().softmax(1) / self.votes
        return mean

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all batches."""
        self._log_metrics("val/")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all batches, and keep pixels and IoU of each class."""
        confusion = self._log_metrics("test/")
        names = self.class_names or [f"class {number}" for number in range(len(confusion))]
        self.by_category = {
            name: (pixels, None if math.isnan(iou) else iou)
            for name, pixels, iou in zip(names, confusion.sum(1).tolist(), class_iou(confusion).tolist())
        }

    def _log_metrics(self, prefix: str) -> Tensor:
        confusion = self.confusion.compute()
        self.confusion.reset()
        iou = class_iou(confusion)
        values = {"miou": iou.nanmean(), "pixel_accuracy": confusion.diagonal().sum() / confusion.sum()}
        for name, value in values.items():
            # Equal on all devices already: the matrix is.
            self.log(f"{prefix}{name}", value.float(), prog_bar=name == "miou", sync_dist=True)
        return confusion


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, (P,) float64, from pixel counts by true and predicted class, (P, P).

    NaN for a class absent from both.
    """
    intersection = confusion.diagonal().double()
    return intersection / (confusion.sum(0) + confusion.sum(1) - intersection)
