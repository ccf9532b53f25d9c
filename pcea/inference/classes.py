"""What classifiers of clouds and of images share: ranked classes, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pcea.inference.base import Predictor


class ClassPrediction(NamedTuple):
    """The most probable classes of one file. `print` shows what the command prints.

    Attributes:
        class_names: Their names, most probable first.
        probabilities: Their probabilities, in 0..1.
        score: How well the network knows what it saw: the log-odds of any class against the background; without a
            background the log-sum-exp of the logits; with examples, minus the distance to the nearest one. NaN if each
            example is alone in its folder.
        is_known: Whether the score exceeds that of the lowest 5 % of the network's held-out samples, or of the
            examples; None if there is nothing to compare with, as for weights that were never calibrated.
        pose: How a cloud lies, such as "z up", if that was found; else "".
    """

    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    score: float = math.nan
    is_known: bool | None = None
    pose: str = ""

    @property
    def title(self) -> str:
        """The best class on a picture."""
        best = f"{self.class_names[0]} {100 * self.probabilities[0]:.0f} %"
        return best if self.is_known is not False else f"unsure ({best})"

    def __str__(self) -> str:
        pose = f"  ({self.pose})" if self.pose else ""
        if self.is_known is False:
            return (
                f"unsure: nothing it knows (closest: {self.class_names[0]} {100 * self.probabilities[0]:.0f} %){pose}"
            )
        return "  ".join(f"{n} {100 * p:.1f}%" for n, p in zip(self.class_names, self.probabilities)) + pose


class ClassPredictor(Predictor):
    """Base class of the classifiers of clouds and of images: their results are one table."""

    columns: ClassVar[Mapping[str, type]] = MappingProxyType(
        {"rank": int, "class": str, "probability": float, "known": str, "pose": str}
    )

    def check_output(self, output: Path, files: Sequence[Path]) -> None:  # noqa: ARG002
        """Refuse a folder, and a file in a folder that is missing."""
        if output.is_dir():
            raise ValueError(f"--output {output} is a folder: a network that names classes writes a CSV file.")
        if not output.parent.is_dir():
            raise FileNotFoundError(f"No folder {output.parent} to write {output.name} into.")

    def rows(self, prediction: ClassPrediction) -> list[tuple[object, ...]]:
        """One row per class, the most probable first."""
        ranked = zip(prediction.class_names, prediction.probabilities)
        known = {None: "", True: "yes", False: "no"}[prediction.is_known]
        return [(rank, name, f"{p:.4f}", known, prediction.pose) for rank, (name, p) in enumerate(ranked, start=1)]

    def num_rows(self, *, top: int = 3, like: Any = None, **_: Any) -> int:
        """One for each class that is returned."""
        return min(top, len(self.class_names if like is None else like.class_names))

    def rank(self, logits: Tensor, top: int, *, score: float | None = None, pose: str = "") -> ClassPrediction:
        """The `top` most probable classes.

        Args:
            logits: Of all classes, divided by the temperature, (P,).
            top: How many are returned.
            score: See `ClassPrediction`; None for the log-sum-exp of the logits.
            pose: See `ClassPrediction`.
        """
        score = float(logits.logsumexp(-1)) if score is None else score
        least = self.description.known_above
        is_known = None if least is None else score >= least
        return rank(logits, top, self.class_names)._replace(score=score, is_known=is_known, pose=pose)


def rank(logits: Tensor, top: int, class_names: Sequence[str]) -> ClassPrediction:
    """The `top` most probable classes by logits (P,)."""
    best = logits.softmax(-1).topk(min(top, len(class_names)))
    return ClassPrediction(tuple(class_names[i] for i in best.indices), tuple(best.values.tolist()))


def check_top(top: int) -> None:
    """Raise a ValueError if the number of classes to show is not positive."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
