import json
import subprocess
from importlib.metadata import version

import pytest

from pcea.commands import record as module
from pcea.commands.record import (
    commit,
    read_records,
    to_percent,
    write_record,
)

# The committed records have these keys.
KEYS = ["config", "command", "seed", "epoch", "selection", "dataset", "split", "num_points", "votes", "device",
        "minutes", "commit", "metrics", "convention", "categories"]  # fmt: skip


def test_a_record_is_written_whole_and_read_back(tmp_path, record):
    write_record(tmp_path / "deep" / "b.json", record)
    write_record(tmp_path / "deep" / "a.json", record._replace(seed=1))
    assert list(json.loads((tmp_path / "deep" / "b.json").read_text())) == KEYS
    assert read_records(tmp_path / "deep") == [record._replace(seed=1), record]


def test_the_record_of_another_command_is_kept(tmp_path, record):
    path, others = tmp_path / "last.test.json", [record._replace(command=f"pcea test --seed {n}") for n in (1, 2)]
    for each in (record, record._replace(epoch=3), *others):
        write_record(path, each)
    assert read_records(tmp_path) == [record._replace(epoch=3), *others]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "last.test.1.json", "last.test.2.json", "last.test.json"
    ]  # fmt: skip


def test_metrics_in_percent():
    assert to_percent({"test/overall_accuracy": 0.91234, "miou": 1}) == {"overall_accuracy": 91.23, "miou": 100.0}


def test_metrics_that_are_not_fractions():
    generated = {"test/fid": 14.1234, "test/inception_score": 8.6, "test/diversity": 0.75, "test/class_accuracy": 0.5}
    expected = {"fid": 14.12, "inception_score": 8.6, "diversity": 0.75, "class_accuracy": 50.0}
    assert to_percent(generated) == expected


@pytest.fixture
def project(tmp_path):
    """Somebody's git repository whose .venv holds pcea, which git does not track."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "train.py").write_text("import pcea\n")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "Train")
    installed = tmp_path / ".venv" / "pcea" / "commands" / "record.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    return tmp_path, installed


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_the_users_repository_is_not_that_of_pcea(project, monkeypatch):
    _, installed = project
    monkeypatch.setattr(module, "__file__", str(installed))
    assert commit() == version("pcea")


def test_the_commit_of_the_checkout_that_tracks_pcea(project, monkeypatch):
    folder, installed = project
    git(folder, "add", "--force", installed)
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "Vendor pcea")
    monkeypatch.setattr(module, "__file__", str(installed))
    assert commit() == git(folder, "rev-parse", "--short=12", "HEAD")
    installed.write_text("changed\n")
    assert commit().endswith("-dirty")


def test_the_version_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == version("pcea")
