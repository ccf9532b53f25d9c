"""Many files: batches, reader processes, interruptions, and several processes that share them."""

import csv
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from examples import assert_one_line, run, trained_on_parts

from pcea import eat_classifier
from pcea.inference.points import PointPredictor
from pcea.io.description import NetworkDescription, StoredNetwork
from pcea.io.weights import save_weights

SIZES = {"dim": 16, "num_centers": (16, 8), "num_neighbors": 4, "memory_units": 8, "out_channels": 32,
         "widths": (16, 8)}  # fmt: skip
COUNT = 120


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    description = NetworkDescription("points", "pcea.eat_classifier", {"num_classes": 3, **SIZES}, ("a", "b", "c"), 64)
    save_weights(path, StoredNetwork(description, eat_classifier(3, **SIZES).state_dict()))
    return path


@pytest.fixture(scope="module")
def part_weights(tmp_path_factory):
    path, trained = tmp_path_factory.mktemp("weights") / "parts.safetensors", trained_on_parts()
    save_weights(path, StoredNetwork(trained.description, trained.network.state_dict()))
    return path


@pytest.fixture(scope="module")
def clouds(tmp_path_factory):
    """Clouds of 64 points, some of fewer, and two files that hold none."""
    folder = tmp_path_factory.mktemp("clouds")
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        (folder / str(i % 3)).mkdir(exist_ok=True)
        np.save(folder / str(i % 3) / f"{i:03}.npy", generator.random((64 if i % 7 else 40, 3)) * generator.random(3))
    (folder / "0" / "bad.npy").write_text("no cloud")
    (folder / "2" / "bad.off").write_text("no mesh")
    return folder


@pytest.fixture(scope="module")
def expected(clouds, weights, tmp_path_factory):
    """The rows of one process that reads and predicts every file by itself."""
    path = tmp_path_factory.mktemp("expected") / "out.csv"
    files = [file for folder in sorted(clouds.iterdir()) for file in sorted(folder.iterdir())]
    for start in range(0, len(files), 50):
        command(*files[start : start + 50], "--weights", weights, "--output", path, code=None)
    return rows_of(path)


def command(*arguments, code=0, **environment):
    """Run a command in a process of its own, as torch's threads and the fork server are."""
    line = [sys.executable, "-m", "pcea", "predict", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | environment)
    assert code is None or done.returncode == code, done.stderr
    return done


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def assert_same(rows, expected):
    """The same files, classes and errors in the same order; probabilities up to the last digit that is written."""
    assert [(row["file"], row["rank"], row["error"]) for row in rows] == [
        (row["file"], row["rank"], row["error"]) for row in expected
    ]
    first, second = ([float(row["probability"] or 0) for row in table] for table in (rows, expected))
    assert first == pytest.approx(second, abs=1.1e-4)


def test_batches_of_other_processes_give_what_files_give_alone(clouds, weights, expected, tmp_path):
    done = command(clouds, "--weights", weights, "--output", tmp_path / "out.csv", "--workers", 2, code=1)
    assert_same(rows_of(tmp_path / "out.csv"), expected)
    assert len(done.stdout.splitlines()) == COUNT + 1
    assert "2 of 122 files cannot be read" in done.stderr
    assert len(done.stderr.splitlines()) == 1  # no bar where there is no terminal


