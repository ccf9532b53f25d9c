"""Mean class accuracy where some classes may be missing."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy


class MeanClassAccuracy(MulticlassAccuracy):
    """The mean over classes of the share of their samples that are named rightly; classes without samples do not count.

    Torchmetrics' mean (`average="macro"`) counts such a class as 0 once a sample is taken for it.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int):
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:
        """The mean in 0..1; 0 without samples."""
        right, count = torch.as_tensor(self.tp), torch.as_tensor(self.tp) + torch.as_tensor(self.fn)
        present = count > 0
        return (right[present] / count[present]).mean() if present.any() else torch.zeros((), device=count.device)
