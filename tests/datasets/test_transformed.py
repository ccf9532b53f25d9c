import pytest
import torch
from torch import nn

from pcea.datasets.transformed import TransformedDataset


class Add(nn.Module):
    """Adds a random whole number."""

    def forward(self, value):
        return value + int(torch.randint(1000, ()))


class Numbers(TransformedDataset):
    def _transform(self, sample):
        for transform in self.transforms:
            sample = transform(sample)
        return sample

    def _collate(self, samples):
        return samples


def test_what_is_drawn_follows_seed_and_number_alone():
    held = Numbers([0] * 5, [Add()], seed=3)
    first = held.batch([0, 1, 6])
    assert len({*first}) == 3  # sample 1 draws anew in the next epoch, as number 6
    torch.rand(7)
    assert held.batch([6, 0]) == [first[2], first[0]]
    assert Numbers([0] * 5, [Add()], seed=4).batch([0, 1, 6]) != first


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    Numbers([0] * 5, [Add()]).batch([0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_transforms_samples_stay_as_they_are():
    assert Numbers([5, 6, 7]).batch([4, 0]) == [6, 5]
    assert len(Numbers([5, 6, 7])) == 3


def test_errors_are_raised_in_this_process():
    class Broken(Numbers):
        def _collate(self, samples):  # noqa: ARG002
            raise ValueError("broken file")

    with pytest.raises(ValueError, match="broken file"):
        Broken([1]).batch([0])
