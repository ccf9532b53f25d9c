"""Procedural objects with exact part labels and normals: the dataset that needs no download.

An object is a dict from part name to surfaces. Lengths are roughly metres before scaling, y is up and z is the front.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from pcea.datasets.parts import PartDataset, number_parts
from pcea.datasets.points import PointDataset
from pcea.datasets.splits import SPLITS, Split
from pcea.datasets.surfaces import (
    FloatArray,
    Surface,
    Vector,
    box,
    dome,
    eased,
    ellipse,
    hollow,
    lathe,
    pick,
    prism,
    rectangle,
    ring,
    rod,
)

PARTS: dict[str, tuple[str, ...]] = {
    "airplane": ("fuselage", "wings", "tail", "engines"),
    "bottle": ("body", "neck", "cap"),
    "cabinet": ("body", "doors", "handles", "feet"),
    "chair": ("seat", "back", "legs", "arms"),
    "guitar": ("body", "neck", "head"),
    "lamp": ("base", "pole", "shade"),
    "mug": ("body", "handle"),
    "rocket": ("body", "nose", "fins", "nozzle"),
    "sofa": ("seat", "back", "arms", "feet"),
    "stool": ("seat", "legs", "rungs"),
    "table": ("top", "legs", "shelf", "drawers"),
    "vase": ("body", "neck", "foot", "handles"),
}
CATEGORIES: tuple[str, ...] = tuple(PARTS)
CELLS = 10
HELD_OUT_CELLS = (1, 5, 9)
SEEN_CELLS = tuple(cell for cell in range(CELLS) if cell not in HELD_OUT_CELLS)


class Parameters:
    """Draws the parameters of one object.

    Every continuous range is cut into `CELLS` equal cells: `HELD_OUT_CELLS` belong to the test split alone, the others
    to training and validation. Discrete choices (styles, counts, optional parts) are shared.

    Args:
        rng: Source of randomness.
        held_out: True to draw from the held-out cells.
    """

    def __init__(self, rng: Generator, *, held_out: bool):
        self.rng, self.cells = rng, HELD_OUT_CELLS if held_out else SEEN_CELLS

    def between(self, low: float, high: float) -> float:
        """A value of the range, uniform over the cells of this split."""
        return low + (high - low) * (self.one_of(*self.cells) + self.rng.random()) / CELLS

    def one_of(self, *options: int) -> int:
        """One of the options, equally likely."""
        return options[int(self.rng.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)


PartSurfaces = dict[str, list[Surface]]


def posts(draw: Parameters, width: float, depth: float, height: float) -> list[Surface]:
    """Four legs, round or square, straight or splayed, that carry a plate of width x depth at `height`."""
    radius, splay = draw.between(0.012, 0.04), draw.between(0.9, 1.25) if draw.chance(0.6) else 1.0
    is_square, taper = draw.chance(0.4), draw.between(0.5, 1.2)
    legs = []
    for x, z in rectangle(width - 2.5 * radius, depth - 2.5 * radius):
        foot, top = (splay * x, 0.0, splay * z), (x, height, z)
        long = float(np.linalg.norm(np.subtract(top, foot)))
        square = prism(rectangle(2 * radius, 2 * radius), long).aim(foot, top)
        legs.append(square if is_square else rod(foot, top, taper * radius, radius))
    return legs


def pedestal(draw: Parameters, spread: float, height: float) -> list[Surface]:
    """One column on a disc or on three to five spokes."""
    radius, thickness = draw.between(0.02, 0.05), draw.between(0.015, 0.05)
    if draw.chance(0.5):
        return [rod((0, thickness, 0), (0, height, 0), radius), prism(ellipse(spread, spread), thickness)]
    column, count = rod((0, thickness, 0), (0, height, 0), radius), draw.one_of(3, 4, 5)
    lift = draw.between(0.5, 3) * thickness
    toes = [(x, thickness / 2, z) for x, z in ellipse(spread, spread, corners=count)]
    return [column, *(rod((0, thickness + lift, 0), toe, thickness, thickness / 2) for toe in toes)]


def plate(corners: int, width: float, thickness: float, depth: float) -> Surface:
    """A rectangular plate if `corners` is 4, else a many-sided or round one, that stands on the origin."""
    return prism(rectangle(width, depth) if corners == 4 else ellipse(width, depth, corners=corners), thickness)


def airplane(draw: Parameters) -> PartSurfaces:
    """A fuselage along z with swept wings (sometimes two pairs), a plain or T tail, and up to four engines."""
    long, radius, nose, stern = (draw.between(*ends) for ends in ((1.2, 2), (0.07, 0.14), (0.1, 0.4), (0.3, 0.7)))
    outline = [(0, 0), *eased([(0.25 * radius, 0), (radius, stern)]), *dome(radius, nose, y=long - nose)]

    def wing(span: float, chord: float, sweep: float, tip: float) -> Surface:
        return prism([(0, chord), (span, chord - sweep), (span, chord - sweep - tip), (0, 0)], 0.02)

    span, chord, root = draw.between(0.5, 1.1), draw.between(0.2, 0.4), draw.between(0.35, 0.5) * long
    sweep, tip, rise = draw.between(0, 0.5), draw.between(0.3, 0.9) * chord, draw.between(-3, 10)
    level, pairs = draw.one_of(-1, 0, 1) * 0.7 * radius, draw.one_of(1, 1, 1, 2)
    wings = [
        wing(side * span, chord, sweep, tip).turn("z", side * rise).at(0, level + 3 * k * radius, root)
        for side in (-1, 1)
        for k in range(pairs)
    ]
    if pairs == 2:
        middle = 0.8 * chord - 0.6 * sweep - 0.3 * tip
        for side in (-1, 1):
            strut = rod((side * 0.6 * span, 0, middle), (side * 0.6 * span, 3 * radius, middle), 0.012)
            wings.append(strut.turn("z", side * rise).at(0, level, root))
    small, narrow, fin = draw.between(0.2, 0.4), draw.between(0.12, 0.22), draw.between(0.2, 0.4)
    planes = [wing(side * small, narrow, 0.4 * sweep, 0.6 * narrow) for side in (-1, 1)]
    tail_level = fin if draw.chance(0.3) else 0
    pod, out, size = draw.between(0.03, 0.06), draw.between(0.3, 0.55), draw.between(0.15, 0.35)
    engines = []
    for place in (out, out / 2 + 0.2)[: draw.one_of(0, 1, 1, 2)]:
        y, z = level - pod + place * span * np.sin(np.radians(rise)), root + chord - sweep * place
        engines += [rod((x, y, z - size), (x, y, z), 0.7 * pod, pod) for x in (-place * span, place * span)]
    return {
        "fuselage": [lathe(outline).turn("x", 90)],
        "wings": wings,
        "tail": [
            wing(fin, 1.3 * narrow, 0.5 * fin, 0.6 * narrow).turn("z", 90),
            *(plane.at(0, tail_level, 0) for plane in planes),
        ],
        "engines": engines,
    }


def bottle(draw: Parameters) -> PartSurfaces:
    """A round or square body, a shoulder that eases into a neck, and a closing cap."""
    radius, body, shoulder = draw.between(0.12, 0.3), draw.between(0.35, 0.8), draw.between(0.04, 0.3)
    neck, throat, cap = draw.between(0.25, 0.7) * radius, draw.between(0.03, 0.3), draw.between(0.03, 0.12)
    waist, wide = draw.between(0.75, 1.05), draw.between(1.0, 1.4)
    low = [(radius, 0), (waist * radius, body / 2), (radius, body)]
    is_round, top = draw.chance(0.75), body + shoulder + throat
    square = prism(rectangle(2 * radius, 2 * radius), body)
    return {
        "body": [lathe([(0, 0), *eased(low)]) if is_round else square],
        "neck": [lathe([*eased([(radius, body), (neck, body + shoulder)]), (neck, top)])],
        "cap": [rod((0, top, 0), (0, top + cap, 0), wide * neck)],
    }


def cabinet(draw: Parameters) -> PartSurfaces:
    """A box with doors or drawers that carry knobs or bars, on the floor, a plinth or legs."""
    width, height, depth = draw.between(0.4, 1.6), draw.between(0.4, 1.7), draw.between(0.3, 0.6)
    lift, front, gap = draw.between(0.05, 0.3), draw.between(0.015, 0.04), draw.between(0.01, 0.05)
    columns, rows, is_bar = draw.one_of(1, 2, 3), draw.one_of(1, 1, 2, 3), draw.chance(0.5)
    door_width, door_height = width / columns, height / rows
    size, side = draw.between(0.012, 0.03), draw.between(0.6, 0.9)
    doors, handles = [], []
    for x in door_width * (np.arange(columns) + 0.5) - width / 2:
        for y in door_height * np.arange(rows) + lift:
            doors.append(box(door_width - gap, door_height - gap, front).at(x, y + gap / 2, (depth + front) / 2))
            knob_x, knob_y, z = x + (side - 0.5) * door_width, y + door_height / 2, depth / 2 + front
            bar_long = min(0.25, door_height / 2)
            bar = box(1.4 * size, bar_long, 1.4 * size).at(knob_x, knob_y - bar_long / 2, z + 0.7 * size)
            handles.append(bar if is_bar else lathe(dome(1.5 * size, 3 * size)).turn("x", 90).at(knob_x, knob_y, z))
    plinth = [box(draw.between(0.7, 1) * width, lift, draw.between(0.7, 1) * depth)]
    feet = posts(draw, width, depth, lift) if draw.chance(0.6) else plinth
    return {"body": [box(width, height, depth).at(0, lift, 0)], "doors": doors, "handles": handles, "feet": feet}


def chair(draw: Parameters) -> PartSurfaces:
    """A seat on posts or a pedestal, with a board, slats or rails as a leaning back, and sometimes arms."""
    width, depth, height = draw.between(0.36, 0.65), draw.between(0.36, 0.6), draw.between(0.3, 0.6)
    thickness, rise, lean = draw.between(0.02, 0.15), draw.between(0.05, 0.7), draw.between(-2, 18)
    corners = draw.one_of(4, 4, 24, 8)
    seat, room = plate(corners, width, thickness, depth).at(0, height, 0), 1.0 if corners == 4 else 0.75
    width, depth = room * width, room * depth  # a round seat has no corners to stand on
    style, strength, low = draw.one_of(0, 1, 2), draw.between(0.02, 0.06), draw.between(0, 0.5) * rise
    if style == 0:
        back = [box(width, rise - low, strength).at(0, low, 0)]
    elif style == 1:
        rail, places = draw.between(0.04, 0.12), np.linspace(-0.42, 0.42, draw.one_of(2, 3, 4, 5, 6)) * width
        back = [box(width, rail, strength).at(0, rise - rail, 0)]
        back += [box(strength, rise - rail, 0.8 * strength).at(x, 0, 0) for x in places]
    else:
        count = draw.one_of(2, 3, 4)
        back = [box(width, 0.5 * rise / count, strength).at(0, (k + 0.5) * rise / count, 0) for k in range(count)]
    if low or style:
        back += [rod((x, 0, 0), (x, rise, 0), strength / 2) for x in (-0.45 * width, 0.45 * width)]
    arms, level, reach = [], draw.between(0.12, 0.28), draw.between(0.6, 1.0) * depth
    if draw.chance(0.35):
        for x in (-width / 2, width / 2):
            arms.append(box(strength, strength, reach).at(x, height + thickness + level, (reach - depth) / 2))
            arms.append(box(strength, level, strength).at(x, height + thickness, reach - depth / 2 - strength))
    legs = posts(draw, width, depth, height) if draw.chance(0.75) else pedestal(draw, width, height)
    return {
        "seat": [seat],
        "back": [surface.turn("x", -lean).at(0, height + thickness, (strength - depth) / 2) for surface in back],
        "legs": legs,
        "arms": arms,
    }


def guitar(draw: Parameters) -> PartSurfaces:
    """An upright figure of eight (or a drop) with a neck and a head that leans back."""
    width, height, waist = draw.between(0.16, 0.26), draw.between(0.2, 0.32), draw.between(0, 0.4)
    upper, thickness, long = draw.between(0.6, 0.95), draw.between(0.04, 0.13), draw.between(0.3, 0.65)
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    narrow = 1 - waist * np.exp(-(((np.sin(angles) - 0.15) / 0.25) ** 2))
    half = np.where(np.sin(angles) > 0, upper, 1) * narrow * width
    outline = list(zip(half * np.cos(angles), height * np.sin(angles)))
    neck, head, lean = draw.between(0.03, 0.06), draw.between(0.1, 0.2), draw.between(0, 20)
    flare = draw.between(1.2, 2.6) * neck
    tuner = [(-neck / 2, 0), (neck / 2, 0), (flare / 2, head), (-flare / 2, head)]
    return {
        "body": [prism(outline, thickness).turn("x", -90).at(0, 0, thickness / 2)],
        "neck": [box(neck, long + 0.1, 0.5 * neck).at(0, height - 0.1, thickness / 2)],
        "head": [prism(tuner, 0.4 * neck).turn("x", -90 - lean).at(0, height + long, thickness / 2)],
    }


def lamp(draw: Parameters) -> PartSurfaces:
    """A foot, a straight pole or a bent arm, and a cone, dome or globe as the shade."""
    height, foot, low = draw.between(0.25, 1.6), draw.between(0.1, 0.28), draw.between(0.02, 0.12)
    bottom, top, tall = draw.between(0.12, 0.35), draw.between(0.3, 1.0), draw.between(0.12, 0.4)
    style, strength = draw.one_of(0, 1, 2), draw.between(0.01, 0.03)
    outline = [(bottom, 0.0), (top * bottom, tall)] if style == 0 else dome(bottom, tall)
    upper = dome(0.6 * bottom, tall / 2, y=tall / 2)
    globe = lathe([*((radius, tall - y) for radius, y in reversed(upper)), *upper])
    shade = globe if style == 2 else lathe(hollow(outline, 0.01))
    reach, bend = draw.between(0.15, 0.5) * height, draw.between(0.4, 0.8) * height
    is_bent, tilt = draw.chance(0.35), draw.between(0, 50)
    elbow = (-reach / 2, bend, 0.0)
    arm = [rod((0, low, 0), elbow, strength), rod(elbow, (reach, height, 0), strength)]
    stand = lathe([(0, 0), *(dome(foot, low) if draw.chance(0.5) else [(foot, 0), (foot, low), (0, low)])])
    pole = [rod((0, low, 0), (0, height + (0 if style == 2 else 0.9 * tall), 0), strength)]
    hung = shade.at(0, -0.9 * tall, 0).turn("z", tilt).at(reach, height, 0)
    return {
        "base": [box(2 * foot, low, 1.6 * foot) if draw.chance(0.3) else stand],
        "pole": arm if is_bent else pole,
        "shade": [hung if is_bent else shade.at(0, height, 0)],
    }


def mug(draw: Parameters) -> PartSurfaces:
    """An open vessel with one handle, round or angular."""
    radius, height, flare = draw.between(0.16, 0.32), draw.between(0.25, 0.75), draw.between(0.7, 1.2)
    belly, wall, loop = draw.between(0.9, 1.35), draw.between(0.01, 0.04), draw.between(0.15, 0.4) * height
    strength, level = draw.between(0.01, 0.035), draw.between(0.45, 0.6) * height
    outline = eased([(flare * radius, 0), (belly * radius, height / 2), (radius, height)])
    reach, edge = draw.between(0.1, 0.28), 0.95 * radius
    handle = [ring(loop, strength, degrees=200).at(edge, level, 0)]
    if draw.chance(0.4):
        low, high, out = level - loop, level + loop, edge + reach
        corners: list[Vector] = [(edge, low, 0), (out, low, 0), (out, high, 0), (edge, high, 0)]
        handle = [rod(start, end, strength) for start, end in pairwise(corners)]
    return {"body": [lathe(hollow([(0, 0), *outline], wall))], "handle": handle}


def rocket(draw: Parameters) -> PartSurfaces:
    """A body with a pointed or blunt nose, three to five fins and one to four nozzles."""
    radius, long, nose = draw.between(0.08, 0.2), draw.between(0.5, 1.2), draw.between(0.12, 0.45)
    waist, blunt = draw.between(0.7, 1.1), draw.chance(0.5)
    span, root, sweep = draw.between(0.08, 0.3), draw.between(0.15, 0.4), draw.between(-0.1, 0.25)
    tip, bell, count = draw.between(0.3, 0.9) * root, draw.between(0.06, 0.2), draw.one_of(3, 4, 5)
    cone = dome(waist * radius, nose, y=long) if blunt else [(waist * radius, long), (0.0, long + nose)]
    outline = [(0, 0), (0, root), (span, tip - sweep), (span, -sweep)]
    fin = prism(outline, 0.02).at(0, -0.01, 0).turn("x", -90).at(0.95 * radius, 0, 0)
    mouths, wide = draw.one_of(1, 1, 3, 4), draw.between(0.5, 0.9) * radius
    wide, off = (wide, 0.0) if mouths == 1 else (wide / 2, 0.5 * radius)
    places = ellipse(2 * off, 2 * off, corners=mouths)
    return {
        "body": [lathe([(0, 0), *eased([(radius, 0), (radius, long / 2), (waist * radius, long)])])],
        "nose": [lathe(cone)],
        "fins": [fin.turn("y", 360 * k / count) for k in range(count)],
        "nozzle": [lathe(hollow([(wide, -bell), (0.5 * wide, 0)], 0.015)).at(x, 0, z) for x, z in places],
    }


def sofa(draw: Parameters) -> PartSurfaces:
    """A wide or single upholstered seat between two blocky arms, in front of a thick back."""
    width, depth, height = draw.between(0.5, 1.8), draw.between(0.45, 0.7), draw.between(0.18, 0.35)
    rise, strength, lean = draw.between(0.2, 0.6), draw.between(0.08, 0.22), draw.between(0, 15)
    arm, level, lift = draw.between(0.06, 0.22), draw.between(0.1, 0.3), draw.between(0.03, 0.18)
    cushions, gap = draw.one_of(1, 1, 2, 3), draw.between(0, 0.03)
    wide, places = width / cushions, (np.arange(cushions) + 0.5) / cushions * width - width / 2
    back = [box(wide - gap, rise, strength).turn("x", -lean).at(x, 0, 0) for x in places]
    out, top = (width + arm) / 2, height + level
    side, roll = box(arm, top, depth), rod((0, top, -depth / 2), (0, top, depth / 2), 0.6 * arm)
    sides = [side, roll] if draw.chance(0.4) else [side]
    return {
        "seat": [box(wide - gap, height, depth).at(x, lift, 0) for x in places],
        "back": [surface.at(0, lift + height, (strength - depth) / 2) for surface in back],
        "arms": [surface.at(x, lift, 0) for x in (-out, out) for surface in sides],
        "feet": posts(draw, width + 2 * arm, depth, lift),
    }


def stool(draw: Parameters) -> PartSurfaces:
    """A small seat on posts or a pedestal, sometimes with rungs or a foot ring; proportions like side tables."""
    width, height, thickness = draw.between(0.28, 0.6), draw.between(0.35, 0.9), draw.between(0.02, 0.1)
    depth, level, strength = draw.between(0.7, 1.1) * width, draw.between(0.2, 0.5), draw.between(0.01, 0.025)
    corners = draw.one_of(4, 4, 24, 24, 8)
    room = 0.95 if corners == 4 else 0.72
    seat = plate(corners, width, thickness, depth).at(0, height, 0)
    if draw.chance(0.35):
        radius, y = draw.between(0.3, 0.45) * width, level * height
        rungs = [ring(radius, strength).turn("x", 90).at(0, y, 0), rod((-radius, y, 0), (radius, y, 0), strength)]
        legs = pedestal(draw, draw.between(0.7, 1.1) * width, height)
        return {"seat": [seat], "legs": legs, "rungs": rungs if draw.chance(0.6) else []}
    legs, turns = posts(draw, room * width, room * depth, height), rectangle(0.95 * room * width, 0.95 * room * depth)
    ends = zip(turns, [*turns[1:], turns[0]])
    rungs = [rod((a, level * height, b), (c, level * height, d), strength) for (a, b), (c, d) in ends]
    return {"seat": [seat], "legs": legs, "rungs": rungs if draw.chance(0.6) else []}


def table(draw: Parameters) -> PartSurfaces:
    """A plate on posts, a pedestal or two panels, sometimes with a shelf or a block of drawers below the top."""
    width, height, thickness = draw.between(0.4, 1.6), draw.between(0.35, 0.85), draw.between(0.015, 0.08)
    depth, level, style = draw.between(0.5, 1.0) * min(width, 1.2), draw.between(0.15, 0.5), draw.one_of(0, 0, 1, 2)
    corners = draw.one_of(4, 4, 24, 24, 8)
    inset, side = draw.between(0.75, 1.0) * (1 if corners == 4 else 0.72), draw.between(0.02, 0.08)
    legs = posts(draw, inset * width, inset * depth, height)
    if style == 1:
        legs = pedestal(draw, draw.between(0.5, 0.9) * depth, height)
    elif style == 2:
        legs = [box(side, height, inset * depth).at(x * inset * (width - side), 0, 0) for x in (-0.5, 0.5)]
    low, long = draw.between(0.08, 0.3), draw.between(0.25, 0.95) * inset * width
    shelf = [box(0.9 * inset * width, 0.02, 0.8 * inset * depth).at(0, level * height, 0)]
    drawers = [box(long, low, 0.8 * inset * depth).at((inset * width - long) / 2, height - low, 0)]
    extra = draw.one_of(0, 0, 1, 2)
    return {
        "top": [plate(corners, width, thickness, depth).at(0, height, 0)],
        "legs": legs,
        "shelf": shelf if extra == 1 and style != 1 else [],
        "drawers": drawers if extra == 2 and style != 1 else [],
    }


def vase(draw: Parameters) -> PartSurfaces:
    """An open vessel: foot, belly, neck that flares or narrows, and up to two handles."""
    belly, body, foot = draw.between(0.14, 0.35), draw.between(0.3, 0.75), draw.between(0.35, 0.9)
    throat, neck, lip = draw.between(0.3, 1.0) * belly, draw.between(0.03, 0.35), draw.between(0.7, 1.5)
    low, widest, wall = draw.between(0.03, 0.12), draw.between(0.35, 0.75) * body, draw.between(0.01, 0.03)
    outline = eased([(foot * belly, 0), (belly, widest), (throat, body)])
    mouth = eased([(throat, body), (lip * throat, body + neck)])
    loop, strength = draw.between(0.3, 0.5) * (neck + 0.2), draw.between(0.012, 0.03)
    handle = ring(loop, strength, degrees=200).at(0.95 * throat, body + neck / 4, 0)
    return {
        "body": [lathe(hollow([(0, 0), *outline], wall)).at(0, low, 0)],
        "neck": [lathe(hollow(mouth, wall)).at(0, low, 0)],
        "foot": [lathe([(0, 0), (draw.between(0.8, 1.3) * foot * belly, 0), (0.8 * foot * belly, low)])],
        "handles": [handle.at(0, low, 0).turn("y", angle) for angle in (0, 180)[: draw.one_of(0, 0, 1, 2)]],
    }


BUILDERS: dict[str, Callable[[Parameters], PartSurfaces]] = {
    builder.__name__: builder
    for builder in (airplane, bottle, cabinet, chair, guitar, lamp, mug, rocket, sofa, stool, table, vase)
}


class Shape(NamedTuple):
    """N points sampled from one object.

    Attributes:
        points: Centred on their mean and scaled into the unit sphere, (N, 3).
        normals: Outward and of unit length, (N, 3).
        part: Index into `PARTS[category]`, (N,).
    """

    points: FloatArray
    normals: FloatArray
    part: NDArray[np.int64]


def sample_shape(category: str, parameters: Parameters, *, num_points: int) -> Shape:
    """Build one object, turn it a little about y and sample it uniformly by area, in random order."""
    parts = BUILDERS[category](parameters)
    labelled = [(part, surface) for part, name in enumerate(PARTS[category]) for surface in parts[name]]
    yaw, rng = parameters.between(-20, 20), parameters.rng
    owner = pick(rng, np.array([surface.area for _, surface in labelled]), num_points)
    points, normals = np.empty((num_points, 3)), np.empty((num_points, 3))
    for k, (_, surface) in enumerate(labelled):
        mine = owner == k
        points[mine], normals[mine] = surface.turn("y", yaw).sample(rng, int(mine.sum()))
    points = points - points.mean(axis=0)
    radius = np.linalg.norm(points, axis=1).max()
    part = np.array([part for part, _ in labelled])[owner]
    return Shape(points / max(radius, 1e-12), normals, part)


class ShapeArrays(NamedTuple):
    """Many objects.

    Attributes:
        points: Coordinates, zero mean, in the unit sphere, (L, N, 3) fp32.
        normals: Unit normals, (L, N, 3) fp32.
        category: Index into `CATEGORIES`, (L,) int64.
        part: Index into `PARTS` of the category, (L, N) int64.
    """

    points: Tensor
    normals: Tensor
    category: Tensor
    part: Tensor


def make_shapes(split: Split, *, num_shapes: int, num_points: int, seed: int) -> ShapeArrays:
    """Make the objects of `Shapes`, whose arguments these are.

    Raises:
        ValueError: If a number is below its minimum, or `split` is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    for name, value, minimum in (("num_shapes", num_shapes, 1), ("num_points", num_points, 1), ("seed", seed, 0)):
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {name}={value}.")
    category = np.arange(num_shapes, dtype=np.int64) % len(CATEGORIES)
    points, normals = np.empty((2, num_shapes, num_points, 3), np.float32)
    part = np.empty((num_shapes, num_points), np.int64)
    for i, k in enumerate(category):
        rng = np.random.default_rng((seed, SPLITS.index(split), i))
        parameters = Parameters(rng, held_out=split == "test")
        points[i], normals[i], part[i] = sample_shape(CATEGORIES[k], parameters, num_points=num_points)
    return ShapeArrays(*map(torch.from_numpy, (points, normals, category, part)))


