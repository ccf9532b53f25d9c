"""The command line as a user meets it."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from examples import TINY, assert_one_line, run

from pcea.cli import main, resolve_configs
from pcea.io.configs import config_names, config_path


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("ROOT", str(tmp_path / "runs")))
    return path


def test_usage(capsys):
    code, output, _ = run(capsys)
    assert code == 0
    for command in ("fit", "validate", "test", "predict", "download", "export", "configs"):
        assert f"\n  {command} " in output


def test_an_unknown_command_is_named_with_those_there_are(capsys):
    assert_one_line(run(capsys, "train"), "'train'", "fit, validate, test, predict")


def test_configs_are_found_by_name_or_path(config):
    assert config_path("shapes_eat").name == "shapes_eat.yaml"
    assert config_path(str(config)) == config
    options = ["--config", "shapes_eat", "--config=modelnet40_eat", "-c", "modelnet40_pct", "--data.x", "shapes_eat"]
    resolved = resolve_configs(options)
    assert [Path(part.removeprefix("--config=")).name for part in resolved] == [
        "--config", "shapes_eat.yaml", "modelnet40_eat.yaml", "-c", "modelnet40_pct.yaml", "--data.x", "shapes_eat",
    ]  # fmt: skip


def test_configs_are_listed_with_what_they_are(capsys):
    _, output, _ = run(capsys, "configs")
    lines = output.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(len(line.split()) > 4 for line in lines)


def test_names_that_the_console_cannot_show_are_escaped(tmp_path):
    """Bytes of CP1252, as unzip leaves them, and Chinese on a console that knows neither."""
    for name in (b"caf\xe9.npy", "\u6905\u5b50.npy".encode()):
        np.save(tmp_path / "cloud.npy", np.random.default_rng(0).random((1200, 3)))
        (tmp_path / "cloud.npy").rename(tmp_path / os.fsdecode(name))
    command = [sys.executable, "-m", "pcea", "predict", *sorted(tmp_path.iterdir()), "--output", tmp_path / "a.csv"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\udce9.npy" in done.stdout
    assert b"\\u6905\\u5b50.npy" in done.stdout
    rows = (tmp_path / "a.csv").read_text(encoding="utf-8")
    assert "caf\\udce9.npy" in rows
    assert "椅子.npy" in rows


def test_a_reader_that_has_enough_ends_the_command_quietly():
    with subprocess.Popen(
        [sys.executable, "-m", "pcea", "configs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141  # as a program that SIGPIPE ends


def test_an_unknown_config_names_those_there_are(capsys):
    assert_one_line(run(capsys, "fit", "--config", "modelnet41"), "'modelnet41'", "modelnet40_eat")


@pytest.mark.parametrize("option", ["--config", "-c"])
def test_a_given_config_is_not_mixed_with_the_default_one(capsys, config, option):
    """shapes_eat has bf16 and 16 epochs."""
    code, output, _ = run(capsys, "fit", option, config, "--print_config")
    trainer = yaml.safe_load(output)["trainer"]
    assert (code, trainer["precision"], trainer["max_epochs"]) == (0, None, 2)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("memory_units", "memory_unit"), ("max_epochs", "max_epoch"), ("num_train", "num_trian"), ("monitor", "moniter")],
)
def test_a_misspelt_key_is_named(capsys, config, right, wrong):
    config.write_text(config.read_text().replace(right, wrong))
    assert_one_line(run(capsys, "fit", "--config", config), wrong)


@pytest.mark.parametrize("ending", ["=null", " null"])
def test_a_null_that_would_become_text_is_refused(capsys, config, ending):
    option = f"--model.init_args.network.init_args.weights{ending}".split()
    code, _, errors = run(capsys, "fit", "--config", config, *option)
    assert code == 2
    assert errors == (
        "pcea: error: --model.init_args.network.init_args.weights cannot be set to null here: copy the configuration "
        "and write null in it.\n"
    )


def test_num_classes_that_does_not_fit_the_data(capsys, config):
    config.write_text(config.read_text().replace("num_classes: 12", "num_classes: 13"))
    assert_one_line(run(capsys, "fit", "--config", config), "12 classes", "num_classes=13")


def test_a_missing_dataset_says_how_to_get_it(capsys, tmp_path):
    options = ("--data.init_args.root", tmp_path, "--trainer.default_root_dir", tmp_path / "runs")
    result = run(capsys, "fit", "--config", "modelnet40_eat", *options)
    assert_one_line(result, "No ModelNet40 train split", "pcea download modelnet40")


def test_batch_norm_needs_more_than_one_sample(capsys, config):
    result = run(capsys, "fit", "--config", config, "--data.init_args.batch_size", 1)
    assert_one_line(result, "Batch norm cannot learn from a batch of one sample", "batch_size to 2 or more")


def test_no_checkpoint(capsys, config, tmp_path):
    assert_one_line(run(capsys, "test", "--config", config), "No checkpoint under", "pcea fit")
    assert_one_line(run(capsys, "test", "--config", config, "--weights", tmp_path / "no.ckpt"), "No trained network")


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("command", ["test", "fit", "predict"])
def test_a_file_that_is_no_checkpoint_is_not_executed(capsys, config, tmp_path, command):
    for content in (b"some text", pickle.dumps(Bomb(tmp_path / "exploded"))):
        (tmp_path / "bad.ckpt").write_bytes(content)
        np.save(tmp_path / "cloud.npy", np.random.default_rng(0).random((32, 3)))
        if command == "predict":
            options = (tmp_path / "cloud.npy", "--weights", tmp_path / "bad.ckpt")
        else:
            options = ("--config", config, "--ckpt_path" if command == "fit" else "--weights", tmp_path / "bad.ckpt")
        assert_one_line(run(capsys, command, *options), "bad.ckpt is not a checkpoint")
    assert not (tmp_path / "exploded").exists()
    torch.save({"weights": torch.zeros(3)}, tmp_path / "bad.ckpt")
    if command != "predict":
        assert_one_line(run(capsys, command, *options), "no state_dict")


def test_fit_test_export_predict(capsys, config, tmp_path):
    code, output, _ = run(capsys, "fit", "--config", config)
    assert code == 0
    version = tmp_path / "runs" / "version_0"
    last, best = version / "checkpoints" / "last.ckpt", version / "checkpoints" / "best.ckpt"
    assert f"--weights {last}" in output
    for file in (last, best, version / "config.yaml", version / "metrics.csv"):
        assert file.is_file()
    assert list(version.glob("events.out.tfevents.*"))
    assert yaml.safe_load((version / "config.yaml").read_text())["trainer"]["max_epochs"] == 2

    code, output, _ = run(capsys, "test", "--config", config)  # takes the newest run's last epoch
    record = json.loads((version / "checkpoints" / "last.test.json").read_text())
    assert code == 0
    assert f"overall accuracy        {record['metrics']['overall_accuracy']:6.2f} %" in output
    expected = {"config": "tiny", "seed": 0, "epoch": 2, "selection": "last", "dataset": "Shapes", "split": "test",
                "num_points": 32, "votes": 1}  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert record["metrics"].keys() == {"overall_accuracy", "mean_class_accuracy", "calibration_error"}
    assert record["metrics"]["overall_accuracy"] == pytest.approx(record["metrics"]["mean_class_accuracy"], abs=0.011)

    run(capsys, "test", "--config", config, "--weights", best, "--model.init_args.votes", 3)
    record = json.loads((version / "checkpoints" / "best.test.json").read_text())
    assert (record["selection"], record["votes"]) == ("best_val", 3)

    code, output, _ = run(capsys, "validate", "--config", config)
    assert code == 0
    assert "overall accuracy" in output

    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).random((50, 3)))
    run(capsys, "export", last, "--output", tmp_path / "tiny.safetensors")
    _, from_weights, _ = run(capsys, "predict", tmp_path / "cloud.npy", "--weights", tmp_path / "tiny.safetensors")
    _, from_checkpoint, _ = run(capsys, "predict", tmp_path / "cloud.npy", "--weights", last)
    assert run(capsys, "predict", tmp_path / "cloud.npy", "--weights", config)[1] == from_checkpoint
    assert from_weights.split()[1::2] == from_checkpoint.split()[1::2]
    assert len(from_weights.split()) == 7


def test_resume_goes_on_at_the_next_epoch(capsys, config, tmp_path):
    keep_all = ("--checkpoint.save_top_k", -1, "--checkpoint.filename", "{epoch}")
    run(capsys, "fit", "--config", config, *keep_all)
    first = tmp_path / "runs" / "version_0" / "checkpoints" / "epoch=0.ckpt"
    code, _, errors = run(capsys, "fit", "--config", config, "--ckpt_path", first)
    assert code == 0, errors
    rows = (tmp_path / "runs" / "version_1" / "metrics.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"1"}
    ends = [
        torch.load(tmp_path / "runs" / f"version_{v}" / "checkpoints" / "last.ckpt", weights_only=True) for v in (0, 1)
    ]
    for name, value in ends[0]["state_dict"].items():
        assert value.equal(ends[1]["state_dict"][name]), name
    result = run(capsys, "fit", "--config", config, "--ckpt_path", first, "--trainer.max_epochs", 3)
    assert_one_line(result, "schedule has 8 steps", "12", "same trainer.max_epochs")


@pytest.mark.filterwarnings("ignore:Nothing was trained")
def test_a_resumed_run_takes_the_best_checkpoint_along(capsys, config, tmp_path):
    run(capsys, "fit", "--config", config)
    first, second = (tmp_path / "runs" / f"version_{v}" / "checkpoints" for v in (0, 1))
    best = torch.load(first / "best.ckpt", weights_only=True)
    code, _, errors = run(capsys, "fit", "--config", config, "--ckpt_path", first / "last.ckpt")  # at its end already
    assert code == 0, errors
    taken = torch.load(second / "best.ckpt", weights_only=True)
    assert taken["epoch"] == best["epoch"]
    assert all(value.equal(taken["state_dict"][name]) for name, value in best["state_dict"].items())


def test_an_interruption_within_compiled_code_is_one(monkeypatch):
    def interrupted(_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interruption:
            raise SystemError("returned a result with an exception set") from interruption

    monkeypatch.setattr("pcea.cli._configs", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["configs"])
    assert stop.value.code == 130

    def broken(_):
        raise SystemError("a fault of its own")

    monkeypatch.setattr("pcea.cli._configs", broken)
    with pytest.raises(SystemError, match="of its own"):
        main(["configs"])


def test_commands_need_no_docstrings(tmp_path):
    """Which `python -OO` strips."""
    options = ["-OO", "-m", "pcea", "predict", "--help"]
    done = subprocess.run([sys.executable, *options], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "--weights" in done.stdout


def test_warnings_in_training_are_one_line(monkeypatch):
    """Importing Lightning replaces how warnings look."""
    import lightning.fabric.utilities.warnings as theirs

    import pcea.commands.fit

    def run(*_: object) -> None:
        seen.append(warnings.formatwarning("mind this", UserWarning, theirs.__file__, 7))

    seen: list[str] = []
    monkeypatch.setattr(warnings, "formatwarning", theirs._custom_format_warning)
    monkeypatch.setattr(pcea.commands.fit, "run", run)
    main(["fit"])
    assert seen == ["pcea: warning: mind this\n"]
