"""Batched augmentation, on the device of the batch and never in place.

Each transform is called as `transform(batch, generator=generator)` and returns a new `PointBatch`. The generator must
live on the device of the batch; None draws from torch's global one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from itertools import permutations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.datasets.batches import PointBatch
from pcea.ops import farthest_point_sample, gather_points


class Transform(ABC):
    """Maps a batch to a new batch."""

    @abstractmethod
    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Return the transformed batch."""


class RandomScale(Transform):
    """Multiply each cloud by a random factor; normals are carried along exactly.

    Args:
        low: Smallest factor.
        high: Largest factor.
        anisotropic: Whether every axis gets its own factor.
    """

    def __init__(self, *, low: float = 2 / 3, high: float = 3 / 2, anisotropic: bool = True):
        if not 0 < low <= high:
            raise ValueError(f"0 < low <= high expected, got low={low}, high={high}.")
        self.low, self.high, self.anisotropic = low, high, anisotropic

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Scale points (B, N, 3)."""
        shape = (len(batch.points), 1, 3 if self.anisotropic else 1)
        factor = uniform(batch.points, shape, self.low, self.high, generator)
        normals = None if batch.normals is None else F.normalize(batch.normals / factor, dim=-1)
        return batch._replace(points=batch.points * factor, normals=normals)


class RandomTranslate(Transform):
    """Shift each cloud by a random vector.

    Args:
        extent: Largest shift along each axis.
    """

    def __init__(self, *, extent: float = 0.2):
        if extent < 0:
            raise ValueError(f"extent must not be negative, got {extent}.")
        self.extent = extent

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Shift points (B, N, 3)."""
        shift = uniform(batch.points, (len(batch.points), 1, 3), -self.extent, self.extent, generator)
        return batch._replace(points=batch.points + shift)


class RandomRotate(Transform):
    """Rotate each cloud by a random angle about the vertical (y) axis.

    Args:
        degrees: Largest angle, to either side.
    """

    def __init__(self, *, degrees: float = 180.0):
        if not 0 <= degrees <= 180:
            raise ValueError(f"degrees must be in 0..180, got {degrees}.")
        self.degrees = degrees

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Rotate points and normals (B, N, 3)."""
        radians = torch.pi * self.degrees / 180
        angle = uniform(batch.points, (len(batch.points),), -radians, radians, generator)
        rotation = torch.zeros(len(angle), 3, 3, dtype=angle.dtype, device=angle.device)
        rotation[:, 0, 0] = rotation[:, 2, 2] = angle.cos()
        rotation[:, 0, 2], rotation[:, 2, 0] = angle.sin(), -angle.sin()
        rotation[:, 1, 1] = 1
        return rotate_clouds(batch, rotation)


class RandomTilt(Transform):
    """Rotate each cloud about a random axis by a random angle.

    Args:
        degrees: Largest angle.
    """

    def __init__(self, *, degrees: float = 15.0):
        if not 0 <= degrees <= 180:
            raise ValueError(f"degrees must be in 0..180, got {degrees}.")
        self.degrees = degrees

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Rotate points and normals (B, N, 3)."""
        B = len(batch.points)
        axis = F.normalize(batch.points.new_empty(B, 3).normal_(generator=generator), dim=1)
        half = uniform(batch.points, (B, 1), 0, torch.pi * self.degrees / 360, generator)
        return rotate_clouds(batch, rotation_of(torch.cat([half.cos(), half.sin() * axis], dim=1)))


