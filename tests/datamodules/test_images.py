import numpy as np
import pytest
import torch
from examples import attach, check_order
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from pcea.datamodules.images import (
    CIFAR10DataModule,
    ImageDataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
)
from pcea.datasets.batches import ImageBatch, normalize
from pcea.datasets.images import ImageFiles, ImageTensors
from pcea.transforms.images import RandomErase, RandomFlip

NUM_CLASSES = 3


class NumberedImages(ImageDataModule):
    """30 training and 11 test images of 3 classes; all bytes of image i are i. With `own_val`, 6 to validate by."""

    def __init__(self, *, own_val=False, **options):
        super().__init__(mean=(0, 0, 0), std=(1 / 255,) * 3, **options)
        self.own_val = own_val

    def load(self, split):
        count = {"train": 30, "val": 6, "test": 11}[split]
        images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 5, 7)
        names = [f"class {c}" for c in range(NUM_CLASSES)]
        return ImageTensors(images, torch.arange(count) % NUM_CLASSES, class_names=names)

    def load_val(self):
        return self.load("val") if self.own_val else None


def numbers(loader, epoch=0) -> list[list[int]]:
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    return [batch.images[:, 0, 0, 0].tolist() for batch in loader]


def in_sets(data, name):
    return data.sets[name].images[:, 0, 0, 0].tolist()


def test_constructors_touch_no_disk(tmp_path):
    root = str(tmp_path / "missing")
    for make, message in (
        (ImageFolderDataModule, "No folder .*missing"),
        (ImageNetDataModule, "No folder .*missing"),
        (CIFAR10DataModule, "No CIFAR-10 under .*missing"),
    ):
        data = make(root)
        assert data.sets == {}
        assert data.class_names == ()
        with pytest.raises(FileNotFoundError, match=message):
            data.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"val_fraction must be in 0\.\.1, below 1, got 1\.0"),
        ({"val_fraction": -0.1}, r"val_fraction must be in 0\.\.1, below 1, got -0\.1"),
        ({"mean": (0.5,)}, r"mean and std must be three numbers, std positive, got \[0\.5\]"),
        ({"std": (1, 1, 0)}, r"mean and std must be three numbers, std positive, .* \[1, 1, 0\]"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**options)


@pytest.mark.parametrize("test_fraction", [0, 1.0])
def test_wrong_test_fraction(test_fraction):
    with pytest.raises(ValueError, match=f"test_fraction must be between 0 and 1, got {test_fraction}"):
        ImageFolderDataModule("root", test_fraction=test_fraction)


def test_validation_is_held_out_of_training():
    data = NumberedImages(batch_size=4, val_fraction=0.2)
    attach(data)
    data.setup("fit")
    train, val = in_sets(data, "train"), in_sets(data, "val")
    assert sorted(train + val) == list(range(30))
    assert data.sets["val"].label.bincount().tolist() == [2, 2, 2]
    assert numbers(data.val_dataloader()) == [val]
    other = NumberedImages(val_fraction=0.2, split_seed=1)
    other.setup("fit")
    assert in_sets(other, "val") != val


def test_a_validation_split_of_its_own_is_used():
    data = NumberedImages(own_val=True, val_fraction=0.5)
    data.setup("fit")
    assert (len(data.sets["train"]), len(data.sets["val"])) == (30, 6)


def test_no_validation_without_a_fraction():
    data = NumberedImages(val_fraction=0)
    data.setup("fit")
    assert len(data.sets["train"]) == 30
    assert data.val_dataloader() == []


def test_only_the_splits_of_the_stage_are_read_and_once():
    data = NumberedImages()
    data.setup("test")
    assert list(data.sets) == ["test"]
    test = data.sets["test"]
    data.setup("test")
    data.setup("fit")
    assert data.sets["test"] is test
    train = data.sets["train"]
    data.setup("validate")
    assert data.sets["train"] is train
    assert data.class_names == ("class 0", "class 1", "class 2")


