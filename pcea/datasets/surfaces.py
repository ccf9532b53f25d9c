"""Surfaces that procedural objects are made of, sampled uniformly by area with exact outward normals.

A surface is a prism, a lathe (surface of revolution) or a ring (part of a torus); the others are made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Profile = Sequence[tuple[float, float]]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Surface:
    """A surface: its area and `sample(rng, n)`, n uniform points with outward unit normals, (n, 3) each."""

    area: float
    sample: Callable[[Generator, int], tuple[FloatArray, FloatArray]]

    def at(self, x: float, y: float, z: float) -> Surface:
        """The surface moved by (x, y, z)."""
        return self._mapped(np.eye(3), (x, y, z))

    def turn(self, axis: Literal["x", "y", "z"], degrees: float) -> Surface:
        """The surface turned about an axis through the origin, counter-clockwise as seen from the tip of the axis."""
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        rotation = np.eye(3)
        rotation[[first, second], [first, second]] = cos
        rotation[first, second], rotation[second, first] = -sin, sin
        return self._mapped(rotation, (0, 0, 0))

    def aim(self, start: Vector, end: Vector) -> Surface:
        """The surface with its origin at `start`, its y axis towards `end`; mirrored, which symmetric ones allow."""
        difference = np.array([0.0, 1.0, 0.0]) - np.subtract(end, start) / np.linalg.norm(np.subtract(end, start))
        mirror = np.eye(3) - 2 * np.outer(difference, difference) / max(difference @ difference, 1e-24)
        return self._mapped(mirror, start)

    def _mapped(self, rotation: FloatArray, offset: Vector) -> Surface:
        def sample(rng: Generator, n: int) -> tuple[FloatArray, FloatArray]:
            points, normals = self.sample(rng, n)
            return points @ rotation.T + offset, normals @ rotation.T

        return Surface(self.area, sample)


def pick(rng: Generator, areas: FloatArray, n: int) -> NDArray[np.int64]:
    """Indices (n,) into `areas`, each with probability proportional to its area."""
    ends = np.cumsum(areas)
    return np.searchsorted(ends[:-1], rng.random(n) * ends[-1], side="right")


def prism(outline: Profile, height: float) -> Surface:
    """An (x, z) outline, star-shaped about its mean corner, extruded from y = 0 to `height`, with both caps."""
    corners = np.array(outline)
    edges, center = np.roll(corners, -1, axis=0) - corners, corners.mean(axis=0)
    spokes = corners - center
    outward = edges[:, ::-1] * (1, -1)
    doubled = (outward * spokes).sum(axis=1)  # twice the area between edge and centre, negative if clockwise
    length = np.hypot(*edges.T)
    outward = outward * (np.sign(doubled) / length)[:, None]
    areas = np.concatenate((np.abs(doubled), length * height))

    def sample(rng: Generator, n: int) -> tuple[FloatArray, FloatArray]:
        face, (along, across, up) = pick(rng, areas, n), rng.random((3, n))
        is_cap, edge = face < len(edges), face % len(edges)
        reach = np.where(is_cap, np.sqrt(across), 1.0)
        flat = center + reach[:, None] * (spokes[edge] + along[:, None] * edges[edge])
        up = np.where(is_cap, np.round(up), up)
        side = np.where(is_cap[:, None], 0.0, outward[edge])
        points = np.stack((flat[:, 0], height * up, flat[:, 1]), axis=1)
        return points, np.stack((side[:, 0], np.where(is_cap, 2 * up - 1, 0.0), side[:, 1]), axis=1)

    return Surface(areas.sum(), sample)


def lathe(profile: Profile) -> Surface:
    """A (radius, y) polyline turned about the y axis; outward is to its right, so profiles run up the outside."""
    start, step = np.array(profile[:-1], float), np.diff(np.array(profile, float), axis=0)
    length = np.maximum(np.hypot(*step.T), 1e-12)
    outward = step[:, ::-1] * (1, -1) / length[:, None]
    both = 2 * start[:, 0] + step[:, 0]
    areas = np.pi * length * both

    def sample(rng: Generator, n: int) -> tuple[FloatArray, FloatArray]:
        face, (along, keep, turn) = pick(rng, areas, n), rng.random((3, n))
        # The density is linear along a frustum. Its mirror image completes it to a constant: mirroring is exact.
        is_mirrored = keep * both[face] > start[face, 0] + along * step[face, 0]
        along = np.where(is_mirrored, 1 - along, along)
        radius, y = (start[face] + along[:, None] * step[face]).T
        cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
        radial, up = outward[face].T
        return np.stack((radius * cos, y, radius * sin), axis=1), np.stack((radial * cos, up, radial * sin), axis=1)

    return Surface(areas.sum(), sample)


def ring(radius: float, thickness: float, *, degrees: float = 360) -> Surface:
    """A tube of radius `thickness` bent about the z axis at `radius`, `degrees` long with +x in its middle."""

    def sample(rng: Generator, n: int) -> tuple[FloatArray, FloatArray]:
        around, tube, keep = rng.random((3, n))
        around, tube = np.radians(degrees) * (around - 0.5), 2 * np.pi * tube
        # The density 1 + thickness / radius * cos(tube), made exact by mirroring as in `lathe`.
        is_mirrored = keep > (1 + thickness / radius * np.cos(tube)) / 2
        tube = np.where(is_mirrored, np.pi - tube, tube)
        along = np.stack((np.cos(around), np.sin(around), np.zeros(n)), axis=1)
        normals = np.cos(tube)[:, None] * along + np.sin(tube)[:, None] * (0, 0, 1)
        return radius * along + thickness * normals, normals

    return Surface(np.radians(degrees) * radius * 2 * np.pi * thickness, sample)


def rectangle(width: float, depth: float) -> Profile:
    """Outline of a rectangle about the origin."""
    return [(width / 2, depth / 2), (-width / 2, depth / 2), (-width / 2, -depth / 2), (width / 2, -depth / 2)]


def ellipse(width: float, depth: float, *, corners: int = 24) -> Profile:
    """Outline of an ellipse about the origin, as a polygon."""
    angles = np.arange(corners) * 2 * np.pi / corners
    return [(width / 2 * np.cos(angle), depth / 2 * np.sin(angle)) for angle in angles]


def dome(radius: float, height: float, *, y: float = 0.0) -> Profile:
    """Profile of a quarter ellipse from (radius, y) up to the axis."""
    return [(radius * np.cos(angle), y + height * np.sin(angle)) for angle in np.linspace(0, np.pi / 2, 9)]


def eased(profile: Profile) -> Profile:
    """The profile with an S-curve in place of every segment."""
    steps = np.linspace(0, 1, 7)
    pairs = list(pairwise(profile))
    return [(a + (b - a) * (3 - 2 * s) * s * s, y + (top - y) * s) for (a, y), (b, top) in pairs for s in steps]


def hollow(profile: Profile, wall: float) -> Profile:
    """The closed profile of a shell: up the outside, down the inside; a profile that starts on the axis has a floor."""
    inside = [(max(radius - wall, 0.0), max(y, profile[0][1] + wall)) for radius, y in reversed(profile)]
    return [*profile, *inside, profile[0]]


def box(width: float, height: float, depth: float) -> Surface:
    """A box that stands on the origin."""
    return prism(rectangle(width, depth), height)


def rod(start: Vector, end: Vector, radius: float, end_radius: float | None = None) -> Surface:
    """A round rod, tapered where `end_radius` differs."""
    length = float(np.linalg.norm(np.subtract(end, start)))
    return lathe([(0, 0), (radius, 0), (radius if end_radius is None else end_radius, length), (0, length)]).aim(
        start, end
    )
