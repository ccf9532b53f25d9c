"""Checkpoints: found, read without executing anything, rebuilt; and what two processes make of them."""

import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml
from examples import TINY, assert_one_line, run

from pcea.cli import main
from pcea.commands.export import export
from pcea.inference.networks import load
from pcea.io.checkpoints import newest_checkpoint, read_checkpoint, read_network


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with a configuration and one short run of it."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "tiny.yaml").write_text(
        TINY.replace("ROOT", str(folder / "runs")).replace("max_epochs: 2", "max_epochs: 1")
    )
    main(["fit", "--config", str(folder / "tiny.yaml")])
    return folder


def test_the_newest_run_is_found(tmp_path):
    for version, time in ((9, 200), (10, 300), (11, 100)):
        checkpoint = tmp_path / f"version_{version}" / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        os.utime(checkpoint, (time, time))
    assert newest_checkpoint(tmp_path).parts[-3] == "version_11"  # whatever the times, which a copy may change
    with pytest.raises(FileNotFoundError, match=r"No checkpoint under .*nowhere.*pcea fit"):
        newest_checkpoint(tmp_path / "nowhere")


def resume(capsys, fitted, *options):
    """Go on with the run of one epoch to a third one, which is refused unless the schedule is another."""
    return run(capsys, "fit", "--config", fitted / "tiny.yaml", "--ckpt_path=last", *options)


@pytest.mark.filterwarnings("ignore:Nothing was trained")
def test_a_resumed_run_goes_on_as_it_began(fitted, capsys):
    """Lightning would restore the old optimizer, and the new seed would train on."""
    for option, name in (
        ("--model.init_args.optimizer.init_args.lr=0.5", "optimizer"),
        ("--model.init_args.scheduler.init_args.max_lr=0.5", "scheduler"),
        ("--model.init_args.encoder_rate=0.5", "encoder_rate"),
    ):
        result = resume(capsys, fitted, option)
        assert_one_line(result, f"trained with another {name}: ", "not 0.5", "Resume with the same")
    with pytest.warns(UserWarning, match="goes on with its seed 0, not with 7"):
        code, _, errors = resume(capsys, fitted, "--seed_everything=7")
    assert code == 0, errors
    assert read_checkpoint(newest_checkpoint(fitted / "runs"))["seed"] == 0


@pytest.mark.filterwarnings("ignore:Nothing was trained")
def test_another_network_than_that_of_the_weights_is_noticed(fitted, capsys, tmp_path):
    other = "--model.init_args.network.init_args.num_neighbors=3"
    shutil.copy(newest_checkpoint(fitted / "runs"), tmp_path)
    export(tmp_path / "last.ckpt", output=tmp_path / "tiny.safetensors")
    for name in ("last.ckpt", "tiny.safetensors"):
        command = ["test", "--config", fitted / "tiny.yaml", f"--weights={tmp_path / name}"]
        command.append(f"--trainer.default_root_dir={tmp_path}")
        with pytest.warns(UserWarning, match="weights were trained with num_neighbors 4 instead of 3: set model.init"):
            assert run(capsys, *command, other)[0] == 0
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*were trained with")
            assert run(capsys, *command, "--model.init_args.network.init_args.dropout=0.1")[0] == 0
    with pytest.warns(UserWarning, match="num_neighbors 4 instead of 3"):
        resume(capsys, fitted, other)


def test_a_run_is_tested_by_its_own_configuration(fitted, capsys):
    folder = newest_checkpoint(fitted / "runs").parents[1]
    code, output, errors = run(capsys, "test", "--config", folder / "config.yaml")
    assert code == 0, errors
    assert f"Weights: {folder}" in output
    (folder / "checkpoints" / "last.test.json").unlink()


