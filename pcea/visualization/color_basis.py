"""Colours that say what a token attends to: tokens whose attention deviates in the same way get the same colour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Weights below this count as this, so that the logarithms of a few vanishing ones do not decide everything.
_SMALLEST = 1e-6


def fit_color_basis(weights: Sequence[Tensor]) -> Tensor:
    """Find the three directions in which attention deviates most: the principal components of `_deviations`.

    Args:
        weights: The weights of the tokens of each cloud or image for every slot, (M, S); M may differ.

    Returns:
        (3, S) fp32: each component divided by the standard deviation along it; zeros where nothing deviates.
    """
    num_slots = weights[0].shape[1]
    covariance = torch.zeros(num_slots, num_slots, dtype=torch.float64)
    for cloud in weights:
        deviations = _deviations(cloud).cpu()
        covariance += deviations.T @ deviations
    covariance /= sum(map(len, weights))
    variances, directions = torch.linalg.eigh(covariance)
    basis = torch.zeros(3, num_slots, dtype=torch.float64)
    for row in range(min(3, num_slots)):
        variance, direction = float(variances[-1 - row]), directions[:, -1 - row]
        # Less is rounding.
        if variance > 1e-9 * max(1.0, float(variances[-1])):
            # Of the two directions that fit equally well, the one whose largest number is positive.
            basis[row] = direction * direction[direction.abs().argmax()].sign() / variance**0.5
    return basis.float()


def color_tokens(weights: Tensor, basis: Tensor) -> Tensor:
    """Turn the attention of the tokens of one cloud or image into colours.

    Args:
        weights: (M, S).
        basis: What `fit_color_basis` found, (3, S).

    Returns:
        Red, green and blue in 0..1, (M, 3) fp32: the logistic function of the deviations along the three directions.
    """
    return (_deviations(weights) @ basis.to(weights.device, torch.float64).T).sigmoid().float()


def _deviations(weights: Tensor) -> Tensor:
    """Logarithms of weights (M, S) less their means over the tokens: by what factor a token differs from the others."""
    logs = weights.double().clamp_min(_SMALLEST).log()
    return logs - logs.mean(0)
