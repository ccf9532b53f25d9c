from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pcea.datamodules.points import PointDataModule
from pcea.datamodules.shapes import ShapesDataModule
from pcea.datasets.batches import PointBatch
from pcea.datasets.points import PointDataset
from pcea.models.ensemble import ClassifierEnsemble
from pcea.models.point_transformer import eat_classifier
from pcea.tasks.base import vote_scales
from pcea.tasks.point_classification import PointClassificationTask
from pcea.transforms.points import Transform

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


def eat(num_classes=NUM_CLASSES, **options):
    sizes = {"num_centers": (16, 8), "dim": 32, "num_neighbors": 4, "memory_units": 8}
    return eat_classifier(num_classes, **sizes, out_channels=32, widths=(16, 8), **options)


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
    scales = vote_scales(3)
    assert scales[0] == 1
    assert len(set(scales)) == 3
    assert min(scales) >= 0.8
    assert max(scales) <= 1.25
    expected = torch.stack([Size()(scale * batch.points).softmax(1) for scale in scales]).mean(0)
    torch.testing.assert_close(votes, expected)
    torch.testing.assert_close(votes.sum(1), torch.ones(7))
    assert not torch.allclose(votes, Size()(batch.points).softmax(1), atol=1e-3)
    # Whatever the batch: alone, and as the first one.
    alone = [PointBatch(points[None], label[None]) for points, label in zip(batch.points, batch.label)]
    torch.testing.assert_close(torch.cat([voted_probabilities(task, one, 0, monkeypatch) for one in alone]), votes)


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


def test_the_points_of_training_are_those_of_the_largest_batch(trainer):
    class Fewer(Transform):
        def __init__(self):
            self.sizes = iter((4, 5, 3, *[2] * 100))

        def __call__(self, batch, *, generator=None):  # noqa: ARG002
            return batch._replace(points=batch.points[:, : next(self.sizes)])

    task = PointClassificationTask(Given(), SGD)
    trainer.fit(task, datamodule=Answers(batch_size=2, num_points=6, augment=[Fewer()]))
    assert task.num_points == 5


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


class WithBackground(Size):
    """`Size` with a fourth logit, of the background, that is always 0.5."""

    def __init__(self):
        super().__init__()
        self.num_classes = NUM_CLASSES + 1

    def forward(self, points, *_, **__):
        return F.pad(super().forward(points), (0, 1), value=0.5)


def test_the_loss_with_a_background_by_hand(batch, monkeypatch):
    logged = {}
    task = PointClassificationTask(WithBackground(), SGD, label_smoothing=0.3, background=True)
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    label = torch.tensor([0, 1, 2, -1, -1, 0, 1])
    loss = task.training_step(batch._replace(label=label), 0)
    logits = WithBackground()(batch.points)
    logs = logits.log_softmax(1)
    expected = []
    for row, true in zip(logs, label.tolist()):
        if true < 0:  # the background is sure
            expected.append(-row[3])
        else:  # 0.3 is spread over the three classes, nothing over the background
            expected.append(-(0.7 * row[true] + 0.1 * row[:3].sum()))
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    best = logits[:, :3].argmax(1)
    assert logged["train/overall_accuracy"] == pytest.approx(float((best == label).sum()) / 5)
    says_background = logits.argmax(1) == 3
    assert logged["train/background_accuracy"] == pytest.approx(float((says_background == (label < 0)).float().mean()))


def test_a_background_takes_no_part_in_the_classes(batch, monkeypatch):
    task = PointClassificationTask(WithBackground(), SGD, background=True)
    torch.testing.assert_close(task(batch), Size()(batch.points) - 0.5)  # log odds
    torch.testing.assert_close(voted_probabilities(task, batch, 0, monkeypatch), Size()(batch.points).softmax(1))
    with pytest.raises(ValueError, match="num_classes of at least 2: one more than the classes"):
        PointClassificationTask(eat_classifier(1), SGD, background=True)


@pytest.mark.parametrize("background", [False, True])
def test_one_class_is_nothing_to_learn(background):
    with pytest.raises(ValueError, match=r"only one class, .* give at least two"):
        PointClassificationTask(eat_classifier(1 + background), SGD, background=background)


def test_a_background_that_the_task_does_not_know(batch):
    task = PointClassificationTask(Size(), SGD)
    with pytest.raises(ValueError, match=r"set model\.init_args\.background to true"):
        task.training_step(batch._replace(label=torch.tensor([0, 1, 2, -1, 0, 1, 2])), 0)


def test_a_background_is_one_class_more_than_the_data(trainer):
    data = Answers(batch_size=2, num_points=5)
    trainer.test(PointClassificationTask(WithBackground(), SGD, background=True), datamodule=data, verbose=False)
    message = r"3 classes and a background, but the network has num_classes=3\. Measure it on data"
    with pytest.raises(ValueError, match=message):
        trainer.test(PointClassificationTask(Size(), SGD, background=True), datamodule=data, verbose=False)


def test_validation_fits_what_to_trust_and_the_checkpoint_keeps_it(trainer):
    data = Answers(batch_size=2, num_points=5)
    data.setup("test")
    data.sets = {"train": data.sets["test"], "val": data.sets["test"]}
    task = PointClassificationTask(Given(), SGD)
    assert task.trust is None
    trainer.validate(task, datamodule=data, verbose=False)
    # Five of seven are right, and each answer's logit is 1 above the others': by hand e^(1/t) / (e^(1/t) + 2) = 5/7.
    assert task.trust is not None
    assert task.trust.temperature == pytest.approx(1 / torch.tensor(5.0).log().item(), rel=0.01)
    kept = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(kept)
    for checkpoint in (kept, {"state_dict": task.state_dict(), "network": task.trust._asdict()}):  # the older place
        again = PointClassificationTask(Given(), SGD)
        again.on_load_checkpoint(checkpoint)
        assert again.trust == task.trust
    [metrics] = trainer.test(task, datamodule=Answers(batch_size=2, num_points=5), verbose=False)
    assert metrics["test/calibration_error"] == pytest.approx(0, abs=0.01)  # 5/7 sure, 5/7 right


