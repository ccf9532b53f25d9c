import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from pcea.datamodules.parts import PartDataModule
from pcea.datasets.batches import PointBatch
from pcea.datasets.parts import PartDataset
from pcea.models.point_segmenter import eat_part_segmenter
from pcea.tasks.base import vote_scales
from pcea.tasks.point_segmentation import PointSegmentationTask, cross_entropy_among

SGD = partial(torch.optim.SGD, lr=0.1)
PARTS = {"mug": (0, 1), "table": (2, 3, 4)}
SIZES = {"dim": 16, "num_neighbors": 4, "memory_units": 8, "out_channels": 32, "widths": (16, 8)}


class Given(nn.Module):
    """Predicts the class that a point's first coordinate names."""

    def __init__(self, *, num_classes=5, num_categories=2):
        super().__init__()
        self.num_classes, self.num_categories = num_classes, num_categories
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, points, *_, **__):
        return 9 * F.one_hot(points[..., 0].round().long(), self.num_classes).float() + self.unused


class Size(Given):
    """Logits that depend on the largest coordinate of the cloud."""

    def forward(self, points, *_, **__):
        size = points.abs().amax((1, 2))[:, None, None].expand(*points.shape[:2], 1)
        return torch.cat([size, 2 - size, size.square(), -size, 0 * size], dim=-1) + self.unused


def answers(*clouds, category=None):
    """A set of clouds; each is a list of (answer, truth), one a point."""
    rows = torch.tensor([pair for cloud in clouds for pair in cloud])
    points = rows[:, :1].float().repeat(1, 3)
    return PartDataset(
        points,
        rows[:, 1],
        torch.tensor([len(cloud) for cloud in clouds]),
        class_names=[f"part {i}" for i in range(5)],
        category=None if category is None else torch.tensor(category),
        parts=None if category is None else PARTS,
    )


# mug: IoU 1/2 and 2/3, so 7/12. Table of parts 2 and 3, 4 absent: IoU 1, 1, 1. Mug of part 0 that answers part 3 of
# the table: 0 for part 0 and 1 for the absent part 1; among the mug's own parts every logit is equal, so part 0 wins.
MUG = [(0, 0), (1, 0), (1, 1), (1, 1)]
TABLE = [(2, 2), (3, 3)]
STRANGER = [(3, 0), (3, 0), (3, 0)]


class Data(PartDataModule):
    def __init__(self, clouds, **options):
        super().__init__(batch_size=1, **options)
        self.clouds = clouds

    def load(self, split):  # noqa: ARG002
        return self.clouds


@pytest.mark.parametrize("num_points", [2, 100])
def test_the_metrics_of_own_parts_by_hand(trainer, num_points):
    data = Data(answers(MUG, TABLE, STRANGER, category=[0, 1, 0]), num_points=num_points)
    task = PointSegmentationTask(Given(), SGD)
    [metrics] = trainer.test(task, datamodule=data, verbose=False)
    assert metrics == pytest.approx(
        {
            "test/overall_accuracy": (3 + 2 + 3) / 9,
            "test/instance_miou": (7 / 12 + 1 + 1) / 3,
            "test/category_miou": ((7 / 12 + 1) / 2 + 1) / 2,
        }
    )
    assert "_all_parts" not in task.convention


@pytest.mark.parametrize("num_points", [2, 100])
def test_the_metrics_by_hand_of_clouds_of_all_sizes(trainer, num_points):
    data = Data(answers(MUG, TABLE, STRANGER, category=[0, 1, 0]), num_points=num_points)
    task = PointSegmentationTask(Given(), SGD, own_parts=False)
    [metrics] = trainer.test(task, datamodule=data, verbose=False)
    assert metrics == pytest.approx(
        {
            "test/overall_accuracy": (3 + 2 + 0) / 9,
            "test/instance_miou": (7 / 12 + 1 + 1) / 3,
            "test/category_miou": ((7 / 12 + 1) / 2 + 1) / 2,
            "test/instance_miou_all_parts": (7 / 12 + 1 + 1 / 2) / 3,
            "test/category_miou_all_parts": ((7 / 12 + 1 / 2) / 2 + 1) / 2,
        }
    )
    assert task.by_category == {"mug": (2, pytest.approx((7 / 12 + 1) / 2)), "table": (1, 1.0)}
    assert "own parts" in task.convention


