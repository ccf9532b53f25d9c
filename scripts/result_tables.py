"""Write the tables of README.md and configs/README.md from the configurations and the records in configs/results.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between them is replaced.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pcea.commands.record import Record, category_headings, read_records

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "configs" / "README.md")
CONFIGS = ROOT / "configs"
ABLATIONS = CONFIGS / "results" / "ablation"
# The one number of a run that the tables of an ablation show: the first of these that it has.
ABLATED = ("instance_miou", "overall_accuracy")

CLASSIFICATION = {"overall accuracy": "overall_accuracy", "mean-class accuracy": "mean_class_accuracy"}
PARTS = {
    "instance mIoU": "instance_miou",
    "category mIoU": "category_miou",
    "instance mIoU, all parts": "instance_miou_all_parts",
    "point accuracy": "overall_accuracy",
}
IMAGES = {"top-1 accuracy": "overall_accuracy", "top-5 accuracy": "top5_accuracy"}
MASKS = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy"}
BOXES = {"box AP": "box_ap", "box AP50": "box_ap50"}
INSTANCES = {**BOXES, "mask AP": "mask_ap", "mask AP50": "mask_ap50"}
GENERATION = {
    "Fréchet distance": "frechet_distance",
    "classifier score": "classifier_score",
    "score of real images": "real_classifier_score",
    "class accuracy": "class_accuracy",
    "diversity": "diversity",
}
# The one number of a record that README.md shows: the first of these that it has.
HEADLINES = {
    "instance_miou": ("instance mIoU", ".2f"),
    "miou": ("mIoU", ".2f"),
    "mask_ap": ("mask AP", ".1f"),
    "box_ap": ("box AP", ".1f"),
    "overall_accuracy": ("accuracy", ".2f"),
}


def main() -> None:
    """Rewrite the tables."""
    records = read_records(CONFIGS / "results")
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8"), records), encoding="utf-8")


def fill(text: str, records: Sequence[Record]) -> str:
    """Replace the tables of a page.

    Raises:
        ValueError: If the page asks for a table that is not known.
    """

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"No table {name!r}; there are {', '.join(TABLES)}.")
        return f"<!-- table: {name} -->\n\n{TABLES[name](records)}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (.*?) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def results_table(records: Iterable[Record], metrics: Mapping[str, str]) -> str:
    """A markdown table with a row for each configuration whose records have these metrics (their names by heading).

    Several seeds share a row, with mean and standard deviation. Tables of images have no column for points.
    """
    required = {name for name in metrics.values() if not name.endswith("_all_parts")}
    chosen = [r for r in records if required <= r.metrics.keys()]
    has_points = any(r.num_points for r in chosen)
    head = f"| configuration | dataset | {' | '.join(metrics)} |{' points |' * has_points} votes | epoch | training |"
    rows = [head, "|---" * (head.count("|") - 1) + "|"]
    for runs in by_seed(chosen):
        r = runs[0]
        values = " | ".join(_cell(runs, name) for name in metrics.values())
        rows.append(
            f"| `{r.config}`{_changes(r)} ({_seeds(runs)}) | {r.dataset} {r.split} | {values} |"
            f"{f' {r.num_points} |' * has_points} {r.votes} | {r.epoch}, {r.selection} | {_training(runs)} |"
        )
    return "\n".join(rows)


def by_seed(records: Iterable[Record]) -> list[list[Record]]:
    """Group records whose commands differ in seed and weights alone.

    Raises:
        ValueError: If two records of a group have the same seed.
    """
    groups: dict[tuple, dict[int, Record]] = {}
    for r in records:
        what = re.sub(r" --(?:seed_everything|weights|trainer\.default_root_dir)[ =]\S+", "", r.command)
        runs = groups.setdefault((r.config, what, r.dataset, r.split, r.num_points, r.epoch, r.selection), {})
        if r.seed in runs:
            raise ValueError(f"Two records of {r.config} have seed {r.seed} and the same command, {r.command!r}.")
        runs[r.seed] = r
    return [list(runs.values()) for runs in groups.values()]


def spread(values: Sequence[float], form: str) -> str:
    """A value, or the mean and the standard deviation (of the sample) of several."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def category_table(records: Sequence[Record]) -> str:
    """A markdown table of the mIoU per category, or of the IoU or AP per class, with a column for each configuration.

    Of several seeds it shows the mean.
    """
    runs_of = by_seed(records)
    name, counted, _ = category_headings(records[0])
    rows = [
        f"| {name} | {counted} | {' | '.join(f'`{runs[0].config}`{_changes(runs[0])}' for runs in runs_of)} |",
        "|---" * (len(runs_of) + 2) + "|",
    ]
    for name, (count, _) in records[0].categories.items():
        values = (_mean([r.categories[name][1] for r in runs]) for runs in runs_of)
        rows.append(f"| {name} | {count} | {' | '.join('-' if v is None else f'{v:.1f}' for v in values)} |")
    return "\n".join(rows)


def headline_table(records: Iterable[Record]) -> str:
    """A markdown table with the most telling number of each configuration; no variants of one, no generation."""
    rows = ["| configuration | test split of | result | training |", "|---|---|---|---|"]
    for runs in by_seed(records):
        r = runs[0]
        name = next((name for name in HEADLINES if name in r.metrics), None)
        if name and not _changes(r) and r.votes == 1:
            what, form = HEADLINES[name]
            result = f"{what} {spread([run.metrics[name] for run in runs], form)} %"
            seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
            rows.append(f"| `{r.config}` | {r.dataset} | {result}{seeds} | {_training(runs)} |")
    return "\n".join(rows)


