"""Several classifiers as one, which is more often right than each, and knows better how often.

Source: "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles" (Lakshminarayanan et al., 2017).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pcea.models.point_transformer import PooledCenters
from pcea.nn.linear import at_least_fp32


class ClassifierEnsemble(nn.Module):
    """Classifiers of point clouds that judge each cloud together: the mean of their probabilities counts.

    They may be trained together, from different first weights, each by its own loss; or each may start from `weights`.

    Args:
        members: Classifiers of the same classes and the same features of points, such as several `point_ea_classifier`.

    Raises:
        ValueError: If there are none, or their numbers of classes differ.
    """

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        counts = [int(member.num_classes) for member in members]  # type: ignore[arg-type]
        if len(set(counts)) != 1:
            raise ValueError(f"members must be at least one classifier, all of the same classes; they have {counts}.")
        self.members, self.num_classes = nn.ModuleList(members), counts[0]

    def forward(
        self,
        points: Tensor,
        features: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Classify B clouds; arguments as for `PointEAClassifier.forward`.

        Returns:
            Logarithms of the mean probabilities, (B, num_classes); in training the logits of all M members,
            (B, M, num_classes), for a loss of each.
        """
        logits = torch.stack([m(points, features, mask=mask, batch=batch) for m in self.members], dim=1)
        if self.training:
            return logits
        mean = at_least_fp32(logits).log_softmax(-1).logsumexp(1) - math.log(len(self.members))
        return mean.to(logits.dtype)

    @property
    def encoder(self) -> nn.ModuleList:
        """The encoders of all members."""
        return nn.ModuleList(member.encoder for member in self.members)  # type: ignore[misc]

    @property
    def min_points(self) -> int:
        """Fewest points per cloud that all members take."""
        return max(int(getattr(member, "min_points", 1)) for member in self.members)

    def pooled_centers(self, points: Tensor, features: Tensor | None = None) -> PooledCenters:
        """Which centre gives each max-pooled channel, of all members together; see `PointEAClassifier.pooled_centers`.

        Members that choose the same centres share them.
        """
        pooled = [member.pooled_centers(points, features) for member in self.members]  # type: ignore[operator]
        centers = pooled[0].centers
        if all(torch.equal(each.centers, centers) for each in pooled):
            return PooledCenters(centers, torch.cat([each.winner for each in pooled], 1))
        starts = torch.tensor([0, *(each.centers.shape[1] for each in pooled[:-1])]).cumsum(0).tolist()
        winner = torch.cat([each.winner + start for each, start in zip(pooled, starts)], 1)
        return PooledCenters(torch.cat([each.centers for each in pooled], 1), winner)
