"""What happens to shapes outside of data sets: missing regions, uneven and few points, outliers, wrong poses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pcea.datasets.batches import PointBatch
from pcea.io.points import Normalization
from pcea.transforms.points import (
    RandomJitter,
    RandomOrientation,
    RandomPose,
    RandomScale,
    RandomTilt,
    Transform,
    check_share,
    uniform,
)

Where = Literal["anywhere", "half_space", "ball", "slope"]


class RandomRemoval(Transform):
    """Remove a random share of each cloud's points: the mask of the batch says which are left.

    Args:
        where: Which points are removed:

            - anywhere: any, so that the cloud gets sparser;
            - half_space: those farthest in a random direction, as where a scan ends;
            - ball: those nearest to a random one of them, as behind an obstacle;
            - slope: more of them the farther they lie in a random direction, as with the distance from a scanner.
        low: Smallest share.
        high: Largest share. At least one point is left.
    """

    def __init__(self, where: Where, *, low: float = 0.0, high: float = 0.5):
        if where not in get_args(Where):
            raise ValueError(f"where must be one of {', '.join(get_args(Where))}, got {where!r}.")
        _check_range(low, high)
        self.where, self.low, self.high = where, low, high

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Remove points of (B, N, 3)."""
        points = batch.points
        B, N, _ = points.shape
        mask = torch.ones(B, N, dtype=torch.bool, device=points.device) if batch.mask is None else batch.mask
        key = self._key(points, mask, generator).masked_fill(~mask, torch.inf)
        count = mask.sum(1, keepdim=True)
        share = uniform(points, (B, 1), self.low, self.high, generator)
        kept = (count * (1 - share)).round().long().clamp(min=1)
        return batch._replace(mask=mask & (key <= key.sort(dim=1).values.gather(1, kept - 1)))

    def _key(self, points: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        """A number for each point, (B, N): the points with the greatest ones are removed."""
        B, N, _ = points.shape
        noise = uniform(points, (B, N), 0, 1, generator)
        if self.where == "anywhere":
            return noise
        if self.where == "ball":
            center = points.gather(1, noise.masked_fill(~mask, -1).argmax(1).view(B, 1, 1).expand(B, 1, 3))
            return -(points - center).norm(dim=-1)
        direction = F.normalize(points.new_empty(B, 1, 3).normal_(generator=generator), dim=-1)
        height = (points * direction).sum(-1)
        if self.where == "half_space":
            return height
        low, high = (
            height.masked_fill(~mask, value).aminmax(dim=1, keepdim=True)[i]
            for i, value in enumerate((torch.inf, -torch.inf))
        )
        # An exponential race: a point at the far end is e^3 times as likely to go as one at the near end.
        slope = 3 * (height - low) / (high - low).clamp(min=torch.finfo(points.dtype).tiny)
        return slope - (-noise.clamp(min=1e-9).log()).log()


class RandomOutliers(Transform):
    """Replace a random share of each cloud's points by points anywhere in its bounding sphere about the origin.

    Args:
        low: Smallest share.
        high: Largest share.
    """

    def __init__(self, *, low: float = 0.0, high: float = 0.05):
        _check_range(low, high)
        self.low, self.high = low, high

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Move points of (B, N, 3); their normals point anywhere, too."""
        points = batch.points
        B, N, _ = points.shape
        norm = points.norm(dim=-1)
        radius = (norm if batch.mask is None else norm.masked_fill(~batch.mask, 0)).amax(1).view(B, 1, 1)
        direction, normal = (F.normalize(torch.empty_like(points).normal_(generator=generator), dim=-1) for _ in "dn")
        share = uniform(points, (B, 1, 1), self.low, self.high, generator)
        is_outlier = uniform(points, (B, N, 1), 0, 1, generator) < share
        distance = uniform(points, (B, N, 1), 0, 1, generator) ** (1 / 3)  # uniform in the volume
        return batch._replace(
            points=torch.where(is_outlier, radius * distance * direction, points),
            normals=None if batch.normals is None else torch.where(is_outlier, normal, batch.normals),
        )


class RandomOneOf(Transform):
    """Apply one of several transforms, another one to each cloud, or none.

    Args:
        transforms: Each keeps the number of points and the labels.
        probability: Share of the clouds to which any is applied.
        batches: Share of the batches in which that happens; the others stay as they are.
    """

    def __init__(self, transforms: Sequence[Transform], *, probability: float = 0.5, batches: float = 1.0):
        if not transforms:
            raise ValueError("RandomOneOf needs at least one transform.")
        self.transforms = tuple(transforms)
        self.probability, self.batches = check_share("probability", probability), check_share("batches", batches)

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Transform clouds (B, N, 3)."""
        if float(uniform(batch.points, (1,), 0, 1, generator)) >= self.batches:
            return batch._replace(points=batch.points.clone())
        draw = uniform(batch.points, (len(batch.points),), 0, 1, generator)
        for number, transform in enumerate(self.transforms):
            start, end = (i * self.probability / len(self.transforms) for i in (number, number + 1))
            batch = choose_clouds((start <= draw) & (draw < end), transform(batch, generator=generator), batch)
        return batch


class Normalize(Transform):
    """Bring the mean of each cloud's real points to the origin and the farthest of them to distance 1, as files are."""

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:  # noqa: ARG002
        """Move and scale points (B, N, 3)."""
        points = Normalization.of(batch.points, mask=batch.mask).apply(batch.points)
        return batch._replace(points=points.to(batch.points.dtype))


def _check_range(low: float, high: float) -> None:
    if not 0 <= low <= high <= 1:
        raise ValueError(f"0 <= low <= high <= 1 expected, got low={low}, high={high}.")


BACKGROUND = -1
"""Label of a cloud that is none of the classes, or not upright."""


class RandomBackground(Transform):
    """Turn a random share of the clouds into what is no upright shape of any class; their label becomes -1.

    For tasks with `background`, whose network then tells how upright and how well known a cloud is.

    Args:
        poses: Share that takes a random one of the 24 axis-aligned poses.
        orientations: Share that is turned any way, uniformly over all rotations.
        mixtures: Share of which a random half is replaced by the half of another cloud, in any orientation.

    Raises:
        ValueError: If a share is not in 0..1 or their sum is above 1.
    """

    def __init__(self, *, poses: float = 0.2, orientations: float = 0.1, mixtures: float = 0.1):
        for name, value in (("poses", poses), ("orientations", orientations), ("mixtures", mixtures)):
            check_share(name, value)
        if poses + orientations + mixtures > 1:
            raise ValueError(f"The shares must sum to at most 1, got {poses + orientations + mixtures:g}.")
        self.poses, self.orientations, self.mixtures = poses, orientations, mixtures
        self.pose, self.orientation = RandomPose(), RandomOrientation()

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Transform clouds (B, N, 3) with a label each, (B,)."""
        if batch.label.ndim != 1:
            raise ValueError(f"RandomBackground needs one label per cloud, (B,), got {tuple(batch.label.shape)}.")
        draw = uniform(batch.points, (len(batch.points),), 0, 1, generator)
        first, second, third = (
            self.poses,
            self.poses + self.orientations,
            self.poses + self.orientations + self.mixtures,
        )
        posed = self.pose(batch, generator=generator)
        turned = self.orientation(batch, generator=generator)
        mixed = self.orientation(_mix(batch, generator), generator=generator)
        label = torch.where(draw < third, BACKGROUND, batch.label)
        batch = choose_clouds(draw < third, mixed, batch)
        batch = choose_clouds(draw < second, turned, batch)
        return choose_clouds(draw < first, posed, batch)._replace(label=label)


def _mix(batch: PointBatch, generator: torch.Generator | None) -> PointBatch:
    """Each cloud below a random plane through the origin, and the cloud before it in the batch above."""
    points, N = batch.points, batch.points.shape[1]
    direction = F.normalize(points.new_empty(len(points), 1, 3).normal_(generator=generator), dim=-1)
    other = PointBatch(*(None if value is None else value.roll(1, 0) for value in batch))  # type: ignore[arg-type]
    # Half of the points of each, so that their number stays: those that come first on their side.
    below, above = ((b.points * direction * sign).sum(-1) for b, sign in ((batch, 1), (other, -1)))
    half, mask = N // 2, None
    if batch.mask is not None and other.mask is not None:  # half of the real points of each
        below, above = below.masked_fill(~batch.mask, torch.inf), above.masked_fill(~other.mask, torch.inf)
        ours, theirs = (real.sum(1, keepdim=True) for real in (batch.mask, other.mask))
        slots = torch.arange(N, device=points.device)
        mask = torch.cat([slots[:half] < ours // 2, slots[: N - half] < theirs - theirs // 2], dim=1)
    chosen = torch.cat([below.argsort(1)[:, :half], N + above.argsort(1)[:, : N - half]], 1)

    def pick(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
        if ours is None or theirs is None:
            return None
        both = torch.cat([ours, theirs], dim=1)
        return both.gather(1, chosen.view(*chosen.shape, *[1] * (both.ndim - 2)).expand(-1, -1, *both.shape[2:]))

    mixed = pick(points, other.points)
    assert mixed is not None
    return batch._replace(points=mixed, normals=pick(batch.normals, other.normals), mask=mask)


def choose_clouds(is_first: Tensor, first: PointBatch, second: PointBatch) -> PointBatch:
    """The clouds of `first` where `is_first` (B,) is true, else those of `second`; both are of the same size."""

    def choose(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
        if ours is None or theirs is None:
            return theirs if ours is None else ours
        return torch.where(is_first.view(-1, *[1] * (ours.ndim - 1)), ours, theirs)

    masks = [first.mask, second.mask]
    if (first.mask is None) != (second.mask is None):
        full = torch.ones(first.points.shape[:2], dtype=torch.bool, device=first.points.device)
        masks = [full if mask is None else mask for mask in masks]
    points, label = choose(first.points, second.points), choose(first.label, second.label)
    assert points is not None
    assert label is not None
    return PointBatch(points, label, choose(first.normals, second.normals), second.category, choose(*masks))


_REMOVED = (0.1, 0.2, 0.3, 0.4, 0.5)
CORRUPTIONS: dict[str, Sequence[Transform]] = {
    "axis_pose": [RandomOneOf([RandomPose()], probability=share) for share in (0.2, 0.4, 0.6, 0.8, 1.0)],
    "any_pose": [RandomOrientation(probability=share) for share in (0.2, 0.4, 0.6, 0.8, 1.0)],
    "tilt": [RandomTilt(degrees=degrees) for degrees in (6, 12, 18, 24, 30)],
    "jitter": [RandomJitter(std=std, clip=1.0) for std in (0.01, 0.02, 0.03, 0.04, 0.05)],
    "scale": [RandomScale(low=1 / factor, high=factor) for factor in (1.6, 1.7, 1.8, 1.9, 2.0)],
    "dropout": [RandomRemoval("anywhere", low=share, high=share) for share in (0.25, 0.375, 0.5, 0.625, 0.75)],
    "few_points": [RandomRemoval("anywhere", low=1 - n / 1024, high=1 - n / 1024) for n in (512, 256, 128, 96, 64)],
    "half_space": [RandomRemoval("half_space", low=share, high=share) for share in _REMOVED],
    "ball": [RandomRemoval("ball", low=share, high=share) for share in _REMOVED],
    "density": [RandomRemoval("slope", low=share, high=share) for share in (0.3, 0.4, 0.5, 0.6, 0.7)],
    "outliers": [RandomOutliers(low=share, high=share) for share in (0.01, 0.02, 0.03, 0.04, 0.05)],
}
"""What a test set may be changed by, in five levels each; shares are of the 1,024 points of a cloud.

Source: PointCloud-C (Ren et al., 2022) for tilt, jitter, scale, dropout and outliers. Its local dropout takes up to
eight regions, `ball` takes one of the same size.
"""


class Corruption(Transform):
    """One corruption at one level; afterwards clouds are normalized again, as files are.

    The first pass over a split depends on the seed and the batches alone; later passes draw on.

    Args:
        name: One of `CORRUPTIONS`.
        level: 1 to 5.
        seed: Decides what is random.
    """

    def __init__(self, name: str, level: int, *, seed: int = 0):
        if name not in CORRUPTIONS:
            raise ValueError(f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}.")
        if not 1 <= level <= len(CORRUPTIONS[name]):
            raise ValueError(f"level must be in 1..{len(CORRUPTIONS[name])}, got {level}.")
        self.name, self.level, self.seed = name, level, seed
        self._generator: torch.Generator | None = None

    def __call__(self, batch: PointBatch, *, generator: torch.Generator | None = None) -> PointBatch:
        """Change points (B, N, 3); without a generator, each call draws on from the seed."""
        if generator is None:
            if self._generator is None:
                self._generator = torch.Generator(batch.points.device).manual_seed(self.seed)
            generator = self._generator
        return Normalize()(CORRUPTIONS[self.name][self.level - 1](batch, generator=generator))
