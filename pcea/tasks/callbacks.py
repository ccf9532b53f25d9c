"""Training callbacks that Lightning does not have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from pcea.datamodules.base import data_of
from pcea.datamodules.points import PointDataModule
from pcea.datasets.batches import PointBatch
from pcea.nn.attention import record_attention
from pcea.tasks.base import evaluating
from pcea.tasks.point_segmentation import PointSegmentationTask
from pcea.visualization.colors import color_parts
from pcea.visualization.point_weights import weights_at
from pcea.visualization.views import view_slots


class LogClouds(L.Callback):
    """Show a few clouds in TensorBoard, in 3D, coloured by the network's output.

    They are validation clouds, or training clouds if there is no validation split; never test clouds. A segmenter's
    clouds are coloured by the predicted parts, and once by the true parts. A classifier's points are coloured by their
    strongest slot in the last attention layer; a slot may change its colour from epoch to epoch.

    Switch it on with `--trainer.callbacks+=pcea.tasks.callbacks.LogClouds`.

    Args:
        every_n_epochs: Epochs between two drawings.
        num_clouds: Number of clouds, evenly spaced over the split.
    """

    def __init__(self, every_n_epochs: int = 10, num_clouds: int = 4):
        if every_n_epochs < 1 or num_clouds < 1:
            raise ValueError(f"every_n_epochs and num_clouds must be positive, got {every_n_epochs} and {num_clouds}.")
        self.every_n_epochs, self.num_clouds = every_n_epochs, num_clouds
        self._batch: PointBatch | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the clouds.

        Raises:
            ValueError: If the data module does not hold point clouds.
        """
        data = data_of(trainer)
        if not isinstance(data, PointDataModule):
            raise ValueError(f"LogClouds shows point clouds of a PointDataModule, got {type(data).__name__}.")
        if not trainer.is_global_zero or not _writers(trainer):
            return
        clouds = data.sets["val" if "val" in data.sets else "train"]
        count = min(self.num_clouds, len(clouds))
        batch = clouds.__getitems__([i * len(clouds) // count for i in range(count)])
        for transform in data.evaluate:
            batch = transform(batch)
        self._batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
        if isinstance(pl_module, PointSegmentationTask):
            self._log(trainer, "true", _part_colors(pl_module, self._batch, self._batch.label))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the clouds."""
        if self._batch is None or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        with evaluating(pl_module), torch.inference_mode():
            if isinstance(pl_module, PointSegmentationTask):
                # Its own generator: training must draw the same numbers with and without this callback.
                probabilities = pl_module.probabilities(self._batch, torch.Generator().manual_seed(0))
                self._log(trainer, "predicted", _part_colors(pl_module, self._batch, probabilities))
            else:
                self._log(trainer, "strongest slot", _slot_colors(pl_module, self._batch))

    def _log(self, trainer: L.Trainer, what: str, colors: Iterable[Tensor]) -> None:
        assert self._batch is not None
        for i, color in enumerate(colors):
            points = _real(self._batch.points, self._batch, i).float()
            for writer in _writers(trainer):
                writer.add_mesh(f"cloud {i}, {what}", points[None], colors=color[None], global_step=trainer.global_step)


class AverageWeights(WeightAveraging):
    """Keep an exponential moving average of the weights; validation, checkpoints and the end of training use it.

    Lightning's `EMAWeightAveraging` lets the first weights fade with the decay alone: after 3,000 steps at 0.999 a
    twentieth of them is left. That ruins a network with batch norm, whose variances start at 1. Here the decay of step
    t is at most (1 + t) / (10 + t), so that the first weights are soon gone.

    Args:
        decay: How much of the average each step keeps, from about step 10 / (1 - decay) on.

    Raises:
        ValueError: If `decay` is not in 0..1.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}.")

        def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
            if not averaged.is_floating_point():  # counters
                return current
            kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
            return averaged * kept + current * (1 - kept)

        super().__init__(avg_fn=average, use_buffers=True)


def _writers(trainer: L.Trainer) -> list[Any]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _real(values: Tensor, batch: PointBatch, i: int) -> Tensor:
    """The rows of (B, N, ...) that belong to the real points of cloud i."""
    return values[i] if batch.mask is None else values[i][batch.mask[i]]


def _slot_colors(task: Any, batch: PointBatch) -> Iterator[Tensor]:
    with record_attention(task.network) as layers:
        task.network(batch.points, batch.normals, mask=batch.mask)
    attention = list(layers.values())[-1]
    for i in range(len(batch.points)):
        points = _real(batch.points, batch, i)
        yield view_slots(points, weights_at(points, attention, cloud=i)).colors


def _part_colors(task: PointSegmentationTask, batch: PointBatch, parts_of_points: Tensor) -> Iterator[Tensor]:
    """Colours of labels (B, N), or of the most probable part of each cloud's category, from (B, N, num_classes)."""
    categories = list(task.parts.values()) or [tuple(range(len(task.class_names)))]
    for i in range(len(batch.points)):
        parts = list(categories[0 if batch.category is None else int(batch.category[i])])
        chosen = _real(parts_of_points, batch, i)
        if chosen.ndim == 2:
            chosen = torch.tensor(parts, device=chosen.device)[chosen[:, parts].argmax(1)]
        yield color_parts(chosen, parts).cpu()
