from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pcea.datamodules.points import PointDataModule
from pcea.datasets.batches import PointBatch
from pcea.datasets.points import PointDataset
from pcea.models.point_transformer import eat_classifier
from pcea.tasks.point_classification import PointClassificationTask
from pcea.transforms.points import RandomScale, Transform

SGD = partial(torch.optim.SGD, lr=0.1)
NUM_CLASSES = 3


class Size(nn.Module):
    """Probabilities that depend on the largest coordinate, by a formula that is worked out by hand in the tests."""

    def __init__(self):
        super().__init__()
        self.num_classes = NUM_CLASSES
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, points, *_, **__):
        size = points.abs().amax((1, 2))
        return torch.stack([size, 2 - size, size.square()], dim=-1) + self.unused


class Given(nn.Module):
    """Predicts the class that the first coordinate of the cloud names."""

    def __init__(self):
        super().__init__()
        self.num_classes = NUM_CLASSES
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, points, *_, **__):
        return F.one_hot(points[:, 0, 0].long(), NUM_CLASSES).float() + self.unused


class Answers(PointDataModule):
    """Seven clouds, hence test batches of 4 and 3. Truth 0 0 0 0 1 1 2, answers 0 0 0 1 1 2 2."""

    def load(self, split):  # noqa: ARG002
        points = torch.tensor([0.0, 0, 0, 1, 1, 2, 2]).view(7, 1, 1).expand(7, 5, 3)
        return PointDataset(points, torch.tensor([0, 0, 0, 0, 1, 1, 2]), class_names=["a", "b", "c"])


@pytest.fixture
def batch(generator):
    return PointBatch(torch.randn(7, 5, 3, generator=generator), torch.arange(7) % NUM_CLASSES)


def eat(**options):
    sizes = {"num_centers": (16, 8), "dim": 32, "num_neighbors": 4, "memory_units": 8}
    return eat_classifier(NUM_CLASSES, **sizes, out_channels=32, widths=(16, 8), **options)


def test_accuracies_by_hand_with_an_uneven_last_batch(trainer):
    data = Answers(batch_size=2, num_points=5)
    [metrics] = trainer.test(PointClassificationTask(Given(), SGD), datamodule=data, verbose=False)
    assert [len(batch.label) for batch in data.test_dataloader()] == [4, 3]
    assert metrics["test/overall_accuracy"] == pytest.approx(5 / 7)
    assert metrics["test/mean_class_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1 / 1) / 3)


def test_validation_counts_like_the_test(trainer):
    data = Answers(batch_size=2, num_points=5)
    data.setup("test")
    data.sets = {"train": data.sets["test"], "val": data.sets["test"]}
    [metrics] = trainer.validate(PointClassificationTask(Given(), SGD), datamodule=data, verbose=False)
    assert metrics["val/overall_accuracy"] == pytest.approx(5 / 7)
    assert metrics["val/mean_class_accuracy"] == pytest.approx(3 / 4)


def test_label_smoothing_is_that_of_pytorch(batch, monkeypatch):
    task = PointClassificationTask(Size(), SGD, label_smoothing=0.25)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    logits = Size()(batch.points)
    target = F.one_hot(batch.label, NUM_CLASSES) * 0.75 + 0.25 / NUM_CLASSES
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task.training_step(batch, 0), expected)


def test_training_logs_loss_and_accuracy(batch, monkeypatch):
    logged = {}
    task = PointClassificationTask(Given(), SGD)
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    answers = PointBatch(batch.label.view(7, 1, 1).expand(7, 5, 3).float(), torch.tensor([0, 1, 2, 0, 1, 2, 1]))
    task.training_step(answers, 0)
    assert logged["train/overall_accuracy"].item() == pytest.approx(6 / 7)
    assert logged["train/loss"].item() == pytest.approx(F.cross_entropy(Given()(answers.points), answers.label).item())


def voted_probabilities(task, batch, batch_idx, monkeypatch):
    """What the test step hands to the metrics."""
    seen = []
    monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(task.test_metrics, "update", lambda probabilities, _: seen.append(probabilities))
    with torch.no_grad():
        task.test_step(batch, batch_idx)
    return seen[0]


def test_one_vote_is_the_plain_pass(batch, monkeypatch):
    task = PointClassificationTask(Size(), SGD, votes=1)
    plain = Size()(batch.points).softmax(1)
    torch.testing.assert_close(voted_probabilities(task, batch, 0, monkeypatch), plain, rtol=0, atol=0)
    torch.testing.assert_close(task.predict_step(batch, 0), plain, rtol=0, atol=0)


def test_votes_average_the_cloud_and_scaled_copies(batch, monkeypatch):
    task = PointClassificationTask(Size(), SGD, votes=3)
    votes = voted_probabilities(task, batch, 5, monkeypatch)
    scale, generator = RandomScale(low=0.8, high=1.25, anisotropic=False), torch.Generator().manual_seed(5)
    copies = [batch, *(scale(batch, generator=generator) for _ in range(2))]
    expected = torch.stack([Size()(cloud.points).softmax(1) for cloud in copies]).mean(0)
    torch.testing.assert_close(votes, expected)
    torch.testing.assert_close(votes.sum(1), torch.ones(7))
    assert not torch.allclose(votes, Size()(batch.points).softmax(1), atol=1e-3)
    assert torch.equal(voted_probabilities(task, batch, 5, monkeypatch), votes)


def test_no_votes_are_refused():
    with pytest.raises(ValueError, match="votes must be at least 1, got 0"):
        PointClassificationTask(Size(), SGD, votes=0)


def test_the_network_gets_normals_and_mask():
    class Recorder(Size):
        def forward(self, points, features=None, *, mask=None):
            self.seen = features, mask
            return super().forward(points)

    normals, mask = torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    task = PointClassificationTask(Recorder(), SGD)
    task(PointBatch(torch.zeros(2, 5, 3), torch.zeros(2), normals, mask=mask))
    assert task.network.seen[0] is normals
    assert task.network.seen[1] is mask


def test_the_points_of_training_are_not_those_of_validation_and_test(trainer):
    class Keep(Transform):
        def __call__(self, batch, *, generator=None):  # noqa: ARG002
            return batch._replace(points=batch.points[:, :3])

    task, data = PointClassificationTask(Given(), SGD), Answers(batch_size=2, num_points=5, evaluate=[Keep()])
    trainer.fit(task, datamodule=data)
    assert (task.num_points, task.num_test_points) == (5, 0)
    trainer.test(task, datamodule=data, verbose=False)
    assert (task.num_points, task.num_test_points) == (5, 3)


def test_one_batch_can_be_learned(monkeypatch):
    points = torch.randn(9, 40, 3) * torch.tensor([1.0, 0.7, 0.4])
    batch = PointBatch(points, torch.arange(9) % NUM_CLASSES)
    task = PointClassificationTask(eat(dropout=0.0), SGD)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    first = task.training_step(batch, 0).item()
    for _ in range(60):
        optimizer.zero_grad()
        task.training_step(batch, 0).backward()
        optimizer.step()
    task.eval()
    assert first > 0.9
    assert task.training_step(batch, 0).item() < 0.1
    assert torch.equal(task.predict_step(batch, 0).argmax(1), batch.label)
