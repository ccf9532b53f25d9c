"""The JSON record of a test run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from pcea.io.atomic import atomic_file


class Record(NamedTuple):
    """What a test run measured, and how.

    Attributes:
        config: Name of the configuration.
        command: The command that was run.
        seed: Seed of the training.
        epoch: Number of epochs trained.
        selection: `last` for the last epoch, `best_val` for the best one on the validation split.
        dataset: Name of the dataset.
        split: Name of the split.
        num_points: Points per cloud that the network saw; 0 for images.
        votes: Number of averaged passes; 1 means no voting.
        device: What the test ran on.
        minutes: Training time.
        commit: Version of the code.
        metrics: Values in percent, except the metrics in `NO_SHARES`, which are kept as they are.
        convention: How to read the metrics where conventions differ.
        categories: A count and a metric in percent, or None where nothing was counted. Part segmentation: shapes and
            instance mIoU per category. Semantic segmentation: pixels and IoU per class. Detection: objects and average
            precision per class.
    """

    config: str
    command: str
    seed: int
    epoch: int
    selection: str
    dataset: str
    split: str
    num_points: int
    votes: int
    device: str
    minutes: float
    commit: str
    metrics: dict[str, float]
    convention: str = ""
    categories: dict[str, tuple[int, float | None]] = {}  # noqa: RUF012  # never written to


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON. That of another command is kept beside it, with a number before its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and _command_of(path) != record.command:
        kept = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
        path.rename(next(other for other in kept if not other.exists()))
    with atomic_file(path) as part:
        part.write_text(json.dumps(record._asdict(), indent=2) + "\n", encoding="utf-8")


def _command_of(path: Path) -> str | None:
    with suppress(ValueError, KeyError, TypeError):  # no record
        return str(json.loads(path.read_text(encoding="utf-8"))["command"])
    return None


def read_records(folder: Path) -> list[Record]:
    """Read all records in a folder, sorted by file name."""
    return [Record(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]


NO_SHARES = ("fid", "inception_score", "frechet_distance", "classifier_score", "real_classifier_score", "diversity")
"""Metrics of generated images that are not fractions, so that percent would be wrong."""


def category_headings(record: Record) -> tuple[str, str, str]:
    """Headings for a record's categories: what they are, what is counted, and what is measured."""
    if record.num_points:
        return "category", "shapes", "instance mIoU"
    if "box_ap" in record.metrics:
        return "class", "objects", "mask AP" if "mask_ap" in record.metrics else "box AP"
    return "class", "pixels", "IoU"


def to_percent(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Turn trainer metrics (`test/overall_accuracy`: 0.912) into record metrics (`overall_accuracy`: 91.2)."""
    named = {name.rpartition("/")[2]: float(value) for name, value in metrics.items()}
    return {name: round(value if name in NO_SHARES else 100 * value, 2) for name, value in named.items()}


def commit() -> str:
    """Short hash of the checkout that tracks this file, with `-dirty` if files were changed; else pcea's version.

    Git looks for a repository in all parent folders. One that does not track this file belongs to a user who has
    pcea in a `.venv` there.
    """
    file = Path(__file__)
    git = partial(subprocess.run, cwd=file.parent, capture_output=True, text=True, check=True)
    try:
        git(["git", "ls-files", "--error-unmatch", file.name])
        described = git(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
    except (OSError, subprocess.CalledProcessError):
        return version("pcea")
    return described.stdout.strip()
