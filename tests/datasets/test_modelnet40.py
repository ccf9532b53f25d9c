import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pcea.datasets import modelnet40
from pcea.datasets.modelnet40 import MODELNET10_CLASSES, ModelNet10, ModelNet40
from pcea.io.points import normalize_points

DATA = Path(os.environ.get("PCEA_DATA", Path(__file__).parents[2] / "data"))
CLASSES = ["airplane", "bed", "night_stand"]


def write_h5_layout(root, normals=False, size=0.5):
    """Two files of train, one of test, 11 points up to `size` away; the list has the paths of another machine."""
    folder = root / "modelnet40_ply_hdf5_2048"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, label in {"train0": [0, 1, 2, 1], "train1": [2, 0], "test0": [1, 2, 0]}.items():
        with h5py.File(folder / f"ply_data_{name}.h5", "w") as file:
            points = generator.uniform(-1, 1, size=(len(label), 11, 3))
            file["data"] = (size / 3**0.5 * points).astype(np.float32)
            file["label"] = np.array(label, dtype=np.uint8)[:, None]
            if normals:
                file["normal"] = -file["data"][()]
    for split, names in {"train": ["train0", "train1"], "test": ["test0"]}.items():
        lines = [f"data/modelnet40_ply_hdf5_2048/ply_data_{name}.h5\n" for name in names]
        (folder / f"{split}_files.txt").write_text("".join(lines))
    (folder / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def write_text_layout(root, points=13):
    folder = root / "modelnet40_normal_resampled"
    generator = np.random.default_rng(1)
    shapes = {"train": ["airplane_0001", "night_stand_0001", "bed_0001"], "test": ["night_stand_0002", "bed_0002"]}
    for shape in shapes["train"] + shapes["test"]:
        path = folder / shape.rsplit("_", 1)[0] / f"{shape}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = generator.normal(size=(points, 6))
        table[:, 3:] /= np.linalg.norm(table[:, 3:], axis=1, keepdims=True)
        np.savetxt(path, table, delimiter=",", fmt="%.6f")
    for split, names in shapes.items():
        (folder / f"modelnet40_{split}.txt").write_text("\n".join(names) + "\n")
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def write_off_layout(root, name="ModelNet40"):
    """Upright rectangles: z is up in these files, twice as high as wide."""
    folder = root / name
    for category in CLASSES:
        for split, numbers in {"train": (1, 2), "test": (3,)}.items():
            for number in numbers:
                path = folder / category / split / f"{category}_{number:04}.off"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("OFF4 2 0\n0 0 0\n1 0 0\n1 0 2\n0 0 2\n3 0 1 2\n3 0 2 3\n")
    (folder / "README.txt").write_text("beside the classes")
    return folder


def test_h5_takes_the_first_points_of_every_file(tmp_path):
    folder = write_h5_layout(tmp_path, normals=True)
    clouds = ModelNet40(tmp_path, "train", num_points=5, with_normals=True)
    assert clouds.points.shape == (6, 5, 3)
    assert clouds.label.tolist() == [0, 1, 2, 1, 2, 0]
    assert clouds.class_names == tuple(CLASSES)
    assert torch.equal(clouds.normals, -clouds.points)
    with h5py.File(folder / "ply_data_train1.h5") as file:
        np.testing.assert_array_equal(clouds.points[4:], file["data"][:, :5])
    assert len(ModelNet40(folder, "test", num_points=5)) == 3  # the layout's folder serves as root, too
    assert clouds.batch([5, 0]).points.shape == (2, 5, 3)


def test_h5_files_that_are_not_normalized_are_normalized(tmp_path):
    folder = write_h5_layout(tmp_path, size=30)
    with h5py.File(folder / "ply_data_test0.h5") as file:
        raw = torch.from_numpy(file["data"][:, :5])
    assert torch.equal(ModelNet40(tmp_path, "test", num_points=5).points, normalize_points(raw))


def test_text_with_normals(tmp_path):
    folder = write_text_layout(tmp_path)
    clouds = ModelNet40(tmp_path, "train", num_points=7, with_normals=True)
    assert [clouds.class_names[label] for label in clouds.label] == ["airplane", "night_stand", "bed"]
    table = np.loadtxt(folder / "night_stand" / "night_stand_0001.txt", delimiter=",", dtype=np.float32)[:7]
    torch.testing.assert_close(clouds.points[1], normalize_points(torch.from_numpy(table[:, :3])))
    torch.testing.assert_close(clouds.normals[1], torch.from_numpy(table[:, 3:]), atol=1e-5, rtol=0)
    assert ModelNet40(tmp_path, "test", num_points=7).normals is None


def test_meshes_are_sampled_normalised_and_turned_upright(tmp_path):
    write_off_layout(tmp_path)
    clouds = ModelNet40(tmp_path, "train", num_points=501, with_normals=True, seed=1)
    assert clouds.label.tolist() == [0, 0, 1, 1, 2, 2]
    assert clouds.class_names == tuple(CLASSES)
    torch.testing.assert_close(clouds.points.mean(1), torch.zeros(6, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(clouds.points.norm(dim=-1).amax(1), torch.ones(6))
    extent = (clouds.points.amax(1) - clouds.points.amin(1)).mean(0)
    assert 1.8 < extent[1] / extent[0] < 2.2  # twice as high, along y
    assert extent[2] < 1e-6
    torch.testing.assert_close(clouds.normals[0].abs(), torch.tensor([0.0, 0, 1]).expand(501, 3))
    assert torch.equal(clouds.points, ModelNet40(tmp_path, "train", num_points=501, seed=1).points)
    assert not torch.equal(clouds.points, ModelNet40(tmp_path, "train", num_points=501, seed=2).points)


@pytest.mark.parametrize(("layout", "write"), [("normals", write_text_layout), ("off", write_off_layout)])
def test_parsed_layouts_are_cached(tmp_path, monkeypatch, layout, write):
    folder = write(tmp_path)
    first = ModelNet40(tmp_path, "train", num_points=7, with_normals=True, cache=False)
    assert not (folder / ".pcea").exists()
    ModelNet40(tmp_path, "train", num_points=7)
    monkeypatch.setattr(modelnet40, "parse_files", None)  # from here on only the cache can serve
    again = ModelNet40(tmp_path, "train", num_points=7, with_normals=True, layout=layout)
    assert torch.equal(first.points, again.points)
    assert torch.equal(first.normals, again.normals)
    with pytest.raises(TypeError, match="NoneType"):
        ModelNet40(tmp_path, "train", num_points=6)


def test_h5_comes_first_and_layout_chooses(tmp_path):
    write_off_layout(tmp_path)
    assert ModelNet40(tmp_path, "train", num_points=5).label.tolist() == [0, 0, 1, 1, 2, 2]
    write_text_layout(tmp_path)
    assert ModelNet40(tmp_path, "train", num_points=5).label.tolist() == [0, 2, 1]
    write_h5_layout(tmp_path)
    assert ModelNet40(tmp_path, "train", num_points=5).label.tolist() == [0, 1, 2, 1, 2, 0]
    assert ModelNet40(tmp_path, "train", num_points=5, layout="off").label.tolist() == [0, 0, 1, 1, 2, 2]


def names(clouds):
    assert clouds.class_names == MODELNET10_CLASSES
    return [clouds.class_names[label] for label in clouds.label]


def test_modelnet10_is_part_of_every_layout(tmp_path):
    write_h5_layout(tmp_path / "h5", normals=True)
    clouds = ModelNet10(tmp_path / "h5", "train", num_points=5, with_normals=True)
    whole = ModelNet40(tmp_path / "h5", "train", num_points=5)
    assert names(clouds) == ["bed", "night_stand", "bed", "night_stand"]
    assert torch.equal(clouds.points, whole.points[[1, 2, 3, 4]])
    assert torch.equal(clouds.normals, -clouds.points)
    folder = write_text_layout(tmp_path / "text")
    assert names(ModelNet10(tmp_path / "text", "train", num_points=5)) == ["night_stand", "bed"]
    (folder / "modelnet10_train.txt").write_text("bed_0001\n")
    assert names(ModelNet10(tmp_path / "text", "train", num_points=5)) == ["bed"]
    write_off_layout(tmp_path / "off40")
    assert names(ModelNet10(tmp_path / "off40", "test", num_points=5)) == ["bed", "night_stand"]
    folder = write_off_layout(tmp_path / "off10", "ModelNet10")
    assert names(ModelNet10(folder, "test", num_points=5)) == ["bed", "night_stand"]


def test_missing_files_are_named(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            FileNotFoundError, match=r"No ModelNet40 train split under .*pcea download modelnet40 --root"
        ):
            ModelNet40(root, "train")
    with pytest.raises(FileNotFoundError, match=r"No ModelNet10 test split under .*ModelNet10/\*/test/\*.off"):
        ModelNet10(tmp_path, "test")
    folder = write_h5_layout(tmp_path)
    (folder / "test_files.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"modelnet40_ply_hdf5_2048/test_files.txt"):
        ModelNet40(tmp_path, "test")
    (folder / "ply_data_train1.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"No file .*ply_data_train1.h5"):
        ModelNet40(tmp_path, "train", num_points=5)
    (folder / "train_files.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"train_files.txt is empty"):
        ModelNet40(tmp_path, "train", num_points=5)
    (folder / "shape_names.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No file .*shape_names.txt"):
        ModelNet40(tmp_path, "train", num_points=5)


def test_wrong_content_is_named(tmp_path):
    folder = write_h5_layout(tmp_path / "h5")
    with pytest.raises(ValueError, match=r"ply_data_train0.h5 holds 11 points per cloud, but num_points=12"):
        ModelNet40(folder, "train", num_points=12)
    with pytest.raises(ValueError, match=r"ply_data_train0.h5 has no array 'normal'"):
        ModelNet40(folder, "train", num_points=5, with_normals=True)
    (folder / "shape_names.txt").write_text("airplane\nbed\n")
    with pytest.raises(ValueError, match=r"ply_data_train0.h5: labels must be in 0..1, got 0..2"):
        ModelNet40(folder, "train", num_points=5)
    folder = write_text_layout(tmp_path / "text")
    with pytest.raises(ValueError, match=r"3 of 3 files .*airplane_0001.txt holds 13 points, fewer than num_points=14"):
        ModelNet40(folder, "train", num_points=14)
    (folder / "bed" / "bed_0001.txt").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 files cannot be read: .*bed_0001.txt"):
        ModelNet40(folder, "train", num_points=5)
    (folder / "modelnet40_train.txt").write_text("bed_0001\nspoon_0001\n")
    with pytest.raises(ValueError, match=r"modelnet40_train.txt names 'spoon', not in modelnet40_shape_names.txt"):
        ModelNet40(folder, "train", num_points=5)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="split must be train or test, got 'val'"):
        ModelNet40(tmp_path, "val")
    with pytest.raises(ValueError, match="layout must be h5, normals, off or None, got 'ply'"):
        ModelNet40(tmp_path, "train", layout="ply")


def need(name):
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"{DATA / name} is not there; see data/README.md")


@pytest.mark.real_data
@need("modelnet40_ply_hdf5_2048")
def test_real_h5():
    for split, count in {"train": 9843, "test": 2468}.items():
        clouds = ModelNet40(DATA, split)
        assert len(clouds) == count
        assert len(clouds.class_names) == 40
        assert set(clouds.label.tolist()) == set(range(40))
        torch.testing.assert_close(clouds.points.mean(1), torch.zeros(count, 3), atol=1e-3, rtol=0)
    assert len(ModelNet10(DATA, "test")) == 908


@pytest.mark.real_data
@need("modelnet40_normal_resampled")
@need("modelnet40_ply_hdf5_2048")
def test_real_text_has_unit_normals_and_the_axes_of_h5():
    clouds = ModelNet40(DATA, "test", layout="normals", with_normals=True)
    torch.testing.assert_close(clouds.normals.norm(dim=-1), torch.ones(len(clouds), 1024))
    h5 = ModelNet40(DATA, "test", layout="h5")
    for name in ("airplane", "bathtub"):
        both = [data.points[data.label == data.class_names.index(name)] for data in (clouds, h5)]
        extents = [(points.amax(1) - points.amin(1)).mean(0) for points in both]
        torch.testing.assert_close(*extents, atol=0.1, rtol=0)
        assert extents[0].argmin() == 1  # both are flatter than they are long and wide: y is up
