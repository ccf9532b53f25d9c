"""Training callbacks that Lightning does not have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from pcea.datamodules.base import data_of
from pcea.datamodules.points import PointDataModule
from pcea.datasets.batches import PointBatch
from pcea.inference.base import evaluating
from pcea.nn.recording import AttentionMap, record_attention
from pcea.tasks.point_segmentation import PointSegmentationTask
from pcea.visualization.colors import color_parts
from pcea.visualization.pages import Page
from pcea.visualization.point_weights import weights_at
from pcea.visualization.subject import Subject
from pcea.visualization.views import View, view_class, view_parts, view_slots


class LogClouds(L.Callback):
    """Show how a network sees a few clouds while it learns: on pages for a browser, and in TensorBoard.

    The pages lie in the folder `attention` of the run, one for each time. The clouds are validation clouds, or training
    clouds if there is no validation split; never test clouds. In TensorBoard a segmenter's clouds are coloured by the
    predicted parts, and once by the true parts. A classifier's points are coloured by their strongest slot in the last
    attention layer; a slot may change its colour from epoch to epoch.

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
        if not trainer.is_global_zero:
            return
        clouds = data.sets["val" if "val" in data.sets else "train"]
        count = min(self.num_clouds, len(clouds))
        batch = clouds.batch([i * len(clouds) // count for i in range(count)])
        for transform in data.evaluate:
            batch = transform(batch)
        self._batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
        if isinstance(pl_module, PointSegmentationTask):
            self._log(trainer, "true", _part_colors(pl_module, self._batch, self._batch.label))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the clouds."""
        if self._batch is None or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        task: Any = pl_module
        batch = self._batch
        with evaluating(task), torch.inference_mode():
            given = {} if batch.category is None else {"category": batch.category}
            with record_attention(task.network) as layers:
                output = task.network(batch.points, batch.normals, mask=batch.mask, **given)
            if isinstance(task, PointSegmentationTask):
                self._log(trainer, "predicted", _part_colors(task, batch, task.probabilities(batch)))
            else:
                self._log(trainer, "strongest slot", _slot_colors(layers, batch))
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "attention"
        folder.mkdir(parents=True, exist_ok=True)
        epoch = trainer.current_epoch + 1
        page = Page(_subjects(task, batch, output, layers), title=f"epoch {epoch}")
        page.save(folder / f"epoch_{epoch:03d}.html")

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


class _Seen(Subject):
    """A cloud of the training with what the network says of it now."""

    def __init__(self, result: View, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._result = result

    @property
    def modes(self) -> tuple[str, ...]:
        """What `view` can show."""
        return (*super().modes, "prediction")

    def _view_result(self, mode: str) -> View:  # noqa: ARG002
        return self._result


def _subjects(task: Any, batch: PointBatch, output: Tensor, layers: Mapping[str, AttentionMap]) -> list[Subject]:
    """The clouds of a batch, with the logits of the network."""
    names: list[str] = [*task.class_names, *(["none of the classes"] * task.background)]
    subjects: list[Subject] = []
    for i in range(len(batch.points)):
        points, name = _real(batch.points, batch, i).float(), f"cloud {i}"
        normals = None if batch.normals is None else _real(batch.normals, batch, i).float()
        if isinstance(task, PointSegmentationTask):
            parts = list(_parts_of(task, batch, i))
            label = torch.tensor(parts, device=points.device)[_real(output, batch, i)[:, parts].argmax(1)]
            result = view_parts(points, label, {part: names[part] for part in parts})
        else:
            best = output[i].float().softmax(0).topk(min(5, len(names)))
            probabilities = dict(zip([names[c] for c in best.indices], best.values.tolist()))
            result = view_class(points, probabilities)
            name += f", {names[int(batch.label[i])]}: {next(iter(probabilities))} {100 * float(best.values[0]):.0f} %"
        subjects.append(_Seen(result, points, layers, name=name, normals=normals, cloud=i))
    return subjects


def _slot_colors(layers: Mapping[str, AttentionMap], batch: PointBatch) -> Iterator[Tensor]:
    attention = list(layers.values())[-1]
    for i in range(len(batch.points)):
        points = _real(batch.points, batch, i)
        yield view_slots(points, weights_at(points, attention, cloud=i)).colors


def _parts_of(task: PointSegmentationTask, batch: PointBatch, i: int) -> tuple[int, ...]:
    """The parts of the category of cloud i."""
    categories = list(task.parts.values()) or [tuple(range(len(task.class_names)))]
    return categories[0 if batch.category is None else int(batch.category[i])]


def _part_colors(task: PointSegmentationTask, batch: PointBatch, parts_of_points: Tensor) -> Iterator[Tensor]:
    """Colours of labels (B, N), or of the most probable part of each cloud's category, from (B, N, num_classes)."""
    for i in range(len(batch.points)):
        parts = list(_parts_of(task, batch, i))
        chosen = _real(parts_of_points, batch, i)
        if chosen.ndim == 2:
            chosen = torch.tensor(parts, device=chosen.device)[chosen[:, parts].argmax(1)]
        yield color_parts(chosen, parts).cpu()
