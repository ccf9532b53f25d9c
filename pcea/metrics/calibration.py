"""How much to trust what a classifier says: its temperature, and the score of what it knows."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pcea.metrics.temperature import KNOWN_SHARE, fit_temperature


class Trust(NamedTuple):
    """What held-out samples say of a classifier.

    Attributes:
        temperature: By which logits are divided, so that probabilities are true frequencies.
        known_above: Score, the log-sum-exp of the divided logits, that 95 % of the samples exceed; None if unknown.
    """

    temperature: float
    known_above: float | None


class Calibration(Metric):
    """Fit the temperature of a classifier to held-out samples, by maximum likelihood, and the score of what it knows.

    Args:
        **options: Those of `torchmetrics.Metric`.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, for the temperature; Liu et al., "Energy-based
        Out-of-distribution Detection", 2020, for the score.
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take logits (B, P) and labels (B,)."""
        self.logits.append(logits.detach().float())
        self.labels.append(labels)

    def compute(self) -> Trust:
        """Temperature and score of all samples."""
        logits, labels = dim_zero_cat(self.logits).cpu().double(), dim_zero_cat(self.labels).cpu()
        temperature = fit_temperature(logits, labels)
        scores = (logits / temperature).logsumexp(1)
        return Trust(temperature, float(scores.quantile(1 - KNOWN_SHARE)))