@pytest.mark.parametrize("logger", ["false", "lightning.pytorch.loggers.CSVLogger"])
def test_checkpoints_are_found_whatever_the_logger(tmp_path, capsys, logger):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("ROOT", str(tmp_path / "runs")))
    options = [f"--trainer.logger={logger}", "--model.init_args.scheduler=null", "--ckpt_path=last"]
    if logger != "false":
        options.append(f"--trainer.logger.init_args.save_dir={tmp_path / 'other'}")
    for version in (0, 1):
        code, _, errors = run(capsys, "fit", "--config", config, f"--trainer.max_epochs={version + 1}", *options)
        assert code == 0, errors
        assert newest_checkpoint(tmp_path / "runs").parts[-3] == f"version_{version}"
        folder = tmp_path / "runs" / f"version_{version}"
        assert (folder / "config.yaml").is_file()
        assert (folder / "metrics.csv").read_text().splitlines()[1].startswith(f"{version},")  # one epoch each
    assert (tmp_path / "other").is_dir() == (logger != "false")


def test_training_ends_in_time(tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("ROOT", str(tmp_path / "runs")).replace("max_epochs: 2", "max_epochs: 9999"))
    command = ["fit", "--config", config, "--data.init_args.num_train=12"]
    assert run(capsys, *command, "--trainer.max_time=00:00:00:01")[0] == 0
    first = read_checkpoint(newest_checkpoint(tmp_path / "runs"))
    assert 0 < first["epoch"] < 9000
    # A resumed run has as much time again.
    assert run(capsys, *command, "--trainer.max_time=00:00:00:01", "--ckpt_path=last")[0] == 0
    second = read_checkpoint(newest_checkpoint(tmp_path / "runs"))
    assert second["epoch"] > first["epoch"]
    with pytest.warns(UserWarning, match="Nothing was trained"):
        run(capsys, *command, "--trainer.max_time=00:00:00:00", "--ckpt_path=last")
    assert run(capsys, *command, "--trainer.max_time=soon")[0] == 2


def test_wrong_options_end_in_one_line(fitted, capsys):
    config = ["fit", "--config", fitted / "tiny.yaml"]
    for option, words in {
        "--trainer.devices=0": "devices",
        "--trainer.limit_train_batches=2.5": "limit_train_batches",
        "--trainer.max_epochs=-5": "max_epochs",
        "--trainer.accumulate_grad_batches=0": "accumulate_grad_batches must be at least 1",
        "--checkpoint.monitor=val/nothing": "val/nothing",
        "--ckpt_path=tiny.safetensors": "a weights file cannot be resumed, only a checkpoint",
    }.items():
        assert_one_line(run(capsys, *config, option), words)
    with pytest.warns(UserWarning, match="Nothing was trained"):
        assert run(capsys, *config, "--trainer.max_epochs=0")[0] == 0


def test_a_checkpoint_rebuilds_its_network(fitted):
    last = newest_checkpoint(fitted / "runs")
    trained, again = load(last), load(last)
    stored = torch.load(last, weights_only=True)["state_dict"]
    assert {f"network.{name}": 0 for name in trained.network.state_dict()}.keys() == stored.keys()
    assert all(torch.equal(value, stored[f"network.{name}"]) for name, value in trained.network.state_dict().items())
    points = torch.randn(3, 32, 3)
    assert torch.equal(trained.network(points), again.network(points))
    assert (trained.description.num_points, len(trained.class_names), trained.network.num_classes) == (32, 12, 12)


def test_a_part_of_the_test_split_makes_no_record(fitted, capsys):
    main(["test", "--config", str(fitted / "tiny.yaml"), "--trainer.limit_test_batches", "1"])
    assert "No record: this is a part of the test split." in capsys.readouterr().out
    assert not [*fitted.rglob("*.test.json")]


def test_a_checkpoint_holds_a_description_and_no_code(fitted):
    checkpoint = read_checkpoint(newest_checkpoint(fitted / "runs"))
    assert "hyper_parameters" not in checkpoint
    about = checkpoint["network"]
    assert (about["task"], about["builder"]) == ("points", "pcea.models.eat_classifier")
    assert (about["num_points"], about["class_names"][:1], about["arguments"]["dim"]) == (32, ["airplane"], 16)


