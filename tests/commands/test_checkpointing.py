"""Checkpoints survive kills, full disks and resumed runs; interruptions end with the exit code that shells expect."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from examples import TINY, assert_one_line, mounted_disk, run
from lightning.pytorch.callbacks import ModelCheckpoint

from pcea.commands.checkpointing import AtomicCheckpointIO, BestCheckpoint, SaveConfig
from pcea.io.checkpoints import read_checkpoint


@pytest.fixture
def config(tmp_path):
    content = yaml.safe_load(TINY.replace("ROOT", str(tmp_path / "runs")))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "tiny.yaml"


def test_a_failed_write_leaves_the_file_before(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "new" / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)
    save = torch.save

    def fill_disk(content, target):
        save(content, target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_disk)
    with pytest.raises(OSError, match=r"No space left on device: .*new/last\.ckpt"):
        io.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def saved(folder, score):
    """The state of a callback that has saved a best epoch."""
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_text(f"score {score}")
    return {"dirpath": str(folder), "best_model_path": str(folder / "best.ckpt"), "monitor": "val/x",
            "best_model_score": torch.tensor(score), "best_k_models": {}, "kth_best_model_path": "", "kth_value": 0,
            "last_model_path": "", "current_score": torch.tensor(score)}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_best_epoch_stays_the_best_when_training_is_resumed(tmp_path):
    state = saved(tmp_path / "version_0", 0.75)
    resumed = BestCheckpoint(dirpath=tmp_path / "version_1", monitor="val/x", mode="max", filename="best")
    resumed.load_state_dict(state)
    assert float(resumed.best_model_score) == 0.75
    assert (tmp_path / "version_1" / "best.ckpt").read_text() == "score 0.75"
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    for score, is_best in ((0.7, False), (0.8, True)):
        assert resumed.check_monitor_top_k(trainer, torch.tensor(score)) == is_best
    plain = ModelCheckpoint(dirpath=tmp_path / "version_2", monitor="val/x", mode="max", filename="best")
    plain.load_state_dict(state)
    assert plain.best_model_score is None  # what ours is for


def test_a_damaged_checkpoint_names_what_else_is_there(tmp_path, capsys, config):
    (tmp_path / "last.ckpt").write_bytes(b"PK damaged")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint: .*Beside it there is best\.ckpt"):
        read_checkpoint(tmp_path / "last.ckpt")
    result = run(capsys, "fit", "--config", config, "--ckpt_path", tmp_path / "last.ckpt")
    assert_one_line(result, "last.ckpt is not a checkpoint", "best.ckpt")


def start(config, *options, wait_for=None):
    """A long training in a process of its own, once it has saved a checkpoint."""
    command = [sys.executable, "-m", "pcea", "fit", "--config", str(config), "--trainer.max_epochs", "10000", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=config.parent,
        # What a shell starts in the background ignores this signal, and so would its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    last = wait_for or config.parent / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    for _ in range(1800):  # a busy machine takes its time
        if last.is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    return process, last


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interruptions(config, sent, code):
    process, last = start(config)
    process.send_signal(sent)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert read_checkpoint(last)["epoch"] >= 0


@pytest.mark.slow
def test_a_kill_leaves_a_whole_checkpoint_and_the_next_run_cleans_up(config, capsys):
    process, last = start(config)
    process.kill()
    process.communicate()
    read_checkpoint(last)
    machine = socket.gethostname().partition(".")[0]
    leftover = last.with_name(f".last.ckpt@{machine}.{process.pid}.part")
    leftover.touch()
    code, _, errors = run(capsys, "fit", "--config", config, "--trainer.max_epochs", 1)
    assert code == 0, errors
    assert not leftover.exists()


@pytest.fixture
def other_disk(tmp_path):
    """A small filesystem of its own, so that the system's temporary folder lies on another one."""
    with mounted_disk(tmp_path / "disk", size="8m") as disk:
        yield disk


@pytest.mark.slow
def test_kills_and_a_full_disk_on_another_filesystem(config, other_disk):
    """Lightning moved from the temporary folder: a kill left 0 bytes, a full disk a part of the file."""
    content = yaml.safe_load(config.read_text())
    content["trainer"]["default_root_dir"] = str(other_disk / "runs")
    config.write_text(yaml.safe_dump(content))
    for attempt in range(3):
        process, _ = start(config, wait_for=other_disk / "runs" / f"version_{attempt}" / "checkpoints" / "last.ckpt")
        time.sleep(0.1 * attempt)
        process.kill()
        process.communicate()
        last = other_disk / "runs" / f"version_{attempt}" / "checkpoints" / "last.ckpt"
        assert read_checkpoint(last)["epoch"] >= 0
    process, _ = start(config, wait_for=other_disk / "runs" / "version_3" / "checkpoints" / "last.ckpt")
    with (other_disk / "filler").open("wb", buffering=0) as filler:  # what a buffer holds would fail when it is closed
        while process.poll() is None:  # the room that a replaced checkpoint leaves is filled as well
            with suppress(OSError):
                filler.write(bytes(1 << 16))
            time.sleep(0.001)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.splitlines()[-1].startswith("pcea: error: [Errno 28] No space left on device")
    assert read_checkpoint(other_disk / "runs" / "version_3" / "checkpoints" / "last.ckpt")["epoch"] >= 0


class Folder:
    """What a trainer says of the folder of its run."""

    is_global_zero = True

    def __init__(self, log_dir):
        self.log_dir, self.strategy = str(log_dir), self

    def broadcast(self, value):
        return value


class Parser:
    def save(self, config, path, **_):
        Path(path).write_text(config)


def test_a_folder_is_taken_by_one_run_alone(tmp_path):
    trainer, first = Folder(tmp_path / "version_0"), SaveConfig(Parser(), "seed: 1")
    first.setup(trainer, None, "fit")
    first.setup(trainer, None, "fit")  # as Lightning does for a test after training
    with pytest.raises(ValueError, match=r"Another run .* writes into .*version_0: start this one again"):
        SaveConfig(Parser(), "seed: 2").setup(trainer, None, "fit")
    assert (tmp_path / "version_0" / "config.yaml").read_text() == "seed: 1"