class RandomPose(Transform):
    """Turn each cloud into a random one of the 24 poses in which its axes lie along the axes."""

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Rotate points and normals (B, N, 3)."""
        rotations = axis_rotations().to(batch.points)
        pose = uniform(batch.points, (len(batch.points),), 0, len(rotations), generator).long()
        return rotate_clouds(batch, rotations[pose.clamp(max=len(rotations) - 1)])


class RandomOrientation(Transform):
    """Turn a random share of the clouds any way up, uniformly over all rotations.

    Args:
        probability: Share of the clouds that are turned.
    """

    def __init__(self, *, probability: float = 1.0):
        self.probability = check_share("probability", probability)

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Rotate points and normals (B, N, 3)."""
        B = len(batch.points)
        rotation = rotation_of(F.normalize(batch.points.new_empty(4, B).normal_(generator=generator), dim=0).T)
        is_turned = uniform(batch.points, (B, 1, 1), 0, 1, generator) < self.probability
        rotation = torch.where(is_turned, rotation, torch.eye(3, dtype=rotation.dtype, device=rotation.device))
        return rotate_clouds(batch, rotation)


class RandomJitter(Transform):
    """Add clipped Gaussian noise to every point.

    Args:
        std: Standard deviation of the noise.
        clip: Largest absolute value of the noise.
    """

    def __init__(self, *, std: float = 0.01, clip: float = 0.05):
        if std < 0 or clip < 0:
            raise ValueError(f"std and clip must not be negative, got std={std}, clip={clip}.")
        self.std, self.clip = std, clip

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Move points (B, N, 3)."""
        noise = torch.empty_like(batch.points).normal_(0, self.std, generator=generator)
        return batch._replace(points=batch.points + noise.clamp_(-self.clip, self.clip))


class RandomDropNormals(Transform):
    """Set the normals of a random share of the clouds to zero, so that a network does not rely on them alone.

    Args:
        probability: Share of the clouds that lose their normals.

    Raises:
        ValueError: If the batch has no normals.
    """

    def __init__(self, *, probability: float = 0.2):
        self.probability = check_share("probability", probability)

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Drop normals (B, N, 3)."""
        if batch.normals is None:
            raise ValueError("RandomDropNormals needs normals: set data.init_args.with_normals to true.")
        is_kept = uniform(batch.points, (len(batch.points), 1, 1), 0, 1, generator) >= self.probability
        return batch._replace(normals=batch.normals * is_kept)


class RandomDropPoints(Transform):
    """Replace a random share of each cloud's real points with its first real point.

    Args:
        max_ratio: Each cloud loses a share drawn from 0..max_ratio.
    """

    def __init__(self, *, max_ratio: float = 0.875):
        if not 0 <= max_ratio < 1:
            raise ValueError(f"max_ratio must be at least 0 and below 1, got {max_ratio}.")
        self.max_ratio = max_ratio

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Drop points (B, N, 3) and everything that belongs to them."""
        b, n, _ = batch.points.shape
        ratio = uniform(batch.points, (b, 1), 0, self.max_ratio, generator)
        dropped = uniform(batch.points, (b, n), 0, 1, generator) < ratio
        index = torch.arange(n, device=dropped.device).expand(b, n)
        first: Tensor | int = 0
        if batch.mask is not None:
            dropped, first = dropped & batch.mask, batch.mask.int().argmax(1, keepdim=True)
        index = torch.where(dropped, first, index)
        return select_points(batch, index)


class RandomSubset(Transform):
    """Keep a random subset of each cloud's real points, in random order; clouds with fewer stay padded.

    Args:
        num_points: Points kept; None for all of them, in random order.
        fewest: Some batches keep fewer points, down to this many: their number is uniform on a logarithmic scale. None
            for `num_points` always.
        probability: Share of the batches that do.
        padded: Whether clouds with fewer points stay padded; else all clouds keep as many as the smallest one has,
            which trains faster.
    """

    def __init__(
        self, *, num_points: int | None, fewest: int | None = None, probability: float = 0.5, padded: bool = True
    ):
        if fewest is not None and not 1 <= fewest <= (num_points or 0):
            raise ValueError(f"fewest must be in 1..num_points={num_points}, got {fewest}.")
        self.num_points, self.fewest, self.padded = num_points, fewest, padded
        self.probability = check_share("probability", probability)

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Choose from points (B, N, 3) with everything that belongs to them."""
        count = batch.points.shape[1] if self.num_points is None else self.num_points
        _check_enough(batch, count)
        if self.fewest is not None:
            chance, where = torch.rand(2, generator=generator, device=batch.points.device).tolist()
            if chance < self.probability:
                count = round(self.fewest * (count / self.fewest) ** where)
        key = uniform(batch.points, batch.points.shape[:2], 0, 1, generator)
        if batch.mask is not None:
            key = key + (~batch.mask)  # padding comes last
            count = count if self.padded else min(count, int(batch.mask.sum(1).min()))
        subset = select_points(batch, key.argsort(dim=1)[:, :count])
        return subset if subset.mask is None or not subset.mask.all() else subset._replace(mask=None)


