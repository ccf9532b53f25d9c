"""Training and testing from a configuration: LightningCLI with pcea's loggers, checkpoints and records."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from pcea.commands.record import NO_SHARES, Record, category_headings, commit, to_percent, write_record
from pcea.io.checkpoints import load_checkpoint, newest_checkpoint, read_checkpoint
from pcea.io.weights import save_weights
from pcea.models.build import build_network
from pcea.tasks.base import Task
from pcea.tasks.detection import DetectionTask  # noqa: F401
from pcea.tasks.generation import GenerationTask  # noqa: F401
from pcea.tasks.image_classification import ImageClassificationTask  # noqa: F401
from pcea.tasks.image_segmentation import ImageSegmentationTask  # noqa: F401
from pcea.tasks.point_classification import PointClassificationTask  # noqa: F401  # Lightning loads only what is imported
from pcea.tasks.point_segmentation import PointSegmentationTask  # noqa: F401


class PceaCLI(LightningCLI):
    """LightningCLI with the defaults of pcea; each of them can be set in YAML."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, each with the arguments that are not for the user."""
        own = {"model", "dataloaders", "datamodule", "weights_only", "verbose"}
        return {"fit": own | {"train_dataloaders", "val_dataloaders"}, "validate": own, "test": own}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Leave it to the command line to print what is wrong with the arguments."""
        return super().init_parser(exit_on_error=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint of the best epoch by validation, for where there is a monitor."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.mode": "max", "checkpoint.filename": "best"})

    def _parse_ckpt_path(self) -> None:
        """Find and check the checkpoint; the configuration, not the checkpoint, decides the model and its votes."""
        config = self.config[self.config.subcommand]
        if self.config.subcommand != "fit" and config.ckpt_path is None:
            config.ckpt_path = str(newest_checkpoint(Path(config.trainer.default_root_dir or "runs")))
            print(f"Checkpoint: {config.ckpt_path}")
        self.checkpoint = {} if config.ckpt_path is None else read_checkpoint(config.ckpt_path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Log training to TensorBoard and CSV, in one numbered folder a run."""
        config = self.config[self.subcommand].trainer
        if self.subcommand != "fit":
            return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)
        if config.logger is None and not config.fast_dev_run:
            root = Path(config.default_root_dir or "runs")
            tensorboard = TensorBoardLogger(root, name="")
            kwargs["logger"] = [tensorboard, CSVLogger(root, name="", version=tensorboard.version)]
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        if self.subcommand != "fit":
            # Checkpoints and the copy of the configuration belong to training.
            callbacks, self.save_config_callback = [], None
        else:
            best = [c for c in callbacks if not isinstance(c, ModelCheckpoint) or c.monitor]
            # A callback of its own: `save_last` of the one above writes only when an epoch is the best one.
            self.last = ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
            callbacks = [*best, self.last]
        if config.get("enable_progress_bar") is not False:
            # A line an epoch stays. In a file, where lines cannot be drawn over, only that one is written.
            refresh_rate = 1 if sys.stderr.isatty() else 1_000_000
            callbacks = [*callbacks, TQDMProgressBar(refresh_rate, leave=True)]
        # The timer's state in the checkpoint tells the record how long training took.
        return super()._instantiate_trainer(config, [*callbacks, Timer()])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        # Nothing in a checkpoint is executed, and `after_test` prints the metrics.
        return {**kwargs, "weights_only": True, **({} if subcommand == "fit" else {"verbose": False})}

    def after_fit(self) -> None:
        """Say where the checkpoints are and how to test."""
        folder = self.trainer.log_dir  # a broadcast: all processes must ask for it
        if not self.trainer.is_global_zero or not self.last.best_model_path:
            return
        options = sys.argv[2:]
        if "--ckpt_path" in options:
            at = options.index("--ckpt_path")
            options = options[:at] + options[at + 2 :]
        options = [*options, "--ckpt_path", self.last.best_model_path]
        print(f"\nCheckpoints and logs: {folder}")
        print(f"Test the last epoch:  {shlex.join(['pcea', 'test', *options])}")

    @rank_zero_only
    def after_validate(self) -> None:
        """Print the metrics."""
        print_metrics(to_percent(self.trainer.callback_metrics))

    @rank_zero_only
    def after_test(self) -> None:
        """Print the metrics and write the record."""
        config = self.config.test
        record = self._record(to_percent(self.trainer.callback_metrics))
        print_metrics(record.metrics)
        print_categories(record)
        path = Path(config.ckpt_path).parent / f"{Path(config.ckpt_path).stem}.test.json"
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
            selection="best_val" if Path(config.ckpt_path).name.startswith("best") and monitored else "last",
            dataset=getattr(self.datamodule, "dataset_name", type(self.datamodule).__name__.removesuffix("DataModule")),
            split="test",
            num_points=self.model.num_points,
            votes=getattr(self.model, "votes", 1),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
            minutes=round(timer.get("train", 0.0) / 60, 1),
            commit=commit(),
            metrics=metrics,
            convention=getattr(self.model, "convention", ""),
            categories={
                name: (shapes, None if miou is None else round(100 * miou, 2))
                for name, (shapes, miou) in getattr(self.model, "by_category", {}).items()
            },
        )


def run(command: str, options: Sequence[str]) -> None:
    """Run `fit`, `validate` or `test` with command-line options."""
    # What a parameter without a type is given stays a dictionary: no class is made of it.
    set_parsing_settings(instantiate_subclass_spec_in_any=False)
    # Clouds are tensors in memory and a batch is one index operation: worker processes would only copy them.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # A resumed run writes into a folder of its own.
    warnings.filterwarnings("ignore", "The dirpath has changed.*")
    # Metrics are logged once an epoch, whatever this interval.
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
    # The averaged weights are those that a checkpoint holds as its own.
    warnings.filterwarnings("ignore", ".*WeightAveraging callback, but loading a checkpoint outside.*")
    warnings.filterwarnings("ignore", ".*is not supported by the model summary.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*in this directory will be deleted when the new ones are saved.*")
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    # Lightning advertises a service at every start.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip:" not in r.getMessage())
    PceaCLI(
        Task,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        args=[command, *options],
        parser_kwargs={"prog": "pcea"},
    )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Left to the end of the process, its threads may end it with an error.
        torch.distributed.destroy_process_group()


def export(checkpoint: Path, output: Path) -> None:
    """Turn a checkpoint of `pcea fit` into a weights file for `pcea predict --weights` and `weights=` in Python.

    Args:
        checkpoint: The checkpoint (.ckpt).
        output: The weights file to write (.safetensors).
    """
    stored = load_checkpoint(checkpoint)
    build_network(stored, str(checkpoint))  # refuses what could not be loaded
    source = {"commit": commit(), **stored.description.source}
    save_weights(output, stored._replace(description=stored.description._replace(source=source)))
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


def print_metrics(metrics: dict[str, float]) -> None:
    """Print metrics in percent, where they are shares, a line each."""
    print()
    for name, value in sorted(metrics.items(), reverse=True):
        print(f"{name.replace('_', ' '):24}{value:6.2f}{'' if name in NO_SHARES else ' %'}")


def print_categories(record: Record) -> None:
    """Print the mean IoU of each category, or the IoU of each class, in percent, a line each."""
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
