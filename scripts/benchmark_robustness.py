"""How a classifier of ModelNet40 does on what files are like: any pose, noise, missing parts, and unknown things.

    python scripts/benchmark_robustness.py modelnet40_pointea_files                 # finds poses itself
    python scripts/benchmark_robustness.py modelnet40_eat_cpu --up y                # is told that y is up

Prints tables and writes them as configs/results/robustness/WEIGHTS.UP.json: the whole test split as it is, in random
poses along the axes, and turned at random; a random part of it in each corruption and level of
`pcea.transforms.Corruption`; and the shapes of Labeled PSB, as meshes would be predicted, some of whose classes
ModelNet40 has and some not. Every cloud is treated as `pcea predict` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

import pcea
from pcea.datasets import LabeledPSB, ModelNet40
from pcea.datasets.batches import PointBatch
from pcea.inference.points import PointPredictor
from pcea.inference.pose import PosedLogits
from pcea.io.points import Points
from pcea.transforms import Corruption
from pcea.transforms.corruptions import CORRUPTIONS

IN_POSES = ("axis_pose", "any_pose")
RESULTS = Path(__file__).parents[1] / "configs" / "results" / "robustness"
# The classes of ModelNet40 that the categories of Labeled PSB are; it has no class for the other categories.
SHARED = {
    "Airplane": ("airplane",),
    "Chair": ("chair", "stool"),
    "Cup": ("cup",),
    "Human": ("person",),
    "Table": ("table", "desk"),
    "Vase": ("vase", "bottle", "bowl", "flower_pot"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="name of weights, a weights file, a checkpoint or a configuration")
    parser.add_argument("--up", default="auto", help="auto (the network finds the pose) or an axis")
    parser.add_argument("--clouds", type=int, default=300, help="clouds for each corruption and level; 0 for all")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="val: held-out training clouds")
    parser.add_argument("--root", default="data")
    parser.add_argument("--only", nargs="+", choices=["whole", *CORRUPTIONS, "psb"], help="leave the others out")
    parser.add_argument("--output", type=Path, help="the record; none with --only or --split val")
    args = parser.parse_args(arguments)
    predictor = pcea.load(args.weights)
    chosen = args.only or ["whole", *CORRUPTIONS, "psb"]
    clouds, label, names = read_clouds(args.root, args.split)
    assert predictor.class_names == names, "the network has other classes"
    record = {"weights": args.weights, "up": args.up, "split": args.split, "clouds": args.clouds}
    started = time.monotonic()
    known: list[float] = []
    if "whole" in chosen:
        results = pose_all(predictor, clouds, args.up)
        known = [result.score for result in results]
        record["whole"] = summarize(results, label, predictor)
        print("whole split:", record["whole"], flush=True)
        for name in IN_POSES:
            posed = Corruption(name, 5)(PointBatch(clouds, label)).points
            record[f"whole, {name}"] = summarize(pose_all(predictor, posed, args.up), label, predictor)
            print(f"whole split, {name}:", record[f"whole, {name}"], flush=True)
    few = torch.randperm(len(clouds), generator=torch.Generator().manual_seed(0))[: args.clouds or None]
    record["corruptions"] = {}
    for name in [name for name in CORRUPTIONS if name in chosen]:
        levels = []
        for level in range(1, 1 + len(CORRUPTIONS[name])):
            changed = Corruption(name, level)(PointBatch(clouds[few], label[few]))
            masks = changed.mask if changed.mask is not None else [slice(None)] * len(few)
            results = pose_all(predictor, (points[mask] for points, mask in zip(changed.points, masks)), args.up)
            levels.append(summarize(results, label[few], predictor))
        record["corruptions"][name] = levels
        print(f"{name:12}", "  ".join(f"{values['accuracy']:5.1f}" for values in levels), flush=True)
    if record["corruptions"]:
        every = [values["accuracy"] for levels in record["corruptions"].values() for values in levels]
        record["mean_accuracy"] = round(statistics.mean(every), 2)
        print("mean over corruptions and levels:", record["mean_accuracy"])
    if "psb" in chosen:
        record["psb"] = cross_data(predictor, args.root, args.up, known)
        print("Labeled PSB:", record["psb"])
    record["minutes"] = round((time.monotonic() - started) / 60, 1)
    if args.split == "test" and not args.only:
        path = args.output or RESULTS / f"{Path(args.weights).stem}.{args.up}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print("Record:", path)


def read_clouds(root: str, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Clouds (L, N, 3), labels (L,) and class names of a split; `val` is what the recipes hold out."""
    if split == "test":
        data = ModelNet40(root, "test")
    else:
        from pcea.datasets.splits import stratified_sample

        data = ModelNet40(root, "train")
        data = data.subset(stratified_sample(data.strata, 0.1, seed=0).nonzero().squeeze(1))
    return data.points, data.label, data.class_names


def pose_all(predictor: PointPredictor, clouds: Iterable[Tensor], up: str) -> list[PosedLogits]:
    """What the network says of each cloud (N, 3), as in `predict`: without strays, and perhaps without a ground.

    Points are repeated where it takes no cloud of so few.
    """
    fewest = int(getattr(predictor.network, "min_points", 1))

    def pose(points: Tensor) -> PosedLogits:
        shape: Points = predictor.read(points)
        if (count := len(shape.points)) < fewest:
            shape = Points(shape.points[torch.arange(fewest) % count])
        return predictor.pose_standing(shape, up=up)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strays, and of shapes in several parts
        return [pose(points) for points in clouds]


def summarize(results: Sequence[PosedLogits], label: Tensor, predictor: PointPredictor) -> dict[str, float]:
    """Accuracy, calibration error, share called known and share left as it is, in percent."""
    probabilities = torch.stack([result.logits for result in results]).softmax(1)
    least = predictor.description.known_above
    values = {
        "accuracy": (probabilities.argmax(1) == label).float().mean(),
        "calibration_error": multiclass_calibration_error(probabilities, label, num_classes=probabilities.shape[1]),
        "known": sum(least is None or result.score >= least for result in results) / len(results),
        "y_up": sum(result.name in ("", "y up") for result in results) / len(results),
    }
    return {name: round(100 * float(value), 2) for name, value in values.items()}


def cross_data(predictor: PointPredictor, root: str, up: str, known: Sequence[float]) -> dict[str, object]:
    """Labeled PSB: how many shapes of shared classes are named rightly, and how well the others are told from known."""
    data = LabeledPSB(root, "all")
    right: dict[str, int] = dict.fromkeys(SHARED, 0)
    count: dict[str, int] = dict.fromkeys(SHARED, 0)
    unknown: list[float] = []
    for i in range(len(data)):
        item = data[i]
        category = list(data.parts)[int(item.category)]
        [result] = pose_all(predictor, [item.pos], up)
        if category not in SHARED:
            unknown.append(result.score)
            continue
        count[category] += 1
        right[category] += predictor.class_names[int(result.logits.argmax())] in SHARED[category]
    found: dict[str, object] = {name: f"{right[name]} / {count[name]}" for name in SHARED}
    found["all"] = f"{sum(right.values())} / {sum(count.values())}"
    if known:
        scores = torch.tensor([*known, *unknown])
        is_known = torch.tensor([1] * len(known) + [0] * len(unknown))
        found["auroc"] = round(100 * float(binary_auroc(scores, is_known)), 2)
        least = predictor.description.known_above
        if least is not None:
            found["unknown_found"] = round(100 * sum(score < least for score in unknown) / len(unknown), 2)
    return found


if __name__ == "__main__":
    main()
