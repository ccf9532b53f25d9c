"""How often `pcea predict --like` names the right folder, and how true its percentages are, by the number of examples.

    python scripts/benchmark_examples.py

The categories of Labeled PSB are the folders: examples are drawn from its training shapes, ten times for each number,
and its test shapes named. Then a random half of the categories, ten, are the folders, and the others should be
`unsure`. Only a network's shipped weights are used; nothing is trained.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

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
    parser.add_argument("--examples", type=int, nargs="+", default=[1, 3, 5, 12], help="numbers of examples per folder")
    args = parser.parse_args(arguments)
    predictor = pcea.load(args.weights)
    train, test = (LabeledPSB(args.root, split) for split in ("train", "test"))
    (features, label), (queries, truth) = embed_all(predictor, train), embed_all(predictor, test)
    names = tuple(test.parts)
    print("| per folder | accuracy | calibration error | AUROC, unknown | unsure of known | unsure of unknown |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number in args.examples:
        accuracies, errors, unknown = [], [], []
        for seed in range(DRAWS):
            drawn = draw(label, number, seed)
            examples = fit_examples(names, features[drawn], label[drawn])
            probabilities = torch.stack([examples.compare(query) for query in queries]).softmax(1)
            accuracies.append(100 * float((probabilities.argmax(1) == truth).float().mean()))
            errors.append(100 * float(multiclass_calibration_error(probabilities, truth, num_classes=len(names))))
            unknown.append(tell_unknown(features[drawn], label[drawn], queries, truth, seed))
        cells = [
            f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}",
            f"{statistics.mean(errors):.1f}",
        ]
        cells += [f"{100 * statistics.mean(values):.1f}" for values in zip(*unknown)]
        print(f"| {number} | {' | '.join(cells)} |", flush=True)


def tell_unknown(features: Tensor, label: Tensor, queries: Tensor, truth: Tensor, seed: int) -> tuple[float, ...]:
    """With examples of a random half of the categories: AUROC of the others, and which share of both is unsure."""
    count = int(label.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    folders = order[: (count + 1) // 2].sort().values
    used = torch.isin(label, folders)
    names = tuple(map(str, folders.tolist()))
    examples = fit_examples(names, features[used], torch.searchsorted(folders, label[used]))
    scores, is_known = torch.tensor([examples.score(query) for query in queries]), torch.isin(truth, folders)
    is_unsure = scores < (-torch.inf if examples.known_above is None else examples.known_above)
    shares = [float(is_unsure[which].float().mean()) for which in (is_known, ~is_known)]
    return float(binary_auroc(scores, is_known.long())), *shares


def embed_all(predictor: PointPredictor, data: LabeledPSB) -> tuple[Tensor, Tensor]:
    """Features (L, D) and categories (L,) of the shapes, by as many of their points as the network is to see."""
    features, label = [], []
    for i in range(len(data)):
        item = data[i]
        order = torch.randperm(len(item.pos), generator=torch.Generator().manual_seed(0))
        features.append(predictor.embed(Points(item.pos[order[: predictor.description.num_points]])))
        label.append(int(item.category))
    return torch.stack(features), torch.tensor(label)


def draw(label: Tensor, number: int, seed: int) -> Tensor:
    """Indices of `number` random shapes of each category."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(label), generator=generator)
    return torch.cat([order[label[order] == category][:number] for category in label.unique()])


if __name__ == "__main__":
    main()
