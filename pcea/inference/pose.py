"""In which pose a file holds its shape: found by a network that tells upright shapes of its classes from all else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.io.points import orient
from pcea.transforms.points import axis_rotations

# Points with which all poses are judged at first, and the number of poses that are then judged with all points.
_COARSE_POINTS, _FINALISTS = 256, 6
# How much likelier than any of the 24 poses these are before the shape is seen: as the network knows shapes; z up, as
# CAD programs write them; and y or z up but facing another way. Poses along no axis of the file come from few sources:
# scans of things that lie about. Chosen on held-out clouds in all these poses.
_AS_IS, _Z_UP, _TURNED, _OBLIQUE = 32.0, 16.0, 6.0, 0.2


class PosedLogits(NamedTuple):
    """What a classifier says of a cloud, over the poses that it may be in.

    Attributes:
        logits: Logarithms of the probabilities of the classes, up to a constant, (P,).
        score: How well it knows the upright shape: the logarithm of the odds that it is of a class, not background;
            without a background the log-sum-exp of the logits.
        rotation: The most probable pose: upright points are points @ rotation.T, (3, 3).
        name: The pose in words, such as "z up"; "" if it was given.
    """

    logits: Tensor
    score: float
    rotation: Tensor
    name: str = ""


def up_rotation(up: str) -> Tensor:
    """The rotation (3, 3) by which points of a file with this upward axis become upright: points @ rotation.T.

    Raises:
        ValueError: If `up` is none of x, y, z, -x, -y and -z.
    """
    return orient(torch.eye(3, dtype=torch.float32), up).T


def find_pose(
    judge: Callable[[Tensor, int], Tensor], points: Tensor, *, temperature: float = 1.0, min_points: int = 1
) -> PosedLogits:
    """Find the class of a cloud together with its pose.

    A network trained with `RandomBackground` gives, for a cloud in one pose, the odds of each class in its upright pose
    against a cloud in any pose; as exactly one of the poses is upright, those of all poses and classes, weighted by how
    usual the poses are, are their joint probabilities.

    Args:
        judge: Maps rotations (R, 3, 3) and how many points to use to logits (R, P + 1), the last one the background.
        points: The cloud, (N, 3).
        temperature: By which the logits are divided, so that probabilities are true frequencies.
        min_points: Fewest points that the network takes.
    """
    axes, frames = axis_rotations(), oblique_frames(points)
    rotations = torch.cat([axes, *(axes @ frame for frame in frames)])
    prior = torch.tensor([1.0] * len(axes) + [_OBLIQUE] * len(axes) * len(frames), dtype=torch.float32)
    prior[: len(axes)][axes[:, 1, 1:].amax(1) > 0.5] = _TURNED  # the second row of a rotation is what becomes up
    prior[_index_of(axes, up_rotation("y"))] = _AS_IS
    prior[_index_of(axes, up_rotation("z"))] = _Z_UP
    prior = prior.log()
    few = min(max(_COARSE_POINTS, min_points), len(points))
    odds = log_odds(judge(rotations, few), temperature) + prior[:, None]
    best = odds.logsumexp(1).topk(min(_FINALISTS, len(odds))).indices
    fine = log_odds(judge(rotations[best], len(points)), temperature)
    joint = fine + prior[best, None]
    winner = int(joint.logsumexp(1).argmax())
    rotation = rotations[best[winner]]
    return PosedLogits(joint.logsumexp(0), float(fine[winner].logsumexp(0)), rotation, pose_name(rotation))


def log_odds(logits: Tensor, temperature: float) -> Tensor:
    """Log odds of each class against the background, (..., P), from logits (..., P + 1)."""
    logits = logits.float().cpu() / temperature
    return logits[..., :-1] - logits[..., -1:]


def oblique_frames(points: Tensor) -> list[Tensor]:
    """Rotations (3, 3) that bring a shape's own axes along the axes, as rows: principal axes, and its smallest box.

    Frames that are the axes of the file already, up to 10 degrees, are left out: a tilt of so much changes little.
    """
    import trimesh
    from scipy.spatial import QhullError

    table = points.double().cpu().numpy()
    centered = table - table.mean(0)
    values, axes = np.linalg.eigh(centered.T @ centered)
    frames = [axes.T]
    if len(table) > 2 and values[1] > 1e-12 * values[2]:  # a line has no box
        with suppress(QhullError), np.errstate(all="ignore"):
            frames.append(trimesh.bounds.oriented_bounds(table)[0][:3, :3])
    kept = []
    for frame in frames:
        rotation = torch.from_numpy(frame * (1 if np.linalg.det(frame) > 0 else -1)).float()
        if float(rotation.abs().max(1).values.min()) < np.cos(np.radians(10)):
            kept.append(rotation)
    return kept


def pose_name(rotation: Tensor) -> str:
    """The upward direction of a pose in words: an axis of the file, or x, y and z of a unit vector."""
    up = rotation[1]  # what becomes y
    axis = int(up.abs().argmax())
    if float(up[axis].abs()) > 1 - 1e-6:
        return f"{'-' if up[axis] < 0 else ''}{'xyz'[axis]} up"
    return f"up {', '.join(f'{value:.2f}' for value in up.tolist())}"


def _index_of(rotations: Tensor, rotation: Tensor) -> int:
    return int((rotations - rotation).abs().sum((1, 2)).argmin())
