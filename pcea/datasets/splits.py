"""Training, validation and test splits: those that a dataset has, and those drawn at random."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]
TrainOrTest = Literal["train", "test"]
SPLITS = ("train", "val", "test")


def stored_split(split: Split, stored: Collection[str], where: str) -> str | None:
    """Which of the stored splits to use as train, val or test.

    If `val` is stored without `test`, as in ImageNet, results are reported on it: it is used as the test split, and
    never for model selection.

    Args:
        split: The split that is wanted.
        stored: Those of train, val and test that exist.
        where: Their folder, for the message.

    Returns:
        The stored split, or None if there is none for validation.

    Raises:
        FileNotFoundError: If there is none to train or test on.
    """
    if split == "val":
        return "val" if {"val", "test"} <= {*stored} else None
    if split == "test" and "test" not in stored and "val" in stored:
        return "val"
    if split not in stored:
        wanted = "a `test` or a `val`" if split == "test" else "a `train`"
        raise FileNotFoundError(f"{where} has {' and '.join(sorted(stored))}, but not {wanted}.")
    return split


def stratified_sample(label: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Choose a share of every class at random.

    Args:
        label: Class of each sample, (L,) int64.
        fraction: Share to choose. Unless it is 0, at least one sample of every class of two or more is chosen, and at
            least one is not.
        seed: Seed of the choice.

    Returns:
        True for the chosen samples, (L,).
    """
    chosen = torch.zeros(len(label), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for members in (torch.nonzero(label == c).squeeze(1) for c in label.unique()):
        count = share_of(len(members), fraction) if fraction else 0
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen


def share_of(count: int, fraction: float) -> int:
    """A share of some samples: one at least, but not all."""
    return max(0, min(max(1, round(fraction * count)), count - 1))


def divide(dataset: Any, split: TrainOrTest, *, test_fraction: float) -> Any:
    """The train or test split of a dataset that has no splits: the test split is a stratified share, always the same.

    Args:
        dataset: Any dataset with `strata` and `subset`.
        split: The split that is wanted.
        test_fraction: Share of the test split.
    """
    held_out = stratified_sample(dataset.strata, test_fraction, seed=0)
    return dataset.subset((held_out if split == "test" else ~held_out).nonzero().squeeze(1))


def check_test_fraction(test_fraction: float) -> None:
    """Refuse a share that leaves nothing to train or to test on."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}.")


def class_order(ours: Sequence[str], theirs: Sequence[str], *, what: str = "class") -> Tensor:
    """Where each of our classes stands among theirs, (P,) int64.

    Args:
        ours: Names of the classes in the data.
        theirs: Names of the classes that a network knows.
        what: What the names are of, for the message.

    Raises:
        ValueError: If they are not the same names; those that differ are named.
    """
    unknown = [name for name in ours if name not in theirs]
    missing = [name for name in theirs if name not in ours]
    if unknown or missing:
        differences = [f"the data has {what} {_some(unknown)}, which the network does not know"] if unknown else []
        differences += [f"the network knows {what} {_some(missing)}, which the data does not have"] if missing else []
        raise ValueError(
            f"The weights were trained on other classes: {' and '.join(differences)}. Rename them in the data if they "
            "mean the same; otherwise train on this data."
        )
    return torch.tensor([list(theirs).index(name) for name in ours], dtype=torch.int64)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def warn_of_missing_classes(label: Tensor, class_names: Sequence[str], *, what: str, where: str | Path) -> None:
    """Warn of classes that a training split does not have: a network cannot learn them.

    Args:
        label: Class numbers, int64 of any shape.
        class_names: Name of each class.
        what: What has a class: file, point or object.
        where: The split, for the message.
    """
    counts = label.flatten().bincount(minlength=len(class_names))
    missing = [name for name, count in zip(class_names, counts.tolist()) if not count]
    if missing:
        names = ", ".join(map(repr, missing[:10])) + (" ..." if len(missing) > 10 else "")
        warnings.warn(
            f"No {what} in the training split of {where} has the class {names} ({len(missing)} of {len(class_names)} "
            "classes): a network cannot learn them.",
            stacklevel=2,
        )
