"""How well `folder_parts_finetune` labels the parts of new categories, by the number of shapes; and what scratch gives.

    python scripts/benchmark_part_examples.py

Labeled PSB is divided: `labeled_psb_pointea` is trained without five of its categories. Their training shapes are then
written as files of labelled points, the first 1, 3, 5 and 12 of each, and learned by `folder_parts_finetune` from those
weights and from scratch; the test shapes of the five are labelled. Runs are kept in runs/part_examples, and those that
are there already are not made again. A quarter of an hour of one CPU core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from pcea.datasets import LabeledPSB
from pcea.io.configs import config_path

RUNS = Path("runs/part_examples")
# Every fourth category, so that none was picked.
NEW = slice(2, None, 4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--examples", type=int, nargs="+", default=[1, 3, 5, 12], help="numbers of shapes per category")
    args = parser.parse_args(arguments)
    train, test = (LabeledPSB(args.root, split, with_normals=True) for split in ("train", "test"))
    new = list(train.parts)[NEW]
    weights = pretrain(args.root, [name for name in train.parts if name not in new])
    starts = {"from scratch": write_config("scratch", None), "fine-tuned": write_config("fine_tuned", weights)}
    print(f"New categories: {', '.join(new)}; instance mIoU of their test shapes, %.")
    print("| shapes per category |", " | ".join(starts), "|\n| --- |", " | ".join("---" for _ in starts), "|")
    for number in args.examples:
        root = RUNS / f"files{number}"
        write_files(train, new, root / "train", number)
        write_files(test, new, root / "test", None)
        parts = {name: [f"part {part}" for part in range(len(train.parts[name]))] for name in new}
        (root / "parts.yaml").write_text(yaml.safe_dump(parts), encoding="utf-8")
        results = [
            fit_and_test(RUNS / f"{start.replace(' ', '-')}{number}", root, config) for start, config in starts.items()
        ]
        print(f"| {number} |", " | ".join(f"{result:.1f}" for result in results), "|", flush=True)


def pretrain(root: str, categories: Sequence[str]) -> Path:
    """The weights of `labeled_psb_pointea`, trained on some categories."""
    folder, weights = RUNS / "others", RUNS / "others.safetensors"
    if not weights.exists():
        options = [f"--data.init_args.root={root}", f"--data.init_args.categories={json.dumps(categories)}"]
        run("fit", "--config", "labeled_psb_pointea", f"--trainer.default_root_dir={folder}", *options)
        run("export", str(newest(folder, "last.ckpt")), "--output", str(weights))
    return weights


def write_files(data: LabeledPSB, categories: Sequence[str], folder: Path, number: int | None) -> None:
    """Write the first `number` shapes of each category as a file of labelled points, or all."""
    names = list(data.parts)
    written = dict.fromkeys(categories, 0)
    for i in range(len(data)):
        item = data[i]
        name = names[int(item.category)]
        if name not in written or written[name] == number:
            continue
        path = folder / name / f"{written[name]:02}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        label = item.y - data.parts[name][0]  # a category's parts are numbered from 0
        np.savez(path, points=item.pos.numpy(), normals=item.normal.numpy(), label=label.numpy())
        written[name] += 1


def write_config(name: str, weights: Path | None) -> Path:
    """`folder_parts_finetune` with other weights; without any the whole network learns at the full rate."""
    content = yaml.safe_load(config_path("folder_parts_finetune").read_text(encoding="utf-8"))
    task = content["model"]["init_args"]
    arguments = {"weights": None, "in_channels": 6} if weights is None else {"weights": str(weights)}
    task["network"]["init_args"] |= arguments
    task["encoder_rate"] = 1.0 if weights is None else task["encoder_rate"]
    path = RUNS / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def fit_and_test(folder: Path, root: Path, config: Path) -> float:
    """The instance mIoU of a configuration on the files under a root."""
    common = ["--config", str(config), f"--trainer.default_root_dir={folder}", f"--data.init_args.root={root}"]
    if not (record := newest(folder, "last.test.json")):
        run("fit", *common)
        run("test", *common)
        record = newest(folder, "last.test.json")
    assert record
    return float(json.loads(record.read_text(encoding="utf-8"))["metrics"]["instance_miou"])


def newest(folder: Path, name: str) -> Path | None:
    """The newest file of a name among a configuration's runs."""
    return max(folder.glob(f"version_*/checkpoints/{name}"), key=lambda path: path.stat().st_mtime, default=None)


def run(*arguments: str) -> None:
    """Run a pcea command."""
    subprocess.run([sys.executable, "-m", "pcea", *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