def test_batches_have_one_size_and_the_small_last_one_is_dropped(seed_everything):
    data = NumberedImages(batch_size=7, val_fraction=0)
    attach(data)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [tuple(batch.images.shape) for batch in batches] == [(7, 3, 5, 7)] * 4
    assert all(torch.equal(batch.label, batch.images[:, 0, 0, 0].long() % NUM_CLASSES) for batch in batches)
    attach(data, world_size=5)
    with pytest.raises(ValueError, match="batch_size=7 on 5 devices needs at least as many training samples, got 30"):
        data.train_dataloader()


def test_test_and_predict_see_every_image_in_order():
    data = NumberedImages(batch_size=4)
    attach(data)
    data.setup("test")
    expected = [list(range(8)), [8, 9, 10]]
    assert numbers(data.test_dataloader()) == expected
    assert numbers(data.predict_dataloader()) == expected
    data.eval_batch_size = 5
    assert [len(batch) for batch in numbers(data.test_dataloader())] == [5, 5, 1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_test_every_image_once(world_size):
    found = []
    for rank in range(world_size):
        data = NumberedImages(batch_size=2)
        attach(data, world_size=world_size, rank=rank)
        data.setup("test")
        found += [number for batch in numbers(data.test_dataloader()) for number in batch]
    assert sorted(found) == list(range(11))


def test_several_processes_train_on_different_images(seed_everything):
    found = []
    for rank in range(2):
        data = NumberedImages(batch_size=5, val_fraction=0)
        attach(data, world_size=2, rank=rank)
        data.setup("fit")
        found += [number for batch in numbers(data.train_dataloader()) for number in batch]
    assert sorted(found) == list(range(30))


def test_order_follows_seed_and_epoch_alone(seed_everything):
    def order(seed, epoch):
        seed_everything(seed)
        torch.manual_seed(torch.initial_seed() + 1)  # the global generator must not matter
        data = NumberedImages(batch_size=5, val_fraction=0)
        attach(data)
        data.setup("fit")
        return numbers(data.train_dataloader(), epoch)

    check_order(order)


class Add(nn.Module):
    """Adds a random hundred to an image."""

    def forward(self, image):
        return image + 100 * torch.randint(3, (1,), dtype=torch.uint8)


def added(seed_everything, *, seed=0, epoch=0, num_workers=0, stage="fit"):
    """What was added to each image, by its number."""
    seed_everything(seed)
    data = NumberedImages(
        batch_size=5, val_fraction=0, train_transforms=[Add()], eval_transforms=[], num_workers=num_workers
    )
    attach(data)
    data.setup(stage)
    batches = numbers(data.train_dataloader() if stage == "fit" else data.test_dataloader(), epoch)
    values = [value for batch in batches for value in batch]
    return {value % 100: value // 100 for value in sorted(values, key=lambda value: value % 100)}


def test_training_images_are_transformed_by_seed_and_epoch_in_any_process(seed_everything):
    first = added(seed_everything)
    assert set(first) == set(range(30))
    assert set(first.values()) == {0, 1, 2}
    assert added(seed_everything) == first
    assert added(seed_everything, num_workers=2) == first
    assert added(seed_everything, epoch=1) != first
    assert added(seed_everything, seed=1) != first
    assert set(added(seed_everything, stage="test").values()) == {0}


def test_evaluation_has_transforms_of_its_own():
    data = NumberedImages(batch_size=5, train_transforms=[Add()], eval_transforms=[v2.Pad(1, fill=200)])
    attach(data)
    data.setup("fit")
    data.setup("test")
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        batch = next(iter(loader))
        assert batch.images.shape[1:] == (3, 7, 9)
        assert batch.images[:, 0, 0, 0].unique().tolist() == [200]


def test_images_are_normalized_by_hand():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.5) / 0.25, (0.2 - 0.5) / 0.5, (1 - 0.1) / 0.2]
    normalized = normalize(images, (0.5, 0.5, 0.1), (0.25, 0.5, 0.2))
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized.flatten(), torch.tensor(expected))


