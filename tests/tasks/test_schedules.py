import math
from functools import partial

import pytest
import torch

from pcea.tasks.schedules import Poly, Steps, WarmupCosine


def rates(make, steps, lr=2.0):
    """The rate of each step, and the one after the last."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = make(optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_poly_by_hand():
    assert rates(Poly, 4) == pytest.approx([2 * (1 - i / 4) ** 0.9 for i in range(5)])
    assert rates(partial(Poly, power=1), 4) == pytest.approx([2, 1.5, 1, 0.5, 0])


def test_poly_rises_first():
    # 4 of 10 steps rise in fifths; the other 6 fall.
    expected = [0.4, 0.8, 1.2, 1.6, *(2 * (1 - i / 6) for i in range(7))]
    assert rates(partial(Poly, power=1, warmup=0.4), 10) == pytest.approx(expected)


def test_steps_fall_at_shares_of_the_training():
    found = rates(partial(Steps, milestones=[2 / 3, 11 / 12], gamma=0.5, warmup=1 / 6), 12)
    assert found[:12] == pytest.approx([2 / 3, 4 / 3, *[2] * 6, 1, 1, 1, 0.5])
    with pytest.raises(ValueError, match=r"milestones must be shares of the steps, .* got \[0\.5, 8\]"):
        rates(partial(Steps, milestones=[0.5, 8]), 12)


def test_cosine_by_hand():
    assert rates(WarmupCosine, 4) == pytest.approx([1 + math.cos(math.pi * i / 4) for i in range(5)])


def test_cosine_rises_first_and_stays_at_the_end():
    found = rates(partial(WarmupCosine, warmup=0.2, cooldown=0.4, lowest=0.1), 10)
    # 2 steps rise in thirds, 4 fall from 2 to 0.2, 4 stay.
    fall = [0.2 + 1.8 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert found == pytest.approx([2 / 3, 4 / 3, *fall, 0.2, 0.2, 0.2, 0.2, 0.2])


def test_the_recipe_of_eamlp():
    """300 epochs of a cosine after 5 of warm-up among them, and 10 more at the lowest rate."""
    epochs = rates(partial(WarmupCosine, warmup=5 / 310, cooldown=10 / 310, lowest=0.01), 310, lr=1e-3)
    assert epochs.index(max(epochs)) == 5
    assert max(epochs) == 1e-3
    assert [i for i, rate in enumerate(epochs[:310]) if rate == pytest.approx(1e-5, rel=1e-6)] == [*range(300, 310)]


@pytest.mark.parametrize(
    "make", [partial(Poly, warmup=0.3), partial(WarmupCosine, warmup=0.3), partial(Steps, milestones=[0.8])]
)
def test_a_restored_schedule_goes_on(make):
    def run(steps, state=None):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        schedule = make(optimizer, 10)
        if state:
            optimizer.load_state_dict(state[0])
            schedule.load_state_dict(state[1])
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        return optimizer.state_dict(), schedule.state_dict()

    assert run(3, run(4))[0]["param_groups"][0]["lr"] == run(7)[0]["param_groups"][0]["lr"]


@pytest.mark.parametrize("make", [Poly, WarmupCosine])
def test_wrong_warmup(make):
    with pytest.raises(ValueError, match=r"warmup must be at least 0 and below 1, got 1"):
        rates(partial(make, warmup=1), 4)


@pytest.mark.parametrize("cooldown", [-0.1, 0.5])
def test_wrong_cooldown(cooldown):
    with pytest.raises(ValueError, match=rf"cooldown must be at least 0 and below 1 - warmup, got {cooldown}"):
        rates(partial(WarmupCosine, warmup=0.5, cooldown=cooldown), 4)
