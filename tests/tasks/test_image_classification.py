import copy
from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from pcea.datamodules.images import ImageDataModule
from pcea.datasets.batches import ImageBatch
from pcea.datasets.images import ImageTensors
from pcea.io.checkpoints import read_checkpoint
from pcea.tasks.callbacks import AverageWeights
from pcea.tasks.image_classification import ImageClassificationTask
from pcea.tasks.schedules import WarmupCosine
from pcea.transforms.images import RandomErase, RandomFlip, RandomShift

SGD = partial(torch.optim.SGD, lr=0.1)


class Given(nn.Module):
    """Gives class c the logit that channel c of the first pixel holds; three classes."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.num_classes = num_classes
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images[:, :, 0, 0] + self.unused


class Rank(Given):
    """Ten classes; their order of preference starts with the class that the first pixel's red names."""

    def __init__(self):
        super().__init__(10)

    def forward(self, images):
        first = images[:, 0, :1, 0].round()
        return -((torch.arange(10) - first) % 10) + self.unused


class Small(nn.Module):
    """A convolution, batch norm and dropout."""

    def __init__(self, num_classes=2, dim=4):
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Conv2d(3, dim, 3), nn.BatchNorm2d(dim), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(dim, num_classes),
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)


class Data(ImageDataModule):
    """Red and green images with noise."""

    def __init__(self, **options):
        super().__init__(**{"batch_size": 8, "val_fraction": 0.25, **options})

    def load(self, split):
        label = torch.arange(40) % 2
        generator = torch.Generator().manual_seed(len(split))
        images = torch.randint(0, 100, (40, 3, 8, 8), generator=generator)
        images[torch.arange(40), label] += 60
        return ImageTensors(images.to(torch.uint8), label, class_names=["red", "green"])


class Bytes(ImageDataModule):
    """Images that are one colour each, as they are, to test on."""

    def __init__(self, rows, label, num_classes):
        super().__init__(batch_size=2, mean=(0, 0, 0), std=(1 / 255,) * 3)
        self.rows, self.label, self.num_classes = rows, label, num_classes

    def load(self, split):  # noqa: ARG002
        images = torch.tensor(self.rows, dtype=torch.uint8).view(-1, 3, 1, 1)
        return ImageTensors(images, torch.tensor(self.label), class_names=[str(i) for i in range(self.num_classes)])


def trainer(max_epochs=1, *, folder=None, callbacks=()):
    saving = [] if folder is None else [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)]
    return L.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[*saving, *callbacks],
        enable_checkpointing=bool(saving),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture(autouse=True)
def _seed_everything(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")


def test_the_metrics_by_hand():
    # Answers 0, 1, 2, 2, 0; of class 0 one of two is right, of class 1 one of one, of class 2 one of two.
    rows = [[9, 1, 1], [1, 9, 1], [1, 1, 9], [1, 1, 9], [9, 1, 1]]
    data = Bytes(rows, [0, 1, 2, 0, 2], 3)
    [metrics] = trainer().test(ImageClassificationTask(Given(), SGD), datamodule=data, verbose=False)
    assert metrics == pytest.approx(
        {"test/overall_accuracy": 3 / 5, "test/mean_class_accuracy": (1 / 2 + 1 + 1 / 2) / 3}
    )


def test_top5_by_hand():
    # The network prefers 7, 8, 9, 0, 1, then 2, ...
    data = Bytes([[7, 0, 0]] * 6, [7, 9, 1, 2, 6, 0], 10)
    [metrics] = trainer().test(ImageClassificationTask(Rank(), SGD), datamodule=data, verbose=False)
    assert metrics["test/top5_accuracy"] == pytest.approx(4 / 6)
    assert metrics["test/overall_accuracy"] == pytest.approx(1 / 6)


def test_prediction_gives_probabilities():
    data = Bytes([[9, 1, 1], [3, 3, 3]], [0, 1], 3)
    [probabilities] = trainer().predict(ImageClassificationTask(Given(), SGD), datamodule=data)
    torch.testing.assert_close(probabilities, torch.tensor([[9.0, 1, 1], [3, 3, 3]]).softmax(1))


def step(task, batch, monkeypatch):
    """The loss of one batch, and what is logged."""
    logged = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    return task.training_step(batch, 0), logged


def test_the_loss_is_smoothed_cross_entropy(monkeypatch):
    images = torch.randn(4, 3, 5, 5)
    label = torch.tensor([0, 2, 1, 1])
    task = ImageClassificationTask(Given(), SGD, label_smoothing=0.3)
    loss, logged = step(task, ImageBatch(images, label), monkeypatch)
    target = F.one_hot(label, 3) * 0.7 + 0.3 / 3
    logits = images[:, :, 0, 0]
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())
    assert logged["train/overall_accuracy"] == (logits.argmax(1) == label).float().mean()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_and_labels_are_mixed_alike(kind):
    """Each image is one class's colour all over, so that its mean says how much of each class is in it."""
    task = ImageClassificationTask(Given(), SGD, **{kind: 1.0})
    label = torch.arange(30) % 3
    images = F.one_hot(label, 3).float().view(30, 3, 1, 1).expand(30, 3, 40, 40)
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, target = task._mix(ImageBatch(images, label))
        torch.testing.assert_close(mixed.mean((2, 3)), target)
        shares.append(float(target.amax(1).mean()))
        constant = (mixed == mixed[:, :, :1, :1]).all()
        assert constant == (kind == "mixup") or target.amax(1).min() == 1
    assert len({*shares}) == 20


