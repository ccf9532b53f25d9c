"""Learning-rate schedules with a warm-up. The number of steps comes second, as `Task` passes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR


class OneCycle(OneCycleLR):
    """Torch's one-cycle schedule with the number of steps second, as `Task` passes it.

    Args:
        optimizer: The optimizer.
        total_steps: Optimizer steps of the whole training.
        max_lr: Learning rate at the peak.
        pct_start: Share of the steps that rise.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, *, max_lr: float, pct_start: float = 0.3):
        if pct_start * total_steps == 1:  # torch would divide by 0 at the first step, which is the peak
            pct_start *= 1 + 1e-6
        shares = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer, [max_lr * share for share in shares], total_steps, pct_start=pct_start)


class Poly(LambdaLR):
    """The rate falls as (1 - progress) ** power from the optimizer's rate, after a linear warm-up.

    Args:
        optimizer: The optimizer.
        total_steps: Total number of optimizer steps.
        power: 1 gives a straight line.
        warmup: Share of the steps over which the rate rises.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, *, power: float = 0.9, warmup: float = 0.0):
        rise = _warmup_steps(total_steps, warmup)

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            return (1 - min(1.0, (step - rise) / max(1, total_steps - rise))) ** power

        super().__init__(optimizer, factor)


class Steps(LambdaLR):
    """The rate falls by a factor at given steps from the optimizer's rate, after a linear warm-up.

    Args:
        optimizer: The optimizer.
        total_steps: Total number of optimizer steps.
        milestones: When it falls, as shares of the steps: 2/3 and 11/12 mean epochs 8 and 11 of 12.
        gamma: The factor.
        warmup: Share of the steps over which the rate rises.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        milestones: Sequence[float],
        gamma: float = 0.1,
        warmup: float = 0.0,
    ):
        rise = _warmup_steps(total_steps, warmup)
        if any(not 0 < milestone < 1 for milestone in milestones):
            raise ValueError(f"milestones must be shares of the steps, between 0 and 1, got {list(milestones)}.")
        falls = [round(milestone * total_steps) for milestone in milestones]

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / (rise + 1)) * gamma ** sum(step >= fall for fall in falls)

        super().__init__(optimizer, factor)


class WarmupCosine(LambdaLR):
    """The rate falls as half a cosine from the optimizer's rate, after a linear warm-up, then stays at the lowest.

    Args:
        optimizer: The optimizer.
        total_steps: Total number of optimizer steps.
        warmup: Share of the steps over which the rate rises.
        cooldown: Share of the steps at the end that stay at the lowest rate.
        lowest: The lowest rate, as a share of the optimizer's.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        warmup: float = 0.0,
        cooldown: float = 0.0,
        lowest: float = 0.0,
    ):
        rise = _warmup_steps(total_steps, warmup)
        if not 0 <= cooldown < 1 - warmup:
            raise ValueError(f"cooldown must be at least 0 and below 1 - warmup, got {cooldown}.")
        fall = max(1, total_steps - rise - round(cooldown * total_steps))

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            progress = min(1.0, (step - rise) / fall)
            return lowest + (1 - lowest) * (1 + math.cos(math.pi * progress)) / 2

        super().__init__(optimizer, factor)


def _warmup_steps(total_steps: int, warmup: float) -> int:
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup must be at least 0 and below 1, got {warmup}.")
    return round(warmup * total_steps)
