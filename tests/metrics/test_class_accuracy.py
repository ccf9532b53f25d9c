import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from pcea.metrics import MeanClassAccuracy


def test_classes_without_samples_do_not_count() -> None:
    # Class 0: 2 of 2. Class 1: 1 of 2, the other is taken for a class that is not there. By hand (1 + 1/2) / 2.
    metric = MeanClassAccuracy(4)
    metric.update(torch.tensor([0, 0]), torch.tensor([0, 0]))
    metric.update(torch.tensor([1, 2]), torch.tensor([1, 1]))
    assert float(metric.compute()) == pytest.approx(0.75)


def test_where_all_classes_are_there_it_is_that_of_torchmetrics() -> None:
    label, scores = torch.arange(60) % 5, torch.randn(60, 5)
    ours, theirs = MeanClassAccuracy(5), MulticlassAccuracy(5, average="macro")
    assert float(ours(scores, label)) == pytest.approx(float(theirs(scores, label)))


def test_without_samples_it_is_zero() -> None:
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert float(MeanClassAccuracy(3).compute()) == 0
