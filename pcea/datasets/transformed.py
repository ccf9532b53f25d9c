"""Samples that go through transforms of their own as they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

# Not a seed that a batch of the same run has, by which the augmentation of batches and dropout are drawn.
_OFFSET = 2**40


class TransformedDataset(Dataset, ABC):
    """A set of samples that go through transforms one by one, handed out a batch at a time.

    What the transforms draw depends on `seed` and the number of the sample alone: `index + epoch * len`, so that every
    epoch draws anew, and the same in any worker process and in a resumed run.

    Args:
        samples: The set; of each sample, the first part is an image (3, H, W) uint8.
        transforms: Applied in turn to every sample.
        seed: That of the run.
    """

    def __init__(self, samples: Any, transforms: Sequence[nn.Module] = (), *, seed: int = 0):
        self.samples, self.transforms = samples, tuple(transforms)
        self.seed = seed * 1_000_000_007 + _OFFSET

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, numbers: Sequence[int]) -> Any:
        """The samples of these numbers, in one.

        Raises:
            ValueError: If a file cannot be read, or the samples do not fit into a batch.
            FileNotFoundError: If a file is missing.
        """
        with torch.random.fork_rng(devices=[]):
            return self._collate([self._seeded(number) for number in numbers])

    def _seeded(self, number: int) -> Any:
        sample = self.samples[number % len(self.samples)]
        if self.transforms:
            torch.default_generator.manual_seed(self.seed + number)  # others, of a GPU, go on as they were
        return self._transform(sample)

    @abstractmethod
    def _transform(self, sample: Any) -> Any:
        """One sample after the transforms."""

    @abstractmethod
    def _collate(self, samples: list[Any]) -> Any:
        """A batch of transformed samples."""
