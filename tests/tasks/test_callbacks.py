import json
import re
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from pcea import eat_classifier, eat_part_segmenter
from pcea.datamodules.shapes import ShapesDataModule, ShapesPartsDataModule
from pcea.tasks.callbacks import AverageWeights, LogClouds
from pcea.tasks.point_classification import PointClassificationTask
from pcea.tasks.point_segmentation import PointSegmentationTask
from pcea.visualization import palette

SGD = partial(torch.optim.SGD, lr=0.01)
SIZES = {"dim": 16, "num_neighbors": 4, "memory_units": 8, "out_channels": 32, "widths": (16, 8)}
DATA = {"num_train": 8, "num_val": 4, "num_test": 6, "num_points": 64, "batch_size": 4}


def fit(root: Path, task: L.LightningModule, data: L.LightningDataModule, *callbacks: L.Callback) -> L.Trainer:
    L.seed_everything(1)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=4, logger=TensorBoardLogger(root, name="", version=""), callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return trainer


def segmentation() -> tuple[L.LightningModule, L.LightningDataModule]:
    data = ShapesPartsDataModule(**DATA)
    data.setup("test")
    network = eat_part_segmenter(len(data.class_names), len(data.parts), **SIZES)
    return PointSegmentationTask(network, SGD), ShapesPartsDataModule(**DATA)


def classification() -> tuple[L.LightningModule, L.LightningDataModule]:
    data = ShapesDataModule(**DATA)
    data.setup("test")
    network = eat_classifier(len(data.class_names), num_centers=(32, 16), **SIZES)
    return PointClassificationTask(network, SGD), ShapesDataModule(**DATA)