def test_a_category_without_test_shapes_is_absent(trainer):
    task = PointSegmentationTask(Given(), SGD)
    [metrics] = trainer.test(task, datamodule=Data(answers(MUG, category=[0])), verbose=False)
    assert task.by_category == {"mug": (1, pytest.approx(7 / 12)), "table": (0, None)}
    assert metrics["test/category_miou"] == pytest.approx(7 / 12)


def test_scenes_have_one_iou_over_all_points(trainer):
    data = Data(answers(MUG, [(0, 0), (2, 1)], [(2, 2), (2, 2)]), num_points=100)  # batches of two
    task = PointSegmentationTask(Given(num_categories=0), SGD)
    [metrics] = trainer.test(task, datamodule=data, verbose=False)
    # class 0: 2 of 3; class 1: 2 of 4; class 2: 2 of 3; classes that occur nowhere take no part
    assert metrics == pytest.approx({"test/overall_accuracy": 6 / 8, "test/miou": (2 / 3 + 2 / 4 + 2 / 3) / 3})
    assert task.by_category == {}
    assert task.convention.startswith("miou: ")


def test_validation_counts_like_the_test(trainer):
    data = Data(answers(MUG, TABLE, category=[0, 1]), num_points=3)
    data.setup("test")
    data.sets = {"train": data.sets["test"], "val": data.sets["test"]}
    task = PointSegmentationTask(Given(), SGD)
    for _ in range(2):  # nothing is left over from the first time
        [metrics] = trainer.validate(task, datamodule=data, verbose=False)
        assert metrics["val/instance_miou"] == pytest.approx((7 / 12 + 1) / 2)


def test_the_loss_is_over_real_points_alone(monkeypatch):
    task = PointSegmentationTask(Given(), SGD, label_smoothing=0.25)
    logged = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    clouds = answers(MUG, TABLE, category=[0, 1])
    loss = task.training_step(clouds.batch([0, 1]), 0)
    rows = torch.cat([Given()(clouds.points[None])[0]])
    target = F.one_hot(clouds.label, 5) * 0.75 + 0.25 / 5
    torch.testing.assert_close(loss, -(target * rows.log_softmax(1)).sum(1).mean())
    assert logged["train/overall_accuracy"].item() == pytest.approx(5 / 6)


def passes(task, batch, monkeypatch):
    """The probabilities that the test step counts."""
    seen = []
    monkeypatch.setattr(task, "_count", lambda probabilities, _: seen.append(probabilities))
    with torch.no_grad():
        task.test_step(batch, 3)
    return seen[0]


def test_scales_and_votes_are_averaged(monkeypatch, generator):
    batch = PointBatch(
        torch.randn(2, 7, 3, generator=generator), torch.zeros(2, 7, dtype=torch.long), category=torch.tensor([0, 1])
    )
    plain = Size()(batch.points).softmax(-1)
    task = PointSegmentationTask(Size(), SGD)
    torch.testing.assert_close(passes(task, batch, monkeypatch), plain)
    task = PointSegmentationTask(Size(), SGD, scales=[0.5, 2.0], votes=2)
    assert task.votes == 4
    scales = [scale * vote for scale in (0.5, 2.0) for vote in vote_scales(2)]
    expected = torch.stack([Size()(scale * batch.points).softmax(-1) for scale in scales]).mean(0)
    torch.testing.assert_close(passes(task, batch, monkeypatch), expected)


def test_the_result_of_a_cloud_does_not_depend_on_its_batch(monkeypatch, generator):
    """Its subsets, which matter to this network, are the same alone and beside larger clouds."""
    points = torch.randn(3, 50, 3, generator=generator)
    mask = torch.arange(50) < torch.tensor([[50], [31], [40]])
    batch = PointBatch(points, torch.zeros(3, 50, dtype=torch.long), category=torch.tensor([0, 1, 1]), mask=mask)
    task = PointSegmentationTask(Size(), SGD, votes=2)
    task.parts, task.num_points = PARTS, 20
    together = passes(task, batch, monkeypatch)
    for b in range(3):
        real = mask[b]
        alone = PointBatch(points[b : b + 1, real], batch.label[b : b + 1, real], category=batch.category[b : b + 1])
        torch.testing.assert_close(passes(task, alone, monkeypatch)[0], together[b, real])
        torch.testing.assert_close(task.probabilities(alone)[0], task.probabilities(batch)[b, real])