def test_either_kind_of_mixing_is_chosen_at_random(monkeypatch):
    task = ImageClassificationTask(Given(), SGD, mixup=1.0, cutmix=1.0)
    label = torch.arange(6) % 3
    images = F.one_hot(label, 3).float().view(6, 3, 1, 1).expand(6, 3, 40, 40)
    kinds = []
    for seed in range(200):
        torch.manual_seed(seed)
        mixed, _ = task._mix(ImageBatch(images, label))
        kinds.append(bool((mixed == mixed[:, :, :1, :1]).all()))
    assert 70 < sum(kinds) < 130
    loss, logged = step(task, ImageBatch(images, label), monkeypatch)
    assert loss.isfinite()
    assert [*logged] == ["train/loss"]  # accuracy has no meaning here


def test_mixed_labels_are_smoothed(monkeypatch):
    task = ImageClassificationTask(Given(), SGD, mixup=1.0, label_smoothing=0.3)
    batch = ImageBatch(torch.randn(4, 3, 5, 5), torch.tensor([0, 2, 1, 1]))
    torch.manual_seed(5)
    images, target = task._mix(batch)
    torch.manual_seed(5)
    loss, _ = step(task, batch, monkeypatch)
    target = target * 0.7 + 0.3 / 3
    torch.testing.assert_close(loss, -(target * images[:, :, 0, 0].log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("options", [{"mixup": -1.0}, {"cutmix": -0.5}])
def test_wrong_options(options):
    with pytest.raises(ValueError, match="mixup and cutmix must not be negative, got"):
        ImageClassificationTask(Given(), SGD, **options)


def task(seed=0):
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    schedule = partial(WarmupCosine, warmup=0.2)
    return ImageClassificationTask(Small(), optimizer, schedule, label_smoothing=0.1, mixup=0.8, cutmix=1.0)


AUGMENT = (RandomShift(extent=1), RandomFlip(), RandomErase())


@pytest.mark.parametrize("averaged", [None, EMAWeightAveraging, AverageWeights])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, averaged):
    """Order, augmentation, mixing, dropout, optimizer, schedule and averages go on exactly."""

    def callbacks():
        return [averaged(decay=0.5)] if averaged else []

    straight, resumed = task(), task(seed=1)
    trainer(3, folder=tmp_path, callbacks=callbacks()).fit(straight, datamodule=Data(augment=AUGMENT))
    trainer(3, folder=tmp_path / "resumed", callbacks=callbacks()).fit(
        resumed, datamodule=Data(augment=AUGMENT), ckpt_path=tmp_path / "epoch=0.ckpt"
    )
    for (name, ours), theirs in zip(straight.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(ours, theirs), name


def test_a_moving_average_is_what_is_validated_and_stored(tmp_path):
    weights = []

    class Recorder(L.Callback):
        def on_train_batch_end(self, _, module, *__):
            weights.append(copy.deepcopy(module.network.state_dict()))

        def on_validation_epoch_start(self, _, module):
            validated.append(copy.deepcopy(module.network.state_dict()))

    validated = []
    model = task()
    run = trainer(1, folder=tmp_path, callbacks=[EMAWeightAveraging(decay=0.75), Recorder()])
    run.fit(model, datamodule=Data())
    name = "layers.0.weight"
    average = weights[0][name]
    for each in weights[1:]:
        average = 0.75 * average + 0.25 * each[name]
    torch.testing.assert_close(validated[-1][name], average)
    torch.testing.assert_close(model.network.state_dict()[name], average)
    torch.testing.assert_close(read_checkpoint(tmp_path / "epoch=0.ckpt")["state_dict"][f"network.{name}"], average)


def test_it_learns():
    model = ImageClassificationTask(Small(), partial(torch.optim.AdamW, lr=3e-2))
    run = trainer(12)
    run.fit(model, datamodule=Data())
    [metrics] = run.test(model, datamodule=Data(), verbose=False)
    assert metrics["test/overall_accuracy"] > 0.95


def test_a_checkpoint_says_what_prediction_needs(tmp_path):
    trainer(1, folder=tmp_path).fit(task(), datamodule=Data(mean=(0.25, 0.5, 0.75), std=(1, 2, 4)))
    checkpoint = read_checkpoint(tmp_path / "epoch=0.ckpt")
    assert checkpoint["class_names"] == ["red", "green"]
    assert checkpoint["mean"] == [0.25, 0.5, 0.75]
    assert checkpoint["std"] == [1, 2, 4]
    restored = task()
    restored.on_load_checkpoint(checkpoint)
    assert (restored.mean, restored.std) == ((0.25, 0.5, 0.75), (1, 2, 4))
    assert restored.class_names == ("red", "green")


def test_data_of_another_number_of_classes():
    with pytest.raises(ValueError, match=r"The data has 2 classes, .* num_classes=3\. Measure it on data"):
        trainer().test(ImageClassificationTask(Given(), SGD), datamodule=Data())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_data_that_is_divided_otherwise_than_in_training(tmp_path):
    """A resumed run would be validated on what it was trained on; so may be a measured one."""
    trainer(2, folder=tmp_path).fit(task(), datamodule=Data())
    path = tmp_path / "epoch=0.ckpt"
    for options in ({"split_seed": 1}, {"val_fraction": 0.5}):
        with pytest.raises(
            ValueError, match=rf"This run has {next(iter(options))} .* instead of .*resume with the same"
        ):
            trainer(2, folder=tmp_path / "resumed").fit(task(), datamodule=Data(**options), ckpt_path=path)
        with pytest.warns(UserWarning, match="The data is divided otherwise than in training"):
            trainer().validate(task(), datamodule=Data(**options), ckpt_path=path, verbose=False)
        # A test split that is always the same is not concerned.
        trainer().test(task(), datamodule=Data(**options), ckpt_path=path, verbose=False)


def test_a_resumed_run_keeps_the_normalization_of_its_data(tmp_path):
    trainer(2, folder=tmp_path).fit(task(), datamodule=Data())
    model = task()
    with pytest.warns(UserWarning, match=r"images normalized otherwise: mean \[0, 0, 0\] and std \[1, 1, 1\] instead"):
        trainer(2, folder=tmp_path / "resumed").fit(
            model, datamodule=Data(mean=(0, 0, 0), std=(1, 1, 1)), ckpt_path=tmp_path / "epoch=0.ckpt"
        )
    assert (model.mean, model.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_a_monitor_needs_validation(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/overall_accuracy", mode="max")
    with pytest.raises(ValueError, match="monitor is val/overall_accuracy, but there is no validation: set data"):
        trainer(1, folder=tmp_path, callbacks=[best]).fit(task(), datamodule=Data(val_fraction=0))
