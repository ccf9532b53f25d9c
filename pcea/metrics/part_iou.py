"""Intersection over union of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class PartIoU(Metric):
    """Mean intersection over union (IoU) of parts: per shape, averaged over shapes and over categories.

    The IoU of a shape is the mean over the parts of its category; a part absent from prediction and truth counts as 1.
    `instance_miou` is the mean over all shapes, `category_miou` the mean over the categories' means. Categories
    without shapes are left out. Both follow the two published conventions: argmax over the parts of the shape's
    category, which is known (PointNet++), or, with `_all_parts`, over the parts of all categories (DGCNN, PCT).

    Args:
        parts: The classes of each category, by its name.
        num_classes: Number of classes of all categories.
    """

    is_part: Tensor
    total: Tensor
    count: Tensor
    full_state_update = False
    higher_is_better = True

    def __init__(self, parts: Mapping[str, Sequence[int]], num_classes: int):
        super().__init__()
        self.names = tuple(parts)
        is_part = torch.zeros(len(parts), num_classes, dtype=torch.bool)
        for number, classes in enumerate(parts.values()):
            is_part[number, list(classes)] = True
        self.register_buffer("is_part", is_part, persistent=False)
        # Sums over shapes, one row per convention.
        self.add_state("total", torch.zeros(2, len(parts), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(parts), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, label: Tensor, category: Tensor, mask: Tensor | None = None) -> None:
        """Count shapes.

        Args:
            scores: Logits or probabilities of every class, (B, N, P).
            label: True class of every point, (B, N).
            category: Category of each shape, (B,).
            mask: True for real points, (B, N).
        """
        is_part = self.is_part[category]  # (B, P)
        # Clamped, so that a part of the category wins where all of them are -inf.
        own = scores.clamp(min=torch.finfo(scores.dtype).min).masked_fill(~is_part.unsqueeze(1), -torch.inf)
        for row, predicted in zip(self.total, (own.argmax(-1), scores.argmax(-1))):
            row.index_add_(0, category, _shape_iou(predicted, label, is_part, mask))
        self.count += category.bincount(minlength=len(self.names))

    def compute(self) -> dict[str, Tensor]:
        """The four means, each in 0..1; NaN without shapes."""
        result = {}
        for total, suffix in zip(self.total, ("", "_all_parts")):
            result[f"instance_miou{suffix}"] = total.sum() / self.count.sum()
            present = self.count > 0
            result[f"category_miou{suffix}"] = (total[present] / self.count[present]).mean()
        return result

    def by_category(self) -> dict[str, tuple[int, float | None]]:
        """Number of shapes and mean IoU (argmax over its own parts; None if no shapes) of each category."""
        means = (self.total[0] / self.count).tolist()
        counts = self.count.tolist()
        return {name: (n, mean if n else None) for name, n, mean in zip(self.names, counts, means)}


def _shape_iou(predicted: Tensor, label: Tensor, is_part: Tensor, mask: Tensor | None) -> Tensor:
    """Mean IoU of each shape over its category's parts, (B,) float64, from classes (B, N) and parts (B, P)."""
    B, P = is_part.shape
    weight = torch.ones_like(label) if mask is None else mask.long()
    label = label if mask is None else label.masked_fill(~mask, 0)  # whatever stands at padding

    def counts(classes: Tensor, weight: Tensor) -> Tensor:
        return torch.zeros(B, P, dtype=torch.int64, device=label.device).scatter_add_(1, classes, weight)

    intersection = counts(label, weight * (predicted == label))
    union = counts(label, weight) + counts(predicted, weight) - intersection
    iou = torch.where(union > 0, intersection.double() / union.clamp_min(1), 1.0)
    return (iou * is_part).sum(1) / is_part.sum(1)