def test_augmentation_is_for_training_alone_and_follows_seed_and_batch(seed_everything):
    seed_everything(0)
    data = NumberedImages(augment=[RandomErase(probability=1)], val_fraction=0)
    trainer = attach(data, training=True).trainer
    data.setup("fit")
    batch = ImageBatch(data.sets["train"].images, data.sets["train"].label.to(torch.uint8))
    given = batch.images.clone()

    def augmented(step=0):
        trainer.fit_loop.total_batch_idx = step
        torch.manual_seed(99)
        return data.on_after_batch_transfer(batch, 0)

    first = augmented()
    assert (first.images != given).flatten(1).any(1).all()
    assert first.label.dtype == torch.int64
    assert torch.equal(augmented().images, first.images)
    assert not torch.equal(augmented(step=1).images, first.images)
    seed_everything(1)
    assert not torch.equal(augmented().images, first.images)
    trainer.training = False
    assert torch.equal(augmented().images, given.float())
    assert torch.equal(batch.images, given)


def test_augmentation_is_applied_in_turn(seed_everything):
    class Record:
        def __init__(self, name):
            self.name = name

        def __call__(self, batch, *, generator):
            order.append((self.name, generator.device.type))
            return batch

    order = []
    data = NumberedImages(augment=[Record("first"), Record("second")])
    attach(data, training=True)
    data.setup("fit")
    data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert order == [("first", "cpu"), ("second", "cpu")]


@pytest.fixture
def root(tmp_path):
    """Ten cats and five dogs; the red of picture i is i."""
    for number in range(15):
        path = tmp_path / ("cat" if number < 10 else "dog") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), (number, 50, 60), dtype=np.uint8)).save(path)
    return tmp_path


def test_a_folder_is_divided_into_three(root):
    data = ImageFolderDataModule(str(root), test_fraction=0.2, val_fraction=0.25, batch_size=2, augment=[RandomFlip()])
    attach(data)
    data.setup("fit")
    data.setup("test")
    assert {name: images.label.bincount().tolist() for name, images in data.sets.items()} == {
        "train": [6, 3],
        "val": [2, 1],
        "test": [2, 1],
    }
    files = [path for images in data.sets.values() for path in images.files]
    assert len(files) == len({*files}) == 15
    again = ImageFolderDataModule(str(root), test_fraction=0.2, split_seed=5)
    again.setup("test")
    assert again.sets["test"].files == data.sets["test"].files  # whatever is held out of the rest


def test_a_folder_may_be_kept_in_memory(root):
    loaders = []
    for in_memory in (False, True):
        data = ImageFolderDataModule(str(root), batch_size=3, in_memory=in_memory)
        attach(data)
        data.setup("fit")
        assert type(data.sets["train"]) is (ImageTensors if in_memory else ImageFiles)
        loaders.append(numbers(data.train_dataloader()))
    assert loaders[0] == loaders[1]


def test_imagenet_reports_on_val(root):
    (root / "train").mkdir()
    (root / "val").mkdir()
    for name in ("cat", "dog"):
        (root / "val" / name).mkdir()
        (root / name).rename(root / "train" / name)
        next((root / "train" / name).iterdir()).rename(root / "val" / name / "moved.png")
    data = ImageNetDataModule(str(root), val_fraction=0.25)
    data.setup("fit")
    data.setup("test")
    assert {name: len(images) for name, images in data.sets.items()} == {"train": 10, "val": 3, "test": 2}
    assert all("train" in path for name in ("train", "val") for path in data.sets[name].files)
    assert all("moved" in path for path in data.sets["test"].files)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_named_in_one_line(root, num_workers, seed_everything):
    for path in (root / "dog").iterdir():
        path.write_bytes(b"not a picture")
    data = ImageFolderDataModule(str(root), batch_size=4, val_fraction=0, num_workers=num_workers)
    attach(data)
    data.setup("fit")

    def read():
        for batch in data.train_dataloader():
            data.on_before_batch_transfer(batch, 0)

    with pytest.raises(ValueError, match=r"^[^\n]*dog/\d\d\.png cannot be read as an image: [^\n]*$"):
        read()
