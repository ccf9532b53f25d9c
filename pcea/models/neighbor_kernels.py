"""Compiled loops of `NeighborEmbedding` in training: each reads and writes the (centre, neighbour) pairs once.

The pairs are what takes time there: in plain torch a step passes over them some twenty times. They are arrays (T, K, C)
of T centres, in fp32, or in bf16 as int16, which NumPy has no other name for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from pcea.nn.compiled import compiled

Floats = NDArray[np.float32]
Pairs = NDArray[Any]
Indices = NDArray[np.int64]
Places = NDArray[np.int32]


# The pairs of one centre are converted at a time, into a scratch array whose bits are also seen as integers. No loop
# takes a row out of an array: that costs more than what is then done to 128 channels.
@register_jitable
def _scratch(K: int, C: int) -> tuple[Floats, Places]:
    values = np.empty((K, C), np.float32)
    return values, values.view(np.int32)


@register_jitable
def _read(pairs: Pairs, i: int, is_half: bool, values: Floats, bits: Places) -> None:
    K, C = values.shape
    if is_half:
        for k in range(K):
            for c in range(C):
                bits[k, c] = np.int32(pairs[i, k, c]) << 16
    else:
        for k in range(K):
            for c in range(C):
                values[k, c] = pairs[i, k, c]


@register_jitable
def _half(value: Any, bits: Any) -> Any:
    """Bits of bf16: the nearest to a value in fp32 with these bits, of two equally near ones the even one."""
    return np.int32(0x7FC0) if value != value else (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@register_jitable
def _write(values: Floats, bits: Places, is_half: bool, pairs: Pairs, i: int) -> None:
    K, C = values.shape
    if is_half:
        for k in range(K):
            for c in range(C):
                pairs[i, k, c] = _half(values[k, c], bits[k, c])
    else:
        for k in range(K):
            for c in range(C):
                pairs[i, k, c] = values[k, c]


@compiled
def pair_relu(
    neighbor: Floats, center: Floats, index: Indices, is_half: bool, out: Pairs, start: int, stop: int
) -> None:
    """Fill the pairs of centres `start` to `stop` with relu(neighbor_j + center_i).

    Args:
        neighbor: (R, C).
        center: (T, C).
        index: Rows of `neighbor`, (T, K).
        is_half: Whether `out` is bf16.
        out: (T, K, C).
        start: First centre.
        stop: Centre after the last.
    """
    K, C = out.shape[1:]
    values, bits = _scratch(K, C)
    for i in range(start, stop):
        for k in range(K):
            j = index[i, k]
            for c in range(C):
                value = neighbor[j, c] + center[i, c]
                values[k, c] = np.float32(0) if value < 0 else value  # NaN stays
        _write(values, bits, is_half, out, i)


@compiled
def pair_relu_grad(
    grad: Pairs,
    pairs: Pairs,
    index: Indices,
    first: Indices,
    is_half: bool,
    to_neighbor: Floats,
    to_center: Floats,
    start: int,
    stop: int,
) -> None:
    """The gradients of `pair_relu` in clouds `start` to `stop`.

    Args:
        grad: Gradient of the pairs, (T, K, C).
        pairs: What `pair_relu` gave, (T, K, C).
        index: Rows of the neighbours, (T, K), for each cloud N of its own.
        first: First centre of each cloud and, as the last, T; (B + 1,).
        is_half: Whether gradient and pairs are bf16.
        to_neighbor: (B N, C). Filled.
        to_center: (T, C). Filled.
        start: First cloud.
        stop: Cloud after the last.
    """
    K, C = pairs.shape[1:]
    N = len(to_neighbor) // (len(first) - 1)
    slopes, slope_bits = _scratch(K, C)
    values, bits = _scratch(K, C)
    for b in range(start, stop):
        to_neighbor[b * N : (b + 1) * N] = 0
        for i in range(first[b], first[b + 1]):
            _read(grad, i, is_half, slopes, slope_bits)
            _read(pairs, i, is_half, values, bits)
            for c in range(C):
                to_center[i, c] = 0
            for k in range(K):
                j = index[i, k]
                for c in range(C):
                    slope = np.float32(0) if values[k, c] <= 0 else slopes[k, c]
                    to_center[i, c] += slope
                    to_neighbor[j, c] += slope


@compiled
def extreme(
    pairs: Pairs, pivot: Floats, sign: Floats, is_half: bool, out: Floats, winner: Places, start: int, stop: int
) -> Any:
    """Take the maximum over the neighbours of centres `start` to `stop`, and sums over all their pairs.

    Args:
        pairs: (T, K, C).
        pivot: Near the means, so that variances do not suffer from cancellation, (C,).
        sign: -1 where the minimum is wanted, else 1, (C,).
        is_half: Whether the pairs are bf16.
        out: (T, C). Filled; NaN wins.
        winner: Which neighbour has it, 0..K-1, (T, C); the first of equals. Filled.
        start: First centre.
        stop: Centre after the last.

    Returns:
        Sums of pairs - pivot, and of its squares, (C,) fp64 each.
    """
    K, C = pairs.shape[1:]
    values, bits = _scratch(K, C)
    part, part_squares = np.empty(C, np.float32), np.empty(C, np.float32)
    total, squares = np.zeros(C, np.float64), np.zeros(C, np.float64)
    for i in range(start, stop):
        _read(pairs, i, is_half, values, bits)
        for c in range(C):
            out[i, c] = -np.inf
            winner[i, c] = 0
            part[c] = 0
            part_squares[c] = 0
        for k in range(K):
            j = np.int32(k)
            for c in range(C):
                value, top, place = values[k, c] * sign[c], out[i, c], winner[i, c]
                wins = (value > top) | (value != value)
                out[i, c] = value if wins else top
                winner[i, c] = j if wins else place
            for c in range(C):
                value = values[k, c] - pivot[c]
                part[c] += value
                part_squares[c] += value * value
        for c in range(C):
            out[i, c] *= sign[c]
            total[c] += part[c]
            squares[c] += part_squares[c]
    return total, squares


@compiled
def extreme_grad(
    pairs: Pairs,
    slope: Floats,
    shift: Floats,
    grad: Floats,
    winner: Places,
    is_half: bool,
    out: Pairs,
    start: int,
    stop: int,
) -> None:
    """Fill the pairs of centres `start` to `stop` with slope * pairs + shift, and add `grad` to those that won.

    Args:
        pairs: (T, K, C).
        slope: (C,).
        shift: (C,).
        grad: (T, C).
        winner: (T, C), as `extreme` gives it.
        is_half: Whether pairs and `out` are bf16.
        out: (T, K, C).
        start: First centre.
        stop: Centre after the last.
    """
    K, C = pairs.shape[1:]
    values, bits = _scratch(K, C)
    for i in range(start, stop):
        _read(pairs, i, is_half, values, bits)
        for k in range(K):
            for c in range(C):
                values[k, c] = values[k, c] * slope[c] + shift[c]
        for c in range(C):
            values[winner[i, c], c] += grad[i, c]
        _write(values, bits, is_half, out, i)