def test_an_encoder_learns_at_its_own_rate_or_not_at_all():
    network = eat(dropout=0)
    for rate, groups in ((1.0, 1), (0.1, 2), (0.0, 1)):
        task = PointClassificationTask(network, SGD, encoder_rate=rate)
        given = task._parameter_groups()
        optimizer = SGD(given)
        assert len(optimizer.param_groups) == groups
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        every, encoder = len([*network.parameters()]), len([*network.encoder.parameters()])
        assert count == (every - encoder if rate == 0 else every)
        task.train()
        assert network.encoder.training == (rate > 0)
        assert network.head.training


def test_two_processes_train_a_head_on_a_frozen_encoder(tmp_path):
    """They do not wait for the gradients of what is frozen, and validate one network, the one that is saved."""

    class Save(L.Callback):
        def on_validation_epoch_end(self, trainer, task):
            torch.save(task.network.state_dict(), tmp_path / f"{trainer.global_rank}.pt")

    for rate in (0.0, 1.0):
        trainer = L.Trainer(
            accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1, logger=False, num_sanity_val_steps=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Save()],
        )  # fmt: skip
        task = PointClassificationTask(eat(12, dropout=0), SGD, encoder_rate=rate)
        before = {name: value.clone() for name, value in task.network.state_dict().items()}
        trainer.fit(task, datamodule=ShapesDataModule(num_train=12, num_val=5, num_points=32, batch_size=2))
        first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
        assert all(value.equal(second[name]) for name, value in first.items())
        moved = {name.partition(".")[0] for name, value in first.items() if not value.equal(before[name])}
        assert moved == ({"head"} if rate == 0 else {"head", "encoder"})


def test_rates_of_encoders_that_are_refused():
    network = eat(dropout=0)
    with pytest.raises(ValueError, match=r"encoder_rate must be in 0\.\.1, got 2"):
        PointClassificationTask(network, SGD, encoder_rate=2)
    with pytest.raises(ValueError, match=r"encoder_rate=0\.5: Size has no part named encoder"):
        PointClassificationTask(Size(), SGD, encoder_rate=0.5)


@pytest.mark.filterwarnings("ignore:Total length of `list`:UserWarning")
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_training_moves_the_encoder_by_its_rate(rate, tmp_path):
    """One step of plain SGD: the encoder moves by a share of what it moves with the rate of the rest."""
    moves = {}
    for encoder_rate in (1.0, rate):
        torch.manual_seed(0)
        network = eat(dropout=0)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        task = PointClassificationTask(network, SGD, encoder_rate=encoder_rate)
        fitter = L.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        fitter.fit(task, Clouds(batch_size=8, num_points=32, val_fraction=0))
        moves[encoder_rate] = {name: value - before[name] for name, value in network.state_dict().items()}
    for name, moved in moves[rate].items():
        if "running_" in name or "num_batches" in name:  # the statistics of what is frozen stay, others follow the data
            assert moved.any() == (rate > 0 or name.startswith("head."))
        elif name.startswith("encoder."):
            torch.testing.assert_close(moved, rate * moves[1.0][name], rtol=1e-2, atol=1e-6)
    if rate:
        torch.testing.assert_close(moves[rate]["head.4.weight"], moves[1.0]["head.4.weight"], rtol=1e-3, atol=1e-6)
    assert moves[rate]["head.4.weight"].abs().sum() > 0


class Clouds(PointDataModule):
    def load(self, split):  # noqa: ARG002
        points = torch.randn(8, 32, 3, generator=torch.Generator().manual_seed(0))
        return PointDataset(points, torch.arange(8) % 3, class_names=["a", "b", "c"])


@pytest.mark.parametrize("share", [-0.1, 1.7])
def test_only_a_share_is_smoothed(share):
    with pytest.raises(ValueError, match=rf"label_smoothing must be in 0\.\.1, got {share}"):
        PointClassificationTask(Given(), SGD, label_smoothing=share)


def test_each_member_of_an_ensemble_is_trained_by_its_own_loss(batch):
    torch.manual_seed(0)
    members = [Logits(), Logits()]
    task = PointClassificationTask(ClassifierEnsemble(members), SGD, label_smoothing=0.1)
    task.log = lambda *_, **__: None
    loss = task.training_step(batch, 0)
    each = [F.cross_entropy(member.logits.expand(7, -1), batch.label, label_smoothing=0.1) for member in members]
    torch.testing.assert_close(loss, sum(each) / 2)
    with_background = PointClassificationTask(ClassifierEnsemble(members), SGD, background=True)
    with_background.log = lambda *_, **__: None
    label = torch.tensor([0, 1, -1, 0, 1, -1, 0])
    loss = with_background.training_step(batch._replace(label=label), 0)
    target = torch.where(label < 0, 2, label)
    each = [F.cross_entropy(member.logits.expand(7, -1), target) for member in members]
    torch.testing.assert_close(loss, sum(each) / 2)


class Logits(nn.Module):
    """The same logits for every cloud."""

    def __init__(self):
        super().__init__()
        self.num_classes, self.logits = NUM_CLASSES, nn.Parameter(torch.randn(NUM_CLASSES))

    def forward(self, points, *_, **__):
        return self.logits.expand(len(points), -1)
