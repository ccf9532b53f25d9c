"""Every shipped YAML builds its task, its data module and a network that takes a batch."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser
from torchvision import models

from pcea.datamodules.images import ImageDataModule
from pcea.datamodules.masks import MaskDataModule
from pcea.datamodules.objects import ObjectDataModule, ObjectFolderDataModule
from pcea.datamodules.parts import PartDataModule
from pcea.datasets.batches import ImageBatch, PointBatch, normalize
from pcea.datasets.images import ImageTensors, TransformedImages
from pcea.datasets.objects import ObjectDataset, TransformedObjects
from pcea.datasets.shapenetpart import SHAPENETPART_CLASSES, SHAPENETPART_PARTS
from pcea.datasets.shapes import PARTS
from pcea.io.configs import config_names, config_path
from pcea.tasks.base import Task
from pcea.tasks.generation import GenerationTask


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    """Networks that start from ImageNet weights get others."""
    monkeypatch.setattr(
        "pcea.models.resnet.imagenet_weights",
        lambda weights: models.get_model(type(weights).__name__.partition("_")[0].lower()).state_dict(),
    )


def build(name):
    """Task and data module of a configuration, without a trainer and without touching the data."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Task, "model")
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    content = yaml.safe_load(config_path(name).read_text(encoding="utf-8"))
    built = parser.instantiate(parser.parse_object({key: content[key] for key in ("model", "data")}))
    return built.model, built.data, content


@pytest.fixture(params=config_names())
def name(request):
    return request.param


def test_it_builds_a_network_for_its_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no data
    task, data, _ = build(name)
    if isinstance(task, GenerationTask):
        check_generation(task, data)
        return
    if isinstance(data, ObjectDataModule):
        check_objects(task, data)
        return
    if isinstance(data, ImageDataModule):
        check_images(task, data)
        return
    points, normals = F.normalize(torch.randn(2, 2, data.num_points, 3), dim=-1)
    per_point = isinstance(data, PartDataModule)
    batch = PointBatch(
        points,
        torch.zeros(points.shape[: 1 + per_point], dtype=torch.int64),
        normals if data.with_normals else None,
        torch.tensor([0, task.network.num_categories - 1]) if per_point else None,
    )
    for transform in data.augment:
        batch = transform(batch, generator=torch.Generator().manual_seed(0))
    varies = any(getattr(transform, "fewest", None) for transform in data.augment)
    assert batch.points.shape == points.shape or (varies and 64 <= batch.points.shape[1] < data.num_points)
    assert not batch.points.equal(points)
    assert (batch.normals is not None) == data.with_normals
    with torch.inference_mode():
        assert task.eval()(batch).shape == (*batch.label.shape, task.network.num_classes - task.background)


def check_images(task, data):
    """The transforms make a batch of images of any size, and the network takes it."""
    per_pixel = isinstance(data, MaskDataModule)
    images = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    label = torch.zeros(2, 40, 40, dtype=torch.uint8) if per_pixel else torch.zeros(2, dtype=torch.int64)
    held = ImageTensors(images, label, class_names=[str(c) for c in range(task.network.num_classes)])
    batch = TransformedImages(held, data.train_transforms, seed=1).batch([0, 1])
    batch = ImageBatch(normalize(batch.images, data.mean, data.std), batch.label.long())
    for transform in data.augment:
        batch = transform(batch, generator=torch.Generator().manual_seed(0))
    assert batch.images.shape[:2] == (2, 3)
    assert not batch.images.equal(normalize(images, data.mean, data.std))
    height, width = batch.images.shape[-2:]
    assert batch.label.shape == ((2, height, width) if per_pixel else (2,))
    evaluated = TransformedImages(held, data.eval_transforms).batch([0, 1]).images
    # Of segmentation any size will do, and that of training is large.
    crop = batch.images[..., :32, :32] if per_pixel else batch.images
    assert per_pixel or evaluated.shape in (batch.images.shape, images.shape)
    with torch.inference_mode():
        expected = (2, task.network.num_classes, 32, 32) if per_pixel else (2, task.network.num_classes)
        assert task.eval()(crop).shape == expected


