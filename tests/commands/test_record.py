import json
import subprocess
from importlib.metadata import version

import pytest

from pcea.commands import record as module
from pcea.commands.record import (
    CLASSIFICATION,
    IMAGES,
    PARTS,
    SEMANTIC,
    Record,
    category_table,
    commit,
    read_records,
    results_table,
    to_percent,
    write_record,
)

# The committed records have these keys.
KEYS = ["config", "command", "seed", "epoch", "selection", "dataset", "split", "num_points", "votes", "device",
        "minutes", "commit", "metrics", "convention", "categories"]  # fmt: skip


@pytest.fixture
def record():
    return Record(
        config="modelnet40_eat",
        command="pcea test --config modelnet40_eat",
        seed=2,
        epoch=250,
        selection="last",
        dataset="ModelNet40",
        split="test",
        num_points=1024,
        votes=1,
        device="a device",
        minutes=61.6,
        commit="abc",
        metrics={"overall_accuracy": 93.456, "mean_class_accuracy": 90.1},
    )


def test_a_record_is_written_whole_and_read_back(tmp_path, record):
    write_record(tmp_path / "deep" / "b.json", record)
    write_record(tmp_path / "deep" / "a.json", record._replace(seed=1))
    assert list(json.loads((tmp_path / "deep" / "b.json").read_text())) == KEYS
    assert read_records(tmp_path / "deep") == [record._replace(seed=1), record]


def test_the_table_says_what_the_command_changed_in_the_model(record):
    changed = record._replace(
        command="pcea test --config modelnet40_eat --model.init_args.network.init_args.external_attention false "
        "--model.dim=7 --model.feature_network runs/last.ckpt --data.root x"
    )
    row = results_table([changed], CLASSIFICATION).splitlines()[2]
    assert row.startswith("| `modelnet40_eat`, external_attention: false, dim: 7 (seed 2) |")


def test_the_table_has_one_row_per_record(record):
    head, rule, *rows = results_table([record, record._replace(seed=3)], CLASSIFICATION).splitlines()
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells == [
        "`modelnet40_eat` (seed 2)", "ModelNet40 test", "93.46", "90.10", "1024", "1", "250, last", "62 min",
        "a device",
    ]  # fmt: skip
    assert "(seed 3)" in rows[1]


def test_the_table_leaves_out_records_with_other_metrics(record):
    parts = {"instance_miou": 70.0, "category_miou": 71.0, "instance_miou_all_parts": 69.0, "overall_accuracy": 90.0}
    records = [record, record._replace(config="parts", metrics=parts)]
    _, _, row = results_table(records, PARTS).splitlines()
    assert row.startswith("| `parts` (seed 2) | ModelNet40 test | 70.00 | 71.00 | 69.00 | 90.00 | 1024 |")


def test_the_category_table(tmp_path, record):
    first = record._replace(categories={"Cup": (8, 91.04), "Mug": (0, None)})
    second = first._replace(config="other", categories={"Cup": (8, 80.0), "Mug": (0, None)})
    assert category_table([first, second]).splitlines() == [
        "| category | shapes | `modelnet40_eat` | `other` |",
        "|---|---|---|---|",
        "| Cup | 8 | 91.0 | 80.0 |",
        "| Mug | 0 | - | - |",
    ]
    write_record(tmp_path / "a.json", first)
    assert category_table(read_records(tmp_path)) == category_table([first])


def test_image_tables_have_no_column_for_points(record):
    metrics = {"overall_accuracy": 70.0, "mean_class_accuracy": 70.0, "top5_accuracy": 98.76}
    images = record._replace(config="cifar10_eamlp", dataset="CIFAR10", num_points=0, metrics=metrics)
    head, rule, row = results_table([images, record], IMAGES).splitlines()
    assert head == "| config | dataset | overall acc. | top-5 acc. | votes | epoch | training | device |"
    assert rule.count("|") == head.count("|")
    assert row == "| `cifar10_eamlp` (seed 2) | CIFAR10 test | 70.00 | 98.76 | 1 | 250, last | 62 min | a device |"
    masks = images._replace(metrics={"miou": 55.5, "pixel_accuracy": 90.0})
    assert results_table([masks, images], SEMANTIC).splitlines()[2:] == [
        "| `cifar10_eamlp` (seed 2) | CIFAR10 test | 55.50 | 90.00 | 1 | 250, last | 62 min | a device |"
    ]


def test_the_categories_of_semantic_segmentation_are_classes(record):
    masks = record._replace(num_points=0, categories={"sky": (123456, 91.04)})
    assert category_table([masks]).splitlines() == [
        "| class | pixels | `modelnet40_eat` |",
        "|---|---|---|",
        "| sky | 123456 | 91.0 |",
    ]


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
