import os
import warnings

import numpy as np
import pytest
import torch

from pcea.datasets import point_folder as folder_module
from pcea.datasets.folders import list_split
from pcea.datasets.point_folder import PointFolder

SQUARE = "OFF\n4 1 0\n0 0 0\n2 0 0\n2 0 1\n0 0 1\n4 0 1 2 3\n"  # z is up


def write_cloud(path, seed, points=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.random.default_rng(seed).normal(size=(points, 6))
    table[:, 3:] /= np.linalg.norm(table[:, 3:], axis=1, keepdims=True)
    np.savetxt(path, table)


@pytest.fixture
def root(tmp_path):
    """Ten mugs and five keys, of two formats, one in a deeper folder, with what else lies around."""
    for number in range(10):
        write_cloud(tmp_path / "mug" / f"{number}.xyz", number)
    for number in range(4):
        write_cloud(tmp_path / "key" / f"{number}.xyz", 10 + number)
    (tmp_path / "key" / "old").mkdir()
    (tmp_path / "key" / "old" / "4.OFF").write_text(SQUARE)
    for name in ("key/4.mtl", "key/photo.jpg", "key/Thumbs.db", "key/desktop.ini", "key/.hidden.xyz", "README.md"):
        (tmp_path / name).write_text("not a cloud")
    (tmp_path / ".git").mkdir()
    return tmp_path


def test_classes_are_divided_in_proportion(root):
    train, test = (PointFolder(root, split, num_points=5) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("key", "mug")
    assert train.label.bincount().tolist() == [4, 8]
    assert test.label.bincount().tolist() == [1, 2]
    torch.testing.assert_close(test.points.norm(dim=-1).amax(1), torch.ones(3))
    half = PointFolder(root, "test", num_points=5, test_fraction=0.5)
    assert half.label.bincount().tolist() == [2, 5]


def test_surveys_far_from_the_origin_keep_their_shape(tmp_path):
    table = np.random.default_rng(0).random((9, 3))
    for name, place in (("near", 0), ("far", (500000, 5400000, 300))):
        for number in range(2):
            (tmp_path / name / "tree").mkdir(parents=True, exist_ok=True)
            np.savetxt(tmp_path / name / "tree" / f"{number}.xyz", table + place)
    near, far = (PointFolder(tmp_path / name, "train", num_points=9) for name in ("near", "far"))
    assert far.points.dtype == torch.float32
    torch.testing.assert_close(far.points, near.points, atol=1e-6, rtol=0)


def test_linked_folders_are_read(root, tmp_path_factory):
    far = tmp_path_factory.mktemp("far")
    write_cloud(far / "5.xyz", 20)
    (root / "key" / "far").symlink_to(far)
    (root / "key" / "old" / "loop").symlink_to(root / "key")
    paths = files(root, "train") | files(root, "test")
    assert {path for path in paths if "key" in path} == {
        *(f"key/{number}.xyz" for number in range(4)), "key/old/4.OFF", "key/far/5.xyz"
    }  # fmt: skip


def files(root, split, seed=0):
    by_class = list_split(root, split, up="y", test_fraction=0.2, seed=seed)
    return {path.relative_to(root).as_posix() for paths in by_class.values() for path in paths}


def test_the_split_is_seeded_and_complete(root):
    assert files(root, "train") | files(root, "test") == {
        *(f"mug/{number}.xyz" for number in range(10)),
        *(f"key/{number}.xyz" for number in range(4)),
        "key/old/4.OFF",
    }
    assert not files(root, "train") & files(root, "test")
    assert files(root, "test") == files(root, "test")
    assert len({frozenset(files(root, "test", seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("layout", ["{split}/{name}", "{name}/{split}"])
def test_splits_of_the_folder_itself(tmp_path, layout):
    for name, split in [("a", "train"), ("b", "train"), ("b", "test"), ("c", "test")]:
        write_cloud(tmp_path / layout.format(name=name, split=split) / "1.txt", 0)
    (tmp_path / layout.format(name="a", split="test")).mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"No readable file in the training split of .* has the class 'c' \(1 of 3"):
        assert PointFolder(tmp_path, "train", num_points=5).label.tolist() == [0, 1]
    test = PointFolder(tmp_path, "test", num_points=5)
    assert test.label.tolist() == [1, 2]
    assert test.class_names == ("a", "b", "c")  # the same in both splits


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "train"):
        for number in range(2):
            write_cloud(tmp_path / name / f"{number}.txt", number)
    assert PointFolder(tmp_path, "train", num_points=5).class_names == ("car", "train")


@pytest.mark.parametrize(
    "places", [("train/a", "test/a", "docs"), ("Train/a", "Test/a"), ("training/a", "testing/a"), ("train/a", "a")]
)
def test_splits_beside_other_folders_are_refused(places, tmp_path):
    for place in places:
        write_cloud(tmp_path / place / "1.txt", 0)
    with pytest.raises(ValueError, match=r"holds folders, as a split does, .* with nothing beside them"):
        PointFolder(tmp_path, "train", num_points=5)


def test_files_beside_the_splits_of_a_class_are_refused(tmp_path):
    for place in ("a/train/1.txt", "a/test/1.txt", "a/2.txt", "b/1.txt"):
        write_cloud(tmp_path / place, 0)
    with pytest.raises(ValueError, match=r"has 1 files beside them, first .*2\.txt: move them"):
        PointFolder(tmp_path, "train", num_points=5)


@pytest.mark.parametrize(("layout", "place"), [("{name}", ""), ("{split}/{name}", ""), ("{split}/{name}", "train/")])
def test_files_in_no_class_folder_are_noticed(tmp_path, layout, place):
    for split in ("train", "test"):
        for seed, name in enumerate("ab"):
            write_cloud(tmp_path / layout.format(split=split, name=name) / f"{split}.xyz", seed)
    (tmp_path / "notes.txt").write_text("1 2 3")
    PointFolder(tmp_path, "train", num_points=5)
    write_cloud(tmp_path / f"{place}lost.xyz", 5)
    with pytest.warns(UserWarning, match=r"1 files lie in no class folder and are left out, first .*lost.xyz"):
        PointFolder(tmp_path, "train", num_points=5)


def test_up_and_normals(tmp_path):
    for number in range(2):
        (tmp_path / "square").mkdir(exist_ok=True)
        (tmp_path / "square" / f"{number}.off").write_text(SQUARE)
    clouds = PointFolder(tmp_path, "test", num_points=101, up="z", with_normals=True)
    assert clouds.points[..., 2].abs().max() < 1e-6  # the rectangle stands in the plane z = 0 now
    torch.testing.assert_close(clouds.normals.abs(), torch.tensor([0.0, 0, 1]).expand(1, 101, 3))
    assert PointFolder(tmp_path, "test", num_points=101, up="z").normals is None


def test_the_cache_notices_changes(root, monkeypatch):
    first = PointFolder(root, "train", num_points=5, cache=False)
    assert not (root / ".pcea").exists()
    PointFolder(root, "train", num_points=5)
    parse_files = folder_module.parse_files
    monkeypatch.setattr(folder_module, "parse_files", None)  # from here on only the cache can serve
    again = PointFolder(root, "train", num_points=5)
    assert torch.equal(first.points, again.points)
    for options in ({"up": "z"}, {"seed": 1}, {"with_normals": True}, {"num_points": 6}):
        with pytest.raises(TypeError, match="NoneType"):
            PointFolder(root, "train", **{"num_points": 5, **options})
    monkeypatch.setattr(folder_module, "parse_files", parse_files)
    changed = root / sorted(files(root, "train") - {"key/old/4.OFF"})[0]
    write_cloud(changed, 99)
    os.utime(changed, ns=(1, 1))
    assert not torch.equal(first.points, PointFolder(root, "train", num_points=5).points)
    assert len([*(root / ".pcea").glob("*.h5")]) == 2


def test_unreadable_files_stop_or_are_skipped(root):
    bad = sorted(files(root, "train") - {"key/old/4.OFF"})[1:3]
    (root / bad[0]).write_text("1 2 nan\n" * 7)
    (root / bad[1]).write_text("")
    with pytest.raises(
        ValueError, match=rf"2 of 12 files cannot be read: .*{bad[0]}: 7 of 7 points .*{bad[1]} is empty"
    ):
        PointFolder(root, "train", num_points=5)
    for _ in range(2):  # also when the cache serves
        with pytest.warns(UserWarning, match=rf"2 of 12 files cannot be read: .*{bad[1]} is empty.*They are skipped"):
            clouds = PointFolder(root, "train", num_points=5, skip_unreadable=True)
        assert len(clouds) == 10


def test_a_file_of_an_unknown_kind_is_unreadable(root):
    for number in range(9):  # in both splits, whichever the seed chooses
        (root / "mug" / f"x{number}.foo").write_text("")
    with pytest.raises(ValueError, match=r"files cannot be read: .*unknown extension '.foo'"):
        PointFolder(root, "train", num_points=5)


def test_errors(root, tmp_path_factory):
    with pytest.raises(ValueError, match=r"1[12] of 12 files .* holds 7 points, fewer than num_points=8"):
        PointFolder(root, "train", num_points=8)
    with pytest.raises(FileNotFoundError, match=r"No folder .*missing"):
        PointFolder(root / "missing", "train")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=r"No class folders under .*expected .*<class>/\*"):
        PointFolder(empty, "train")
    write_cloud(empty / "train" / "a" / "1.txt", 0)
    with pytest.raises(ValueError, match=r"The test split of .* is empty"):
        PointFolder(empty, "test", num_points=5)
    (root / "lamp").mkdir()
    with pytest.raises(ValueError, match=r"Class 'lamp' under .* has no mesh or cloud files"):
        PointFolder(root, "train")
    with pytest.raises(ValueError, match="split must be train or test, got 'val'"):
        PointFolder(root, "val")
    with pytest.raises(ValueError, match=r"test_fraction must be between 0 and 1, got 1.0"):
        PointFolder(root, "train", test_fraction=1.0)


@pytest.mark.parametrize("layout", ["{split}/{name}", "{name}/{split}"])
def test_val_is_the_test_split_where_there_is_no_other(tmp_path, layout):
    for split, count in (("train", 3), ("val", 2)):
        for name in "ab":
            folder = tmp_path / layout.format(split=split, name=name)
            folder.mkdir(parents=True)
            for i in range(count):
                np.save(folder / f"{i}.npy", np.random.default_rng(i).random((20, 3)))
    assert [len(PointFolder(tmp_path, split, num_points=16, cache=False)) for split in ("train", "test")] == [6, 4]


def test_clouds_of_too_few_points_are_named_with_what_to_do(tmp_path):
    for name, counts in {"a": (100, 80, 90), "b": (100, 100, 100)}.items():
        for count in counts:
            write_cloud(tmp_path / name / f"{len(list(tmp_path.rglob('*.xyz')))}.xyz", count, count)
    with pytest.raises(ValueError, match=r"1.xyz holds 80 .* Set data.init_args.num_points to 80, or repair or remove"):
        PointFolder(tmp_path, "train", num_points=100, test_fraction=0.01, seed=3, cache=False)
    with pytest.warns(UserWarning, match="They are skipped"):
        clouds = PointFolder(
            tmp_path, "train", num_points=100, test_fraction=0.01, seed=3, cache=False, skip_unreadable=True
        )
    assert clouds.points.shape[1:] == (100, 3)


def test_clouds_are_cleaned_as_those_that_are_predicted(tmp_path):
    """Points of a depth camera that saw nothing, and a few far from all others; and what is no shape is refused."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(4):
            np.save(tmp_path / name / f"{i}.npy", 5 + rng.random((300, 3)))
    np.save(tmp_path / "a" / "0.npy", np.concatenate([5 + rng.random((300, 3)), np.zeros((50, 3))]))
    np.save(tmp_path / "b" / "0.npy", np.concatenate([5 + rng.random((297, 3)), 100 + rng.random((3, 3))]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clouds = [PointFolder(tmp_path, split, num_points=300, cache=False) for split in ("train", "test")]
    messages = " ".join(str(each.message) for each in caught)
    assert "a/0.npy: 50 of 350 points are 0, 0, 0" in messages
    assert "b/0.npy: 1.0 % of the points lie far from all others and are left out" in messages
    points = torch.cat([each.points for each in clouds])
    assert points.shape == (8, 300, 3)
    assert (points.norm(dim=-1).median(dim=1).values > 0.3).all()  # else most are in one place
    for i in range(4):
        np.save(tmp_path / "a" / f"{i}.npy", np.full((300, 3), 7.0))
    (tmp_path / "b" / "0.npy").unlink()
    with pytest.raises(ValueError, match="all 300 points are in one place, so there is no shape"):
        PointFolder(tmp_path, "train", num_points=300, cache=False)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_in_both_splits_is_noticed(tmp_path, link):
    for split in ("train", "test"):
        for name in "ab":
            for i in range(2):
                write_cloud(tmp_path / split / name / f"{i}.xyz", hash((split, name, i)) % 1000)
    PointFolder(tmp_path, "train", num_points=5)
    (tmp_path / "test" / "b" / "1.xyz").unlink()
    link(tmp_path / "train" / "b" / "0.xyz", tmp_path / "test" / "b" / "1.xyz")
    with pytest.warns(UserWarning, match=r"1 files are in the training split and in the test split, first .*b/0.xyz"):
        PointFolder(tmp_path, "test", num_points=5)