def test_checkpoints_from_before_there_were_descriptions(fitted, tmp_path):
    last = newest_checkpoint(fitted / "runs")
    checkpoint = read_checkpoint(last)
    about = checkpoint.pop("network")
    checkpoint["hyper_parameters"] = {
        "network": {"class_path": about["builder"], "init_args": {**about["arguments"], "weights": None}},
        "optimizer": {"class_path": "torch.optim.AdamW"},
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "_class_path": "pcea.tasks.classification.ClassificationTask",
    }
    torch.save(checkpoint, tmp_path / "old.ckpt")
    old, now = load(tmp_path / "old.ckpt"), load(last)
    points = torch.randn(3, 32, 3)
    assert torch.equal(old.network(points), now.network(points))
    untold = {"temperature": 1.0, "known_above": None}  # it did not say how far to trust it
    assert old.description == now.description._replace(**untold)


def test_a_checkpoint_that_does_not_say_its_network(fitted, tmp_path):
    checkpoint = read_checkpoint(newest_checkpoint(fitted / "runs"))
    del checkpoint["network"]
    torch.save(checkpoint, tmp_path / "bare.ckpt")
    for use in (load, lambda path: export(path, output=tmp_path / "out.safetensors")):
        with pytest.raises(ValueError, match=r"bare\.ckpt was not made by `pcea fit`"):
            use(str(tmp_path / "bare.ckpt"))
    assert not (tmp_path / "out.safetensors").exists()


def fit_parts(folder):
    """Train a tiny segmenter by `tiny.yaml` of a folder; its last checkpoint."""
    content = yaml.safe_load(TINY.replace("ROOT", str(folder / "runs")))
    content["trainer"]["max_epochs"] = 1
    content["checkpoint"]["monitor"] = None
    content["model"]["class_path"] = "pcea.tasks.PointSegmentationTask"
    content["model"]["init_args"]["network"] = {
        "class_path": "pcea.models.eat_part_segmenter",
        "init_args": {"num_classes": 42, "num_categories": 12, "dim": 16, "num_neighbors": 4, "memory_units": 8,
                      "out_channels": 32, "widths": [16, 8]},
    }  # fmt: skip
    content["data"]["class_path"] = "pcea.datamodules.ShapesPartsDataModule"
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    main(["fit", "--config", str(folder / "tiny.yaml")])
    return newest_checkpoint(folder / "runs")


def test_a_segmenter_is_exported_with_its_parts(tmp_path):
    last = fit_parts(tmp_path)
    export(last, output=tmp_path / "parts.safetensors")

    trained, restored = load(last), load(tmp_path / "parts.safetensors")
    assert list(restored.description.parts.items()) == list(trained.description.parts.items())
    assert (len(restored.description.parts), len(restored.class_names), restored.description.num_points) == (12, 42, 32)
    assert restored.class_names == trained.class_names
    points, category = torch.randn(2, 32, 3), torch.tensor([3, 11])
    torch.testing.assert_close(  # half precision
        restored.network(points, category=category), trained.network(points, category=category), atol=0.03, rtol=0.03
    )


SAVE_EVERY_RANK = """
import lightning as L
import torch


class SaveEveryRank(L.Callback):
    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), f"rank{trainer.global_rank}.pt")
"""


