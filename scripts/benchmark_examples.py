"""How often `pcea predict --like` names the right folder, and how true its percentages are, by the number of examples.

    python scripts/benchmark_examples.py

The categories of Labeled PSB are the folders: examples are drawn from its training shapes, ten times for each number,
and its test shapes named. Only a network's shipped weights are used; nothing is trained.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torchmetrics.functional.classification import multiclass_calibration_error

import pcea
from pcea.datasets import LabeledPSB
from pcea.inference.examples import fit_examples
from pcea.inference.points import PointPredictor
from pcea.io.points import Points

DRAWS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="modelnet40_pointea_files")
    parser.add_argument("--root", default="data")
    parser.add_argument("--examples", type=int, nargs="+", default=[1, 3, 5, 12], help="numbers of examples a folder")
    args = parser.parse_args(arguments)
    predictor = pcea.load(args.weights)
    train, test = (LabeledPSB(args.root, split) for split in ("train", "test"))
    (features, label), (queries, truth) = embed_all(predictor, train), embed_all(predictor, test)
    names = tuple(test.parts)
    print("| examples a folder | accuracy | calibration error |\n| --- | --- | --- |")
    for number in args.examples:
        accuracies, errors = [], []
        for seed in range(DRAWS if number < int(label.bincount().min()) else 1):
            drawn = draw(label, number, seed)
            examples = fit_examples(names, features[drawn], label[drawn])
            probabilities = torch.stack([examples.compare(query) for query in queries]).softmax(1)
            accuracies.append(100 * float((probabilities.argmax(1) == truth).float().mean()))
            errors.append(100 * float(multiclass_calibration_error(probabilities, truth, num_classes=len(names))))
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        print(f"| {number} | {statistics.mean(accuracies):.1f}{spread} | {statistics.mean(errors):.1f} |", flush=True)


def embed_all(predictor: PointPredictor, data: LabeledPSB) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (L, D) and categories (L,) of the shapes, by as many of their points as the network is to see."""
    features, label = [], []
    for i in range(len(data)):
        item = data[i]
        order = torch.randperm(len(item.pos), generator=torch.Generator().manual_seed(0))
        features.append(predictor.embed(Points(item.pos[order[: predictor.description.num_points]])))
        label.append(int(item.category))
    return torch.stack(features), torch.tensor(label)


def draw(label: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Indices of `number` random shapes of each category."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(label), generator=generator)
    return torch.cat([order[label[order] == category][:number] for category in label.unique()])


if __name__ == "__main__":
    main()