@pytest.mark.parametrize("category", [[0, 1], None])
def test_clouds_of_different_sizes_train_and_their_checkpoint_keeps_the_parts(trainer, category):
    data = Data(answers(10 * MUG, 12 * TABLE, category=category), num_points=30, val_fraction=0)
    data.batch_size = 2
    trainer.limit_val_batches = 0
    network = eat_part_segmenter(5, 2 if category else 0, **SIZES)
    task = PointSegmentationTask(network, SGD)
    trainer.fit(task, datamodule=data)
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert checkpoint["parts"] == ({name: list(own) for name, own in PARTS.items()} if category else {})
    assert checkpoint["num_points"] == 30
    other = PointSegmentationTask(eat_part_segmenter(5, 2 if category else 0, **SIZES), SGD)
    other.on_load_checkpoint(checkpoint)
    assert other.parts == (PARTS if category else {})
    assert other.class_names == data.class_names


def test_plain_dataloaders_of_a_network_with_categories(trainer):
    clouds = answers(MUG, TABLE, category=[0, 1])
    loader = DataLoader(range(2), collate_fn=clouds.batch, batch_size=2)
    task = PointSegmentationTask(Given(num_categories=2), SGD)
    [unknown] = trainer.test(task, loader, verbose=False)
    assert "test/miou" in unknown
    task.parts = PARTS
    [known] = trainer.test(task, loader, verbose=False)
    assert "test/instance_miou" in known


def test_data_and_network_must_agree(trainer):
    data = Data(answers(MUG, category=[0]))
    with pytest.raises(
        ValueError, match=r"2 categories, but the network has num_categories=7.*Set .*num_categories to"
    ):
        trainer.test(PointSegmentationTask(Given(num_categories=7), SGD), datamodule=data, verbose=False)
    with pytest.raises(ValueError, match="5 classes, but the network has num_classes=9"):
        trainer.test(PointSegmentationTask(Given(num_classes=9), SGD), datamodule=data, verbose=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"votes": 0}, "votes must be at least 1, got 0"),
        ({"scales": [1.0, 0.0]}, r"scales must be one or more positive numbers.*\[1.0, 0.0\]"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PointSegmentationTask(Given(), SGD, **options)


def test_cross_entropy_among_own_classes_by_hand():
    logits = torch.tensor([[0.0, 0.0, 50.0], [1.0, 9.0, 0.0]])
    takes_part = torch.tensor([[True, True, False], [True, False, True]])
    # Row 0: two equal classes, log 2. Row 1: classes 0 and 2 with probabilities e / (e + 1) and 1 / (e + 1).
    high, low = math.log(math.e / (math.e + 1)), math.log(1 / (math.e + 1))
    expected = -(math.log(1 / 2) + 0.8 * high + 0.2 * (high + low) / 2) / 2
    loss = cross_entropy_among(logits, torch.tensor([0, 0]), takes_part, label_smoothing=0.2)
    assert float(loss) == pytest.approx(expected)


def test_cross_entropy_among_all_classes_is_that_of_torch():
    logits, label = torch.randn(7, 5, requires_grad=True), torch.randint(5, (7,))
    ours = cross_entropy_among(logits, label, torch.ones(7, 5, dtype=torch.bool), label_smoothing=0.1)
    theirs = F.cross_entropy(logits, label, label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("own_parts", [True, False])
def test_the_loss_is_taken_over_the_parts_of_the_own_category(monkeypatch, own_parts):
    # All answers are parts of the other category: among the own parts all logits are equal.
    clouds = answers([(3, 0), (4, 1)], [(0, 2), (1, 3)], category=[0, 1])
    task = PointSegmentationTask(Given(), SGD, label_smoothing=0.3, own_parts=own_parts)
    task.parts = PARTS
    logged = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    loss = float(task.training_step(clouds.batch([0, 1]), 0).detach())
    assert loss == pytest.approx((math.log(2) + math.log(3)) / 2) if own_parts else loss > 5
    # Of equal logits the first one counts as the answer, which is right for the first point of each cloud.
    assert logged["train/overall_accuracy"] == (0.5 if own_parts else 0)


def test_own_parts_have_no_effect_without_categories(monkeypatch):
    losses = []
    for own_parts in (True, False):
        task = PointSegmentationTask(Given(num_categories=0), SGD, own_parts=own_parts)
        monkeypatch.setattr(task, "log", lambda *_, **__: None)
        losses.append(float(task.training_step(answers(MUG).batch([0]), 0).detach()))
    assert losses[0] == losses[1]