class Shapes(PointDataset):
    """Objects of `CATEGORIES` made from random parameters, with exact normals.

    Shape i is of category i % 12 and depends on (seed, split, i) alone, not on `num_shapes`; machines agree up to
    rounding. Points are in random order, so the first n are a uniform sample too. Objects are turned by up to 20
    degrees about y, no more. Surfaces inside other surfaces are sampled too.

    Every continuous parameter, the turn included, has its range cut into ten equal cells. "train" and "val" draw from
    cells 0, 2, 3, 4, 6, 7, 8 (other random numbers, one distribution); "test" draws from cells 1, 5 and 9, which the
    others never touch: two gaps to interpolate and the upper end to extrapolate. Discrete choices (styles, counts,
    optional parts) are shared by all splits.

    Args:
        split: "train", "val" or "test".
        num_shapes: Number of clouds L.
        num_points: Number of points N per cloud.
        with_normals: Also give normals.
        seed: Another seed gives other shapes from the same distribution.

    Raises:
        ValueError: If a number is below its minimum, or `split` is unknown.
    """

    def __init__(
        self, split: Split, *, num_shapes: int, num_points: int = 1024, with_normals: bool = True, seed: int = 0
    ):
        made = make_shapes(split, num_shapes=num_shapes, num_points=num_points, seed=seed)
        normals = made.normals if with_normals else None
        super().__init__(made.points, made.category, class_names=CATEGORIES, normals=normals)


class ShapesParts(PartDataset):
    """The objects of `Shapes`, whose arguments these are, with the exact part of every point, such as "chair/back"."""

    def __init__(
        self, split: Split, *, num_shapes: int, num_points: int = 1024, with_normals: bool = True, seed: int = 0
    ):
        made = make_shapes(split, num_shapes=num_shapes, num_points=num_points, seed=seed)
        parts, class_names = number_parts(PARTS)
        first = torch.tensor([classes[0] for classes in parts.values()])
        super().__init__(
            made.points.flatten(0, 1),
            (made.part + first[made.category, None]).flatten(),
            torch.full((num_shapes,), num_points),
            class_names=class_names,
            normals=made.normals.flatten(0, 1) if with_normals else None,
            category=made.category,
            parts=parts,
        )
