import json
import subprocess

import pytest

from pcea import record as module
from pcea.record import (
    CLASSIFICATION,
    PARTS,
    Record,
    category_table,
    commit,
    read_records,
    results_table,
    to_percent,
    write_record,
)

# DESIGN: all records have the same keys.
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


def test_the_table_has_a_row_a_record(record):
    head, rule, *rows = results_table([record, record._replace(seed=3)], CLASSIFICATION).splitlines()
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells == [
        "`modelnet40_eat` (seed 2)", "ModelNet40 test", "93.46", "90.10", "1024", "1", "250, last", "62 min",
        "a device",
    ]  # fmt: skip
    assert "(seed 3)" in rows[1]


def test_the_table_leaves_out_records_of_other_metrics(record):
    parts = {"instance_miou": 70.0, "category_miou": 71.0, "instance_miou_all_parts": 69.0, "overall_accuracy": 90.0}
    records = [record, record._replace(config="parts", metrics=parts)]
    _, _, row = results_table(records, PARTS).splitlines()
    assert row.startswith("| `parts` (seed 2) | ModelNet40 test | 70.00 | 71.00 | 69.00 | 90.00 | 1024 |")


def test_the_table_of_categories(tmp_path, record):
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


def test_metrics_in_percent():
    assert to_percent({"test/overall_accuracy": 0.91234, "miou": 1}) == {"overall_accuracy": 91.23, "miou": 100.0}


def test_the_commit_is_that_of_the_checkout_or_the_version(monkeypatch):
    assert commit()

    def no_git(*_, **__):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(module.subprocess, "run", no_git)
    assert commit() == "0.1.0"
