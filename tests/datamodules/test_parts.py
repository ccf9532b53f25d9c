import json
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from examples import attach, check_same_batches
from jsonargparse import ArgumentParser

from pcea.datamodules.parts import (
    LabeledPSBDataModule,
    PartDataModule,
    PartFolderDataModule,
    PyGPartDataModule,
    ShapeNetPartDataModule,
)
from pcea.datamodules.shapes import ShapesPartsDataModule
from pcea.datasets.parts import PartDataset
from pcea.datasets.shapes import PARTS, ShapesParts
from pcea.transforms.points import RandomJitter

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric

SIZES = (5, 11, 17, 23)


class NumberedPoints(PartDataModule):
    """Clouds of several sizes; all coordinates of point i of cloud c are 100 c + i, its label is i % 2."""

    def load(self, split):
        sizes = torch.tensor(SIZES * (5 if split == "train" else 1))
        place = torch.cat([torch.arange(n) for n in sizes])
        number = torch.arange(len(sizes)).repeat_interleave(sizes)
        return PartDataset(
            (100.0 * number + place)[:, None].expand(-1, 3).clone(),
            place % 2,
            sizes,
            class_names=["even", "odd"],
            category=torch.arange(len(sizes)) // 4 % 2,
            parts={"first": (0, 1), "second": (0, 1)},
        )


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def test_constructors_touch_no_disk(tmp_path):
    def make():
        raise AssertionError("made in the constructor")

    root = str(tmp_path / "missing")
    for data in (
        ShapeNetPartDataModule(root),
        LabeledPSBDataModule(root),
        PartFolderDataModule(root, parts=root),
        ShapesPartsDataModule(),
        PyGPartDataModule(make, make),
    ):
        assert data.sets == {}
        assert (data.class_names, data.parts) == ((), {})
    for data in (ShapeNetPartDataModule(root), LabeledPSBDataModule(root), PartFolderDataModule(root)):
        with pytest.raises(FileNotFoundError, match=root):
            data.setup("fit")


def training_batch(num_points, *, step=0, **options):
    data = attach(NumberedPoints(num_points=num_points, batch_size=20, val_fraction=0, **options), training=True)
    data.setup("fit")
    data.trainer.fit_loop.total_batch_idx = step
    return data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def test_training_draws_points_anew_for_every_batch():
    first, again, other = (training_batch(7, step=step) for step in (0, 0, 1))
    assert first.points.shape == (20, 7, 3)
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)
    for cloud, label, mask in zip(first.points, first.label, first.mask):
        place = cloud[:, 0] % 100
        size = 7 if mask.all() else 5
        assert int(mask.sum()) == len(place[mask].unique()) == size
        assert torch.equal(label, place.long() % 2)  # labels go with their points
    assert first.mask.all(1).sum() == 15  # all but the five clouds of 5 points
    assert first.points[:, :, 0].sub(100 * (first.points[:, :, 0] // 100)).max() > 17  # not the first points only


def test_training_on_small_clouds_pads_them_and_no_more():
    batch = training_batch(1000)
    assert batch.points.shape == (20, 23, 3)
    assert sorted(batch.mask.sum(1).tolist()) == sorted(SIZES * 5)
    assert training_batch(5).mask is None  # nothing is padded


def test_augmentation_follows_the_subset():
    plain, moved = training_batch(7), training_batch(7, augment=[RandomJitter(std=0.01, clip=0.05)])
    difference = (plain.points - moved.points).abs()
    assert 0 < difference.max() < 0.0501


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_hands_out_whole_clouds_with_a_mask(stage):
    data = attach(NumberedPoints(num_points=7, batch_size=2, val_fraction=0.4))
    data.setup(stage)
    loader = {"validate": "val", "test": "test", "predict": "predict"}[stage]
    clouds = data.sets["val" if stage == "validate" else "test"]
    batches = [data.on_after_batch_transfer(batch, 0) for batch in getattr(data, f"{loader}_dataloader")()]
    assert [len(batch.points) for batch in batches] == ([4, 4] if stage == "validate" else [4])
    for batch, sizes in zip(batches, clouds.sizes.split(4)):
        assert batch.points.shape[1] == sizes.max()
        assert batch.mask.sum(1).tolist() == sizes.tolist()
        for cloud, mask in zip(batch.points, batch.mask):
            assert (cloud[mask][:, 0] % 100).tolist() == list(range(int(mask.sum())))
    points = torch.cat([batch.points[batch.mask] for batch in batches])
    assert torch.equal(points, clouds.points)


def test_validation_is_held_out_of_every_category():
    data = NumberedPoints(val_fraction=0.25)
    data.setup("fit")
    train, val = data.sets["train"], data.sets["val"]
    # clouds of the categories 0, 1, 0, 1, 0 in groups of four: 12 and 8 clouds
    assert val.category.bincount().tolist() == [3, 2]
    assert train.category.bincount().tolist() == [9, 6]
    assert torch.cat([train.points, val.points]).unique().tolist() == data.load("train").points.unique().tolist()
    other = NumberedPoints(val_fraction=0.25, split_seed=1)
    other.setup("fit")
    assert not torch.equal(other.sets["val"].sizes, val.sizes)
    assert data.parts == {"first": (0, 1), "second": (0, 1)}
    assert data.class_names == ("even", "odd")


def write_shapenetpart(root, counts):
    """ShapeNetPart with mugs and caps of 3, 4, 5, ... points; counts: {split: (mugs, caps)}."""
    folder = root / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    (folder / "train_test_split").mkdir(parents=True)
    (folder / "synsetoffset2category.txt").write_text("Cap\t02954340\nMug\t03797390\n")
    size = 3
    for split, numbers in counts.items():
        names = []
        for offset, first, count in zip(("03797390", "02954340"), (36, 6), numbers):
            (folder / offset).mkdir(exist_ok=True)
            for _ in range(count):
                label = first + np.arange(size)[:, None] % 2
                table = np.hstack([np.random.default_rng(size).random((size, 3)), np.tile([0, 0, 1], (size, 1)), label])
                np.savetxt(folder / offset / f"{size}.txt", table, fmt="%.6f")
                names.append(f"shape_data/{offset}/{size}")
                size += 1
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))