def test_a_killed_run_goes_on_without_loss_or_repetition(clouds, weights, expected, tmp_path):
    path = tmp_path / "out.csv"
    line = [sys.executable, "-m", "pcea", "predict", clouds, "--weights", weights, "--output", path, "--workers", "1"]
    with subprocess.Popen([*map(str, line)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not path.exists() or path.read_bytes().count(b"\n") < 20:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    kept = len({row["file"] for row in rows_of(path)})
    assert 6 <= kept < COUNT
    content = path.read_bytes()
    path.write_bytes(content[:-5])  # as if it had been writing
    done = command(clouds, "--weights", weights, "--output", path, "--workers", 1, code=1)
    assert done.stdout.startswith(f"Kept: {kept - 1} of 122 files are in {path} already.\n")
    assert_same(rows_of(path), expected)
    assert path.read_bytes().startswith(content[:-5])
    # Nothing is left to do, and what failed is still named.
    content = path.read_bytes()
    done = command(clouds, "--weights", weights, "--output", path, code=1)
    assert done.stdout.startswith("Kept: 122 of 122")
    assert "2 of 122 files cannot be read" in done.stderr
    assert path.read_bytes() == content


def test_results_of_other_options_are_not_mixed(clouds, weights, tmp_path, capsys):
    line = ("predict", clouds / "0" / "000.npy", "--weights", weights, "--output", tmp_path / "out.csv")
    assert run(capsys, *line)[0] == 0
    result = run(capsys, *line, "--top", 2)
    assert_one_line(result, "results of other settings", "top=3", "those of now are", "top=2", "--overwrite")
    assert run(capsys, *line, "--top", 2, "--overwrite")[0] == 0
    assert len(rows_of(tmp_path / "out.csv")) == 2
    assert run(capsys, *line, "--top", 2, "--up", "auto")[0] == 0  # as it is without the option


def test_strict_stops_at_the_first(clouds, weights, tmp_path, capsys):
    files = [clouds / "0" / "000.npy", clouds / "0" / "bad.npy", clouds / "0" / "003.npy"]
    result = run(capsys, "predict", *files, "--weights", weights, "--output", tmp_path / "out.csv", "--strict")
    assert result[0] == 2
    assert "bad.npy is not a NumPy file" in result[2]
    assert {row["file"] for row in rows_of(tmp_path / "out.csv")} == {str(files[0])}


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")])
def test_several_processes_share_the_files(clouds, weights, expected, tmp_path, capsys, monkeypatch, names):
    monkeypatch.setenv(names[1], "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # under torchrun an exit code would end the others
    for rank in range(3):
        monkeypatch.setenv(names[0], str(rank))
        code, _, _ = run(capsys, "predict", clouds, "--weights", weights, "--output", tmp_path / "out.csv")
        assert code == 0
    parts = [rows_of(tmp_path / f"out.rank{rank}of3.csv") for rank in range(3)]
    found = sorted((row for part in parts for row in part), key=lambda row: (row["file"], row["rank"]))
    assert_same(found, sorted(expected, key=lambda row: (row["file"], row["rank"])))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_goes_on(clouds, part_weights, tmp_path, capsys):
    files = sorted((clouds / "1").iterdir())[:3]
    line = ("predict", *files, "--weights", part_weights, "--category", "bar", "--output", tmp_path / "out")
    assert run(capsys, *line)[0] == 0
    table = tmp_path / "out" / "predictions.csv"
    content = table.read_bytes()
    table.write_bytes(content[: content.rindex(b"\r\n", 0, -2) + 9])  # the last row is cut
    untouched = (tmp_path / "out" / f"{files[0].stem}.ply").stat().st_mtime_ns
    (tmp_path / "out" / f"{files[2].stem}.ply").unlink()
    code, output, errors = run(capsys, *line)
    assert code == 0, errors
    assert output.startswith("Kept: 2 of 3 files")
    assert table.read_bytes() == content
    assert (tmp_path / "out" / f"{files[2].stem}.ply").exists()
    assert (tmp_path / "out" / f"{files[0].stem}.ply").stat().st_mtime_ns == untouched


def test_results_of_files_of_one_name_do_not_replace_each_other(clouds, part_weights, tmp_path, capsys):
    options = "--weights", part_weights, "--category", "bar", "--output", tmp_path / "out"
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.npy").write_bytes((clouds / "0" / "000.npy").read_bytes())
    assert run(capsys, "predict", tmp_path / "a" / "x.npy", *options)[0] == 0
    before = (tmp_path / "out" / "x.npz").read_bytes()
    assert_one_line(
        run(capsys, "predict", tmp_path / "b" / "x.npy", *options), "b/x.npy would be written over", "a/x.npy in"
    )
    assert (tmp_path / "out" / "x.npz").read_bytes() == before
    (tmp_path / "out" / "x.ply").unlink()
    assert_one_line(run(capsys, "predict", tmp_path / "a" / "x.npy", *options), "x.ply is gone", "--overwrite")


def test_a_table_of_another_working_folder_is_not_continued(clouds, weights, tmp_path, capsys, monkeypatch):
    for folder, number in (("a", "000"), ("b", "003")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.npy").write_bytes((clouds / "0" / f"{number}.npy").read_bytes())
    options = "predict", "x.npy", "--weights", weights, "--output", tmp_path / "out.csv"
    monkeypatch.chdir(tmp_path / "a")
    assert run(capsys, *options)[0] == 0
    monkeypatch.chdir(tmp_path / "b")
    assert_one_line(run(capsys, *options), "of other settings", f"folder={tmp_path / 'a'}", f"folder={tmp_path / 'b'}")


def test_a_file_that_torch_refuses_does_not_stop_the_others(clouds, weights, tmp_path, capsys, monkeypatch):
    """As a picture of one row does in a detector."""
    files = [clouds / "0" / f"{number:03}.npy" for number in (0, 3, 6)]
    seen = []

    def refusing(predictor, contents, **options):
        seen.append(len(contents))
        if len(seen) == 1:
            raise RuntimeError("Input and output sizes should be greater than 0")
        return predict(predictor, contents, **options)

    predict = PointPredictor.predict_contents
    monkeypatch.setattr(PointPredictor, "predict_contents", refusing)
    code, output, errors = run(capsys, "predict", *files, "--weights", weights)
    assert code == 1
    assert [line.split()[0] for line in output.splitlines()] == [str(file) for file in files[1:]]
    assert str(files[0]) in errors
    assert "RuntimeError: Input and output sizes" in errors


def test_parquet(clouds, weights, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    line = ("predict", clouds / "1", "--weights", weights, "--output", tmp_path / "out.parquet")
    assert run(capsys, *line)[0] == 0
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [str(row["rank"]) for row in table] == [row["rank"] for row in rows_of(tmp_path / "out.csv")]
    assert len(table) == 120
