"""The JSON record of a test run, and tables made from records."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Record(NamedTuple):
    """What a test run measured, and how.

    Attributes:
        config: Name of the configuration.
        command: The command that was run.
        seed: Seed of the training.
        epoch: Epochs trained.
        selection: `last` epoch, or `best_val`: the best one by validation.
        dataset: Name of the dataset.
        split: Name of the split.
        num_points: Points of a cloud that the network saw; 0 for images.
        votes: Passes averaged; 1 is no voting.
        device: What the test ran on.
        minutes: Training time.
        commit: Version of the code.
        metrics: In percent; those of `NO_SHARES` as they are.
        convention: How the metrics are to be read, where there is more than one way.
        categories: Number of shapes and instance mIoU in percent of each category; of images with a class a pixel
            number of pixels and IoU of each class; of images with objects number of objects and average precision of
            each class. None where there are none.
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
    """Read all records of a folder, by name of the file."""
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
"""Metrics of generated images that are no share of anything, so that percent would be wrong."""
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
    """A markdown table of the records that have these metrics (their names by heading), a row a record.

    Tables of images have no column of points.
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
    """What the command changes in the model of the configuration, such as `, external_attention: false`; no files."""
    changed = re.findall(r"--model\.(?:\w+\.)*(\w+)[ =](\S+)", record.command)
    return "".join(f", {name}: {value}" for name, value in changed if "/" not in value)


def category_table(records: Sequence[Record]) -> str:
    """A markdown table of the instance mIoU by category, or of the IoU by class, a column a record of one dataset."""
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
    """What the three columns of a record's categories are: their names, what is counted, what is measured."""
    if record.num_points:
        return "category", "shapes", "instance mIoU"
    if "box_ap" in record.metrics:
        return "class", "objects", "mask AP" if "mask_ap" in record.metrics else "box AP"
    return "class", "pixels", "IoU"


def to_percent(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a trainer (`test/overall_accuracy`: 0.912) as those of a record (`overall_accuracy`: 91.2)."""
    named = {name.rpartition("/")[2]: float(value) for name, value in metrics.items()}
    return {name: round(value if name in NO_SHARES else 100 * value, 2) for name, value in named.items()}


def commit() -> str:
    """Short hash of the checkout that this file belongs to, `-dirty` where code differs from it; else the version."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        from importlib.metadata import version

        return version("pcea")
    return described.stdout.strip()
