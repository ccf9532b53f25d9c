"""What decided a class: the regions of a cloud, what they decide, and what the cloud would be without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pcea.inference.base import evaluating
from pcea.inference.classes import ClassPrediction
from pcea.io.points import Normalization, Points
from pcea.ops import farthest_point_sample
from pcea.visualization.views import View, view_parts

if TYPE_CHECKING:
    from pcea.inference.points import PointPredictor
    from pcea.inference.pose import PosedLogits


class Region(NamedTuple):
    """A region of a cloud.

    Attributes:
        place: Where it is, in words: top, middle or bottom; inner or outer.
        share_of_points: In 0..1.
        share_of_feature: Share of the pooled channels that its points decide, in 0..1; None if the network cannot tell.
        without: What the network says of the cloud without the region.
    """

    place: str
    share_of_points: float
    share_of_feature: float | None
    without: ClassPrediction


class Explanation(NamedTuple):
    """What decided the class of a cloud.

    Attributes:
        prediction: The class; if the pose was found, over all poses that the cloud may be in.
        upright: What the network says of the cloud in its pose alone, as it does of what is left without a region.
        regions: The regions, that whose loss costs the class most probability first.
        points: Upright points to draw, (N, 3).
        region_of: Number of the region of each, (N,).
    """

    prediction: ClassPrediction
    upright: ClassPrediction
    regions: tuple[Region, ...]
    points: Tensor
    region_of: Tensor

    def __str__(self) -> str:
        lines = [f"  in this pose alone: {self.upright.title}"]
        for number, region in enumerate(self.regions, start=1):
            size = f"{100 * region.share_of_points:3.0f} % of the points"
            if region.share_of_feature is not None:
                size += f", decides {100 * region.share_of_feature:.0f} % of the feature"
            lines.append(f"  {number}. {region.place:14} {size}; without it: {region.without.title}")
        return "\n".join(lines)

    def view(self, *, title: str = "") -> View:
        """The cloud with a colour for each region; the legend says how probable the class is without it.

        Args:
            title: A line of text; the class by default.
        """
        name = self.prediction.class_names[0]
        regions = {
            number: f"{number + 1}. {region.place}: {name} {100 * _probability(region.without, name):.0f} % without it"
            for number, region in enumerate(self.regions)
        }
        view = view_parts(self.points, self.region_of, regions, title=title or self.prediction.title)
        return view._replace(legend_title="region")


def explain(
    predictor: PointPredictor, cloud: Points, drawn: Points, posed: PosedLogits, *, num_regions: int = 8
) -> Explanation:
    """Find what decides the class of a cloud: take its regions away one after another.

    Args:
        predictor: The network.
        cloud: The points that it sees.
        drawn: Points of the same shape that are drawn.
        posed: What it says of them, and their pose.
        num_regions: Number of regions: the points nearest to as many that lie far apart.

    Raises:
        ValueError: If `num_regions` is less than 2, or there are too few points for so many.
    """
    if num_regions < 2:
        raise ValueError(f"num_regions must be at least 2, got {num_regions}.")
    every = len(predictor.class_names)
    whole = predictor.rank(posed.logits, every, score=posed.score, pose=posed.name)
    turned, drawn_turned = (c.points @ posed.rotation.T.to(c.points) for c in (cloud, drawn))
    normalization = Normalization.of(turned)
    upright, to_draw = (normalization.apply(points).float() for points in (turned, drawn_turned))
    normals = None if cloud.normals is None else cloud.normals @ posed.rotation.T
    different = len(upright.unique(dim=0))
    if different <= num_regions:
        raise ValueError(f"At least {num_regions + 1} different points are needed, got {different}.")
    seeds = upright[farthest_point_sample(upright[None], num_regions)[0]]
    region_of = torch.cdist(upright, seeds).argmin(1)
    feature_shares = _feature_shares(predictor, upright, normals, seeds)

    def judge_upright(some: Points) -> ClassPrediction:
        judged = predictor.pose(some, up="y")
        return predictor.rank(judged.logits, every, score=judged.score)

    regions = []
    for number in range(len(seeds)):
        inside = region_of == number
        if int((~inside).sum()) < getattr(predictor.network, "min_points", 1):
            raise ValueError(
                f"Without one of {num_regions} regions {int((~inside).sum())} of {len(upright)} points are left, but "
                f"the network needs at least {predictor.network.min_points}: give a cloud of more points."
            )
        rest = Points(upright[~inside], None if normals is None else normals[~inside])
        regions.append(
            Region(
                _place(upright, inside),
                float(inside.float().mean()),
                None if feature_shares is None else float(feature_shares[number]),
                judge_upright(rest),
            )
        )
    order = sorted(range(len(regions)), key=lambda i: _probability(regions[i].without, whole.class_names[0]))
    rank = torch.tensor([order.index(i) for i in range(len(regions))])
    nearest = torch.cdist(to_draw, seeds).argmin(1)
    regions_in_order = tuple(regions[i] for i in order)
    return Explanation(whole, judge_upright(Points(upright, normals)), regions_in_order, to_draw, rank[nearest])


def _feature_shares(predictor: PointPredictor, points: Tensor, normals: Tensor | None, seeds: Tensor) -> Tensor | None:
    """Share of the pooled channels that the centres nearest to each seed decide, (R,)."""
    if not hasattr(predictor.network, "pooled_centers"):
        return None
    given = normals[None].to(predictor.device) if predictor.description.has_normals and normals is not None else None
    with torch.no_grad(), evaluating(predictor.network):
        centers, winner = predictor.network.pooled_centers(points[None].to(predictor.device), given)  # type: ignore[operator]
    nearest = torch.cdist(centers[0].float().cpu(), seeds).argmin(1)
    return nearest[winner[0].cpu()].bincount(minlength=len(seeds)) / winner.shape[1]


def _place(points: Tensor, inside: Tensor) -> str:
    """Where some of upright points (N, 3) are."""
    low, high = points[:, 1].min(), points[:, 1].max()
    height = (points[inside, 1].mean() - low) / (high - low).clamp(min=1e-9)
    aside = points[:, ::2].norm(dim=1)
    level = "bottom" if height < 1 / 3 else "middle" if height < 2 / 3 else "top"
    return f"{level}, {'outer' if aside[inside].mean() > aside.mean() else 'inner'}"


def _probability(prediction: ClassPrediction, name: str) -> float:
    return prediction.probabilities[prediction.class_names.index(name)]
