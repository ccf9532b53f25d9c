"""What all tasks share: network and optimizer are passed in, randomness can be resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from pcea.datamodules.points import batch_seed, global_seed
from pcea.io.description import NetworkDescription, TaskKind
from pcea.models.build import actual_arguments, difference

SchedulerCallable = Callable[[Optimizer, int], LRScheduler]


class OneCycle(OneCycleLR):
    """Torch's one-cycle schedule with the number of steps second, as `Task` passes it.

    Args:
        optimizer: The optimizer.
        total_steps: Optimizer steps of the whole training.
        max_lr: Learning rate at the peak.
        pct_start: Share of the steps that rise.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, *, max_lr: float, pct_start: float = 0.3):
        super().__init__(optimizer, max_lr, total_steps, pct_start=pct_start)


class Task(L.LightningModule):
    """A network with its optimizer.

    Args:
        network: The model to train.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the learning-rate schedule from the optimizer and the number of optimizer steps of the whole
            training, such as `torch.optim.lr_scheduler.CosineAnnealingLR`; stepped after every batch. None keeps the
            rate.

    Attributes:
        kind: What the network does, one of `pcea.io.description.TASKS`: how files are shown to it when it is used.
        network_argument: The argument that holds the network.
    """

    kind: ClassVar[TaskKind]
    network_argument: ClassVar[str] = "network"

    def __init__(self, network: nn.Module, optimizer: OptimizerCallable, scheduler: SchedulerCallable | None = None):
        super().__init__()
        with warnings.catch_warnings():
            # Lightning's advice to leave the network out would keep the command line from reloading its checkpoints.
            warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`")
            self.save_hyperparameters()
        self.network = network
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.class_names: tuple[str, ...] = ()
        self.num_points = 0
        self.has_normals = False
        self._total_steps: int | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Take the class names from the data, and refuse data with another number of classes."""
        names = tuple(getattr(getattr(self.trainer, "datamodule", None), "class_names", ()))
        num_classes = getattr(self.network, "num_classes", len(names))
        if names and len(names) != num_classes:
            raise ValueError(
                f"The data has {len(names)} classes, but the network has num_classes={num_classes}. "
                f"Set model.init_args.network.init_args.num_classes to {len(names)}."
            )
        self.class_names = names
        self.has_normals = bool(getattr(getattr(self.trainer, "datamodule", None), "with_normals", False))

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule."""
        optimizer = self._optimizer(self.parameters())
        if self._scheduler is None:
            return optimizer
        total_steps = int(self.trainer.estimated_stepping_batches)
        if self._total_steps not in (None, total_steps):
            # Its state would be restored, and the rate would rise again or the schedule fail at its end.
            raise ValueError(
                f"The checkpoint's schedule is of {self._total_steps} steps, this run's of {total_steps}: resume with "
                "the same trainer.max_epochs, batch size and number of devices."
            )
        self._total_steps = total_steps
        scheduler = self._scheduler(optimizer, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Draw the dropout of each batch from a seed of its own, so that a resumed run draws the same."""
        # Odd, as those of the augmentation are even: the two must not follow one another.
        torch.manual_seed(2 * batch_seed(self.trainer) + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what prediction needs beside the weights."""
        # A description takes their place, which holds nothing that loading could execute.
        checkpoint.pop("hyper_parameters", None)
        description = self.describe_network()
        if description is not None:
            checkpoint["network"] = description.as_plain()
        checkpoint["seed"] = global_seed()
        checkpoint["total_steps"] = self._total_steps
        checkpoint["class_names"] = list(self.class_names)
        checkpoint["num_points"] = self.num_points

    def describe_network(self) -> NetworkDescription | None:
        """How the network is built and used; None if it was not built from a configuration."""
        if "_instantiator" not in self.hparams:
            return None
        written = self.hparams[self.network_argument]
        return NetworkDescription(
            self.kind,
            written["class_path"],
            actual_arguments(written.get("init_args") or {}, self.network),
            self.class_names,
            self.num_points,
            self.has_normals,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another architecture in one line.

        Raises:
            ValueError: If a parameter is missing, unknown or of another shape.
        """
        self.class_names = tuple(checkpoint.get("class_names", ()))
        self.num_points = checkpoint.get("num_points", 0)
        self._total_steps = checkpoint.get("total_steps")
        ours = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if ours != theirs:
            raise ValueError(f"The checkpoint is of another architecture: {difference(ours, theirs)}.")
