"""Object detection and instance segmentation: boxes, and perhaps masks, of the objects in an image."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from pcea.datasets.batches import ObjectBatch
from pcea.inference.objects import coco_annotations, to_objects
from pcea.io.atomic import atomic_file
from pcea.io.description import NetworkDescription
from pcea.tasks.base import SchedulerCallable, Task


class DetectionTask(Task):
    """Train and test a detector with COCO's measure: average precision of boxes, and of masks if it predicts them.

    Only the 100 detections with the highest scores in an image count.

    It logs the losses of the detector and their sum, which is minimized; for validation and test `box_ap` (mean over
    IoU thresholds 0.5, 0.55, ..., 0.95 and classes), `box_ap50` (at 0.5 only), and `mask_ap`, `mask_ap50`.

    Args:
        network: Called with images (3, H, W) in 0..1 it returns detections, in training with targets its losses, like
            torchvision's detectors; has the attributes `num_classes`, without the background, and `has_masks`.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the schedule from the optimizer and the total number of steps.
        results: Write the detections of the test to this file, in the format of COCO's servers and tools.
    """

    kind = "objects"

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: SchedulerCallable | None = None,
        *,
        results: str | None = None,
    ):
        super().__init__(network, optimizer, scheduler)
        self.has_masks = bool(network.has_masks)
        self.precision = MeanAveragePrecision(
            iou_type=("bbox", "segm") if self.has_masks else ("bbox",),
            class_metrics=True,
            # The defaults are these in fp32, which lie beside them: a recall of exactly 0.3 then counts as less.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            # It hangs where devices have different numbers of images; `_gather` does not.
            sync_on_compute=False,
        )
        self.precision.warn_on_many_detections = False
        self.results = results
        self.category_ids: tuple[int, ...] = ()
        self._found: list[dict[str, Any]] = []

    @property
    def convention(self) -> str:
        """How to read the average precision of the record."""
        return "COCO's average precision; the 100 best detections of an image count"

    def setup(self, stage: str) -> None:
        """Take class names from the data, and refuse data without masks if the network needs them.

        Raises:
            ValueError: If they do not fit, or results are to be written by several devices, or of changed pictures.
        """
        super().setup(stage)
        if self.has_masks and self.data is not None and not self.data.has_masks:
            raise ValueError(
                f"A {type(self.network).__name__} learns masks, but the data has only boxes: use a box detector."
            )
        self.category_ids = () if self.data is None else self.data.category_ids
        if stage == "test" and self.results and self.trainer.world_size > 1:
            raise ValueError("Results can be written by one device only: set trainer.devices to 1.")
        if stage == "test" and self.results:  # before the work, that it is not lost
            Path(self.results).parent.mkdir(parents=True, exist_ok=True)
        if stage == "test" and self.results and self.data is not None and self.data.eval_transforms:
            raise ValueError(
                "Results are boxes in the pictures as their files hold them, but eval_transforms change the pictures "
                "first: leave eval_transforms or results out (a detector resizes pictures itself, and boxes back)."
            )

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections in images (3, H, W) uint8; only those of one size are a batch.

        The network would pad others to one size, which moves what it finds: results would depend on the batch.
        """
        detections: list[dict[str, Tensor]] = [{} for _ in images]
        for size in dict.fromkeys(image.shape for image in images):
            numbers = [number for number, image in enumerate(images) if image.shape == size]
            for number, found in zip(numbers, self.network([images[number].float() / 255 for number in numbers])):
                detections[number] = found
        return detections

    def training_step(self, batch: ObjectBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The sum of the detector's losses for one batch."""
        losses = self.network([image.float() / 255 for image in batch.images], batch.targets)
        loss: Tensor = sum(losses.values())
        log = partial(self.log, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.images))
        log("train/loss", loss.detach(), prog_bar=True)
        for name, value in losses.items():
            log(f"train/{name}", value.detach())
        return loss

    def validation_step(self, batch: ObjectBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch."""
        self._count(batch)

    def test_step(self, batch: ObjectBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Count one batch, and keep its detections to be written."""
        detections = self._count(batch)
        if self.results:
            for image, found, target in zip(batch.images, detections, batch.targets):
                prediction = to_objects(found, image, self._names)
                self._found += coco_annotations(prediction, int(target["image_id"]), self.category_ids)

    def predict_step(self, batch: ObjectBatch, batch_idx: int) -> list[dict[str, Tensor]]:  # noqa: ARG002
        """Detections of each image, as torchvision's detectors return them."""
        return self(batch.images)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all batches."""
        self._log_metrics("val/")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all batches, keep objects and AP of each class, and write the detections.

        Raises:
            ValueError: If no image has an object.
        """
        number, precision = self._log_metrics("test/")
        if not number:
            raise ValueError("No image of the test split has an object, so there is no precision.")
        self.by_category = {
            name: (number.get(label, 0), precision.get(label)) for label, name in enumerate(self._names, start=1)
        }
        if self.results:
            with atomic_file(Path(self.results)) as temporary:
                temporary.write_text(json.dumps(self._found), encoding="utf-8")
            self._found = []

    def describe_network(self) -> NetworkDescription | None:
        """How the network is built, and the numbers of its classes in the data's files."""
        description = super().describe_network()
        return description and description._replace(category_ids=self.category_ids)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what prediction needs besides the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["category_ids"] = list(self.category_ids)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what prediction needs, and refuse another architecture."""
        self.category_ids = tuple(checkpoint.get("category_ids", ()))
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.data is not None:
            self.category_ids = self.data.category_ids  # by which results are written

    @property
    def _names(self) -> Sequence[str]:
        numbers = range(1, 1 + int(self.network.num_classes))  # type: ignore[arg-type]
        return self.class_names or [f"class {label}" for label in numbers]

    def _count(self, batch: ObjectBatch) -> list[dict[str, Tensor]]:
        """Count the detections in a batch and return them."""
        detections = self(batch.images)
        answers = [{name: value.float().cpu() for name, value in found.items()} for found in detections]
        truths = [{name: value.cpu() for name, value in target.items()} for target in batch.targets]
        for answer, truth in zip(answers, truths):
            answer["labels"] = answer["labels"].long()
            if self.has_masks:
                answer["masks"], truth["masks"] = answer["masks"].squeeze(1) > 0.5, truth["masks"].bool()
        self.precision.update(answers, truths)
        return detections

    def _log_metrics(self, prefix: str) -> tuple[dict[int, int], dict[int, float]]:
        """Log the metrics; the number of objects and the AP of each class that has any, by its label."""
        self._gather()
        crowds = torch.cat(self.precision.groundtruth_crowds)
        objects = torch.cat(self.precision.groundtruth_labels)[crowds == 0].bincount().tolist()
        measured = self.precision.compute()
        self.precision.reset()
        kinds = {"box": "bbox_", "mask": "segm_"} if self.has_masks else {"box": ""}
        for kind, stored in kinds.items():
            for name, source in (("ap", "map"), ("ap50", "map_50")):
                value = measured[stored + source]
                value = value if value >= 0 else torch.full_like(value, math.nan)  # -1: there are no objects
                # Equal on all devices already.
                self.log(f"{prefix}{kind}_{name}", value, prog_bar=name == "ap50", sync_dist=True)
        per_class = f"{kinds['mask' if self.has_masks else 'box']}map_per_class"
        labels, precision = measured["classes"].flatten(), measured[per_class].flatten()
        number = {label: count for label, count in enumerate(objects) if count}
        return number, {label: ap for label, ap in zip(labels.tolist(), precision.tolist()) if label in number}

    def _gather(self) -> None:
        """Share what each device counted with all of them."""
        if self.trainer.world_size == 1:
            return
        states: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(states, self.precision.metric_state)
        for name in states[0]:
            # The images in their order, as the samplers deal them out: detections of equal scores count in it.
            rounds = zip_longest(*(state[name] for state in states))
            setattr(self.precision, name, [value for values in rounds for value in values if value is not None])