def robustness_table() -> str:
    """A markdown table of the records of `benchmark_robustness.py`: one row per measurement, one column per network."""
    found = [json.loads(path.read_text()) for path in sorted((CONFIGS / "results" / "robustness").glob("*.json"))]

    def row(name: str, value: Callable[[Mapping[str, Any]], object]) -> str:
        return f"| {name} | {' | '.join(str(value(record)) for record in found)} |"

    def levels(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda r: ", ".join(f"{level['accuracy']:.0f}" for level in r["corruptions"][name])

    rows = [
        "| | " + " | ".join(f"`{r['weights']}`, up: {r['up']}" for r in found) + " |",
        "|---" * (1 + len(found)) + "|",
        row("test split as it is: accuracy", lambda r: r["whole"]["accuracy"]),
        row("its calibration error", lambda r: r["whole"]["calibration_error"]),
        row("test split in random poses along the axes: accuracy", lambda r: r["whole, axis_pose"]["accuracy"]),
        row("test split turned at random: accuracy", lambda r: r["whole, any_pose"]["accuracy"]),
        *(row(f"{name}, levels 1 to 5", levels(name)) for name in found[0]["corruptions"]),
        row("mean of these", lambda r: r["mean_accuracy"]),
        row("Labeled PSB, classes in common", lambda r: r["psb"]["all"]),
        row("AUROC, its other categories against the test split", lambda r: r["psb"]["auroc"]),
        row("called unsure: of them / of the test split", _called_unsure),
    ]
    return "\n".join(rows)


def _called_unsure(record: Mapping[str, Any]) -> str:
    if "unknown_found" not in record["psb"]:
        return "-"
    return f"{record['psb']['unknown_found']:.0f} / {100 - record['whole']['known']:.1f}"


def ablation_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A markdown table of what `ablation.py` measured, each row with the mean and standard deviation of its seeds."""
    lines = ["| in its place | seeds | result | parameters | multiplications | clouds/s |", "|---|---|---|---|---|---|"]
    for row in rows:
        results = next(row[name] for name in ABLATED if name in row)
        lines.append(
            f"| {row['variant']} | {len(results)} | {spread(list(results.values()), '.2f')} | "
            f"{row['parameters'] / 1e6:.3f}M | {row['multiplications'] / 1e6:.0f}M | {row['clouds_per_second']:.0f} |"
        )
    return "\n".join(lines)


def configuration_table() -> str:
    """A markdown table of all configurations, with the first line of each."""
    rows = ["| configuration | what it trains |", "|---|---|"]
    for path in sorted(CONFIGS.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append(f"| [`{path.stem}`]({path.name}) | {first.lstrip('# ')} |")
    return "\n".join(rows)


def _cell(runs: Sequence[Record], name: str) -> str:
    if any(name not in run.metrics for run in runs):
        return "-"
    return spread([run.metrics[name] for run in runs], ".2f")


def _training(runs: Sequence[Record]) -> str:
    return f"{statistics.mean(run.minutes for run in runs):.0f} min, {runs[0].device}"


def _seeds(runs: Sequence[Record]) -> str:
    return f"seed {runs[0].seed}" if len(runs) == 1 else f"{len(runs)} seeds"


def _mean(values: Sequence[float | None]) -> float | None:
    counted = [value for value in values if value is not None]
    return statistics.mean(counted) if counted else None


def _changes(record: Record) -> str:
    """What the command changes in the configuration's model, such as `, external_attention: false`; no files."""
    changed = re.findall(r"--model\.(?:\w+\.)*(\w+)[ =](\S+)", record.command)
    return "".join(f", {name}: {value}" for name, value in changed if "/" not in value)


def _of_points(metrics: Mapping[str, str]) -> Callable[[Sequence[Record]], str]:
    return lambda records: results_table([r for r in records if r.num_points], metrics)


def _of_images(metrics: Mapping[str, str]) -> Callable[[Sequence[Record]], str]:
    return lambda records: results_table([r for r in records if not r.num_points], metrics)


def _ablation(config: str) -> Callable[[Sequence[Record]], str]:
    return lambda _: ablation_table(json.loads((ABLATIONS / f"{config}.json").read_text(encoding="utf-8")))


def _categories(prefix: str) -> Callable[[Sequence[Record]], str]:
    return lambda records: category_table([r for r in records if r.config.startswith(prefix)])


TABLES: dict[str, Callable[[Sequence[Record]], str]] = {
    "headlines": headline_table,
    "configurations": lambda _: configuration_table(),
    "robustness": lambda _: robustness_table(),
    "ablation, parts": _ablation("labeled_psb_pointea"),
    "ablation, classes": _ablation("modelnet40_pointea_fast"),
    "point classification": _of_points(CLASSIFICATION),
    "parts": _of_points(PARTS),
    "parts by category": _categories("labeled_psb_"),
    "image classification": _of_images(IMAGES),
    "semantic segmentation": _of_images(MASKS),
    "detection": lambda records: results_table([r for r in records if "mask_ap" not in r.metrics], BOXES),
    "instance segmentation": _of_images(INSTANCES),
    "generation": _of_images(GENERATION),
}


if __name__ == "__main__":
    main()
