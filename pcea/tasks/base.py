"""What all tasks share: network and optimizer are passed in, and randomness can be resumed."""

from __future__ import annotations

import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pcea.datamodules.base import TaskData, batch_seed, data_of, global_seed
from pcea.datasets.batches import ImageBatch
from pcea.io.description import NetworkDescription, TaskKind, is_part, without_weights
from pcea.models.build import actual_arguments, difference, find_builder
from pcea.nn.compiled import load_numba

_WHAT_TO_TRY = (
    "Earlier checkpoints are kept. Try a lower learning rate, --trainer.precision 32-true, or "
    "--trainer.gradient_clip_val 1, and look for broken values in the data."
)

SchedulerCallable = Callable[[Optimizer, int], LRScheduler]


class Task(L.LightningModule):
    """A network with its optimizer.

    Args:
        network: The model to train.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the learning-rate schedule from the optimizer and the number of optimizer steps of the whole
            training, such as `torch.optim.lr_scheduler.CosineAnnealingLR`; stepped after every batch. None keeps the
            rate.
        encoder_rate: Learning rate of the network's encoder, as a share of that of the rest: for weights that are good
            already. With 0 it is frozen, with its batch-norm statistics.

    Attributes:
        kind: What the network does, one of `pcea.io.description.TASKS`; it decides how files are shown to the network.
        network_argument: The argument that holds the network.
        class_names: Names of the classes; () if the trainer was given dataloaders instead of a data module.
        num_points: Points per cloud that the network is trained on; 0 if unknown, and for images.
        num_test_points: Points per cloud that the network was shown in the test; 0 before it, and for images.
        has_normals: Whether the network is given normals.
        up: Upward axis of the files that it is trained on; None if the data does not say.
        background: Whether the network has one class more than the data: none of them.
        first_epoch: The epoch at which a resumed run goes on.
        votes: Test passes that are averaged.
        by_category: After the test, the number of samples and the result of each category or class, where there is one.
        seed: Of all that is random in training: that of `seed_everything`, else torch's before the first batch, which a
            checkpoint keeps; None before `fit`.
    """

    kind: ClassVar[TaskKind]
    network_argument: ClassVar[str] = "network"
    background: bool = False
    votes: int = 1

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: SchedulerCallable | None = None,
        *,
        encoder_rate: float = 1.0,
    ):
        super().__init__()
        if not 0 <= encoder_rate <= 1:
            raise ValueError(f"encoder_rate must be in 0..1, got {encoder_rate}.")
        if encoder_rate < 1 and not isinstance(getattr(network, "encoder", None), nn.Module):
            raise ValueError(f"encoder_rate={encoder_rate}: {type(network).__name__} has no part named encoder.")
        self.encoder_rate = encoder_rate
        with warnings.catch_warnings():
            # Lightning's advice to leave the network out would keep the command line from reloading its checkpoints.
            warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`")
            self.save_hyperparameters()
        self.network = network
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.class_names: tuple[str, ...] = ()
        self.num_points = 0
        self.num_test_points = 0
        self.has_normals = False
        self.up: str | None = None
        self.seed: int | None = None
        self.first_epoch = 0
        self.by_category: dict[str, tuple[int, float | None]] = {}
        self._total_steps: int | None = None
        self._trained_classes: tuple[tuple[str, ...], dict[str, Sequence[int]]] = ((), {})
        self._trained_with: dict[str, Any] = {}

    @property
    def data(self) -> TaskData | None:
        """The data module of the trainer; None if it was given dataloaders instead.

        Raises:
            ValueError: If the data module lacks something that a task may ask for.
        """
        return data_of(self.trainer)

    @property
    def convention(self) -> str:
        """How to read the results, for records; "" if there is only one way."""
        return ""

    def setup(self, stage: str) -> None:
        """Take the class names from the data, and refuse data with another number of classes.

        Raises:
            ValueError: If the numbers differ, or the data module lacks something that a task may ask for.
        """
        load_numba()  # so that every step is computed alike
        if stage == "fit":
            self.seed, self.first_epoch = self.trainer.strategy.broadcast(global_seed()), 0
        if stage == "fit" and self.encoder_rate == 0:
            # Before DDP counts on the gradients of all that learns.
            self.network.encoder.requires_grad_(False)
        if self.data is None:
            return
        names, num_classes = self.data.class_names, self.network.num_classes
        expected = len(names) + self.background
        if names and expected != num_classes:
            more = " and a background" if self.background else ""
            raise ValueError(
                f"The data has {len(names)} classes{more}, but the network has num_classes={num_classes}. "
                + (
                    f"Set model.init_args.network.init_args.num_classes to {expected}."
                    if stage == "fit"
                    else "Measure it on data with all of its classes and no others."
                )
            )
        self.class_names, self.has_normals = tuple(names), self.data.with_normals
        self._match_classes()

    def take_description(self, description: NetworkDescription) -> None:
        """Take over what is known of weights that were loaded from a weights file."""
        self.set_trained_classes(description.class_names, description.parts)
        self._compare_arguments(description.as_plain())

    def set_trained_classes(self, class_names: Sequence[str], parts: Mapping[str, Sequence[int]]) -> None:
        """Say what the weights were trained on, by which the classes of the data are numbered; matched by name.

        Args:
            class_names: Names of the classes; () if unknown.
            parts: The classes of each category; empty without categories.

        Raises:
            ValueError: If the data is there already and has other classes.
        """
        self._trained_classes = tuple(class_names), {name: tuple(classes) for name, classes in parts.items()}
        if self._trainer is not None and self.class_names:
            self._match_classes()

    def _match_classes(self) -> None:
        """Number the classes of the data as the weights do."""
        (names, parts), self._trained_classes = self._trained_classes, ((), {})
        if self.data is not None and names:
            self.data.match_classes(names, parts)
            self.setup(self.trainer.state.fn or "fit")  # what was taken from the data is taken again

    def configure_optimizers(self) -> Any:
        """Build optimizer and schedule."""
        optimizer = self._optimizer(self._parameter_groups())
        for group in optimizer.param_groups[1:]:
            group["lr"] *= self.encoder_rate
        if self._scheduler is None:
            return optimizer
        estimated = self.trainer.estimated_stepping_batches
        if not 0 < estimated < math.inf:
            raise ValueError(
                f"The schedule of the learning rate needs to know how many steps there are, but there are {estimated}: "
                "give trainer.max_epochs or trainer.max_steps, and at least one training batch."
            )
        total_steps = int(estimated)
        if self._total_steps not in (None, total_steps):
            # The restored schedule would raise the rate again, or fail at its end.
            raise ValueError(
                f"The checkpoint's schedule has {self._total_steps} steps, this run's has {total_steps}: resume with "
                "the same trainer.max_epochs, batch size and number of devices."
            )
        self._total_steps = total_steps
        scheduler = self._scheduler(optimizer, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _parameter_groups(self) -> Any:
        """All parameters; or those besides the encoder, then the encoder if it is not frozen."""
        if self.encoder_rate == 1:
            return self.parameters()
        encoder = [*self.network.encoder.parameters()]  # type: ignore[union-attr]
        own = {id(parameter) for parameter in encoder}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in own]
        if self.encoder_rate == 0:
            return [{"params": rest}]
        return [{"params": rest}, {"params": encoder}]

    def train(self, mode: bool = True) -> Task:
        """Set the mode; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self.encoder_rate == 0:
            self.network.encoder.eval()  # type: ignore[union-attr]
        return self

    def on_train_start(self) -> None:
        """Keep a frozen encoder in evaluation, and check that all processes start from the same checkpoint.

        Raises:
            ValueError: If they do not.
        """
        self.up = None if self.data is None else self.data.up
        monitors = [m for callback in self.trainer.checkpoint_callbacks if (m := getattr(callback, "monitor", None))]
        if any(monitor.startswith("val/") for monitor in monitors) and not sum(self.trainer.num_val_batches):
            raise ValueError(
                f"checkpoint.monitor is {monitors[0]}, but there is no validation: set data.init_args.val_fraction, or "
                "checkpoint.monitor to null."
            )
        if self.encoder_rate == 0:
            # Lightning leaves modules in the mode that they are in.
            self.network.encoder.eval()  # type: ignore[union-attr]
        first = self.trainer.strategy.broadcast(self.global_step)
        if self.global_step != first:
            raise ValueError(
                f"Process {self.global_rank} starts at step {self.global_step}, process 0 at step {first}: all must "
                "find the same checkpoint. Put the runs on a disk that they share, or copy it to each."
            )

    def on_validation_start(self) -> None:
        """Warn as before a test, except in training."""
        if self.trainer.state.fn == "validate":
            self._warn_of_other_reading()

    def on_test_start(self) -> None:
        """Warn if the data is read otherwise than in training."""
        self._warn_of_other_reading()

    def _warn_of_other_reading(self) -> None:
        """Warn if axis or normalization of the data are not those of training: this is easily forgotten."""
        for name in ("up", "mean", "std"):
            theirs, ours = self._trained_with.get(name), None if self.data is None else getattr(self.data, name)
            if theirs and ours and list(theirs) != list(ours):
                warnings.warn(
                    f"The network was trained with data.init_args.{name} {theirs}, and is measured with {ours}: if the "
                    "files are alike, give it that.",
                    stacklevel=3,
                )

    def _compare_arguments(self, trained: Mapping[str, Any]) -> None:
        """Keep what weights were trained with, and warn if they are put into a network with other arguments.

        Args:
            trained: The description of their network.
        """
        self._trained_with = dict(trained)
        ours = self.describe_network()
        if ours is None or ours.builder != trained.get("builder"):
            return
        theirs, own = (_comparable(ours.builder, each) for each in (trained["arguments"], ours.as_plain()["arguments"]))
        differing = [name for name in own if own[name] != theirs.get(name)]
        if differing:
            listed = "; ".join(f"{name} {theirs.get(name)} instead of {own[name]}" for name in differing)
            warnings.warn(
                f"The weights were trained with {listed}: set model.init_args.network.init_args alike, or results are "
                "not those of the trained network.",
                stacklevel=2,
            )

    def on_validation_epoch_start(self) -> None:
        """Give all processes the statistics of the first, whose network is saved, so that they measure one network."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Seed the dropout of each batch by its number, so that a resumed run draws the same."""
        # Odd, because the seeds of the augmentation are even: the two must not be the same stream.
        torch.manual_seed(2 * batch_seed(self.trainer) + 1)

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Stop where the loss is not finite: training on would only ruin the weights.

        Raises:
            ValueError: If it is NaN or infinite.
        """
        if not loss.detach().isfinite().all():
            raise ValueError(f"The loss became {float(loss.detach()):.3g} {self._moment()}. {_WHAT_TO_TRY}")

    def _moment(self) -> str:
        """When it happened, for messages."""
        optimizers: Any = self.optimizers()
        rates = [o.param_groups[0]["lr"] for o in (optimizers if isinstance(optimizers, list) else [optimizers])]
        rate = ", ".join(f"{rate:.3g}" for rate in rates)
        return f"in epoch {self.current_epoch}, step {self.global_step}, at learning rate {rate}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what prediction needs besides the weights.

        Raises:
            ValueError: If a weight is NaN or infinite; the checkpoint before stays as it is.
        """
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{name} became NaN or infinite {self._moment()}, and is not saved. {_WHAT_TO_TRY}")
        # A description takes their place: it holds nothing that loading could execute.
        checkpoint.pop("hyper_parameters", None)
        description = self.describe_network()
        if description is not None:
            checkpoint["network"] = description.as_plain()
        if "_instantiator" in self.hparams:
            checkpoint["learning"] = self._learning()
        checkpoint["seed"] = self.seed
        checkpoint["total_steps"] = self._total_steps
        checkpoint["class_names"] = list(self.class_names)
        checkpoint["num_points"], checkpoint["up"] = self.num_points, self.up

    def describe_network(self) -> NetworkDescription | None:
        """Describe how the network is built and used; None if it was not built from a configuration."""
        if "_instantiator" not in self.hparams:
            return None
        written = self.hparams[self.network_argument]
        return NetworkDescription(
            self.kind,
            written["class_path"],
            actual_arguments(written["class_path"], written.get("init_args") or {}, self.network),
            self.class_names,
            self.num_points,
            self.has_normals,
            up=self.up,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what prediction needs, and refuse the checkpoint of another architecture.

        Raises:
            ValueError: If a parameter is missing, unknown or of another shape.
        """
        self.set_trained_classes(checkpoint.get("class_names", ()), checkpoint.get("parts", {}))
        self.class_names = tuple(checkpoint.get("class_names", ()))
        self.num_points, self.up = checkpoint.get("num_points", 0), checkpoint.get("up")
        self._total_steps = checkpoint.get("total_steps")
        self._compare_arguments(checkpoint.get("network", {}))
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._check_resumed(checkpoint)
        self.seed = checkpoint.get("seed", self.seed)
        ours = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        if ours != theirs:
            raise ValueError(f"The checkpoint is of another architecture: {difference(ours, theirs)}.")

    def _check_resumed(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on at the checkpoint's epoch with its seed, and refuse another optimizer or schedule.

        Lightning would restore theirs over what was asked for.
        """
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
        self.first_epoch = progress.get("current", {}).get("processed", 0)
        asked, seed = os.environ.get("PL_GLOBAL_SEED"), checkpoint.get("seed")
        if seed is not None and asked is not None and int(asked) != seed:
            warnings.warn(f"The resumed run goes on with its seed {seed}, not with {asked}.", stacklevel=2)
        theirs = checkpoint.get("learning")
        if theirs is None or "_instantiator" not in self.hparams:
            return
        for name, ours in self._learning().items():
            old, new = _leaves(json.loads(theirs.get(name, "null"))), _leaves(json.loads(ours))
            if old != new:
                differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
                listed = ", ".join(f"{key} {old.get(key)}, not {new.get(key)}".strip() for key in differing)
                raise ValueError(
                    f"The checkpoint was trained with another {name}: {listed}. Resume with the same; or start a new "
                    "run from its weights, by model.init_args.network.init_args.weights."
                )

    def _learning(self) -> dict[str, str]:
        """Optimizers, schedules and rates as they are configured, as text by name."""
        return {
            name: json.dumps(value, default=lambda other: vars(other) if hasattr(other, "__dict__") else str(other))
            for name, value in self.hparams.items()
            if name.endswith(("optimizer", "scheduler", "_rate"))
        }


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by their names."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        leaf: inner
        for key, each in value.items()
        for leaf, inner in _leaves(each, key if key != "init_args" else name).items()
    }


def _comparable(builder: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A builder's arguments in the types that JSON has, with its defaults and without weights to start from.

    Nor is dropout among them, which has no effect on results and may be changed in between.
    """
    parameters = inspect.signature(find_builder(builder)).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    given = json.loads(json.dumps(without_weights({**defaults, **arguments}), default=str))
    return {name: _comparable_part(value) for name, value in given.items() if not name.startswith("drop")}


def _comparable_part(value: Any) -> Any:
    if isinstance(value, list):
        return [_comparable_part(inner) for inner in value]
    if not is_part(value):
        return value
    try:
        return {"class_path": value["class_path"]} | _comparable(value["class_path"], value.get("init_args") or {})
    except (ImportError, AttributeError):  # a file names it as it was called when that was written
        return value


class ImageTask(Task):
    """A network that labels images, with its optimizer; arguments as for `Task`.

    Attributes:
        mean: Mean of red, green and blue, in 0..1, that the data subtracts from images; () if unknown.
        std: Their standard deviation, by which the data divides images.
        image_size: Height and width of the images of the last training batch.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: tuple[int, ...] = ()

    def setup(self, stage: str) -> None:
        """Take class names and normalization from the data, and refuse data with another number of classes."""
        super().setup(stage)
        if self.data is not None:
            self.mean, self.std = self.data.mean, self.data.std

    def on_train_start(self) -> None:
        """Take the normalization from the data again: a checkpoint that is resumed has replaced it by its own."""
        super().on_train_start()
        if self.data is None:
            return
        if self.mean and (self.mean, self.std) != (tuple(self.data.mean), tuple(self.data.std)):
            warnings.warn(
                f"The resumed run goes on with images normalized otherwise: mean {list(self.data.mean)} and std "
                f"{list(self.data.std)} instead of {list(self.mean)} and {list(self.std)}.",
                stacklevel=2,
            )
        self.mean, self.std = tuple(self.data.mean), tuple(self.data.std)

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        """Remember the size of the images."""
        super().on_train_batch_start(batch, batch_idx)
        self.image_size = tuple(batch.images.shape[-2:])

    def describe_network(self) -> NetworkDescription | None:
        """Describe how the network is built, and how images are shown to it."""
        description = super().describe_network()
        return description and description._replace(mean=self.mean, std=self.std, image_size=self.image_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what prediction needs besides the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["mean"], checkpoint["std"] = list(self.mean), list(self.std)
        checkpoint["image_size"] = list(self.image_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what prediction needs, and refuse the checkpoint of another architecture."""
        super().on_load_checkpoint(checkpoint)
        self.mean, self.std = tuple(checkpoint.get("mean", ())), tuple(checkpoint.get("std", ()))
        self.image_size = tuple(checkpoint.get("image_size", ()))


def vote_scales(votes: int) -> list[float]:
    """Factors by which a cloud is scaled for each of the passes that vote on it: 1, then random ones in [0.8, 1.25].

    They are the same for every cloud, so that its result does not depend on its batch.
    """
    random = torch.empty(votes - 1).uniform_(0.8, 1.25, generator=torch.Generator().manual_seed(0))
    return [1.0, *random.tolist()]
