"""The temperature of a classifier, and the share of what it knows."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

# The share of known samples that is to count as known.
KNOWN_SHARE = 0.95


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature, within 0.05..20, at which labels (L,) are most likely by logits (L, P) that it divides.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_temperature), labels))

    return math.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x)
