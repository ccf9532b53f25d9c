from functools import partial
from types import SimpleNamespace

import h5py
import lightning as L
import numpy as np
import pytest
import torch
from examples import attach, check_order, check_same_batches
from torch import nn

from pcea.datamodules.points import (
    ModelNet10DataModule,
    ModelNet40DataModule,
    PointDataModule,
    PointFolderDataModule,
    PyGPointDataModule,
    ScanObjectNNDataModule,
)
from pcea.datamodules.shapes import ShapesDataModule
from pcea.datasets import point_folder
from pcea.datasets.batches import PointBatch
from pcea.datasets.points import PointDataset
from pcea.tasks.point_classification import PointClassificationTask
from pcea.transforms.points import RandomJitter

NUM_CLASSES = 3


class NumberedClouds(PointDataModule):
    """30 training and 11 test clouds of 3 classes; all coordinates of cloud i are i."""

    def load(self, split):
        count = 30 if split == "train" else 11
        points = torch.arange(float(count)).view(-1, 1, 1).expand(count, self.num_points, 3).clone()
        names = [f"class {c}" for c in range(NUM_CLASSES)]
        normals = -points if self.with_normals else None
        return PointDataset(points, torch.arange(count) % NUM_CLASSES, class_names=names, normals=normals)


def cloud_numbers(loader, epoch=0) -> list[list[int]]:
    if loader.sampler is not None and hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    return [batch.points[:, 0, 0].int().tolist() for batch in loader]


def test_constructors_touch_no_disk(tmp_path):
    def make():
        raise AssertionError("made in the constructor")

    root = str(tmp_path / "missing")
    for data in (
        ModelNet40DataModule(root),
        ModelNet10DataModule(root),
        ScanObjectNNDataModule(root),
        PointFolderDataModule(root),
        PyGPointDataModule(make, make),
        ShapesDataModule(),
    ):
        assert data.sets == {}
        assert data.class_names == ()
    with pytest.raises(FileNotFoundError, match="pcea download modelnet40"):
        ModelNet40DataModule(root).setup("fit")


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_val_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=f"val_fraction must be in 0..1, below 1, got {fraction}"):
        NumberedClouds(val_fraction=fraction)