def test_the_official_validation_of_shapenetpart(tmp_path):
    write_shapenetpart(tmp_path, {"train": (4, 3), "val": (2, 1), "test": (1, 1)})
    options = {"root": str(tmp_path), "categories": ["Mug", "Cap"], "val_fraction": 0}
    data = ShapeNetPartDataModule(train_split="train", **options)
    data.setup("fit")
    data.setup("test")
    sizes = {name: sorted(clouds.sizes.tolist()) for name, clouds in data.sets.items()}
    assert sizes == {"train": [3, 4, 5, 6, 7, 8, 9], "val": [10, 11, 12], "test": [13, 14]}
    val = data.sets["val"]
    data.setup("validate")
    assert data.sets["val"] is val  # read once
    both = ShapeNetPartDataModule(train_split="trainval", **options)
    both.setup("fit")
    assert {name: len(clouds) for name, clouds in both.sets.items()} == {"train": 10}
    held_out = ShapeNetPartDataModule(train_split="train", **{**options, "val_fraction": 0.3}, with_normals=True)
    held_out.setup("fit")
    assert {name: len(clouds) for name, clouds in held_out.sets.items()} == {"train": 5, "val": 2}
    assert held_out.sets["val"].normals[0].tolist() == [0, 0, 1]


def test_labeled_psb_in_a_folder(tmp_path):
    write_shapenetpart(tmp_path, {"train": (2, 2), "test": (1, 1)})
    folder = next(tmp_path.iterdir())
    for path in folder.glob("0*/*.txt"):
        table = np.loadtxt(path)
        table[:, 6] %= 2 if path.parent.name == "03797390" else 4  # 0 and 1 of mugs, 2 and 3 of caps
        np.savetxt(path, table)
    parts = {"Mug": {"body": 0, "handle": 1}, "Cap": {"crown": 2, "brim": 3}}
    (folder / "parts.json").write_text(json.dumps(parts))
    data = LabeledPSBDataModule(str(folder), categories=["Cap"], with_normals=True)
    data.setup("test")
    assert len(data.sets["test"]) == 1
    assert data.sets["test"].normals[0].tolist() == [0, 0, 1]
    assert data.class_names == ("Mug/body", "Mug/handle", "Cap/crown", "Cap/brim")
    assert data.parts == {"Mug": (0, 1), "Cap": (2, 3)}


