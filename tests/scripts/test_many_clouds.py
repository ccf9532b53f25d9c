"""Clouds that are never all in memory train a network to the same weights."""

from pathlib import Path

import h5py
import pytest
import torch
from examples import run

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_training_from_the_file_and_from_memory(folder, capsys):
    weights = []
    for in_memory in ("false", "true"):
        code, _, errors = run(
            capsys, "fit", "--config", SCRIPTS / "many_clouds.yaml", "--data.init_args.in_memory", in_memory,
            "--data.init_args.num_train", 600, "--data.init_args.num_shapes", 24, "--data.init_args.num_points", 128,
            "--data.init_args.batch_size", 4, "--trainer.max_steps", 3, "--trainer.limit_val_batches", 1,
            "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
            "--trainer.default_root_dir", folder / in_memory,
        )  # fmt: skip
        assert code == 0, errors
        checkpoint = folder / in_memory / "version_0" / "checkpoints" / "last.ckpt"
        weights.append(torch.load(checkpoint, weights_only=False)["state_dict"])
    assert all(torch.equal(read, weights[1][name]) for name, read in weights[0].items())
    with h5py.File(folder / "data" / "many_clouds" / "train_600_of_24_128.h5") as file:
        assert file["data"].shape == (600, 128, 3)
        shape, other_pose = (torch.tensor(file["data"][i]) for i in (5, 29))
    assert not torch.allclose(shape, other_pose, atol=0.01)
    torch.testing.assert_close(torch.cdist(shape, shape), torch.cdist(other_pose, other_pose), atol=1e-3, rtol=0)