def test_raw_files_are_parsed_by_one_process(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "ab"[number % 2] / f"{number}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, rng.normal(size=(9, 3)))
    parsed = []
    read = point_folder.load_points
    monkeypatch.setattr(
        point_folder, "load_points", lambda path, **options: parsed.append(path) or read(path, **options)
    )

    def data():
        return PointFolderDataModule(str(tmp_path), num_points=5)

    first, second = data(), data()  # of two processes
    first.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    first.prepare_data()
    assert len(parsed) == 10  # all training files, none of the test
    for each in (first, second):
        each.setup("fit")
    assert len(parsed) == 10
    assert torch.equal(first.sets["train"].points, second.sets["train"].points)


def test_validation_is_held_out_of_training():
    data = NumberedClouds(batch_size=4, num_points=5, val_fraction=0.2)
    attach(data)
    data.setup("fit")
    train, val = (data.sets[name].points[:, 0, 0].int().tolist() for name in ("train", "val"))
    assert sorted(train + val) == list(range(30))
    assert data.sets["val"].label.bincount().tolist() == [2, 2, 2]
    assert cloud_numbers(data.val_dataloader()) == [val]
    other = NumberedClouds(num_points=5, val_fraction=0.2, split_seed=1)
    other.setup("fit")
    assert other.sets["val"].points[:, 0, 0].int().tolist() != val


def test_no_validation_without_a_fraction():
    data = NumberedClouds(batch_size=4, num_points=5, val_fraction=0)
    data.setup("fit")
    assert len(data.sets["train"]) == 30
    assert data.val_dataloader() == []


def test_only_the_splits_of_the_stage_are_read_and_once():
    data = NumberedClouds(num_points=5)
    data.setup("test")
    assert list(data.sets) == ["test"]
    test = data.sets["test"]
    data.setup("test")
    data.setup("fit")
    assert data.sets["test"] is test
    assert list(data.sets) == ["test", "train", "val"]
    train = data.sets["train"]
    data.setup("validate")
    assert data.sets["train"] is train


def test_batches_have_one_size_and_the_small_last_one_is_dropped(seed_everything):
    data = NumberedClouds(batch_size=7, num_points=5, with_normals=True, val_fraction=0)
    attach(data)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [tuple(batch.points.shape) for batch in batches] == [(7, 5, 3)] * 4
    assert all(torch.equal(batch.normals, -batch.points) for batch in batches)
    assert all(torch.equal(batch.label, batch.points[:, 0, 0].long() % NUM_CLASSES) for batch in batches)


def test_test_and_predict_see_every_cloud_in_order():
    data = NumberedClouds(batch_size=4, num_points=5)
    attach(data)
    data.setup("test")
    expected = [list(range(8)), [8, 9, 10]]
    assert cloud_numbers(data.test_dataloader()) == expected
    assert cloud_numbers(data.predict_dataloader()) == expected


class Echo(L.LightningModule):
    def forward(self, batch):
        return batch.label


def test_the_trainer_predicts():
    """Lightning makes loaders for prediction again, from the keywords of those that it is given."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    labels = trainer.predict(Echo(), datamodule=NumberedClouds(batch_size=4, num_points=5))
    assert torch.equal(torch.cat(labels), torch.arange(11) % NUM_CLASSES)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("split", ["val", "test"])
def test_several_processes_measure_every_cloud_once(split, world_size):
    numbers = []
    for rank in range(world_size):
        data = NumberedClouds(batch_size=2, num_points=2, val_fraction=0.3)
        attach(data, world_size=world_size, rank=rank)
        data.setup("fit" if split == "val" else "test")
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        numbers += [number for batch in cloud_numbers(loader) for number in batch]
    assert len(numbers) % world_size
    assert sorted(numbers) == sorted(data.sets[split].points[:, 0, 0].tolist())


def test_fewer_clouds_than_processes_cannot_be_measured():
    data = NumberedClouds(num_points=2)
    attach(data, world_size=12)
    data.setup("test")
    with pytest.raises(ValueError, match=r"12 devices need at least as many samples in the test split, got 11"):
        data.test_dataloader()


def test_order_follows_seed_and_epoch_alone(seed_everything):
    def order(seed, epoch):
        seed_everything(seed)
        torch.manual_seed(torch.initial_seed() + 1)  # the global generator must not matter
        data = NumberedClouds(batch_size=5, num_points=2, val_fraction=0)
        attach(data)
        data.setup("fit")
        return cloud_numbers(data.train_dataloader(), epoch)

    check_order(order)


def test_two_processes_share_each_batch_of_one():
    def batches(batch_size, world_size, rank):
        data = NumberedClouds(batch_size=batch_size, num_points=2, val_fraction=0)
        attach(data, world_size=world_size, rank=rank)
        data.setup("fit")
        return cloud_numbers(data.train_dataloader(), epoch=3)

    whole, *halves = batches(6, 1, 0), batches(3, 2, 0), batches(3, 2, 1)
    assert len(whole) == 5
    for i in range(5):
        assert sorted(halves[0][i] + halves[1][i]) == sorted(whole[i])


def test_augmentation_follows_seed_batch_and_rank_alone(seed_everything):
    def augmented(seed=0, step=0, rank=0, world_size=1, training=True):
        seed_everything(seed)
        torch.manual_seed(torch.initial_seed() + 1)
        data = NumberedClouds(num_points=5, augment=[RandomJitter()])
        trainer = attach(data, world_size=world_size, rank=rank, training=training).trainer
        trainer.fit_loop.total_batch_idx = step
        return data.on_after_batch_transfer(PointBatch(torch.zeros(2, 5, 3), torch.zeros(2)), 0).points

    first = augmented()
    assert torch.equal(augmented(), first)
    assert augmented(training=False).eq(0).all()
    others = [augmented(seed=1), augmented(step=1), augmented(rank=1, world_size=2), augmented(1, 1, 1, 2)]
    for other in others:
        assert not torch.equal(other, first)


def test_evaluation_has_transforms_of_its_own():
    data = NumberedClouds(num_points=5, augment=[RandomJitter()], evaluate=[lambda batch: batch._replace(label=None)])
    attach(data)
    assert data.on_after_batch_transfer(PointBatch(torch.zeros(2, 5, 3), torch.zeros(2)), 0).label is None


def test_too_few_clouds_for_a_batch():
    data = NumberedClouds(batch_size=16, num_points=2, val_fraction=0)
    attach(data, world_size=2)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"batch_size=16 on 2 devices needs at least as many training samples, got 30"):
        data.train_dataloader()


def test_one_cloud_is_no_batch_of_several():
    data = NumberedClouds(batch_size=16, num_points=2, val_fraction=0)
    attach(data)
    data.setup("fit")
    data.sets["train"] = data.sets["train"].subset(torch.tensor([3]))
    with pytest.raises(ValueError, match="one training sample: add another, or set batch_size=16 to 1"):
        data.train_dataloader()
    data.batch_size = 1
    assert [len(batch.points) for batch in data.train_dataloader()] == [1]


def test_a_few_clouds_are_one_batch():
    data = NumberedClouds(batch_size=32, num_points=2, val_fraction=0)
    attach(data)
    data.setup("fit")
    with pytest.warns(UserWarning, match="only 30 training samples: batches of these, not of 32"):
        loader = data.train_dataloader()
    assert [len(batch.points) for batch in loader] == [30]


class Linear(nn.Module):
    """Mean point, and mean normal where there are any, to logits."""

    def __init__(self, num_classes, channels=3):
        super().__init__()
        self.num_classes, self.linear = num_classes, nn.Linear(channels, num_classes)

    def forward(self, points, features=None, **_):
        self.seen = features
        return self.linear((points if features is None else torch.cat([points, features], -1)).mean(1))


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return L.Trainer(**quiet, enable_model_summary=False, **options)


SGD = partial(torch.optim.SGD, lr=0.1)


def test_num_classes_that_do_not_fit_the_data():
    message = r"The data has 3 classes, but the network has num_classes=4. Set .*num_classes to 3"
    with pytest.raises(ValueError, match=message):
        trainer(max_steps=1).fit(PointClassificationTask(Linear(4), SGD), datamodule=NumberedClouds(num_points=2))


def test_normals_reach_the_network_where_asked_for():
    for with_normals in (True, False):
        network = Linear(3, channels=6 if with_normals else 3)
        data = NumberedClouds(batch_size=4, num_points=2, with_normals=with_normals)
        trainer(max_epochs=1).test(PointClassificationTask(network, SGD), datamodule=data, verbose=False)
        assert (network.seen is not None) == with_normals
        if with_normals:
            assert network.seen[:, 0, 0].tolist() == [-8, -9, -10]


def test_modelnet40_in_a_folder(tmp_path):
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    rng = np.random.default_rng(0)
    (folder / "shape_names.txt").write_text("".join(f"shape{i}\n" for i in range(40)))
    for split, count in (("train", 60), ("test", 7)):
        (folder / f"{split}_files.txt").write_text(f"data/modelnet40_ply_hdf5_2048/{split}0.h5\n")
        with h5py.File(folder / f"{split}0.h5", "w") as file:
            file["data"] = rng.random((count, 2048, 3), dtype=np.float32)
            file["label"] = (np.arange(count, dtype=np.uint8) % 5)[:, None]
    data = ModelNet40DataModule(str(tmp_path), batch_size=11, num_points=13)
    attach(data)
    data.setup("fit")
    data.setup("test")
    assert data.class_names == tuple(f"shape{i}" for i in range(40))
    assert {name: len(clouds) for name, clouds in data.sets.items()} == {"train": 55, "val": 5, "test": 7}
    batch = next(iter(data.train_dataloader()))
    assert batch.points.shape == (11, 13, 3)
    assert batch.label.shape == (11,)
    assert batch.label.dtype == torch.int64
    assert batch.normals is None


def test_a_folder_of_files(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("key", "mug"):
        (tmp_path / name).mkdir()
        for i in range(10):
            np.save(tmp_path / name / f"{i}.npy", rng.random((17, 3)) * [1, 2, 3])
    options = {"batch_size": 4, "num_points": 11, "val_fraction": 0.25, "test_fraction": 0.2}
    data = PointFolderDataModule(str(tmp_path), **options)
    data.setup("fit")
    data.setup("test")
    assert data.class_names == ("key", "mug")
    assert {name: len(clouds) for name, clouds in data.sets.items()} == {"train": 12, "val": 4, "test": 4}
    assert data.sets["test"].points.shape == (4, 11, 3)
    z_up = PointFolderDataModule(str(tmp_path), **options, up="z")
    z_up.setup("test")
    x, y, z = data.sets["test"].points.unbind(-1)
    torch.testing.assert_close(z_up.sets["test"].points, torch.stack([x, z, -y], dim=-1))


def test_clouds_that_are_read_from_their_file(tmp_path, rng):
    for name in ("key", "mug"):
        (tmp_path / name).mkdir()
        for i in range(15):
            np.save(tmp_path / name / f"{i}.npy", np.hstack([rng.random((17, 3)), np.tile([0, 0, 1], (17, 1))]))
    make = partial(
        PointFolderDataModule, str(tmp_path), batch_size=3, num_points=11, val_fraction=0.25, with_normals=True
    )
    check_same_batches(make, "points", "normals")


def test_modelnet40_that_is_read_from_its_file(tmp_path, rng):
    folder = tmp_path / "modelnet40_normal_resampled"
    (folder / "bed").mkdir(parents=True)
    for split, numbers in {"train": range(16), "test": range(16, 21)}.items():
        (folder / f"modelnet40_{split}.txt").write_text("".join(f"bed_{number}\n" for number in numbers))
        for number in numbers:
            table = np.hstack([rng.random((13, 3)), np.tile([0, 0, 1], (13, 1))])
            np.savetxt(folder / "bed" / f"bed_{number}.txt", table, delimiter=",")
    (folder / "modelnet40_shape_names.txt").write_text("bed\n")
    check_same_batches(
        partial(ModelNet40DataModule, str(tmp_path), batch_size=3, num_points=7, val_fraction=0.25), "points"
    )


def test_a_cache_is_damaged_and_clouds_are_not_held_in_memory(tmp_path, rng):
    (tmp_path / "key").mkdir()
    for i in range(6):
        np.save(tmp_path / "key" / f"{i}.npy", rng.random((600, 3)))
    data = PointFolderDataModule(str(tmp_path), num_points=512, in_memory=False)
    data.setup("test")
    expected = data.sets["test"].batch([0]).points
    cache = next((tmp_path / ".pcea").glob("*.h5"))
    cache.write_bytes(cache.read_bytes()[:3000])
    again = PointFolderDataModule(str(tmp_path), num_points=512, in_memory=False)
    with pytest.warns(UserWarning, match=r"h5 is truncated .*The cache is made again"):
        again.setup("test")
    assert torch.equal(again.sets["test"].batch([0]).points, expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_cache_that_is_damaged_during_training_is_named_in_one_line(tmp_path, rng, num_workers, seed_everything):
    (tmp_path / "key").mkdir()
    for i in range(6):
        np.save(tmp_path / "key" / f"{i}.npy", rng.random((600, 3)))
    data = attach(PointFolderDataModule(str(tmp_path), num_points=512, in_memory=False, num_workers=num_workers))
    data.setup("test")
    [cache] = (tmp_path / ".pcea").glob("*.h5")
    cache.write_bytes(cache.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"^[^\n]*\.h5 is shorter than it was\. Start again[^\n]*$"):
        [data.on_before_batch_transfer(batch, 0) for batch in data.test_dataloader()]


def bare_clouds():
    from torch_geometric.data import Data

    return [Data(pos=torch.rand(2000, 3), y=torch.tensor([0])) for _ in range(4)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric
def test_any_pyg_dataset():
    from torch_geometric.data import Data

    def make(count):
        return [Data(pos=torch.randn(19, 3), y=torch.tensor([i % 2])) for i in range(count)]

    data = PyGPointDataModule(partial(make, 20), partial(make, 6), batch_size=4, num_points=13, val_fraction=0.2)
    attach(data)
    data.setup("fit")
    data.setup("test")
    assert {name: len(clouds) for name, clouds in data.sets.items()} == {"train": 16, "val": 4, "test": 6}
    batch = next(iter(data.train_dataloader()))
    assert batch.points.shape == (4, 13, 3)
    torch.testing.assert_close(batch.points.norm(dim=-1).amax(1), torch.ones(4))
    assert data.sets["test"].label.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric
@pytest.mark.parametrize(
    "data", [PyGPointDataModule(bare_clouds, bare_clouds, with_normals=True), ScanObjectNNDataModule(with_normals=True)]
)
def test_normals_that_are_not_there(data):
    with pytest.raises(ValueError, match=r"[Nn]ormals"):
        data.setup("test")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric
@pytest.mark.parametrize("with_normals", [False, True])
def test_meshes_of_pyg_have_normals_if_they_are_wanted(with_normals):
    from torch_geometric.data import Data

    def triangle():
        return [Data(pos=torch.eye(3), face=torch.tensor([[0], [1], [2]]), y=torch.tensor([0]))] * 4

    data = PyGPointDataModule(triangle, triangle, num_points=13, with_normals=with_normals)
    data.setup("test")
    normals = data.sets["test"].normals
    assert (normals is not None) == with_normals
    if with_normals:
        torch.testing.assert_close(normals.abs(), torch.full((4, 13, 3), 3**-0.5))


def test_without_a_trainer_it_is_said_what_to_do():
    data = ShapesDataModule(num_train=4, num_val=4, num_test=4, num_points=32)
    data.setup("fit")
    with pytest.raises(RuntimeError, match=r"Loaders follow the trainer: .* fills `data.sets`, for a DataLoader"):
        data.train_dataloader()


def test_shapes_of_every_split():
    data = ShapesDataModule(num_train=24, num_val=12, num_test=13, num_points=32, batch_size=5)
    attach(data)
    data.setup("fit")
    assert {name: len(clouds) for name, clouds in data.sets.items()} == {"train": 24, "val": 12}
    data.setup("test")
    assert len(data.sets["test"]) == 13
    batch = next(iter(data.train_dataloader()))
    assert batch.points.shape == (5, 32, 3)
    assert batch.normals is None
    assert len(data.class_names) == 12
    again = ShapesDataModule(num_train=24, num_val=12, num_points=32, with_normals=True)
    again.setup("validate")
    assert torch.equal(again.sets["val"].points, data.sets["val"].points)
    assert not torch.equal(data.sets["val"].points, data.sets["train"].points[:12])
    torch.testing.assert_close(again.sets["val"].normals.norm(dim=-1), torch.ones(12, 32))
