"""Safe runs: a folder each, checkpoints written whole or not at all, and the best one stays the best when resumed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback

from pcea.io.atomic import atomic_file

# A disk with less is full, for a checkpoint.
_NO_SPACE = 1 << 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside the file that they replace, which stays until the new one is complete and on disk.

    Lightning writes into the system's temporary folder and then moves the file: between two filesystems that is a
    copy, which can be interrupted, and a small temporary folder ends training.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; see the class."""
        if storage_options is not None:
            raise ValueError("Checkpoints are written to local files: storage_options are not supported.")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part:
            try:
                torch.save(checkpoint, part)
            except RuntimeError as error:  # torch does not say what the system said
                number = errno.ENOSPC if shutil.disk_usage(path.parent).free < _NO_SPACE else errno.EIO
                raise OSError(number, os.strerror(number)) from error


class SaveConfig(SaveConfigCallback):
    """Lightning's copy of the configuration, by which a run takes its folder: two never write into one."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the folder and write the configuration.

        Raises:
            ValueError: If the folder is that of another run.
        """
        folder, is_taken = Path(trainer.log_dir or "."), False  # a broadcast: all processes must ask for it
        if trainer.is_global_zero and not self.already_saved:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                (folder / self.config_filename).open("x").close()
            except FileExistsError:
                is_taken = True
        if trainer.strategy.broadcast(is_taken):
            raise ValueError(f"Another run that began at the same time writes into {folder}: start this one again.")
        self.overwrite = True
        super().setup(trainer, pl_module, stage)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint of the best epoch, carried over by a resumed run.

    A resumed run writes into its own folder, where Lightning's starts over and takes the first epoch for the best one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the score, and copy the best checkpoint into this run's folder if it is still there."""
        super().load_state_dict(state_dict)
        old = Path(state_dict.get("best_model_path") or "")
        score = state_dict.get("best_model_score")
        if self.dirpath is None or score is None or state_dict.get("dirpath") == self.dirpath or not old.is_file():
            return
        new = Path(self.dirpath) / old.name
        _copy(old, new)
        self.best_model_score = self.kth_value = score
        self.best_model_path = self.kth_best_model_path = str(new)
        self.best_k_models = {str(new): score}


@rank_zero_only
def _copy(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(new) as part:
        shutil.copyfile(old, part)
