"""The JSON record of a test run, and tables made from records."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple


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
    """Write a record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record._asdict(), indent=2) + "\n", encoding="utf-8")


def read_records(folder: Path) -> list[Record]:
    """Read all records in a folder, sorted by file name."""
    return [Record(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]


CLASSIFICATION = {"overall acc.": "overall_accuracy", "mean-class acc.": "mean_class_accuracy"}
PARTS = {
    "instance mIoU": "instance_miou",
    "category mIoU": "category_miou",
    "instance mIoU, all parts": "instance_miou_all_parts",
    "accuracy of points": "overall_accuracy",
}
IMAGES = {"overall acc.": "overall_accuracy", "top-5 acc.": "top5_accuracy"}
NO_SHARES = ("fid", "inception_score", "frechet_distance", "classifier_score", "real_classifier_score", "diversity")
"""Metrics of generated images that are not fractions, so that percent would be wrong."""
SEMANTIC = {"mIoU": "miou", "accuracy of pixels": "pixel_accuracy"}
BOXES = {"box AP": "box_ap", "box AP50": "box_ap50"}
MASKS = {**BOXES, "mask AP": "mask_ap", "mask AP50": "mask_ap50"}
GENERATED = {
    "Fréchet distance": "frechet_distance",
    "classifier score": "classifier_score",
    "of real images": "real_classifier_score",
    "accuracy of classes": "class_accuracy",
    "diversity": "diversity",
}


def results_table(records: Iterable[Record], metrics: Mapping[str, str]) -> str:
    """A Markdown table with one row per record that has all of these metrics, given as {heading: metric name}.

    Tables of image results have no column for points.
    """
    chosen = [r for r in records if set(metrics.values()) <= r.metrics.keys()]
    of_clouds = any(r.num_points for r in chosen)
    head = f"| config | dataset | {' | '.join(metrics)} |{' points |' * of_clouds} votes | epoch | training | device |"
    rows = [head, "|---" * (head.count("|") - 1) + "|"]
    for r in chosen:
        rows.append(
            f"| `{r.config}`{_changes(r)} (seed {r.seed}) | {r.dataset} {r.split} | "
            f"{' | '.join(f'{r.metrics[name]:.2f}' for name in metrics.values())} |"
            f"{f' {r.num_points} |' * of_clouds} {r.votes} | "
            f"{r.epoch}, {r.selection} | {r.minutes:.0f} min | {r.device} |"
        )
    return "\n".join(rows)


def _changes(record: Record) -> str:
    """Model options that the command overrides, such as `, external_attention: false`; file paths are left out."""
    changed = re.findall(r"--model\.(?:\w+\.)*(\w+)[ =](\S+)", record.command)
    return "".join(f", {name}: {value}" for name, value in changed if "/" not in value)


def category_table(records: Sequence[Record]) -> str:
    """A Markdown table of the metric per category or class, with one column per record; all of the same dataset."""
    name, counted, _ = category_headings(records[0])
    rows = [
        f"| {name} | {counted} | {' | '.join(f'`{r.config}`' for r in records)} |",
        "|---" * (len(records) + 2) + "|",
    ]
    for name, (shapes, _) in records[0].categories.items():
        values = (r.categories[name][1] for r in records)
        rows.append(f"| {name} | {shapes} | {' | '.join('-' if v is None else f'{v:.1f}' for v in values)} |")
    return "\n".join(rows)


def category_headings(record: Record) -> tuple[str, str, str]:
    """Headings for a record's categories: what they are, what is counted, and what is measured."""
    if record.num_points:
        return "category", "shapes", "instance mIoU"
    if "box_ap" in record.metrics:
        return "class", "objects", "mask AP" if "mask_ap" in record.metrics else "box AP"
    return "class", "pixels", "IoU"


def to_percent(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Turn metrics of a trainer (`test/overall_accuracy`: 0.912) into those of a record (`overall_accuracy`: 91.2)."""
    named = {name.rpartition("/")[2]: float(value) for name, value in metrics.items()}
    return {name: round(value if name in NO_SHARES else 100 * value, 2) for name, value in named.items()}


def commit() -> str:
    """Short hash of the checkout that tracks this file, with `-dirty` if files were changed; else pcea's version.

    Git looks for a repository in all parent folders. One that does not track this file belongs to somebody else, who
    has pcea in a `.venv` there.
    """
    file = Path(__file__)
    git = partial(subprocess.run, cwd=file.parent, capture_output=True, text=True, check=True)
    try:
        git(["git", "ls-files", "--error-unmatch", file.name])
        described = git(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
    except (OSError, subprocess.CalledProcessError):
        return version("pcea")
    return described.stdout.strip()
