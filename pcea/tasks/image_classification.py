"""Image classification."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pcea.datasets.batches import ImageBatch
from pcea.metrics.class_accuracy import MeanClassAccuracy
from pcea.tasks.base import ImageTask, SchedulerCallable
from pcea.transforms.points import check_share


class ImageClassificationTask(ImageTask):
    """Train and test an image classifier.

    For a moving average of the weights, add the callback `pcea.tasks.AverageWeights`; validation, checkpoints and the
    test then use the average.

    Args:
        network: Maps images (B, 3, H, W) to logits (B, num_classes); has the attribute `num_classes`.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the schedule from the optimizer and the total number of steps.
        label_smoothing: As in PyTorch: the share spread over all classes.
        mixup: Parameter of the Beta distribution with which two images are blended; 0 for never.
        cutmix: The same for the area of the rectangle that one image takes from another. With both, a batch is either
            blended or cut, at random.
    """

    kind = "images"

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: SchedulerCallable | None = None,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ):
        super().__init__(network, optimizer, scheduler)
        if mixup < 0 or cutmix < 0:
            raise ValueError(f"mixup and cutmix must not be negative, got {mixup} and {cutmix}.")
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        self.mixup, self.cutmix = mixup, cutmix
        num_classes = int(network.num_classes)  # type: ignore[arg-type]
        metrics: dict[str, Metric | MetricCollection] = {
            "overall_accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "mean_class_accuracy": MeanClassAccuracy(num_classes),
        }
        if num_classes > 5:
            metrics["top5_accuracy"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        self.val_metrics = MetricCollection(metrics, prefix="val/")
        self.test_metrics = self.val_metrics.clone(prefix="test/")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalized images (B, 3, H, W)."""
        return self.network(images)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy of one batch, whose images may be mixed."""
        images, target = self._mix(batch)
        logits = self(images).float()
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        log = partial(self.log, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        log("train/loss", loss.detach(), prog_bar=True)
        if target.ndim == 1:
            log("train/overall_accuracy", (logits.detach().argmax(1) == target).float().mean())
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch."""
        self._count(self.val_metrics, batch)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch."""
        self._count(self.test_metrics, batch)

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Probabilities, (B, num_classes)."""
        return self(batch.images).float().softmax(1)

    def _mix(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Images and their classes (B,), or the share of each class in them, (B, num_classes), if they are mixed."""
        alphas = {name: alpha for name, alpha in (("MixUp", self.mixup), ("CutMix", self.cutmix)) if alpha}
        if not alphas:
            return batch.images, batch.label
        from torchvision.transforms import v2

        # They draw from torch's global generator, which is seeded for each batch.
        name = [*alphas][int(torch.randint(len(alphas), ()))]
        mix = getattr(v2, name)(alpha=alphas[name], num_classes=self.network.num_classes)
        images, target = mix(batch.images, batch.label)
        return images, target

    def _count(self, metrics: MetricCollection, batch: ImageBatch) -> None:
        metrics.update(self(batch.images).float(), batch.label)
        for name, metric in metrics.items():
            self.log(name, metric, prog_bar=name == "val/overall_accuracy", batch_size=len(batch.label))
