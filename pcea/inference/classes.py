"""What classifiers of clouds and of images share: ranked classes, and a table of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pcea.inference.base import Predictor
from pcea.io.atomic import atomic_file


class ClassPrediction(NamedTuple):
    """The most probable classes of one file. `print` shows what the command prints.

    Attributes:
        class_names: Their names, most probable first.
        probabilities: Their probabilities, in 0..1.
    """

    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __str__(self) -> str:
        return "  ".join(f"{n} {100 * p:.1f}%" for n, p in zip(self.class_names, self.probabilities))


class ClassPredictor(Predictor):
    """Base class of the classifiers of clouds and of images: their results are one table."""

    @contextmanager
    def writing(self, output: Path, files: Sequence[Path]) -> Iterator[Callable[[Path, Any], None]]:  # noqa: ARG002
        """Collect the results in a CSV file with the columns file, rank, class and probability."""
        if output.is_dir():
            raise ValueError(f"--output {output} is a folder: a network that names classes writes a CSV file.")
        rows: list[tuple[Path, int, str, str]] = []

        def write(file: Path, prediction: ClassPrediction) -> None:
            ranked = zip(prediction.class_names, prediction.probabilities)
            rows.extend((file, rank, name, f"{p:.4f}") for rank, (name, p) in enumerate(ranked, start=1))

        yield write
        with (
            atomic_file(output) as part,
            part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            writer = csv.writer(stream)
            writer.writerow(["file", "rank", "class", "probability"])
            writer.writerows(rows)

    def _rank(self, logits: Tensor, top: int) -> ClassPrediction:
        """The most probable classes by logits (P,)."""
        best = logits.float().softmax(-1).topk(min(top, len(self.class_names)))
        return ClassPrediction(tuple(self.class_names[i] for i in best.indices), tuple(best.values.tolist()))


def check_top(top: int) -> None:
    """Raise a ValueError if the number of classes to show is not positive."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