class _Subset(Transform):
    """Keeps the same number of points of each cloud."""

    def __init__(self, *, num_points: int):
        self.num_points = num_points


class FirstPoints(_Subset):
    """Keep the first points of each cloud, as is usual in tests on the official clouds, whose points come in any order.

    Args:
        num_points: Points kept.
    """

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:  # noqa: ARG002
        """Choose from points (B, N, 3) with everything that belongs to them."""
        _check_enough(batch, self.num_points)
        index = torch.arange(self.num_points, device=batch.points.device)
        return select_points(batch, index.expand(len(batch.points), -1))


class FarthestSubset(_Subset):
    """Keep the points that farthest point sampling chooses, for evaluation: even coverage, nothing random.

    Args:
        num_points: Points kept.
    """

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:  # noqa: ARG002
        """Choose from points (B, N, 3) with everything that belongs to them."""
        _check_enough(batch, self.num_points)
        subset = select_points(batch, farthest_point_sample(batch.points, self.num_points, mask=batch.mask))
        if batch.mask is None:
            return subset
        # A cloud's real points come first; if there are too few, one is repeated and must not count again.
        mask = torch.arange(self.num_points, device=batch.mask.device) < batch.mask.sum(1, keepdim=True)
        return subset._replace(mask=None if mask.all() else mask)


@cache
def axis_rotations() -> Tensor:
    """The 24 rotations that map the axes onto axes, (24, 3, 3) float32; the first is the identity."""
    eye = torch.eye(3, dtype=torch.float32)
    signed = [
        torch.stack([s * eye[i] for s, i in zip(signs, order)])
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]
    return torch.stack([matrix for matrix in signed if torch.linalg.det(matrix) > 0])


def rotation_of(quaternion: Tensor) -> Tensor:
    """The rotations (B, 3, 3) of unit quaternions w, x, y, z, (B, 4)."""
    w, x, y, z = quaternion.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def rotate_clouds(batch: PointBatch, rotation: Tensor) -> PointBatch:
    """Rotate the points and normals of each cloud by its rotation, (B, 3, 3)."""
    normals = None if batch.normals is None else batch.normals @ rotation.mT
    return batch._replace(points=batch.points @ rotation.mT, normals=normals)


def select_points(batch: PointBatch, index: Tensor) -> PointBatch:
    """Keep the points at `index`, (B, M), with their normals, labels and mask."""
    return batch._replace(
        points=gather_points(batch.points, index),
        normals=None if batch.normals is None else gather_points(batch.normals, index),
        label=batch.label if batch.label.ndim == 1 else batch.label.gather(1, index),
        mask=None if batch.mask is None else batch.mask.gather(1, index),
    )


def _check_enough(batch: PointBatch, num_points: int) -> None:
    if not 1 <= num_points <= batch.points.shape[1]:
        raise ValueError(f"num_points must be in 1..N={batch.points.shape[1]}, the cloud size, got {num_points}.")


def check_share(name: str, value: float) -> float:
    """The value; a ValueError with its name if it is not in 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in 0..1, got {value}.")
    return value


def uniform(
    like: Tensor, shape: tuple[int, ...] | torch.Size, low: float, high: float, generator: torch.Generator | None
) -> Tensor:
    """Numbers uniform in low..high, of the dtype and on the device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(low, high, generator=generator)
