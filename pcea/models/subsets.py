"""Label every point of a cloud with a network that was trained on fewer points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def classify_in_subsets(
    network: Callable[..., Tensor],
    points: Tensor,
    features: Tensor | None = None,
    *,
    category: Tensor | None = None,
    classes: Sequence[int] | None = None,
    num_points: int | None = None,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Probabilities of every point of a cloud, which the network sees in random subsets of one size.

    A network that embeds neighbours depends on the density that it was trained on. So a larger cloud is dealt out into
    ceil(N / num_points) subsets; the last one is filled up with points of the first, whose results are averaged.

    Args:
        network: Maps points (B, N, 3) and features, with `category=` (B,), to logits (B, N, P).
        points: One cloud, (N, 3).
        features: Normals, colours, ...: (N, C).
        category: Object category, () int64.
        classes: Classes among which the probabilities are taken, such as the parts of the category; None for all.
        num_points: Points of a subset; None shows the network all points at once.
        batch_size: Subsets that go through the network together.
        generator: Decides the subsets; the global one by default.

    Returns:
        Probabilities, (N, P) float32, in the order of `points`; with `classes` those of these, in their order.

    Raises:
        ValueError: If there is no point or `num_points` is not positive.
    """
    N = len(points)
    if N == 0 or (num_points is not None and num_points < 1):
        raise ValueError(f"N and num_points must be at least 1, got N={N}, num_points={num_points}.")
    size = N if num_points is None else min(num_points, N)
    count = math.ceil(N / size)
    order = torch.arange(N) if count == 1 else torch.randperm(N, generator=generator)
    index = order[torch.arange(count * size) % N].view(count, size).to(points.device)
    chosen = None if classes is None else torch.tensor(list(classes), device=points.device)
    total = None
    for rows in index.split(batch_size):
        categories = None if category is None else category.expand(len(rows))
        logits = network(points[rows], None if features is None else features[rows], category=categories).float()
        if chosen is not None:
            logits = logits[..., chosen]
        if total is None:
            total = logits.new_zeros(N, logits.shape[-1])
        total.index_add_(0, rows.flatten(), logits.softmax(-1).flatten(0, 1))
    assert total is not None
    return total.div_(index.flatten().bincount(minlength=N).unsqueeze(1))
