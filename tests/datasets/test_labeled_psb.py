import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pcea.datasets import shapenet_layout
from pcea.datasets.labeled_psb import LabeledPSB
from pcea.io.points import normalize_points

DATA = Path(os.environ.get("PCEA_DATA", Path(__file__).parents[2] / "data"))


def write_labeled_psb(root, parts=None, name="labeled_psb"):
    """Three categories without validation split; parts.json is not in the order of the numbers."""
    folder = root / name
    parts = parts or {"Ant": {"leg": 0, "head": 1}, "Cup": {"handle": 3, "body": 2}, "Hand": {"thumb": 4}}
    rng = np.random.default_rng(0)
    listed = {"train": [], "test": []}
    for category, own in parts.items():
        for k, split in enumerate(["train", "train", "test"]):
            normals = rng.normal(size=(7 + k, 3))
            normals /= np.linalg.norm(normals, axis=1, keepdims=True)
            label = rng.choice([*own.values()], size=7 + k)
            path = folder / category / f"{category}_{k}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, np.hstack([rng.normal(size=(7 + k, 3)), normals, label[:, None]]), fmt="%.6f")
            listed[split].append(f"shape_data/{category}/{category}_{k}")
    (folder / "train_test_split").mkdir()
    for split, names in listed.items():
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names[::-1]))
    (folder / "synsetoffset2category.txt").write_text("".join(f"{name}\t{name}\n" for name in parts))
    (folder / "parts.json").write_text(json.dumps(parts))
    return folder


def test_labeled_psb(tmp_path, monkeypatch):
    folder = write_labeled_psb(tmp_path)
    clouds = LabeledPSB(tmp_path, "train", with_normals=True)
    assert clouds.category.tolist() == [0, 0, 1, 1, 2, 2]
    assert clouds.sizes.tolist() == [8, 7] * 3
    assert clouds.class_names == ("Ant/leg", "Ant/head", "Cup/body", "Cup/handle", "Hand/thumb")
    assert clouds.parts == {"Ant": (0, 1), "Cup": (3, 2), "Hand": (4,)}
    table = np.loadtxt(folder / "Cup" / "Cup_1.txt", dtype=np.float32)
    rows = slice(15, 23)
    torch.testing.assert_close(clouds.points[rows], normalize_points(torch.from_numpy(table[:, :3])))
    torch.testing.assert_close(clouds.normals[rows], torch.from_numpy(table[:, 3:6]), atol=1e-5, rtol=0)
    assert clouds.label[rows].tolist() == table[:, 6].tolist()
    one = LabeledPSB(folder, "test", categories=["Hand"])
    assert one.category.tolist() == [2]
    assert one.parts == clouds.parts
    assert len(LabeledPSB(folder, "all")) == 9
    monkeypatch.setattr(shapenet_layout, "read_part_files", None)
    assert torch.equal(LabeledPSB(folder, "train").points, clouds.points)


def test_a_changed_order_of_categories_is_noticed(tmp_path):
    folder = write_labeled_psb(tmp_path)
    clouds = LabeledPSB(folder, "train")
    parts = json.loads((folder / "parts.json").read_text())
    (folder / "parts.json").write_text(json.dumps(dict(reversed(parts.items()))))
    again = LabeledPSB(folder, "train")
    assert list(again.parts) == ["Hand", "Cup", "Ant"]
    for name in ("Ant", "Cup", "Hand"):
        numbers = [list(each.parts).index(name) for each in (clouds, again)]
        rows = [each.category.repeat_interleave(each.sizes) == n for each, n in zip((clouds, again), numbers)]
        assert torch.equal(clouds.points[rows[0]], again.points[rows[1]])


def test_other_sets_in_its_layout(tmp_path):
    folder = write_labeled_psb(tmp_path, name="my_set")
    (folder / "train_test_split" / "shuffled_val_file_list.json").write_text('["x/Ant/Ant_2", "x/Cup/Cup_2"]')
    assert LabeledPSB(folder, "val", categories=["Ant", "Cup"]).category.tolist() == [0, 1]
    assert LabeledPSB(folder, "trainval").category.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"parts.json is not JSON: Expecting .*\. Obtain it again"),
        ("[1]", r"parts.json must hold {category: {part: number}}"),
        ('{"Ant": ["leg"]}', r"parts.json must hold {category: {part: number}}"),
        ('{"Ant": {}}', r"parts.json must hold {category: {part: number}}"),
        ("{}", r"parts.json: the numbers of the parts must be 0, 1, 2, .* got \[\]"),
        ('{"Ant": {"leg": 0}, "Cup": {"body": 2}}', r"parts.json: the numbers .* must be 0, 1, 2, .* got \[0, 2\]"),
        ('{"Ant": {"leg": 0}, "Cup": {"body": 0}}', r"parts.json: the numbers .* got \[0, 0\]"),
        ('{"Ant": {"leg": 0.0}}', r"parts.json: the numbers .* got \[0.0\]"),
        ('{"Ant": {"leg": "0"}}', r"parts.json: the numbers .* got \['0'\]"),
        ('{"Spoon": {"bowl": 0}}', r"synsetoffset2category.txt does not name category Spoon"),
    ],
)
def test_wrong_part_names(tmp_path, text, message):
    folder = write_labeled_psb(tmp_path)
    (folder / "parts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        LabeledPSB(tmp_path, "train")


def test_labeled_psb_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No Labeled PSB under .*labeled_psb/parts.json. See data/README.md"):
        LabeledPSB(tmp_path, "train")
    folder = write_labeled_psb(tmp_path)
    for split in ("val", "trainval"):
        with pytest.raises(FileNotFoundError, match=r"No split list .*shuffled_val_file_list.json. .* another split"):
            LabeledPSB(tmp_path, split)
    with pytest.raises(ValueError, match="split must be one of train, val, trainval, test or all, got 'dev'"):
        LabeledPSB(tmp_path, "dev")
    (folder / "synsetoffset2category.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No file .*synsetoffset2category.txt, which the layout needs"):
        LabeledPSB(tmp_path, "train")


@pytest.mark.real_data
@pytest.mark.skipif(
    not (DATA / "labeled_psb").is_dir(), reason=f"{DATA / 'labeled_psb'} is not there; see data/README.md"
)
def test_real_labeled_psb():
    found = set()
    for split, count in {"train": 228, "test": 152}.items():
        clouds = LabeledPSB(DATA, split, with_normals=True)
        assert len(clouds) == count
        assert len(clouds.parts) == 19
        assert set(clouds.category.tolist()) == set(range(19))
        assert len(clouds.class_names) == 94
        assert set(clouds.sizes.tolist()) == {3072}
        found |= set(clouds.label.tolist())
        for index in range(len(clouds)):
            points = clouds.subset(torch.tensor([index])).points
            torch.testing.assert_close(points.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
            torch.testing.assert_close(points.norm(dim=1).amax(), torch.tensor(1.0))
    assert found == set(range(94))
