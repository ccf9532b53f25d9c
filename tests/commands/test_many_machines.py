"""Training on two machines: here two processes of one, started by torchrun, or as SLURM starts them."""

import csv
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from examples import TINY, assert_one_line, run

from pcea.cli import main

ROOT = Path(__file__).parents[2]
SLURM_SCRIPT = ROOT / "scripts" / "examples" / "slurm.sh"

PLAIN_NETWORK = """
from torch import nn


class PlainNetwork(nn.Sequential):
    num_classes = 12

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(96, 24), nn.ReLU(), nn.Linear(24, 12))

    def forward(self, points, features=None, *, mask=None):
        return super().forward(points)
"""

# What SLURM does for two machines with one task each.
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 3
shift
export SLURM_NTASKS=2 SLURM_LOCALID=0 MASTER_PORT=PORT
SLURM_PROCID=1 SLURM_NODEID=1 "$@" &
SLURM_PROCID=0 SLURM_NODEID=0 "$@" && wait $!
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A tiny configuration without randomness, which is each process's own: no augmentation, no dropout."""
    content = yaml.safe_load(TINY.replace("ROOT", "one"))
    content["checkpoint"] |= {"save_top_k": -1, "filename": "{epoch}"}
    # With a higher rate the network with batch norm makes large differences out of those of rounding.
    content["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.001}}
    content["model"]["init_args"]["network"]["init_args"]["dropout"] = 0
    del content["model"]["init_args"]["scheduler"], content["data"]["init_args"]["augment"]
    content["data"]["init_args"]["num_val"] = 13  # 7 for one process, 6 for the other
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return content


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def checkpoint(folder, name="last.ckpt", version=0):
    return torch.load(Path(folder, f"version_{version}", "checkpoints", name), weights_only=True)


def difference(checkpoint, other):
    """The largest difference of two checkpoints' weights and statistics."""
    pairs = zip(checkpoint["state_dict"].values(), other["state_dict"].values())
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def metrics(folder):
    """Rows of a run's table, without the empty fields."""
    with Path(folder, "version_0", "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def torchrun(rank, port, *options):
    """Start one of two machines."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", "pcea", "fit", "--config=tiny.yaml"]
    command += ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.slow
def test_two_machines_train_and_measure_as_one_process(config, capsys):
    """EAT with synchronized batch norms, by torchrun; and what they began, one process completes."""
    port = free_port()
    options = ["--trainer.default_root_dir=two", "--data.init_args.batch_size=6", "--trainer.sync_batchnorm=true"]
    machines = [torchrun(rank, port, *options) for rank in (1, 0)]
    main(["fit", "--config=tiny.yaml"])
    for machine in machines:
        _, errors = machine.communicate(timeout=300)
        assert machine.returncode == 0, errors
    one = checkpoint("one")
    assert difference(checkpoint("one", "epoch=0.ckpt"), one) > 1e-3  # it learns
    assert difference(checkpoint("two"), one) < 1e-5
    assert metrics("two") == [pytest.approx(row, abs=1e-5) for row in metrics("one")]
    # One of them writes.
    assert [path.name for path in Path("two").iterdir()] == ["version_0"]
    assert {path.name for path in Path("two", "version_0", "checkpoints").iterdir()} == {
        "epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt",
    }  # fmt: skip

    checkpoints = Path("two", "version_0", "checkpoints")
    shutil.copy(checkpoints / "epoch=0.ckpt", checkpoints / "last.ckpt")
    code, _, errors = run(capsys, "fit", "--config=tiny.yaml", "--trainer.default_root_dir=two", "--ckpt_path=last")
    assert code == 0, errors
    assert difference(checkpoint("two", version=1), one) < 1e-5


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_machines(config, tmp_path, monkeypatch):
    """A network without batch norm, from nothing: `--ckpt_path last` finds no run yet."""
    (tmp_path / "plain_network.py").write_text(PLAIN_NETWORK)
    init = config["model"]["init_args"]
    init["network"] = {"class_path": "plain_network.PlainNetwork"}
    init["optimizer"]["init_args"]["lr"] = 0.1
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.syspath_prepend(tmp_path)

    pcea = f'#!/bin/sh\nexec {sys.executable} -m pcea "$@"'
    for name, text in (("srun", SRUN.replace("PORT", str(free_port()))), ("pcea", pcea)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    options = ["--config=tiny.yaml", "--trainer.default_root_dir=two", "--data.init_args.batch_size=6"]
    given = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "7"}
    given |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    given |= {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    job = subprocess.Popen(
        ["bash", SLURM_SCRIPT, *options], env=os.environ | given, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    main(["fit", "--config=tiny.yaml"])
    _, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert difference(checkpoint("one", "epoch=0.ckpt"), checkpoint("one")) > 1e-3
    assert difference(checkpoint("two"), checkpoint("one")) < 1e-5


def test_another_batch_goes_on_at_the_next_epoch_unless_there_is_a_schedule(config, capsys):
    """As on another number of processes: the order of the samples is the same, the number of steps is not."""
    main(["fit", "--config=tiny.yaml"])
    first = "--ckpt_path=one/version_0/checkpoints/epoch=0.ckpt"
    code, _, errors = run(capsys, "fit", "--config=tiny.yaml", first, "--data.init_args.batch_size=6")
    assert code == 0, errors
    resumed = checkpoint("one", version=1)
    assert (resumed["epoch"], resumed["global_step"]) == (1, 4 + 8)

    config["model"]["init_args"]["scheduler"] = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR"}
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    options = ["fit", "--config=tiny.yaml", "--trainer.default_root_dir=new"]
    main(options)
    first = "--ckpt_path=new/version_0/checkpoints/epoch=0.ckpt"
    result = run(capsys, *options, first, "--data.init_args.batch_size=6")
    assert_one_line(result, "schedule has 8 steps", "this run's has 16", "number of devices")
