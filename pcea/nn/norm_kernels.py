"""Compiled loops of batch norm on rows of channels in fp32: statistics and gradients in one pass over the rows each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcea.nn.compiled import compiled

Floats = NDArray[np.float32]

# Rows that are summed in fp32 before they are added in fp64.
_ROWS = 64


@compiled
def moments(rows: Floats, pivot: Floats, start: int, stop: int) -> Any:
    """Sums of rows `start` to `stop` minus `pivot` (C,), and of the squares of that, (C,) fp64 each.

    With a pivot near the mean the variance does not suffer from cancellation.
    """
    C = rows.shape[1]
    part, part_squares = np.empty(C, np.float32), np.empty(C, np.float32)
    total, squares = np.zeros(C, np.float64), np.zeros(C, np.float64)
    for first in range(start, stop, _ROWS):
        part[:] = 0
        part_squares[:] = 0
        for r in range(first, min(first + _ROWS, stop)):
            row = rows[r]
            for c in range(C):
                value = row[c] - pivot[c]
                part[c] += value
                part_squares[c] += value * value
        for c in range(C):
            total[c] += part[c]
            squares[c] += part_squares[c]
    return total, squares


@compiled
def affine(rows: Floats, scale: Floats, shift: Floats, out: Floats, start: int, stop: int) -> None:
    """Fill rows `start` to `stop` of `out` with rows * scale + shift."""
    C = rows.shape[1]
    for r in range(start, stop):
        row, result = rows[r], out[r]
        for c in range(C):
            result[c] = row[c] * scale[c] + shift[c]


@compiled
def affine_add(
    rows: Floats, scale: Floats, shift: Floats, residual: Floats, keep: Floats, out: Floats, start: int, stop: int
) -> None:
    """Fill rows `start` to `stop` of `out` with residual + keep * (rows * scale + shift), `keep` one per cloud."""
    C = rows.shape[1]
    per_cloud = max(1, len(rows) // len(keep))
    for r in range(start, stop):
        row, added, result, factor = rows[r], residual[r], out[r], keep[r // per_cloud]
        for c in range(C):
            result[c] = added[c] + factor * (row[c] * scale[c] + shift[c])


@compiled
def gradient_sums(grad: Floats, rows: Floats, mean: Floats, keep: Floats, start: int, stop: int) -> Any:
    """Sums over rows `start` to `stop` of keep * grad, and of keep * grad * (rows - mean), (C,) fp64 each."""
    C = rows.shape[1]
    per_cloud = max(1, len(rows) // len(keep))
    part, part_products = np.empty(C, np.float32), np.empty(C, np.float32)
    total, products = np.zeros(C, np.float64), np.zeros(C, np.float64)
    for first in range(start, stop, _ROWS):
        part[:] = 0
        part_products[:] = 0
        for r in range(first, min(first + _ROWS, stop)):
            row, slope, factor = rows[r], grad[r], keep[r // per_cloud]
            for c in range(C):
                value = factor * slope[c]
                part[c] += value
                part_products[c] += value * (row[c] - mean[c])
        for c in range(C):
            total[c] += part[c]
            products[c] += part_products[c]
    return total, products


@compiled
def gradient(
    grad: Floats,
    rows: Floats,
    by_grad: Floats,
    by_row: Floats,
    shift: Floats,
    keep: Floats,
    out: Floats,
    start: int,
    stop: int,
) -> None:
    """Fill rows `start` to `stop` of `out` with keep * grad * by_grad + rows * by_row + shift."""
    C = rows.shape[1]
    per_cloud = max(1, len(rows) // len(keep))
    for r in range(start, stop):
        row, slope, result, factor = rows[r], grad[r], out[r], keep[r // per_cloud]
        for c in range(C):
            result[c] = factor * slope[c] * by_grad[c] + (row[c] * by_row[c] + shift[c])