def pcea(folder, command, *options):
    """Run a command on the configuration of a folder in processes of its own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pcea", command, "--config", "tiny.yaml", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(fitted):
    """25 clouds, of which each process gets another number."""
    both, alone = (
        pcea(fitted, "test", "--data.init_args.num_test=25", "--trainer.strategy=ddp", f"--trainer.devices={devices}")
        for devices in (2, 1)
    )
    accuracies = [[line for line in output.splitlines() if "accuracy" in line] for output in (both, alone)]
    assert len(accuracies[0]) == 2
    assert accuracies[0] == accuracies[1]


@pytest.mark.slow
def test_two_processes_measure_the_same_parts_as_one(tmp_path):
    fit_parts(tmp_path)
    both, alone = (
        pcea(tmp_path, "test", "--data.init_args.num_test=25", "--trainer.strategy=ddp", f"--trainer.devices={devices}")
        for devices in (2, 1)
    )
    tables = [[line for line in output.splitlines() if "%" in line] for output in (both, alone)]
    assert len(tables[0]) == 3 + 12  # metrics, categories
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_both_processes_end_with_the_same_eat(tmp_path):
    """With dropout, augmentation and batch norm; each process has statistics of its own, the first's are kept."""
    (tmp_path / "save_every_rank.py").write_text(SAVE_EVERY_RANK)
    content = yaml.safe_load(TINY.replace("ROOT", str(tmp_path / "runs")))
    content["trainer"] |= {
        "devices": 2,
        "strategy": "ddp",
        "callbacks": [{"class_path": "save_every_rank.SaveEveryRank"}],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    pcea(tmp_path, "fit")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    stored = read_checkpoint(newest_checkpoint(tmp_path / "runs"))["state_dict"]
    for name, value in first.items():
        assert torch.equal(stored[name], value), name
        if "running_" not in name:
            assert torch.equal(second[name], value), name


def test_the_classes_of_the_data_are_counted(tmp_path):
    """num_classes: null, for a network from scratch, for a head on trained weights, and with a background."""
    rng = np.random.default_rng(0)
    for name in ("ball", "cube", "rod"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for k in range(4):
            np.save(tmp_path / "own" / name / f"{k}.npy", rng.random((300, 3)))
    root, fast = (
        f"--data.init_args.root={tmp_path / 'own'}",
        ["--trainer.max_epochs=1", "--data.init_args.batch_size=4"],
    )
    points = ["--data.init_args.num_points=300", "--data.init_args.augment=[]", "--data.init_args.val_fraction=0"]
    for config, more, classes in (
        ("folder_eat", ["--trainer.precision=32-true", "--checkpoint.monitor=null"], 3),
        ("folder_finetune", [], 3),
        ("folder_finetune", ["--model.init_args.background=true"], 4),
    ):
        folder = tmp_path / f"run{classes}{config}"
        options = ["--config", config, root, *fast, *points, *more, f"--trainer.default_root_dir={folder}"]
        main(["fit", *options, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
        stored = read_network(folder / "version_0" / "checkpoints" / "last.ckpt")
        assert stored.description.class_names == ("ball", "cube", "rod")
        assert stored.description.arguments["num_classes"] == classes
        assert stored.description.background == (classes == 4)


def test_files_lie_as_those_of_training_unless_one_says_otherwise(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("flat", "high"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for k in range(4):
            np.save(tmp_path / "own" / name / f"{k}.npy", rng.random((300, 3)) * [1, 1, 3 if name == "high" else 0.3])
    options = [
        "--config=folder_eat", f"--data.init_args.root={tmp_path / 'own'}", f"--trainer.default_root_dir={tmp_path}",
        "--data.init_args.num_points=300", "--data.init_args.batch_size=4", "--trainer.accelerator=cpu",
        "--trainer.precision=32-true", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    main(["fit", *options, "--data.init_args.up=z", "--trainer.max_epochs=1", "--checkpoint.monitor=null"])
    weights = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    network, cloud = load(weights), np.load(tmp_path / "own" / "high" / "0.npy")
    assert network.description.up == "z"
    found = [network.predict(cloud, **up).probabilities for up in ({}, {"up": "z"}, {"up": "y"})]
    assert found[0] == found[1] != found[2]
    with pytest.warns(UserWarning, match="trained with data.init_args.up z, and is measured with y: if the files are"):
        main(["test", *options])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*trained with")
        main(["test", *options, "--data.init_args.up=z"])
    saved = tmp_path / "z.safetensors"
    export(str(weights), output=saved)
    assert load(saved).description.up == "z"
    with pytest.warns(UserWarning, match="trained with data.init_args.up z"):
        main(["test", *options, f"--weights={saved}"])
    # Of a folder of test files alone the classes are those of the weights.
    (tmp_path / "own").rename(tmp_path / "test")
    (tmp_path / "alone").mkdir()
    (tmp_path / "test").rename(tmp_path / "alone" / "test")
    options[1] = f"--data.init_args.root={tmp_path / 'alone'}"
    main(["test", *options, "--data.init_args.up=z"])
    shutil.rmtree(tmp_path / "alone" / "test" / "flat")
    with pytest.raises(SystemExit):
        main(["test", *options, "--data.init_args.up=z"])
    assert (
        "The data has 1 classes, but the network has num_classes=2. Measure it on data with" in capsys.readouterr().err
    )
