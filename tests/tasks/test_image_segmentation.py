import math
from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchvision.transforms import v2

from pcea.datamodules.masks import MaskDataModule
from pcea.datasets.batches import IGNORE, ImageBatch
from pcea.datasets.images import ImageTensors
from pcea.tasks.image_segmentation import ImageSegmentationTask, class_iou
from pcea.tasks.schedules import Poly
from pcea.transforms.images import RandomScaledCrop

SGD = partial(torch.optim.SGD, lr=0.1)


class Given(nn.Module):
    """Predicts the class that a pixel's red names."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        answer = images[:, 0].round().long().clamp(0, self.num_classes - 1)
        return 9 * F.one_hot(answer, self.num_classes).permute(0, 3, 1, 2).float() + self.unused


class Pair(Given):
    """Logits of two classes: red and green."""

    def __init__(self):
        super().__init__(2)

    def forward(self, images):
        return images[:, :2] + self.unused


class Position(Given):
    """Logits that say the size of the image it is shown, and how far from its left border a pixel is."""

    def forward(self, images):
        B, _, H, W = images.shape
        column = torch.arange(W).float().expand(B, H, W)
        height, width = (torch.full((B, H, W), float(size)) for size in (H, W))
        return torch.stack([column, height / 4, width / 4, images[:, 0]], dim=1) + self.unused


class Side(Given):
    """Pixels in the left half are of class 0, surely; those in the right half of class 1, perhaps."""

    def forward(self, images):
        column = torch.arange(images.shape[-1]).expand(len(images), *images.shape[-2:])
        first = torch.where(column < images.shape[-1] / 2, 2.0, -1.0)
        return torch.stack([first, torch.zeros_like(first)], dim=1) + self.unused


class Data(MaskDataModule):
    """Images whose red is the answer of `Given`, one mask each; all splits are the same."""

    def __init__(self, answers, truths, *, class_names=("a", "b", "c", "d"), **options):
        super().__init__(**{"mean": (0, 0, 0), "std": (1 / 255,) * 3, "val_fraction": 0, "batch_size": 1, **options})
        self.answers, self.truths, self.names = answers, truths, class_names

    def load(self, split):  # noqa: ARG002
        images = [torch.tensor(rows, dtype=torch.uint8).expand(3, -1, -1).clone() for rows in self.answers]
        masks = [torch.tensor(rows, dtype=torch.uint8) for rows in self.truths]
        return ImageTensors(images, masks, class_names=self.names)


# Class 0: 2 of 3, once taken for 1. Class 1: 2 of 4. Class 2: 0 of 1, taken for 1. Class 3 occurs nowhere.
ANSWERS = [[[0, 1, 1], [3, 1, 0]], [[1, 0]]]
TRUTHS = [[[0, 0, 1], [IGNORE, 1, IGNORE]], [[2, 0]]]


def test_the_metrics_by_hand_of_images_of_two_sizes(trainer):
    task = ImageSegmentationTask(Given(), SGD)
    [metrics] = trainer.test(task, datamodule=Data(ANSWERS, TRUTHS), verbose=False)
    assert metrics == pytest.approx({"test/miou": (2 / 3 + 2 / 4 + 0) / 3, "test/pixel_accuracy": 4 / 6})
    assert task.by_category == {
        "a": (3, pytest.approx(2 / 3)),
        "b": (2, pytest.approx(2 / 4)),
        "c": (1, 0.0),
        "d": (0, None),
    }
    assert task.convention.startswith("miou: ")
    assert task.votes == 1


def test_validation_counts_like_the_test_and_forgets(trainer):
    task = ImageSegmentationTask(Given(), SGD)
    data = Data(ANSWERS, TRUTHS)
    data.setup("test")
    data.sets = {"train": data.sets["test"], "val": data.sets["test"]}
    for _ in range(2):
        [metrics] = trainer.validate(task, datamodule=data, verbose=False)
        assert metrics == pytest.approx({"val/miou": (2 / 3 + 2 / 4 + 0) / 3, "val/pixel_accuracy": 4 / 6})


def test_the_metrics_are_those_of_torchmetrics(trainer, generator):
    answers = torch.randint(0, 4, (5, 7, 11), generator=generator)
    truths = torch.randint(0, 5, (5, 7, 11), generator=generator)
    truths[truths == 4] = IGNORE
    task = ImageSegmentationTask(Given(), SGD)
    data = Data(answers.tolist(), truths.tolist(), eval_batch_size=2)
    [metrics] = trainer.test(task, datamodule=data, verbose=False)
    options = {"num_classes": 4, "ignore_index": IGNORE}
    assert metrics["test/miou"] == pytest.approx(float(MulticlassJaccardIndex(**options)(answers, truths)))
    accuracy = MulticlassAccuracy(**options, average="micro")(answers, truths)
    assert metrics["test/pixel_accuracy"] == pytest.approx(float(accuracy))


def test_class_iou_by_hand():
    confusion = torch.tensor([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    found = class_iou(confusion).tolist()
    assert found[:2] == pytest.approx([3 / 7, 4 / 7])
    assert math.isnan(found[2])
    assert found[3] == 0


def step(task, batch, monkeypatch):
    logged = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    return task.training_step(batch, 0), logged


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0]])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.25])
def test_the_loss_is_that_of_pytorch(monkeypatch, class_weights, label_smoothing):
    task = ImageSegmentationTask(Pair(), SGD, class_weights=class_weights, label_smoothing=label_smoothing)
    images, label = torch.randn(2, 3, 5, 7), torch.randint(0, 2, (2, 5, 7))
    label[0, :3] = IGNORE
    loss, logged = step(task, ImageBatch(images, label), monkeypatch)
    weights = None if class_weights is None else torch.tensor(class_weights)
    logits = images[:, :2]
    expected = F.cross_entropy(logits, label, weights, ignore_index=IGNORE, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, expected)
    right = (logits.argmax(1) == label)[label != IGNORE].float().mean()
    assert float(logged["train/pixel_accuracy"]) == pytest.approx(float(right))


def test_a_batch_of_ignored_pixels_teaches_nothing(monkeypatch):
    task = ImageSegmentationTask(Pair(), SGD)
    batch = ImageBatch(torch.randn(2, 3, 5, 7), torch.full((2, 5, 7), IGNORE))
    loss, logged = step(task, batch, monkeypatch)
    loss.backward()
    assert loss == 0
    assert task.network.unused.grad == 0
    assert logged["train/pixel_accuracy"] == 0


def test_one_pass_is_the_softmax():
    task = ImageSegmentationTask(Pair(), SGD)
    images = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(task.probabilities(images), images[:, :2].softmax(1))


def test_the_mirrored_image_is_mirrored_back():
    task = ImageSegmentationTask(Position(), SGD, flip=True)
    images = torch.randn(2, 3, 3, 5)
    logits = task(images)
    other = logits.clone()
    other[:, 0] = torch.arange(4.0, -1, -1)  # the column it saw in the mirror
    torch.testing.assert_close(task.probabilities(images), (logits.softmax(1) + other.softmax(1)) / 2)
    assert task.votes == 2


def test_scales_are_averaged_at_full_size():
    task = ImageSegmentationTask(Position(), SGD, scales=(0.5, 1.0, 2.0))
    images = torch.full((1, 3, 8, 12), 2.0)

    middle = task.probabilities(images)[0, :, 4, 5]
    # Pixel 5 of 12 is at 5.5 of 12; of the half image that is 2.75 less the half pixel before its first centre.
    expected = torch.stack([torch.tensor([s * 5.5 - 0.5, s * 2, s * 3, 2.0]).softmax(0) for s in (0.5, 1, 2)]).mean(0)
    torch.testing.assert_close(middle, expected, atol=1e-5, rtol=1e-4)
    assert task.votes == 3


def test_the_test_is_averaged_but_not_the_validation(trainer):
    task = ImageSegmentationTask(Side(2), SGD, flip=True)
    data = Data([[[1, 1, 1, 1]]], [[[1, 1, 1, 1]]], class_names=("a", "b"))
    data.setup("test")
    data.sets["val"] = data.sets["test"]
    [metrics] = trainer.validate(task, datamodule=data, verbose=False)
    assert metrics["val/pixel_accuracy"] == 1 / 2
    [metrics] = trainer.test(task, datamodule=data, verbose=False)
    assert metrics["test/pixel_accuracy"] == 0  # with its mirror image, each pixel is rather of class 0


def test_prediction_gives_the_class_of_each_pixel(trainer):
    predicted = trainer.predict(ImageSegmentationTask(Given(), SGD), datamodule=Data(ANSWERS, TRUTHS))
    assert [answer[0].tolist() for answer in predicted] == ANSWERS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"class_weights": [1.0]},
            r"class_weights must be 2 numbers, one per class and none negative, got \[1\.0\]",
        ),
        ({"class_weights": [1.0, -1.0]}, r"none negative, got \[1\.0, -1\.0\]"),
        ({"scales": ()}, r"scales must be one or more positive numbers, got \[\]"),
        ({"scales": (1.0, 0.0)}, r"scales must be one or more positive numbers, got \[1\.0, 0\.0\]"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ImageSegmentationTask(Pair(), SGD, **options)


class Small(nn.Module):
    """Two convolutions."""

    def __init__(self, num_classes=2, dim=8):
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Conv2d(3, dim, 3, padding=1), nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, num_classes, 1)
        )

    def forward(self, images):
        return self.layers(images)


class Halves(MaskDataModule):
    """A bright left or right part and a dark other one."""

    def __init__(self, **options):
        crop = RandomScaledCrop((16, 16))
        super().__init__(
            **{"batch_size": 4, "val_fraction": 0.25, "train_transforms": [crop, v2.RandomHorizontalFlip()], **options}
        )

    def load(self, split):
        generator = torch.Generator().manual_seed(len(split))
        edge = torch.randint(4, 20, (16, 1, 1), generator=generator)
        masks = (torch.arange(24).expand(16, 20, 24) < edge).to(torch.uint8)
        images = 60 * masks.unsqueeze(1) + torch.randint(0, 100, (16, 3, 20, 24), generator=generator)
        return ImageTensors(images.to(torch.uint8), masks, class_names=["dark", "bright"])


def fit(trainer, seed=0, **options):
    torch.manual_seed(seed)
    model = ImageSegmentationTask(Small(), partial(torch.optim.AdamW, lr=3e-2), partial(Poly, warmup=0.1))
    trainer.fit(model, datamodule=Halves(), **options)
    return model


def test_it_learns(trainer):
    trainer.fit_loop.max_epochs = 10
    model = fit(trainer)
    [metrics] = trainer.test(model, datamodule=Halves(), verbose=False)
    assert metrics["test/miou"] > 0.8
    assert [pixels for pixels, _ in model.by_category.values()] == [
        int((Halves().load("test").label == number).sum()) for number in (0, 1)
    ]
    assert [*model.by_category] == ["dark", "bright"]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")

    def run(name):
        callback = ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1)
        return L.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip

    straight = fit(run("straight"))
    resumed = fit(run("resumed"), seed=1, ckpt_path=tmp_path / "straight" / "epoch=0.ckpt")
    for (name, ours), theirs in zip(straight.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(ours, theirs), name