def logged(root: Path) -> dict[str, list[tuple[int, torch.Tensor]]]:
    """What TensorBoard would show: for every tag the steps and arrays."""
    events = EventAccumulator(str(root), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(e.step, torch.tensor(tensor_util.make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def test_a_segmenter_logs_predicted_and_true_parts(tmp_path: Path) -> None:
    task, data = segmentation()
    fit(tmp_path, task, data, LogClouds(every_n_epochs=2, num_clouds=3))
    tags = logged(tmp_path)
    names = {tag.rpartition("_")[0] for tag in tags}
    assert names == {f"cloud {i}, {what}" for i in range(3) for what in ("predicted", "true")}
    assert "test" not in data.sets
    # Epochs 2 and 4 of two batches each; the truth once, before the first.
    assert {tuple(step for step, _ in tags[tag]) for tag in tags if "predicted" in tag} == {(4, 8)}
    assert {tuple(step for step, _ in tags[tag]) for tag in tags if "true" in tag} == {(0,)}
    # Clouds 0, 1 and 2 of the validation split, in the colours of their true parts.
    clouds = data.sets["val"].batch([0, 1, 2])
    arrays = [[array for _, array in tags[tag]] for tag in tags if tag.startswith("cloud 1, true")]
    points, colors = sorted((a[0][0] for a in arrays), key=lambda a: a.max())  # in -1..1 and 0..255
    torch.testing.assert_close(points, clouds.points[1])
    parts = torch.tensor(list(data.parts.values())[clouds.category[1]])
    place = (clouds.label[1][:, None] == parts).int().argmax(1)
    assert torch.equal(colors.to(torch.uint8), palette(len(parts))[place])


def test_a_classifier_logs_its_strongest_slots(tmp_path: Path) -> None:
    task, data = classification()
    fit(tmp_path, task, data, LogClouds(every_n_epochs=3, num_clouds=20))
    tags = logged(tmp_path)
    assert {tag.rpartition("_")[0] for tag in tags} == {f"cloud {i}, strongest slot" for i in range(4)}
    assert {step for values in tags.values() for step, _ in values} == {6}


@pytest.mark.parametrize("make", [segmentation, classification])
def test_pages_show_each_cloud_with_what_the_network_says(make, tmp_path: Path) -> None:
    task, data = make()
    fit(tmp_path, task, data, LogClouds(every_n_epochs=2, num_clouds=3))
    pages = sorted((tmp_path / "attention").iterdir())
    assert [page.name for page in pages] == ["epoch_002.html", "epoch_004.html"]
    about = json.loads(re.search(r'id="about">(.*?)</script>', pages[1].read_text(encoding="utf-8"), re.S)[1])
    [network] = about["networks"]
    for i, subject in enumerate(network["subjects"]):
        assert subject["title"].startswith(f"cloud {i}")
        assert subject["count"] == 64
        assert subject["modes"][-1] == "prediction"
        shown = {name for name, _ in subject["results"]["prediction"]["legend"]}
        assert shown
        assert all(any(name.startswith(own) for own in data.class_names) for name in shown)


@pytest.mark.parametrize("make", [segmentation, classification])
def test_training_is_the_same_with_and_without(make, tmp_path: Path) -> None:
    states = []
    for name, callbacks in (("with", [LogClouds(every_n_epochs=1)]), ("without", [])):
        torch.manual_seed(0)
        task, data = make()
        fit(tmp_path / name, task, data, *callbacks)
        assert task.training
        states.append(task.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


@pytest.mark.filterwarnings("ignore:Total length of")
def test_training_clouds_are_shown_without_validation(tmp_path: Path) -> None:
    class NoValidation(ShapesDataModule):
        def load_val(self) -> None:
            return None

    task, _ = classification()
    data = NoValidation(**DATA, val_fraction=0)
    fit(tmp_path, task, data, LogClouds(every_n_epochs=4, num_clouds=1))
    assert {*data.sets} == {"train"}
    [points] = [a[0] for values in logged(tmp_path).values() for _, a in values if a.max() <= 1]
    torch.testing.assert_close(points, data.sets["train"].points[0])


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode")
def test_frozen_modules_stay_frozen(tmp_path: Path) -> None:
    task, data = classification()
    task.network.encoder.eval()
    frozen = {name for name, module in task.named_modules() if not module.training}
    fit(tmp_path, task, data, LogClouds(every_n_epochs=1))
    assert {name for name, module in task.named_modules() if not module.training} == frozen


def test_data_without_clouds_is_refused(tmp_path: Path) -> None:
    task, data = classification()
    data.setup("fit")
    clouds = data.sets["train"]
    loader = torch.utils.data.DataLoader(range(len(clouds)), batch_size=4, collate_fn=clouds.batch)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[LogClouds()]
    )
    with pytest.raises(ValueError, match="LogClouds shows point clouds of a PointDataModule, got NoneType"):
        trainer.fit(task, loader, loader)


def test_errors() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0 and 4"):
        LogClouds(every_n_epochs=0)


class Recorder(L.Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, _: L.Trainer, pl_module: L.LightningModule, *__: object) -> None:
        self.weights.append(pl_module.network.head[0].linear.weight.detach().clone())


def test_averaged_weights_by_hand(tmp_path: Path) -> None:
    task, data = classification()
    recorder = Recorder()
    fit(tmp_path, task, data, recorder, AverageWeights(decay=0.5))
    # After the first step the average is the weights. Then it keeps 2/11, 3/12, ... of itself, and at most a half.
    average = recorder.weights[0]
    assert len(recorder.weights) == 8
    for kept, weights in zip((2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17), recorder.weights[1:]):
        average = kept * average + (1 - kept) * weights
    assert torch.allclose(task.network.head[0].linear.weight, average, atol=1e-6)
    recorder = Recorder()
    fit(tmp_path, task, data, recorder, AverageWeights(decay=0.2))
    average = recorder.weights[0]
    for kept, weights in zip((2 / 11, *(6 * [0.2])), recorder.weights[1:]):
        average = kept * average + (1 - kept) * weights
    assert torch.allclose(task.network.head[0].linear.weight, average, atol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay(decay: float) -> None:
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        AverageWeights(decay=decay)
