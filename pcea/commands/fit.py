"""Training and testing from a configuration: LightningCLI with pcea's loggers, checkpoints and records."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from pcea.commands.checkpointing import AtomicCheckpointIO, BestCheckpoint, SaveConfig
from pcea.commands.layer_sync import CpuLayerSync
from pcea.commands.record import NO_SHARES, Record, category_headings, commit, to_percent, write_record
from pcea.io.atomic import remove_leftovers
from pcea.io.checkpoints import find_network, newest_checkpoint, read_checkpoint, read_network
from pcea.io.weights import load_weights
from pcea.models.build import load_state
from pcea.tasks.base import Task
from pcea.tasks.detection import DetectionTask  # noqa: F401
from pcea.tasks.generation import GenerationTask  # noqa: F401
from pcea.tasks.image_classification import ImageClassificationTask  # noqa: F401
from pcea.tasks.image_segmentation import ImageSegmentationTask  # noqa: F401
from pcea.tasks.point_classification import PointClassificationTask  # noqa: F401  # Lightning loads only what is imported
from pcea.tasks.point_segmentation import PointSegmentationTask  # noqa: F401


class PceaCLI(LightningCLI):
    """LightningCLI with the defaults of pcea; each can be changed in YAML."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, each with the arguments hidden from the user."""
        own = {"model", "dataloaders", "datamodule", "weights_only", "verbose"}
        measuring = own | {"ckpt_path"}  # `--weights` takes its place
        return {"fit": own | {"train_dataloaders", "val_dataloaders"}, "validate": measuring, "test": measuring}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Raise errors in the arguments, which the command line then prints."""
        return super().init_parser(exit_on_error=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint of the best epoch by validation, used if there is a monitor."""
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.mode": "max", "checkpoint.filename": "best"})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            # Configurations that `fit` writes have it.
            parser.add_argument("--ckpt_path", type=str | None, default=None, help=SUPPRESS)
            parser.add_argument(
                "--weights",
                type=str | None,
                default=None,
                help="A checkpoint, a weights file, the name of weights that come with pcea, or a configuration's name "
                "(its newest run). By default the newest run of the given configuration.",
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        """Find and read the weights; the configuration, not the weights file, decides the model and its votes."""
        config = self.config[self.config.subcommand]
        root = Path(config.trainer.default_root_dir or "runs")
        self.weights: Path | None
        if self.config.subcommand != "fit":
            given = config.weights or config.ckpt_path
            self.weights = find_network(given) if given else newest_checkpoint(root)
            rank_zero_only(print)(f"Weights: {self.weights}")
        else:
            for folder in root.glob("version_*/checkpoints"):
                remove_leftovers(folder)
            if config.ckpt_path == "last":
                # The same command starts a run, and goes on with it after a machine failed.
                has_runs = any(root.glob("version_*/checkpoints/last.ckpt"))
                config.ckpt_path = str(newest_checkpoint(root)) if has_runs else None
            self.weights = None if config.ckpt_path is None else Path(config.ckpt_path)
            if self.weights is not None and self.weights.suffix == ".safetensors":
                raise ValueError(
                    f"--ckpt_path {self.weights}: a weights file cannot be resumed, only a checkpoint. To start from "
                    "its weights, give it as --model.init_args.network.init_args.weights."
                )
        is_checkpoint = self.weights is not None and self.weights.suffix != ".safetensors"
        self.checkpoint = read_checkpoint(self.weights) if self.weights and is_checkpoint else {}

    def instantiate_classes(self) -> None:
        """Count the classes for a network whose configuration leaves them open, then make everything.

        They are those of the data; of weights that are measured, those of the weights.
        """
        config = self.config[self.subcommand]
        network = (config.model.init_args.get("network") or {}).get("init_args") or {}
        is_open = [name for name in ("num_classes", "num_categories") if name in network and network[name] is None]
        if is_open:
            counts = self._counts_of_weights() if self.subcommand != "fit" else {}
            if not {*is_open} <= {*counts}:
                counts = self._counts_of_data(config)
            for name in is_open:
                network[name] = counts[name]
        super().instantiate_classes()

    def _counts_of_weights(self) -> dict[str, Any]:
        if self.weights is None or (self.checkpoint and "network" not in self.checkpoint):
            return {}
        return dict(read_network(self.weights).description.arguments)

    def _counts_of_data(self, config: Namespace) -> dict[str, Any]:
        parser = self._parser(self.subcommand)
        data = parser.instantiate_classes(Namespace(data=config.data.clone())).data
        train = data.load("train")
        return {
            "num_classes": len(train.class_names) + bool(config.model.init_args.get("background")),
            "num_categories": len(getattr(train, "parts", {})),
        }

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Log and keep checkpoints in training only."""
        if self.subcommand != "fit":
            kwargs |= {"logger": False, "enable_checkpointing": False}
        return super().instantiate_trainer(**kwargs)

    def _add_loggers(self, config: dict[str, Any]) -> dict[str, Any]:
        """Log to TensorBoard and CSV in one numbered folder per run; with loggers of the user's, to CSV before them.

        Checkpoints lie in the folder of the first logger.
        """
        root, given = Path(config.get("default_root_dir") or "runs"), config.get("logger")
        if given in (None, True):
            tensorboard = TensorBoardLogger(root, name="")
            own: list[Any] = [tensorboard, CSVLogger(root, name="", version=tensorboard.version)]
            return {**config, "logger": own}
        others = [] if given is False else list(given) if isinstance(given, list | tuple) else [given]
        return {**config, "logger": [CSVLogger(root, name=""), *others]}

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        if self.subcommand != "fit":
            # Checkpoints and the copy of the configuration belong to training.
            callbacks, self.save_config_callback = [], None
        else:
            best = [c for c in callbacks if not isinstance(c, ModelCheckpoint) or c.monitor]
            # A separate callback: `save_last` of the one above writes only after a best epoch.
            self.last = ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
            callbacks = [*best, self.last]
            if config.get("enable_checkpointing") is False:
                callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
        if config.get("accumulate_grad_batches") == 0:
            raise ValueError("trainer.accumulate_grad_batches must be at least 1, got 0.")
        if self.subcommand == "fit" and not config.get("fast_dev_run"):
            config = self._add_loggers(config)
        if config.get("enable_progress_bar") is not False:
            # One line per epoch stays. In a file, where lines cannot be overwritten, only that line is written.
            refresh_rate = 1 if sys.stderr.isatty() else 1_000_000
            callbacks = [*callbacks, TQDMProgressBar(refresh_rate, leave=True)]
        plugins = config.get("plugins") or []
        plugins = [*plugins] if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config = {**config, "plugins": [*plugins, AtomicCheckpointIO()]}
        # The timer's state in the checkpoint tells the record how long training took.
        # Lightning adds none of its own for max_time then. In the middle of an epoch, the rest would be lost.
        timer = _RunTimer(config.get("max_time"), interval="epoch")
        trainer = super()._instantiate_trainer({**config, "max_time": None}, [*callbacks, timer])
        if config.get("sync_batchnorm") and trainer.strategy.root_device.type == "cpu":
            trainer.strategy._layer_sync = CpuLayerSync()  # type: ignore[attr-defined]
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs.pop("weights", None)
        if subcommand != "fit":
            kwargs.pop("ckpt_path", None)
        # Nothing in a checkpoint is executed.
        kwargs["weights_only"] = True
        if subcommand == "fit":
            return kwargs
        kwargs["verbose"] = False  # `after_test` prints the metrics
        assert self.weights is not None
        if self.checkpoint:
            return {**kwargs, "ckpt_path": str(self.weights)}
        stored = load_weights(self.weights)
        load_state(self.model.network, stored.state, str(self.weights))
        self.model.take_description(stored.description)
        source = stored.description.source
        self.checkpoint = {"epoch": source.get("epoch", 0) - 1, "seed": source.get("seed", -1)}
        return kwargs

    def after_fit(self) -> None:
        """Say where the checkpoints are and how to test."""
        folder = self.trainer.log_dir  # a broadcast: all processes must ask for it
        if self.trainer.is_global_zero and self.trainer.global_step == self.checkpoint.get("global_step", 0):
            warnings.warn("Nothing was trained: there was no step to take.", stacklevel=1)
        if not self.trainer.is_global_zero or not self.last.best_model_path:
            return
        options = [*without_option(sys.argv[2:], "--ckpt_path"), "--weights", self.last.best_model_path]
        print(f"\nCheckpoints and logs: {folder}")
        print(f"Test the last epoch:  {shlex.join(['pcea', 'test', *options])}")

    @rank_zero_only
    def after_validate(self) -> None:
        """Print the metrics.

        Raises:
            ValueError: If there are none.
        """
        if not self.trainer.callback_metrics:
            raise ValueError("Nothing was measured, as there is no validation split: set data.init_args.val_fraction.")
        print_metrics(to_percent(self.trainer.callback_metrics))

    @rank_zero_only
    def after_test(self) -> None:
        """Print the metrics and, of the whole split, write the record.

        Raises:
            ValueError: If there are none.
        """
        if not self.trainer.callback_metrics:
            raise ValueError("Nothing was measured, as the test has no batches.")
        record = self._record(to_percent(self.trainer.callback_metrics))
        print_metrics(record.metrics)
        print_categories(record)
        limit = self.trainer.limit_test_batches  # 1 is one batch, 1.0 all of them
        if limit != 1 or isinstance(limit, int):
            print("No record: this is a part of the test split.")
            return
        assert self.weights is not None
        # Beside a checkpoint; but not beside weights that came with pcea.
        root = Path(self.config.test.trainer.default_root_dir or "runs")
        folder = self.weights.parent if self.weights.suffix == ".ckpt" else root
        path = folder / f"{self.weights.stem}.test.json"
        write_record(path, record)
        print(f"Record: {path}")

    def _record(self, metrics: dict[str, float]) -> Record:
        callbacks = self.checkpoint.get("callbacks", {})
        timer = callbacks.get("Timer", {}).get("time_elapsed", {})
        monitored = any(state.get("monitor") for state in callbacks.values())
        config = self.config.test
        device = self.trainer.strategy.root_device
        return Record(
            config=Path(config.config[0].relative).stem if config.config else "",
            command=shlex.join(["pcea", *sys.argv[1:]]),
            seed=self.checkpoint.get("seed", -1),
            epoch=self.checkpoint["epoch"] + 1,
            selection="best_val" if self.weights and self.weights.name.startswith("best") and monitored else "last",
            dataset=self.datamodule.dataset_name,
            split="test",
            num_points=self.model.num_test_points,
            votes=self.model.votes,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
            minutes=round(timer.get("train", 0.0) / 60, 1),
            commit=commit(),
            metrics=metrics,
            convention=self.model.convention,
            categories={
                name: (shapes, None if miou is None else round(100 * miou, 2))
                for name, (shapes, miou) in self.model.by_category.items()
            },
        )


class _RunTimer(Timer):
    """Lightning's timer, which keeps the time of all runs; but `max_time` is that of each, also of a resumed one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the time, and add it to the limit."""
        super().load_state_dict(state_dict)
        if self._duration is not None:
            self._duration += self._offset

    @property
    def state_key(self) -> str:
        """Lightning's own key, which older checkpoints and the records use."""
        return "Timer"


def run(command: str, options: Sequence[str]) -> None:
    """Run `fit`, `validate` or `test` with command-line options."""
    # The value of a parameter without a type stays a dictionary: no class is instantiated from it.
    set_parsing_settings(instantiate_subclass_spec_in_any=False)
    # Clouds are tensors in memory and a batch is one index operation: worker processes would only copy them.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # A resumed run writes into a folder of its own.
    warnings.filterwarnings("ignore", "The dirpath has changed.*")
    # Metrics are logged once an epoch, whatever this interval.
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
    # A checkpoint holds the averaged weights as its own.
    warnings.filterwarnings("ignore", ".*WeightAveraging callback, but loading a checkpoint outside.*")
    warnings.filterwarnings("ignore", ".*is not supported by the model summary.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*in this directory will be deleted when the new ones are saved.*")
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    # Lightning advertises a service at every start.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip:" not in r.getMessage())
    try:
        PceaCLI(
            Task,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            auto_configure_optimizers=False,
            args=[command, *options],
            parser_kwargs={"prog": "pcea"},
        )
    except ValueError as error:
        if "more than 1 value per channel when training" not in str(error):
            raise
        raise ValueError(
            "Batch norm cannot learn from a batch of one sample: set data.init_args.batch_size to 2 or more."
        ) from error
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Left to the end of the process, its threads may end it with an error.
        torch.distributed.destroy_process_group()


def without_option(options: Sequence[str], name: str) -> list[str]:
    """Remove an option and its value from command-line options, in either spelling."""
    kept = list(options)
    while name in kept:
        at = kept.index(name)
        del kept[at : at + 2]
    return [option for option in kept if not option.startswith(f"{name}=")]


def print_metrics(metrics: dict[str, float]) -> None:
    """Print one metric per line, in percent if it is a share."""
    print()
    for name, value in sorted(metrics.items(), reverse=True):
        print(f"{name.replace('_', ' '):24}{value:6.2f}{'' if name in NO_SHARES else ' %'}")


def print_categories(record: Record) -> None:
    """Print the mean IoU of each category, or the IoU of each class, in percent, one per line."""
    if record.categories:
        name, counted, measured = category_headings(record)
        print(f"\n{name:24}{measured:>13}{counted:>14}")
    for name, (count, iou) in record.categories.items():
        print(f"{name:24}{'absent' if iou is None else f'{iou:.2f} %':>13}{count:14}")


def _cpu_name() -> str:
    names = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    threads = torch.get_num_threads()
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{threads} CPU core{'s' if threads > 1 else ''} ({name})"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