def test_shapenetpart_that_is_read_from_its_file(tmp_path):
    write_shapenetpart(tmp_path, {"train": (7, 5), "val": (2, 2), "test": (3, 3)})
    options = {"categories": ["Mug", "Cap"], "batch_size": 3, "val_fraction": 0.25, "with_normals": True}
    check_same_batches(partial(ShapeNetPartDataModule, str(tmp_path), **options), "points", "label", "normals")


def test_labelled_files_that_are_read_from_the_cache(tmp_path, rng):
    """Also renumbered as a trained network does."""
    for name, first in (("key", 5), ("mug", 11)):
        (tmp_path / name).mkdir()
        for size in range(first, first + 10):
            label = np.arange(size)[:, None] % 2
            np.save(tmp_path / name / f"{size}.npy", np.hstack([rng.random((size, 3)), label]))
    (tmp_path / "parts.yaml").write_text("key: [bit, bow]\nmug: [body, handle]\n")

    def renumbered(**options):
        data = PartFolderDataModule(str(tmp_path), batch_size=3, val_fraction=0.25, **options)
        data.match_classes(["mug/handle", "key/bow", "mug/body", "key/bit"], {"mug": (2, 0), "key": (3, 1)})
        return data

    check_same_batches(renumbered, "points", "label")
    data = renumbered(in_memory=False)
    data.setup("test")
    item = data.sets["test"][0]
    assert (item.category, item.y.tolist()) == (1, [3, 1] * (len(item.y) // 2) + [3] * (len(item.y) % 2))


def test_a_class_without_points_is_named_when_labels_stay_in_the_cache(tmp_path):
    (tmp_path / "key").mkdir()
    for i in range(3):
        np.save(tmp_path / "key" / f"{i}.npy", np.hstack([np.random.default_rng(i).random((9, 3)), np.zeros((9, 1))]))
    (tmp_path / "parts.yaml").write_text("key: [bit, bow]\n")
    with pytest.warns(UserWarning, match=r"No point in the training split of .* has the class 'key/bow' \(1 of 2"):
        PartFolderDataModule(str(tmp_path), in_memory=False).setup("fit")


def test_parts_of_shapes():
    data = attach(ShapesPartsDataModule(num_train=24, num_val=13, num_test=12, num_points=37, batch_size=5))
    data.setup("fit")
    assert {name: len(clouds) for name, clouds in data.sets.items()} == {"train": 24, "val": 13}
    data.setup("test")
    assert data.parts.keys() == PARTS.keys()
    for category, classes in data.parts.items():
        assert [data.class_names[c] for c in classes] == [f"{category}/{part}" for part in PARTS[category]]
    batch = next(iter(data.train_dataloader()))
    assert batch.points.shape == (5, 37, 3)
    assert (batch.normals, batch.mask) == (None, None)
    for split, clouds in data.sets.items():
        made = ShapesParts(split, num_shapes=len(clouds), num_points=37)
        batch = clouds.batch(range(len(clouds)))
        points, label = made.points.view(-1, 37, 3), made.label.view(-1, 37)
        for value, expected in zip(batch, (points, label, None, made.category)):
            assert value is expected is None or torch.equal(value, expected)
    again = ShapesPartsDataModule(num_train=24, num_val=13, num_points=37, with_normals=True)
    again.setup("validate")
    assert torch.equal(again.sets["val"].points, data.sets["val"].points)
    torch.testing.assert_close(again.sets["val"].normals.norm(dim=1), torch.ones(13 * 37))
    other = ShapesPartsDataModule(num_train=24, num_val=13, num_points=37, data_seed=1)
    other.setup("validate")
    assert not torch.equal(other.sets["val"].points, data.sets["val"].points)


def test_a_folder_of_labelled_files(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("key", 10), ("mug", 5)):
        (tmp_path / name).mkdir()
        for i in range(count):
            label = np.arange(17)[:, None] % 2
            np.save(tmp_path / name / f"{i}.npy", np.hstack([rng.random((17, 3)), np.tile([0, 1, 0], (17, 1)), label]))
    (tmp_path / "names.yaml").write_text("key: [bit, bow]\nmug: [body, handle]\n")
    options = {"parts": str(tmp_path / "names.yaml"), "val_fraction": 0.25, "test_fraction": 0.2}
    data = PartFolderDataModule(str(tmp_path), **options)
    data.setup("fit")
    data.setup("test")
    counts = {name: clouds.category.bincount().tolist() for name, clouds in data.sets.items()}
    assert counts == {"train": [6, 3], "val": [2, 1], "test": [2, 1]}
    assert data.parts == {"key": (0, 1), "mug": (2, 3)}
    assert data.class_names == ("key/bit", "key/bow", "mug/body", "mug/handle")
    turned = PartFolderDataModule(str(tmp_path), **options, up="z", with_normals=True)
    turned.setup("test")
    x, y, z = data.sets["test"].points.unbind(-1)
    torch.testing.assert_close(turned.sets["test"].points, torch.stack([x, z, -y], dim=-1))
    assert turned.sets["test"].normals[0].tolist() == [0, 0, -1]
    for path in (tmp_path / "key").iterdir():
        path.write_text("")
    lenient = PartFolderDataModule(str(tmp_path), **options, skip_unreadable=True)
    with (
        pytest.warns(UserWarning, match="8 of 12 files cannot be read.*They are skipped"),
        pytest.warns(UserWarning, match=r"No point in the training split of .* has the class 'key/bit', 'key/bow'"),
    ):
        lenient.setup("fit")
    assert lenient.sets["train"].category.tolist() == [1] * 3


def test_labelled_points_of_any_pyg_dataset():
    from torch_geometric.data import Data

    def make(count):
        y = torch.arange(19) % 2
        return [Data(pos=torch.randn(19, 3), y=y + 2 * (i % 2), category=i % 2) for i in range(count)]

    parts = {"key": [0, 1], "mug": [2, 3]}
    data = PyGPartDataModule(partial(make, 20), partial(make, 6), parts=parts, val_fraction=0.2)
    data.setup("fit")
    data.setup("test")
    counts = {name: clouds.category.bincount().tolist() for name, clouds in data.sets.items()}
    assert counts == {"train": [8, 8], "val": [2, 2], "test": [3, 3]}
    assert data.parts == {"key": (0, 1), "mug": (2, 3)}
    with pytest.raises(ValueError, match="Item 0 has no normals"):
        PyGPartDataModule(partial(make, 6), list, parts=parts, with_normals=True).setup("fit")


def test_shapenet_of_pyg_in_yaml(tmp_path):
    """The callables of the splits are made from class paths, and called in setup."""
    write_shapenetpart(tmp_path, {"train": (2, 2), "val": (1, 1), "test": (1, 2)})
    next(tmp_path.iterdir()).rename(tmp_path / "raw")
    from torch_geometric.datasets import ShapeNet

    for offset in ShapeNet.category_ids.values():
        (tmp_path / "raw" / offset).mkdir(exist_ok=True)

    def dataset(split):
        arguments = {"root": str(tmp_path), "categories": ["Mug", "Cap"], "split": split}
        return {"class_path": "torch_geometric.datasets.ShapeNet", "init_args": arguments}

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    options = {"train": dataset("trainval"), "test": dataset("test"), "with_normals": True, "val_fraction": 0}
    content = {"data": {"class_path": "pcea.datamodules.PyGPartDataModule", "init_args": options}}
    data = parser.instantiate(parser.parse_object(content)).data
    assert not (tmp_path / "processed").exists()
    data.setup("fit")
    data.setup("test")
    assert {name: len(clouds) for name, clouds in data.sets.items()} == {"train": 6, "test": 3}
    assert data.parts == {"Mug": (36, 37), "Cap": (6, 7)}
    assert len(data.class_names) == 50
    assert data.sets["test"].normals[0].tolist() == [0, 0, 1]
