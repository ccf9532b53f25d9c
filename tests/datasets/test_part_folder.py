import os
import warnings

import numpy as np
import pytest
import torch

from pcea.datasets import part_folder
from pcea.datasets.folders import list_split
from pcea.datasets.part_folder import PartFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric

YAML = "mug: [body, handle]\nchair: [seat, back, legs]\n"
COUNT = {"mug": 2, "chair": 3}


def write_cloud(path, seed, *, parts=2, points=7, normals=False):
    """Points whose first coordinate grows with their label, in an arbitrary unit and place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    label = np.arange(points)[:, None] % parts
    xyz = rng.random((points, 3)) + [5, 0, 0] + 10 * label * [1, 0, 0]
    direction = rng.normal(size=(points, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    np.savetxt(path, np.hstack([xyz, *([direction] if normals else []), label]))


@pytest.fixture
def root(tmp_path):
    """Ten mugs of 7 points, five chairs of 8 points, and the YAML, which does not name them in alphabetical order."""
    for number in range(10):
        write_cloud(tmp_path / "mug" / f"{number}.txt", number)
    for number in range(5):
        write_cloud(tmp_path / "chair" / f"{number}.txt", 10 + number, parts=3, points=8)
    (tmp_path / "parts.yaml").write_text(YAML)
    return tmp_path


def test_labels_count_the_parts_of_the_category(root):
    train, test = (PartFolder(root, split) for split in ("train", "test"))
    for clouds, mugs, chairs in ((train, 8, 4), (test, 2, 1)):
        assert clouds.class_names == ("mug/body", "mug/handle", "chair/seat", "chair/back", "chair/legs")
        assert clouds.parts == {"mug": (0, 1), "chair": (2, 3, 4)}
        assert clouds.category.tolist() == [0] * mugs + [1] * chairs
        assert clouds.sizes.tolist() == [7] * mugs + [8] * chairs
        for cloud in clouds:
            own = torch.arange(7) % 2 if cloud.category == 0 else torch.arange(8) % 3 + 2
            assert torch.equal(cloud.y, own)
            assert (cloud.pos[cloud.y == own.max(), 0] > cloud.pos[cloud.y == own.min(), 0].max()).all()
            torch.testing.assert_close(cloud.pos.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
            assert cloud.pos.norm(dim=1).max().item() == pytest.approx(1)
            assert "normal" not in cloud


def test_the_split_is_seeded_and_its_share_can_be_chosen(root):
    assert PartFolder(root, "test", test_fraction=0.5).category.bincount().tolist() == [5, 2]
    first, again, other = (PartFolder(root, "test", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)


def test_a_split_without_shapes_of_a_category(tmp_path):
    for name, split in (("mug", "train"), ("mug", "test"), ("chair", "train")):
        write_cloud(tmp_path / split / name / "1.txt", 0)
    (tmp_path / "parts.yaml").write_text(YAML)
    test = PartFolder(tmp_path, "test")
    assert test.category.tolist() == [0]
    assert test.parts.keys() == {"mug", "chair"}


def test_files_of_all_kinds_with_and_without_normals(root):
    for number in range(10):
        write_cloud(root / "mug" / f"{number}.txt", number, normals=number % 2 == 0)
    table = np.loadtxt(root / "chair" / "0.txt")
    (root / "chair" / "0.txt").unlink()
    np.savez(root / "chair" / "0.npz", points=table[:, :3], part=table[:, 3].astype(int))
    expected = PartFolder(root, "train")
    assert len(expected) == 12
    assert expected.normals is None
    with pytest.raises(ValueError, match=r" of 12 files cannot be read: .*txt has no normals"):
        PartFolder(root, "train", with_normals=True)


def test_up_turns_points_and_normals(root):
    for name, parts in COUNT.items():
        for path in (root / name).iterdir():
            write_cloud(path, 3, parts=parts, normals=True)
    plain, turned = (PartFolder(root, "test", with_normals=True, up=up) for up in ("y", "z"))
    for before, after in ((plain.points, turned.points), (plain.normals, turned.normals)):
        torch.testing.assert_close(after, torch.stack([before[:, 0], before[:, 2], -before[:, 1]], dim=1))
    torch.testing.assert_close(plain.normals.norm(dim=1), torch.ones(len(plain.normals)))
    assert not torch.equal(plain.normals, turned.normals)


def test_the_yaml_may_lie_elsewhere_and_be_one_list(tmp_path):
    for number in range(2):
        write_cloud(tmp_path / "data" / "mug" / f"{number}.txt", number)
    (tmp_path / "names.yaml").write_text("[on, off]")  # words that YAML reads as true and false
    clouds = PartFolder(tmp_path / "data", "train", parts=tmp_path / "names.yaml")
    assert clouds.class_names == ("mug/on", "mug/off")


def test_the_cache_notices_changes(root, monkeypatch):
    first = PartFolder(root, "train", cache=False)
    assert not (root / ".pcea").exists()
    PartFolder(root, "train")
    read_part_files = part_folder.read_part_files
    monkeypatch.setattr(part_folder, "read_part_files", None)  # from here on only the cache can serve
    again = PartFolder(root, "train")
    for name in ("points", "label", "sizes", "category"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    for options in ({"up": "z"}, {"seed": 1}, {"with_normals": True}, {"skip_unreadable": True}):
        with pytest.raises(TypeError, match="NoneType"):
            PartFolder(root, "train", **options)
    for content in ("chair: [seat, back, legs]\nmug: [body, handle]", "mug: [body, handle, lid]\nchair: [a, b, c]"):
        (root / "parts.yaml").write_text(content)
        with pytest.raises(TypeError, match="NoneType"):
            PartFolder(root, "train")
    (root / "parts.yaml").write_text(YAML)
    monkeypatch.setattr(part_folder, "read_part_files", read_part_files)
    for path in (root / "mug").iterdir():
        write_cloud(path, 99)
        os.utime(path, ns=(1, 1))
    assert not torch.equal(first.points, PartFolder(root, "train").points)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"{p} is empty: it holds no points"),
        ("1 2 3 0\n", r"{p} holds one point; a cloud needs at least two"),
        ("1 2 3\n1 2 4\n", r"{p} must have rows x y z label or x y z nx ny nz label, 4 or 7 columns, got 3"),
        ("1 2 3 0\n1 2 4 0 0 0 1 1\n", r"{p} is not a table of numbers: the number of columns changed from 4 to 8"),
        ("1 2 3 0\n1 2 4 0.5\n", r"{p}: 1 of 2 labels are not whole numbers, first 0.5"),
        ("1 2 3 0\n1 2 4 inf\n", r"{p}: 1 of 2 labels are not whole numbers, first inf"),
        ("1 2 3 0\n1 2 4 2\n", r"{p}: label 2 is not a part of category mug, whose labels are 0, 1"),
        ("1 2 3 -1\n1 2 4 0\n", r"{p}: label -1 is not a part of category mug, whose labels are 0, 1"),
        ("1 2 nan 0\n1 2 4 0\n", r"{p}: 1 of 2 points have NaN or infinite coordinates"),
    ],
)
def test_bad_files_stop_or_are_skipped(root, content, message):
    good = PartFolder(root, "train", cache=False)
    bad = list_split(root, "train", up="y", test_fraction=0.2, seed=0)["mug"][3]
    bad.write_text(content)
    message = rf"1 of 12 files cannot be read: {message.format(p=bad)}"
    with pytest.raises(ValueError, match=message + r".*\. Repair or remove them, or set skip_unreadable\.$"):
        PartFolder(root, "train")
    for _ in range(2):  # also when the cache serves
        with pytest.warns(UserWarning, match=message + r".*They are skipped"):
            rest = PartFolder(root, "train", skip_unreadable=True)
        assert torch.equal(rest.points, torch.cat([good.points[:21], good.points[28:]]))
        assert rest.category.tolist() == [0] * 7 + [1] * 4


def test_a_file_of_an_unknown_kind(root):
    for name in COUNT:
        for path in (root / name).iterdir():
            path.rename(path.with_suffix(".obj"))
    with pytest.raises(ValueError, match=r"12 of 12 files .*unknown extension '.obj'; labelled points are in .txt"):
        PartFolder(root, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mug: [a, b]\nchair: [a, b, c]\nmug: [b, a]\n", "names the parts of mug more than once"),
        ("mug: [body, handle]", r"does not name the parts of chair: add `chair: \[...\]`"),
        (YAML + "key: [bit]", r"names key, but the only folders are chair, mug"),
        ("mug: [body, body]\nchair: [seat]", r"the parts of mug must have different names, got body, body"),
        ("mug: [body", r"parts.yaml is not YAML: while parsing a flow sequence"),
        ("[body, handle]", r"must hold one line per category .* such as `chair: \[name of part 0"),
        ("", r"must hold one line per category"),
        ("mug: body\nchair: [seat]", r"must hold one line per category"),
        ("mug: []\nchair: [seat]", r"must hold one line per category"),
        ("mug: {body: 0}\nchair: [seat]", r"must hold one line per category"),
        ("mug: [[body]]\nchair: [seat]", r"must hold one line per category"),
        ("mug: [body, '']\nchair: [seat]", r"must hold one line per category"),
    ],
)
def test_a_yaml_that_does_not_fit(root, content, message):
    (root / "parts.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        PartFolder(root, "train")
    assert "\n" not in str(error.value)


def test_errors(root):
    (root / "parts.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"No file .*parts.yaml. Write it, .*: `chair: \[name of part 0, name"):
        PartFolder(root, "train")
    (root / "parts.yaml").write_text(YAML)
    with pytest.raises(FileNotFoundError, match=r"No folder .*missing"):
        PartFolder(root / "missing", "train")
    with pytest.raises(ValueError, match="split must be train or test, got 'val'"):
        PartFolder(root, "val")
    with pytest.raises(ValueError, match=r"test_fraction must be between 0 and 1, got 0"):
        PartFolder(root, "train", test_fraction=0)
    with pytest.raises(ValueError, match=r"up must be one of x, y, z.*, got 'up'"):
        PartFolder(root, "train", up="up")
    (root / "lamp").mkdir()
    with pytest.raises(ValueError, match=r"Class 'lamp' under .* has no mesh or cloud files"):
        PartFolder(root, "train")


def test_an_empty_split(tmp_path):
    write_cloud(tmp_path / "mug" / "1.txt", 0)
    (tmp_path / "parts.yaml").write_text("mug: [body, handle]")
    assert len(PartFolder(tmp_path, "train")) == 1
    with pytest.raises(ValueError, match=r"The test split of .* is empty. Add files or change test_fraction=0.2"):
        PartFolder(tmp_path, "test")


def test_what_is_no_part_of_the_shape_is_left_out_with_its_labels(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        label = np.arange(300)[:, None] % 2
        rows = np.hstack([5 + rng.random((300, 3)), label])
        (tmp_path / "mug").mkdir(exist_ok=True)
        np.save(tmp_path / "mug" / f"{i}.npy", rows)
    (tmp_path / "parts.yaml").write_text("[body, handle]")
    stray, nothing = np.array([[500.0, 0, 0, 1]] * 3), np.zeros((40, 4))
    np.save(tmp_path / "mug" / "1.npy", np.concatenate([stray, rows, nothing]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clouds = [PartFolder(tmp_path, split, cache=False) for split in ("train", "test")]
    messages = " ".join(str(each.message) for each in caught)
    assert "1.npy: 40 of 343 points are 0, 0, 0" in messages
    assert "1.npy: 3 of 303 points lie far from all others and are left out" in messages
    for each in clouds:
        assert (each.sizes == 300).all()
        assert each.label.view(-1, 300).equal((torch.arange(300) % 2).expand(len(each.sizes), -1))
