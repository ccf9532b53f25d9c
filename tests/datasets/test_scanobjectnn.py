import h5py
import numpy as np
import pytest
import torch

from pcea.datasets.scanobjectnn import SCANOBJECTNN_CLASSES, ScanObjectNN
from pcea.io.points import normalize_points

FILES = {
    "obj_bg": "main_split/{}_objectdataset.h5",
    "obj_only": "main_split_nobg/{}_objectdataset.h5",
    "pb_t50_rs": "main_split/{}_objectdataset_augmentedrot_scale75.h5",
}


@pytest.fixture
def root(tmp_path):
    """The official layout; each file's clouds are labelled with its own number."""
    number = 0
    for variant in FILES.values():
        for split in ("training", "test"):
            path = tmp_path / "h5_files" / variant.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file["data"] = np.random.default_rng(number).normal(size=(3, 17, 3)).astype(np.float32)
                file["label"] = np.full(3, number, dtype=np.int32)
                file["mask"] = np.zeros((3, 17))
            number += 1
    return tmp_path


def test_variant_and_split_choose_the_file(root):
    for number, (variant, split) in enumerate((variant, split) for variant in FILES for split in ("train", "test")):
        clouds = ScanObjectNN(root, split, num_points=5, variant=variant)
        assert clouds.label.tolist() == [number] * 3
        assert clouds.points.shape == (3, 5, 3)
    assert torch.equal(ScanObjectNN(root, "test", num_points=5).points, clouds.points)  # pb_t50_rs is the default
    assert torch.equal(ScanObjectNN(root / "h5_files", "test", num_points=5).points, clouds.points)
    assert clouds.class_names == SCANOBJECTNN_CLASSES
    assert (len(set(SCANOBJECTNN_CLASSES)), SCANOBJECTNN_CLASSES[10]) == (15, "bed")


def test_points_are_a_seeded_random_subset(root):
    with h5py.File(root / "h5_files/main_split/test_objectdataset.h5") as file:
        data = torch.from_numpy(file["data"][()])
    whole = ScanObjectNN(root, "test", num_points=17, variant="obj_bg").points
    for cloud, expected in zip(whole, normalize_points(data)):
        assert not torch.equal(cloud, expected)  # the order changed,
        order, expected_order = cloud[:, 0].argsort(), expected[:, 0].argsort()
        torch.testing.assert_close(cloud[order], expected[expected_order])  # the points did not
    some = ScanObjectNN(root, "test", num_points=5, variant="obj_bg")
    torch.testing.assert_close(some.points.norm(dim=-1).amax(1), torch.ones(3))
    assert torch.equal(some.points, ScanObjectNN(root, "test", num_points=5, variant="obj_bg").points)
    assert not torch.equal(some.points, ScanObjectNN(root, "test", num_points=5, variant="obj_bg", seed=1).points)


def test_errors(root):
    with pytest.raises(FileNotFoundError, match=r"No ScanObjectNN pb_t50_rs train split .*pcea download scanobjectnn"):
        ScanObjectNN(root / "missing", "train")
    with pytest.raises(ValueError, match=r"holds 17 points per cloud, so num_points=18 is not in 1\.\.17"):
        ScanObjectNN(root, "train", num_points=18)
    with pytest.raises(ValueError, match="variant must be one of obj_only, obj_bg, pb_t50_rs, got 'hard'"):
        ScanObjectNN(root, "train", variant="hard")
    with pytest.raises(ValueError, match="split must be train or test, got 'val'"):
        ScanObjectNN(root, "val")
    path = root / "h5_files/main_split/test_objectdataset.h5"
    with h5py.File(path, "r+") as file:
        file["label"][1] = 15
    with pytest.raises(ValueError, match=r"test_objectdataset.h5: labels must be in 0..14, got 1..15"):
        ScanObjectNN(root, "test", num_points=5, variant="obj_bg")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"test_objectdataset.h5 is truncated or not HDF5"):
        ScanObjectNN(root, "test", num_points=5, variant="obj_bg")