class Objects(ObjectDataset):
    """One picture with two objects."""

    image_names, has_masks = ("one",), True

    def __getitem__(self, index):
        masks = torch.zeros(2, 300, 400, dtype=torch.uint8)
        masks[0, 100:200, 100:200] = masks[1, 120:250, 150:300] = 1
        boxes = torch.tensor([[100.0, 100, 200, 200], [150, 120, 300, 250]])
        target = {"boxes": boxes, "masks": masks, "labels": torch.ones(2, dtype=torch.int64)}
        target |= {"iscrowd": torch.zeros(2, dtype=torch.int64), "area": torch.tensor([10_000.0, 19_500])}
        return torch.randint(256, (3, 300, 400), dtype=torch.uint8), target | {"image_id": torch.tensor(1)}


def check_objects(task, data):
    """The network learns from images and objects of the data, and detects."""
    batch = TransformedObjects(Objects(), data.train_transforms, seed=1).batch([0])
    assert task.has_masks <= getattr(data, "masks", isinstance(data, ObjectFolderDataModule))
    task.network.transform.min_size, task.network.transform.max_size = (64,), 96
    losses = task.network([image / 255 for image in batch.images], batch.targets)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.inference_mode():
        assert task.eval()(batch.images)[0].keys() == {"boxes", "labels", "scores", *["masks"] * task.has_masks}


def check_generation(task, data):
    """The discriminator takes images of the data, and of the generator, which are in -1..1 alike."""
    size, classes = task.generator.image_size, task.generator.num_classes
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    held = ImageTensors(images, torch.tensor([0, classes - 1]), class_names=[str(c) for c in range(classes)])
    batch = TransformedImages(held, data.train_transforms, seed=1).batch([0, 1])
    batch = ImageBatch(normalize(batch.images, data.mean, data.std), batch.label.long())
    for transform in data.augment:
        batch = transform(batch, generator=torch.Generator().manual_seed(0))
    assert (batch.images.min(), batch.images.max()) == (-1, 1)
    with torch.inference_mode():
        generated = task.eval()(torch.randn(2, task.generator.latent_dim), batch.label)
        assert generated.shape == batch.images.shape
        assert task.discriminator(batch.images, batch.label).shape == (2,)


def test_it_can_be_read_alone(name):
    task, data, content = build(name)
    assert config_path(name).read_text(encoding="utf-8").startswith("# ")
    assert {"seed_everything", "trainer", "checkpoint", "model", "data"} == content.keys()
    assert content["trainer"]["default_root_dir"] == f"runs/{name}"
    # Held-out clouds choose the best epoch, or only tell how far to trust the last one.
    assert (content["checkpoint"]["monitor"] is not None) == bool(data.val_fraction) or task.background


def test_the_trainer_accepts_its_options(name):
    _, _, content = build(name)
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(L.Trainer, "trainer")
    assert parser.parse_object({"trainer": content["trainer"]}).trainer.max_epochs == content["trainer"]["max_epochs"]


def test_the_papers_recipe():
    task, data, content = build("modelnet40_eat")
    assert sum(p.numel() for p in task.network.parameters()) == 2_612_968
    assert (data.num_points, data.batch_size, content["trainer"]["max_epochs"]) == (1024, 32, 250)
    smoothing = 0.2 * 40 / 39  # the paper's 0.2 over the other 39 classes, as PyTorch counts
    assert task.label_smoothing == pytest.approx(smoothing, abs=1e-4)
    pct, _, other = build("modelnet40_pct")
    assert sum(p.numel() for p in pct.network.parameters()) == 2_876_136
    for same in (content, other):
        del same["model"]["init_args"]["network"], same["trainer"]["default_root_dir"]
    assert content == other


@pytest.mark.parametrize(
    ("name", "num_classes", "num_categories"),
    [
        ("shapes_parts_eat", sum(map(len, PARTS.values())), len(PARTS)),
        ("shapenetpart_eat", len(SHAPENETPART_CLASSES), len(SHAPENETPART_PARTS)),
        ("shapenetpart_eat_normals", len(SHAPENETPART_CLASSES), len(SHAPENETPART_PARTS)),
        ("shapenetpart_pct", len(SHAPENETPART_CLASSES), len(SHAPENETPART_PARTS)),
    ],
)
def test_a_network_knows_the_parts_of_its_data(name, num_classes, num_categories):
    task, _, _ = build(name)
    assert (task.network.num_classes, task.network.num_categories) == (num_classes, num_categories)
