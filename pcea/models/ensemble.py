"""Several classifiers as one, which is more often right than each, and knows better how often.

Source: "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles" (Lakshminarayanan et al., 2017).
"""

from __future__ import annotations

import math
from itertools import accumulate

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

    members: nn.ModuleList

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        flat: list[nn.Module] = []
        for member in members:
            flat += member.members if isinstance(member, ClassifierEnsemble) else [member]
        counts = [int(member.num_classes) for member in flat]  # type: ignore[arg-type]
        if len(set(counts)) != 1:
            raise ValueError(f"members must be at least one classifier, all of the same classes; they have {counts}.")
        self.num_classes = counts[0]
        self.members = nn.ModuleList(flat)

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
            Logarithms of the mean probabilities plus the mean of what each member's logits have beyond such logarithms,
            their log-sum-exp, which tells known clouds from others, (B, num_classes). In training the logits of all M
            members, (B, M, num_classes), for a loss of each.
        """
        logits = torch.stack([m(points, features, mask=mask, batch=batch) for m in self.members], dim=1)
        if self.training:
            return logits
        exact = at_least_fp32(logits)
        mean = exact.log_softmax(-1).logsumexp(1) - math.log(len(self.members))
        return (mean + exact.logsumexp(-1).mean(1, keepdim=True)).to(logits.dtype)

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

        Of centres that several members have, the first one's wins.
        """
        pooled = [member.pooled_centers(points, features) for member in self.members]  # type: ignore[operator]
        centers = torch.cat([each.centers for each in pooled], 1)
        starts = accumulate((each.centers.shape[1] for each in pooled[:-1]), initial=0)
        winner = torch.cat([each.winner + start for each, start in zip(pooled, starts)], 1)
        first = (centers[:, :, None] == centers[:, None]).all(-1).long().argmax(2)
        return PooledCenters(centers, first.gather(1, winner))
