"""Classes by example: the folder of a few files whose shapes a new one is most like, without any training."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.datasets.folders import list_files
from pcea.io.failures import message_of, summarize
from pcea.metrics.temperature import KNOWN_SHARE, fit_temperature
from pcea.models.ensemble import ClassifierEnsemble

if TYPE_CHECKING:
    from pcea.inference.points import PointPredictor

# Of similarities in -1..1, if no folder has two examples from which to tell how similar shapes of one folder are: what
# fits the training shapes of Labeled PSB, with one example of each of its 19 categories.
_TEMPERATURE = 0.12
# From this similarity on, two examples are one, and say nothing about how alike others are.
_SAME = 0.9999


class Examples(NamedTuple):
    """Features of examples, with the name of the folder that each came from.

    Attributes:
        class_names: Names of the folders.
        features: Standardized, one of each example, (E, D).
        label: Number of each example's folder, (E,).
        mean: Mean of all features before that, (D,).
        std: Their standard deviation, (D,).
        temperature: By which similarities are divided, so that probabilities are true frequencies among the examples.
        known_above: The `score` below which a shape is like none of them: 95 % of the examples that are not alone in
            their folder lie above it, by the others. None if each is alone.
        network: `Predictor.digest` of the network that made the features; "" if it is not known.
    """

    class_names: tuple[str, ...]
    features: Tensor
    label: Tensor
    mean: Tensor
    std: Tensor
    temperature: float
    known_above: float | None = None
    network: str = ""

    def compare(self, feature: Tensor) -> Tensor:
        """Logits (P,) of the folders for a feature (D,): the similarity of the most similar example of each."""
        similarity = F.normalize(self.features, dim=1) @ F.normalize((feature - self.mean) / self.std, dim=0)
        return _closest(similarity[None], self.label, len(self.class_names))[0] / self.temperature

    def score(self, feature: Tensor) -> float:
        """How near a feature (D,) is to any example: minus the distance to the nearest."""
        return -float((self.features - (feature - self.mean) / self.std).norm(dim=1).min())


def read_examples(predictor: PointPredictor, root: str | Path, **options: Any) -> Examples:
    """Show a network all files in the class folders under `root`.

    Args:
        predictor: The network.
        root: A folder with at least two folders, named after what the files in them are.
        **options: Those of `PointPredictor.embed`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has fewer than two folders with files, or a file cannot be read.
    """
    found = list_files(Path(root))
    files = {name: paths for name, paths in found.items() if paths}
    if empty := [name for name in found if name not in files]:
        warnings.warn(
            f"{root}: nothing is like {', '.join(map(repr, empty))}, as there is no mesh or cloud file in the folder.",
            stacklevel=2,
        )
    if len(files) < 2:
        raise ValueError(
            f"{root} must hold at least two folders of examples, named after what they are, got {len(files)}: expected "
            f"{root}/<class>/<file>."
        )
    features = torch.stack(_embed([file for paths in files.values() for file in paths], predictor, **options))
    label = torch.tensor([number for number, paths in enumerate(files.values()) for _ in paths])
    _warn_of_copies(features, [path for paths in files.values() for path in paths])
    return fit_examples(tuple(files), features, label)._replace(network=predictor.digest())


def _embed(files: Sequence[Path], predictor: PointPredictor, **options: Any) -> list[Tensor]:
    features, unreadable = [], []
    for file in files:
        try:
            features.append(predictor.embed(file, **options))
        except (ValueError, OSError) as error:
            unreadable.append(message_of(error, file))
    if unreadable:
        raise ValueError(f"{summarize(unreadable, len(files))} Repair or remove them: examples are few.")
    return features


def _warn_of_copies(features: Tensor, files: Sequence[Path]) -> None:
    copies = [
        (i, i + 1 + int(j))
        for i in range(len(features))  # one after the other: all pairs at once may not fit into memory
        for j in torch.isclose(features[i + 1 :], features[i]).all(1).nonzero()
    ]
    if copies:
        first, second = (files[number] for number in copies[0])
        more = f", and {len(copies) - 1} more pairs are" if len(copies) > 1 else ""
        warnings.warn(f"{first} and {second} are the same example{more}.", stacklevel=3)


def fit_examples(class_names: tuple[str, ...], features: Tensor, label: Tensor) -> Examples:
    """Standardize the features (E, D) of examples of the classes `label` (E,), and fit how far alike alike ones are."""
    mean, std = features.mean(0), features.std(0).clamp(min=1e-3)
    features = (features - mean) / std
    # Each example is compared with the others, but not with copies of itself.
    similarity = F.normalize(features, dim=1) @ F.normalize(features, dim=1).T
    is_same = similarity > _SAME
    is_peer = (label == label[:, None]) & ~is_same
    has_peer = is_peer.any(1)
    if not has_peer.any():
        return Examples(class_names, features, label, mean, std, _TEMPERATURE)
    closest = _closest(similarity.masked_fill(is_same, -1), label, len(class_names))
    temperature = fit_temperature(closest[has_peer], label[has_peer])
    to_peer = torch.cdist(features, features).masked_fill(~is_peer, torch.inf).amin(1)[has_peer]
    # Each example is judged as if the others alone were there.
    farthest = float(to_peer.quantile(KNOWN_SHARE, interpolation="higher"))
    return Examples(class_names, features, label, mean, std, temperature, known_above=-farthest)


def _closest(similarity: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The greatest similarity (Q, E) in each class, (Q, P)."""
    return torch.stack([similarity[:, label == c].amax(1) for c in range(num_classes)], dim=1)


def feature_of(network: nn.Module, *inputs: Any) -> Tensor:
    """What the last linear layer of a classifier, or of each member of an ensemble, is given for a batch, (B, D).

    Raises:
        ValueError: If the network has no linear layer that gives its classes.
    """
    num_classes = getattr(network, "num_classes", 0)
    last = []
    for member in network.members if isinstance(network, ClassifierEnsemble) else [network]:
        layers = [m for m in member.modules() if isinstance(m, nn.Linear) and m.out_features == num_classes]
        if not layers:
            name = type(member).__name__
            raise ValueError(f"{name} has no linear layer that gives its classes, so no feature either.")
        last.append(layers[-1])
    given: list[Tensor] = []
    thread = threading.get_ident()  # others may use the network meanwhile

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            given.append(arguments[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in last]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(given, 1).float()
