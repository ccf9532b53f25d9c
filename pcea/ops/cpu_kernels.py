"""Compiled loops for a CPU: farthest points, nearest neighbours, and maxima over neighbours.

Each works on a range of clouds or centres, as `pcea.nn.compiled.run` expects.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from pcea.nn.compiled import compiled

Floats = NDArray[Any]
Indices = NDArray[np.int64]
Places = NDArray[np.int32]

# Stand-ins for a distance in `farthest`, which compares the bits of floats as integers: among negative floats that
# reverses the order, so that padding comes last.
CHOSEN, PADDING = -2.0, -1.0
# Groups in which `farthest` looks for a maximum. A constant, so that the compiler knows how long the loops are.
_GROUPS = 128


@compiled
def farthest(xyz: Floats, nearest: Floats, bits: Places, index: Indices, start: int, stop: int) -> None:
    """Choose the farthest points of clouds `start` to `stop`.

    Args:
        xyz: Coordinates, (3, B, N) fp32.
        nearest: Squared distance of each point to the chosen ones, (B, N) fp32: inf, or PADDING. Overwritten.
        bits: The same memory as int32.
        index: Chosen points, (B, M), the first of which is given. Filled.
        start: First cloud.
        stop: Cloud after the last.
    """
    N, M = xyz.shape[2], index.shape[1]
    whole = N // _GROUPS * _GROUPS
    highest = np.empty(_GROUPS, np.int32)
    for b in range(start, stop):
        xs, ys, zs, near, keys = xyz[0, b], xyz[1, b], xyz[2, b], nearest[b], bits[b]
        last = index[b, 0]
        for m in range(1, M):
            cx, cy, cz = xs[last], ys[last], zs[last]
            # Below every distance: a chosen point comes last, whatever coincides with it, but before padding.
            near[last] = CHOSEN
            for i in range(N):
                dx, dy, dz = xs[i] - cx, ys[i] - cy, zs[i] - cz
                distance = dx * dx + dy * dy + dz * dz
                old = near[i]
                near[i] = distance if distance < old else old
            # A loop of its own, and a maximum of integers, because only these become vector instructions; for groups of
            # every 128th point, so that few points are searched for the first one that has the maximum.
            highest[:] = keys[0]  # of a small cloud some groups are empty
            for first in range(0, whole, _GROUPS):
                block = keys[first : first + _GROUPS]
                for g in range(_GROUPS):
                    highest[g] = max(highest[g], block[g])
            for i in range(whole, N):
                highest[i - whole] = max(highest[i - whole], keys[i])
            top = highest[0]
            for g in range(_GROUPS):
                top = max(top, highest[g])
            last = N
            for g in range(_GROUPS):
                if highest[g] == top:
                    i = g
                    while i < last and keys[i] != top:
                        i += _GROUPS
                    last = min(last, i)
            index[b, m] = last


@compiled
def nearest(query: Floats, xyz: Floats, index: Indices, squared_distance: Floats, start: int, stop: int) -> None:
    """Find the K nearest source points, nearest first, of query points `start` to `stop` of all B M.

    The lowest distances of some groups of points bound the K-th lowest of all; few points are below that bound, and
    these are sorted by counting.

    Args:
        query: (B, M, 3) fp32.
        xyz: Coordinates of the source, (3, B, N) fp32, inf at padding.
        index: (B, M, K). Filled; ties by number.
        squared_distance: (B, M, K) fp32. Filled.
        start: First query point.
        stop: Query point after the last.
    """
    M, K = index.shape[1:]
    N = xyz.shape[2]
    groups = (8 * K + 15) // 16 * 16
    distance = np.full((N + groups - 1) // groups * groups, np.inf, np.float32)
    # The bits of a float that is not negative order like the float.
    bits = distance.view(np.int32)
    lowest = np.empty(groups, np.int32)
    chosen = np.empty(groups + 1, np.int64)
    candidates = np.empty(len(distance) + 1, np.int64)
    for row in range(start, stop):
        b, m = row // M, row % M
        qx, qy, qz = query[b, m, 0], query[b, m, 1], query[b, m, 2]
        xs, ys, zs = xyz[0, b], xyz[1, b], xyz[2, b]
        for i in range(N):
            dx, dy, dz = qx - xs[i], qy - ys[i], qz - zs[i]
            distance[i] = dx * dx + dy * dy + dz * dz
        lowest[:] = bits[:groups]
        for i in range(groups, N, groups):
            block = bits[i : i + groups]
            for g in range(groups):
                lowest[g] = min(lowest[g], block[g])
        below, bound = lowest.min(), lowest.max()
        for _ in range(10):
            # 32 bits wide, like what is compared: twice as many fit into an instruction.
            middle = np.int32(below + (bound - below) // 2)
            count = np.int32(0)
            for g in range(groups):
                count += np.int32(lowest[g] <= middle)
            if count >= K:
                bound = middle
            else:
                below = middle
        count = 0
        # Written without branches, which the processor would guess wrong.
        kept = 0
        for g in range(groups):
            chosen[kept] = g
            kept += lowest[g] <= bound
        for c in range(kept):
            i = chosen[c]
            while i < N:  # a range would divide to know its length
                candidates[count] = (np.int64(bits[i]) << 32) | i
                count += bits[i] <= bound
                i += groups
        if count > 8 * K + 64:  # many points at one distance: counting takes the square of their number
            candidates[:count].sort()
            count = K
        near, where = squared_distance[b, m], index[b, m]
        for i in range(count):
            key = candidates[i]
            place = 0
            for j in range(count):
                place += candidates[j] < key
            if place < K:
                where[place] = key & 0xFFFFFFFF
                near[place] = distance[where[place]]


@compiled
def max_gathered(values: Floats, index: Indices, own: Indices, out: Floats, start: int, stop: int) -> None:
    """Take the maximum over each centre's neighbours, for centres `start` to `stop` of all B M.

    Args:
        values: (B, N, C).
        index: Neighbours, (B, M, K).
        own: The point whose values are subtracted, (B, M), or (B, 0) for none.
        out: (B, M, C). Filled; NaN wins.
        start: First centre.
        stop: Centre after the last.
    """
    M, K = index.shape[1:]
    C = values.shape[2]
    for row in range(start, stop):
        b, m = row // M, row % M
        # No row is taken out of an array: that costs as much as the maxima of a few dozen channels.
        j = index[b, m, 0]
        for c in range(C):
            out[b, m, c] = values[b, j, c]
        # Four at a time, so that the best is read and written less often.
        for k in range(1, K, 4):
            j1, j2 = index[b, m, k], index[b, m, min(k + 1, K - 1)]
            j3, j4 = index[b, m, min(k + 2, K - 1)], index[b, m, min(k + 3, K - 1)]
            for c in range(C):
                top, v1, v2 = out[b, m, c], values[b, j1, c], values[b, j2, c]
                v3, v4 = values[b, j3, c], values[b, j4, c]
                v1 = v1 if (v1 > v2) | (v1 != v1) else v2
                v3 = v3 if (v3 > v4) | (v3 != v3) else v4
                v1 = v1 if (v1 > v3) | (v1 != v1) else v3
                out[b, m, c] = top if (top > v1) | (top != top) else v1
        if own.shape[1]:
            j = own[b, m]
            for c in range(C):
                out[b, m, c] -= values[b, j, c]


@compiled
def argmax_gathered(
    values: Floats, index: Indices, own: Indices, out: Floats, winner: Places, start: int, stop: int
) -> None:
    """Do what `max_gathered` does, and say which neighbour has the maximum: that takes half as long again.

    Args:
        values: (B, N, C).
        index: Neighbours, (B, M, K).
        own: The point whose values are subtracted, (B, M), or (B, 0) for none.
        out: (B, M, C). Filled; NaN wins.
        winner: The neighbour that has the maximum, (B, M, C); the first one of equals. Filled.
        start: First centre.
        stop: Centre after the last.
    """
    M, K = index.shape[1:]
    C = values.shape[2]
    for row in range(start, stop):
        b, m = row // M, row % M
        first = np.int32(index[b, m, 0])
        for c in range(C):
            out[b, m, c], winner[b, m, c] = values[b, first, c], first
        # Four at a time: with one the compiler stores conditionally, and without vector instructions.
        for k in range(1, K, 4):
            j1, j2 = np.int32(index[b, m, k]), np.int32(index[b, m, min(k + 1, K - 1)])
            j3, j4 = np.int32(index[b, m, min(k + 2, K - 1)]), np.int32(index[b, m, min(k + 3, K - 1)])
            for c in range(C):
                top, j = out[b, m, c], winner[b, m, c]
                value = values[b, j1, c]
                wins = (value > top) | (value != value)
                top, j = value if wins else top, j1 if wins else j
                value = values[b, j2, c]
                wins = (value > top) | (value != value)
                top, j = value if wins else top, j2 if wins else j
                value = values[b, j3, c]
                wins = (value > top) | (value != value)
                top, j = value if wins else top, j3 if wins else j
                value = values[b, j4, c]
                wins = (value > top) | (value != value)
                top, j = value if wins else top, j4 if wins else j
                out[b, m, c], winner[b, m, c] = top, j
        if own.shape[1]:
            subtracted = own[b, m]
            for c in range(C):
                out[b, m, c] -= values[b, subtracted, c]


@compiled
def scatter_gathered(grad: Floats, winner: Places, own: Indices, out: Floats, start: int, stop: int) -> None:
    """Add each centre's gradient to the neighbour that had its maximum, for clouds `start` to `stop`.

    Args:
        grad: (B, M, C).
        winner: (B, M, C).
        own: The point from which it is subtracted, (B, M), or (B, 0) for none.
        out: (B, N, C). Filled.
        start: First cloud.
        stop: Cloud after the last.
    """
    M, C = grad.shape[1:]
    for b in range(start, stop):
        out[b] = 0
        for m in range(M):
            slope, chosen = grad[b, m], winner[b, m]
            for c in range(C):
                out[b, chosen[c], c] += slope[c]
            if own.shape[1]:
                subtracted = out[b, own[b, m]]
                for c in range(C):
                    subtracted[c] -= slope[c]


@register_jitable
def _powers(point: Floats, center: Floats) -> tuple[Any, ...]:
    x, y, z = point[0] - center[0], point[1] - center[1], point[2] - center[2]
    return x, y, z, x * x, y * y, z * z, x * y, x * z, y * z


# In functions of their own, the products take two thirds of the time that they take within the loop.
@register_jitable
def _form(powers: tuple[Any, ...], weight: Floats, c: int) -> Any:
    """The quadratic form of channel c without its constant."""
    x, y, z, xx, yy, zz, xy, xz, yz = powers
    value = x * weight[1, c] + y * weight[2, c] + z * weight[3, c]
    value = value + xx * weight[4, c] + yy * weight[5, c] + zz * weight[6, c]
    return value + xy * weight[7, c] + xz * weight[8, c] + yz * weight[9, c]


@compiled
def max_quadratic(
    points: Floats, centers: Floats, index: Indices, weight: Floats, out: Floats, winner: Places, start: int, stop: int
) -> None:
    """Take the maximum of quadratic forms of neighbours' offsets, for centres `start` to `stop` of all B M.

    Args:
        points: (B, N, 3).
        centers: (B, M, 3).
        index: Neighbours, (B, M, K).
        weight: Coefficients of 1, x, y, z, xx, yy, zz, xy, xz, yz, (10, C).
        out: (B, M, C). Filled; NaN wins.
        winner: The neighbour that has the maximum, (B, M, C). Filled.
        start: First centre.
        stop: Centre after the last.
    """
    M, K = index.shape[1:]
    C = weight.shape[1]
    for row in range(start, stop):
        b, m = row // M, row % M
        best, chosen, center, neighbors = out[b, m], winner[b, m], centers[b, m], index[b, m]
        best[:] = -np.inf
        chosen[:] = neighbors[0]
        for k in range(0, K, 2):  # two at a time, for the reason in `argmax_gathered`
            j1, j2 = np.int32(neighbors[k]), np.int32(neighbors[min(k + 1, K - 1)])
            powers1, powers2 = _powers(points[b, j1], center), _powers(points[b, j2], center)
            for c in range(C):
                top, j = best[c], chosen[c]
                value = _form(powers1, weight, c)
                wins = (value > top) | (value != value)
                top, j = value if wins else top, j1 if wins else j
                value = _form(powers2, weight, c)
                wins = (value > top) | (value != value)
                best[c], chosen[c] = value if wins else top, j2 if wins else j
        for c in range(C):
            best[c] += weight[0, c]


@compiled
def quadratic_weight_grad(
    points: Floats, centers: Floats, winner: Places, grad: Floats, start: int, stop: int
) -> Floats:
    """The gradient of `max_quadratic` with respect to its weight, (10, C), from centres `start` to `stop` of all B M.

    Args:
        points: (B, N, 3).
        centers: (B, M, 3).
        winner: (B, M, C).
        grad: (B, M, C).
        start: First centre.
        stop: Centre after the last.
    """
    M, C = grad.shape[1:]
    out = np.zeros((10, C), grad.dtype)
    for row in range(start, stop):
        b, m = row // M, row % M
        cx, cy, cz = centers[b, m, 0], centers[b, m, 1], centers[b, m, 2]
        for c in range(C):
            j, g = winner[b, m, c], grad[b, m, c]
            x, y, z = points[b, j, 0] - cx, points[b, j, 1] - cy, points[b, j, 2] - cz
            gx, gy, gz = g * x, g * y, g * z
            out[0, c] += g
            out[1, c] += gx
            out[2, c] += gy
            out[3, c] += gz
            out[4, c] += gx * x
            out[5, c] += gy * y
            out[6, c] += gz * z
            out[7, c] += gx * y
            out[8, c] += gx * z
            out[9, c] += gy * z
    return out
