import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pcea.datasets import shapenet_layout
from pcea.datasets.shapenetpart import SHAPENETPART_CLASSES, SHAPENETPART_PARTS, ShapeNetPart
from pcea.io.points import normalize_points

DATA = Path(os.environ.get("PCEA_DATA", Path(__file__).parents[2] / "data"))
OFFICIAL = {
    "Airplane": ("02691156", range(4)),
    "Bag": ("02773838", range(4, 6)),
    "Cap": ("02954340", range(6, 8)),
    "Car": ("02958343", range(8, 12)),
    "Chair": ("03001627", range(12, 16)),
    "Earphone": ("03261776", range(16, 19)),
    "Guitar": ("03467517", range(19, 22)),
    "Knife": ("03624134", range(22, 24)),
    "Lamp": ("03636649", range(24, 28)),
    "Laptop": ("03642806", range(28, 30)),
    "Motorbike": ("03790512", range(30, 36)),
    "Mug": ("03797390", range(36, 38)),
    "Pistol": ("03948459", range(38, 41)),
    "Rocket": ("04099429", range(41, 44)),
    "Skateboard": ("04225987", range(44, 47)),
    "Table": ("04379243", range(47, 50)),
}
NAMES = list(OFFICIAL)
NORMALS = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
POINTS = "shapenetcore_partanno_segmentation_benchmark_v0"
OFFSETS = {name: offset for name, (offset, _) in OFFICIAL.items()}
THREE = ["Cap", "Motorbike", "Table"]


def shapes():
    """Per category two shapes to train on, one to validate and one to test, with points, normals and parts."""
    rng = np.random.default_rng(0)
    result = {}
    for number, (category, (_, parts)) in enumerate(OFFICIAL.items()):
        for k, split in enumerate(["train", "train", "val", "test"]):
            size = 7 + (3 * number + k) % 5
            normals = rng.normal(size=(size, 3))
            normals /= np.linalg.norm(normals, axis=1, keepdims=True)
            label = np.array([*parts, *rng.choice(parts, size=size - len(parts))])
            result[category, f"{category[0].lower()}{number}{k}"] = split, rng.normal(size=(size, 3)), normals, label
    return result


def write_lists(folder, splits, offsets):
    (folder / "train_test_split").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        listed = [f"shape_data/{offsets[category]}/{name}" for (category, name), s in splits.items() if s == split]
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(listed[::-1]))
    (folder / "synsetoffset2category.txt").write_text("".join(f"{n}\t{offset}\n" for n, offset in offsets.items()))
    return folder


def write_normals_layout(root):
    for (category, name), (_, points, normals, label) in shapes().items():
        path = root / NORMALS / OFFSETS[category] / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, np.hstack([points, normals, label[:, None]]), fmt="%.6f")
    return write_lists(root / NORMALS, {key: shape[0] for key, shape in shapes().items()}, OFFSETS)


def write_points_layout(root):
    for (category, name), (_, points, _, label) in shapes().items():
        folder = root / POINTS / OFFSETS[category]
        for inner, suffix, rows, style in (
            ("points", "pts", points, "%.5f"),
            ("points_label", "seg", label - OFFICIAL[category][1][0] + 1, "%d"),
        ):
            (folder / inner).mkdir(parents=True, exist_ok=True)
            np.savetxt(folder / inner / f"{name}.{suffix}", rows, fmt=style)
    return write_lists(root / POINTS, {key: shape[0] for key, shape in shapes().items()}, OFFSETS)


def write_h5_layout(root, lists=True):
    """Every category in train0, the last three also in train1; 11 points a shape."""
    folder = root / "hdf5_data"
    folder.mkdir(parents=True)
    (folder / "all_object_categories.txt").write_text("".join(f"{n}\t{o}\n" for n, o in OFFSETS.items()))
    files = {"train0": range(16), "train1": (15, 14, 13), "val0": range(16), "test0": (2, 2, 15), "test1": (0,)}
    for seed, (name, categories) in enumerate(files.items()):
        write_h5(folder / f"ply_data_{name}.h5", list(categories), seed)
    if lists:
        for split in ("train", "val", "test"):
            lines = [f"/Users/Some One/hdf5_data/ply_data_{name}.h5\n" for name in files if name.startswith(split)]
            (folder / f"{split}_hdf5_file_list.txt").write_text("".join(lines[::-1]))
    return folder


def write_h5(path, categories, seed=0, points=11, **changes):
    rng = np.random.default_rng(seed)
    arrays = {
        "data": rng.normal(size=(len(categories), points, 3)).astype(np.float32),
        "label": np.array(categories, dtype=np.uint8)[:, None],
        "pid": np.array([rng.choice(OFFICIAL[NAMES[c]][1], size=points) for c in categories], dtype=np.uint8),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
    return arrays


WRITERS = {"normals": write_normals_layout, "points": write_points_layout, "h5": write_h5_layout}


def expect(clouds, split, decimals, with_normals=False):
    """The clouds are the shapes of a split, by category, in the order of the (reversed) list."""
    in_split = [(category, shape) for (category, _), shape in [*shapes().items()][::-1] if shape[0] == split]
    wanted = [(category, *shape[1:]) for name in NAMES for category, shape in in_split if category == name]
    assert len(clouds) == len(wanted)
    for index, (category, points, normals, label) in enumerate(wanted):
        item = clouds[index]
        scaled = normalize_points(torch.from_numpy(points.round(decimals)).float())
        torch.testing.assert_close(item.pos, scaled, atol=1e-5, rtol=0)
        assert item.y.tolist() == label.tolist()
        assert item.category == NAMES.index(category)
        if with_normals:
            torch.testing.assert_close(item.normal, torch.from_numpy(normals).float(), atol=1e-5, rtol=0)
        else:
            assert "normal" not in item


def test_the_official_numbers():
    assert {name: tuple(parts) for name, (_, parts) in OFFICIAL.items()} == SHAPENETPART_PARTS
    assert list(SHAPENETPART_PARTS) == NAMES
    assert len(set(SHAPENETPART_CLASSES)) == len(SHAPENETPART_CLASSES) == 50
    assert SHAPENETPART_CLASSES[7] == "Cap/brim"
    for category, parts in SHAPENETPART_PARTS.items():
        assert {SHAPENETPART_CLASSES[part].partition("/")[0] for part in parts} == {category}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize(("layout", "decimals"), [("normals", 6), ("points", 5)])
def test_text_layouts(tmp_path, layout, decimals):
    folder = WRITERS[layout](tmp_path)
    with_normals = layout == "normals"
    for split in ("train", "val", "test"):
        clouds = ShapeNetPart(tmp_path, split, with_normals=with_normals)
        expect(clouds, split, decimals, with_normals)
        assert clouds.parts == SHAPENETPART_PARTS
        assert clouds.class_names == SHAPENETPART_CLASSES
    both = ShapeNetPart(folder, "trainval")  # the layout's folder serves as root, too
    assert both.normals is None
    assert both.category.bincount().tolist() == [3] * 16
    everything = ShapeNetPart(folder, "all")
    assert everything.category.bincount().tolist() == [4] * 16
    torch.testing.assert_close(everything[1].pos.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(everything[1].pos.norm(dim=1).amax(), torch.tensor(1.0))


@pytest.mark.parametrize("lists", [True, False])
def test_h5_with_and_without_lists(tmp_path, lists):
    folder = write_h5_layout(tmp_path, lists=lists)
    order = ["train1", "train0"] if lists else ["train0", "train1"]
    clouds = ShapeNetPart(tmp_path, "train")
    assert clouds.sizes.tolist() == [11] * 19
    assert clouds.parts == SHAPENETPART_PARTS
    data, label, pid = ([] for _ in range(3))
    for name in order:
        with h5py.File(folder / f"ply_data_{name}.h5") as file:
            data.append(file["data"][()])
            label.append(file["label"][:, 0])
            pid.append(file["pid"][()])
    torch.testing.assert_close(
        clouds.points.view(19, 11, 3), normalize_points(torch.from_numpy(np.concatenate(data))), atol=1e-6, rtol=0
    )
    assert clouds.category.tolist() == np.concatenate(label).tolist()
    assert clouds.label.tolist() == np.concatenate(pid).reshape(-1).tolist()
    assert sorted(ShapeNetPart(folder, "test").category.tolist()) == [0, 2, 2, 15]
    assert len(ShapeNetPart(folder, "trainval")) == 19 + 16
    assert len(ShapeNetPart(folder, "val")) == 16
    assert len(ShapeNetPart(folder, "all")) == 19 + 16 + 4


def test_h5_files_of_different_sizes(tmp_path):
    folder = write_h5_layout(tmp_path)
    write_h5(folder / "ply_data_test1.h5", [4, 9], points=5)
    clouds = ShapeNetPart(folder, "test")
    assert clouds.sizes.tolist() == [5, 5, 11, 11, 11]
    assert clouds.category.tolist() == [4, 9, 2, 2, 15]


@pytest.mark.parametrize("layout", ["normals", "points", "h5"])
def test_categories_keep_their_official_numbers(tmp_path, layout):
    WRITERS[layout](tmp_path)
    whole = ShapeNetPart(tmp_path, "train")
    clouds = ShapeNetPart(tmp_path, "train", categories=["Table", "Cap"])
    assert set(clouds.category.tolist()) == {2, 15}
    assert set(clouds.label.tolist()) <= {6, 7, 47, 48, 49}
    assert (clouds.parts, clouds.class_names) == (whole.parts, whole.class_names)
    kept = whole.subset(torch.tensor([i for i, c in enumerate(whole.category.tolist()) if c in (2, 15)]))
    assert torch.equal(clouds.points, kept.points)
    assert torch.equal(clouds.label, kept.label)
    one = ShapeNetPart(tmp_path, "train", categories=["Cap"])
    assert set(one.category.tolist()) == {2}


def test_normals_come_first_and_layout_chooses(tmp_path):
    write_h5_layout(tmp_path)
    assert len(ShapeNetPart(tmp_path, "train")) == 19
    write_points_layout(tmp_path)
    assert len(ShapeNetPart(tmp_path, "train")) == 32
    with pytest.raises(ValueError, match=r"Layout points of ShapeNetPart has no normals. Use layout normals"):
        ShapeNetPart(tmp_path, "train", with_normals=True)
    write_normals_layout(tmp_path)
    assert ShapeNetPart(tmp_path, "train", with_normals=True).normals.shape[1] == 3
    assert len(ShapeNetPart(tmp_path, "train", layout="h5")) == 19
    with pytest.raises(ValueError, match=r"Layout h5 of ShapeNetPart has no normals"):
        ShapeNetPart(tmp_path, "train", layout="h5", with_normals=True)


@pytest.mark.parametrize("layout", ["normals", "points"])
def test_text_is_parsed_once(tmp_path, monkeypatch, layout):
    folder = WRITERS[layout](tmp_path)
    first = ShapeNetPart(tmp_path, "train", with_normals=layout == "normals", cache=False)
    assert not [*folder.glob(".pcea/*.h5")]
    ShapeNetPart(tmp_path, "train")
    assert len([*(folder / ".pcea").glob("*.h5")]) == 1
    monkeypatch.setattr(shapenet_layout, "read_part_files", None)  # from here on only the cache can serve
    again = ShapeNetPart(tmp_path, "train", with_normals=layout == "normals")  # normals are kept, asked for or not
    for name in ("points", "label", "sizes", "category", *(["normals"] if layout == "normals" else [])):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert ShapeNetPart(tmp_path, "train").normals is None
    for options in ({"split": "val"}, {"split": "all"}, {"split": "train", "categories": ["Cap"]}):
        with pytest.raises(TypeError, match="NoneType"):
            ShapeNetPart(tmp_path, **options)


def test_a_changed_file_is_noticed(tmp_path):
    folder = write_normals_layout(tmp_path)
    before = ShapeNetPart(tmp_path, "val", categories=["Cap"])
    (path,) = folder.glob("02954340/c22.txt")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:] + lines[:1]))
    os.utime(path, ns=(1, 1))
    after = ShapeNetPart(tmp_path, "val", categories=["Cap"])
    torch.testing.assert_close(after.points, before.points.roll(-1, 0))


def test_changed_labels_are_noticed(tmp_path):
    folder = write_points_layout(tmp_path)
    assert set(ShapeNetPart(tmp_path, "val", categories=["Cap"]).label.tolist()) == {6, 7}
    (path,) = folder.glob("02954340/points_label/c22.seg")
    path.write_text(path.read_text().replace("1", "2"))
    os.utime(path, ns=(1, 1))
    assert set(ShapeNetPart(tmp_path, "val", categories=["Cap"]).label.tolist()) == {7}


def test_shapenetpart_is_not_there(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            FileNotFoundError,
            match=rf"No ShapeNetPart under .*{NORMALS}/synsetoffset2category.txt, .*hdf5_data/all_object_categories.txt"
            r".*pcea download shapenetpart --root",
        ):
            ShapeNetPart(root, "train")
    write_normals_layout(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"looked for hdf5_data/all_object_categories.txt\."):
        ShapeNetPart(tmp_path, "train", layout="h5")


@pytest.mark.parametrize("layout", ["normals", "points", "h5"])
def test_wrong_arguments(tmp_path, layout):
    WRITERS[layout](tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, val, trainval, test or all, got 'dev'"):
        ShapeNetPart(tmp_path, "dev")
    with pytest.raises(ValueError, match="layout must be normals, points, h5 or None, got 'text'"):
        ShapeNetPart(tmp_path, "train", layout="text")
    rule = "categories must be a list of some of Airplane, Bag, .*, Table, got"
    for wrong, got in ((["Cap", "Spoon"], "'Spoon'"), ([], "none"), ("Cap", "'Cap'")):
        with pytest.raises(ValueError, match=f"{rule} {got}"):
            ShapeNetPart(tmp_path, "train", categories=wrong)


def test_wrong_category_lists(tmp_path):
    folder = write_normals_layout(tmp_path)
    path = folder / "synsetoffset2category.txt"
    path.write_text("Cap 02954340\nAnt 1\n")
    with pytest.raises(ValueError, match=r"synsetoffset2category.txt names Ant, not a category of ShapeNetPart"):
        ShapeNetPart(tmp_path, "train")
    path.write_text("Cap 02954340\n")
    with pytest.raises(ValueError, match=r"synsetoffset2category.txt does not name category Airplane"):
        ShapeNetPart(tmp_path, "train")
    assert len(ShapeNetPart(tmp_path, "train", categories=["Cap"])) == 2
    for text in ("", "Cap\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"synsetoffset2category.txt must hold lines of a category and its folder"):
            ShapeNetPart(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["shape_data/0269', r"shuffled_train_file_list.json is not JSON: .*\. Obtain it again"),
        ('{"a/b/c": 1}', r"shuffled_train_file_list.json must be a JSON list of names .*, got a dict"),
        ("3", r"must be a JSON list of names .*, got a int"),
        ('["c20"]', r"must be a JSON list of names .../category/shape, got the entry 'c20'"),
        ("[1]", r"must be a JSON list of names .../category/shape, got the entry 1"),
    ],
)
def test_wrong_split_lists(tmp_path, text, message):
    folder = write_normals_layout(tmp_path)
    (folder / "train_test_split" / "shuffled_train_file_list.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ShapeNetPart(tmp_path, "train")


def without(folder, split, *categories):
    """Take categories out of a split list."""
    path = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([e for e in entries if e.split("/")[1] not in {OFFSETS[c] for c in categories}]))


def test_a_category_without_shapes_in_text(tmp_path):
    folder = write_normals_layout(tmp_path)
    for split in ("train", "val", "test"):
        without(folder, split, "Bag", "Cap")
    message = r"The {} split of .* has no shape of Cap. Name the others: categories \['Motorbike', 'Table'\]"
    for split in ("train", "val", "trainval"):
        with pytest.raises(ValueError, match=message.format(split)):
            ShapeNetPart(tmp_path, split, categories=THREE)
    assert ShapeNetPart(tmp_path, "train", categories=["Motorbike", "Table"]).category.tolist() == [10, 10, 15, 15]
    assert ShapeNetPart(tmp_path, "test", categories=THREE).category.tolist() == [10, 15]
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=rf"The {split} split of .* has no shape of Bag, Cap. Name other categ"):
            ShapeNetPart(tmp_path, split, categories=["Bag", "Cap"])


def test_a_category_without_shapes_in_h5(tmp_path):
    write_h5_layout(tmp_path)
    write_h5(tmp_path / "hdf5_data" / "ply_data_train0.h5", [10, 15])
    with pytest.raises(ValueError, match=r"no shape of Cap. Name the others: categories \['Motorbike', 'Table'\]"):
        ShapeNetPart(tmp_path, "train", categories=THREE)
    assert ShapeNetPart(tmp_path, "test", categories=THREE).category.tolist() == [2, 2, 15]
    with pytest.raises(ValueError, match=r"The test split of .*hdf5_data has no shape of Motorbike. Name other categ"):
        ShapeNetPart(tmp_path, "test", categories=["Motorbike"])


@pytest.mark.parametrize("layout", ["normals", "points"])
def test_missing_files_are_counted_and_named(tmp_path, layout):
    folder = WRITERS[layout](tmp_path)
    gone = sorted(folder.glob("02954340/**/c2[013].[tp]*"))
    for path in gone:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"^2 of 32 files that the train split of .* are missing, first .*c21"):
        ShapeNetPart(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"^1 of 1 files that the test split of .* are missing, first .*c23"):
        ShapeNetPart(tmp_path, "test", categories=["Cap"])
    assert len(ShapeNetPart(tmp_path, "all", categories=["Cap"])) == 1
    next(folder.glob("02954340/**/c22.[tp]*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"No \*\.(txt|pts) files in the category folders of"):
        ShapeNetPart(tmp_path, "all", categories=["Cap"])
    (folder / "train_test_split" / "shuffled_test_file_list.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No split list .*shuffled_test_file_list.json. Obtain it, or use ano"):
        ShapeNetPart(tmp_path, "test")


ROW = "0.1 0.2 0.3 0 0 1 6.000000\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"c20.txt is empty: it holds no points"),
        (ROW, r"c20.txt holds one point; a cloud needs at least two"),
        ("1 2 3 4 5\n" * 3, r"c20.txt must have rows .* 4 or 7 columns, got 5"),
        ("1 2 3 6\n" * 3, r"c20.txt has no normals: it has 4 columns, but x y z nx ny nz label, 7 columns, are needed"),
        (ROW + "1 2 3 6\n", r"c20.txt is not a table of numbers: the number of columns changed from 7 to 4 at row 2"),
        (ROW + ROW.replace("6.0", "6.5"), r"c20.txt: 1 of 2 labels are not whole numbers, first 6.5"),
        (ROW + ROW.replace("6.000000", "nan"), r"c20.txt: 1 of 2 labels are not whole numbers, first nan"),
        (ROW + ROW.replace("0.3", "nan"), r"c20.txt: 1 of 2 points have NaN or infinite coordinates"),
        (ROW + "0 0 0 0 0 1 8\n", r"c20.txt: label 8 is not a part of category Cap, whose labels are 6, 7"),
    ],
)
def test_bad_text(tmp_path, text, message):
    folder = write_normals_layout(tmp_path)
    (folder / "02954340" / "c20.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"^1 of 32 files cannot be read: .*{message}") as caught:
        ShapeNetPart(tmp_path, "train")
    assert str(caught.value).endswith(". Repair them or obtain the dataset again.")
    assert "\n" not in str(caught.value)
    assert not [*folder.glob(".pcea/*.h5")]


@pytest.mark.parametrize(
    ("pts", "seg", "message"),
    [
        ("", "", r"c20.pts is empty or unreadable: it holds no points"),
        ("1 2 3\n", "1\n", r"c20.pts holds one point"),
        ("1 2 3\n4 5 6\n", "", r"c20.pts holds 2 points, but .*points_label/c20.seg 0 labels"),
        ("1 2 3\n4 5 6\n", "1\n2\n1\n", r"c20.pts holds 2 points, but .*points_label/c20.seg 3 labels"),
        ("1 2 3\n4 5 6\n", None, r"c20.pts has no labels: there is no .*points_label/c20.seg"),
        ("1 2\n4 5\n3 4\n", "1\n2\n", r"c20.pts must hold numbers in rows of x y z .* got float64 of shape \(3, 2\)"),
        ("1 2 3\n4 5 nan\n", "1\n2\n", r"c20.pts: 1 of 2 points have NaN"),
        ("1 2 3\n4 5 6\n", "1 1\n2 2\n", r"c20.seg must hold one label per line, got 2"),
        ("1 2 3\n4 5 6\n", "1\n2 2\n", r"c20.seg is not a table of numbers: the number of columns changed"),
        ("1 2 3\n4 5 6\n", "1\n2.5\n", r"c20.seg: 1 of 2 labels are not whole numbers, first 2.5"),
        ("1 2 3\n4 5 6\n", "nan\n1\n", r"c20.seg: 1 of 2 labels are not whole numbers, first nan"),
        ("1 2 3\n4 5 6\n", "0\n1\n", r"c20.pts: label 0 is not a part of category Cap, whose labels are 1, 2"),
        ("1 2 3\n4 5 6\n", "1\n3\n", r"c20.pts: label 3 is not a part of category Cap, whose labels are 1, 2"),
    ],
)
def test_bad_points_and_labels(tmp_path, pts, seg, message):
    folder = write_points_layout(tmp_path) / "02954340"
    (folder / "points" / "c20.pts").write_text(pts)
    if seg is None:
        (folder / "points_label" / "c20.seg").unlink()
    else:
        (folder / "points_label" / "c20.seg").write_text(seg)
    with pytest.raises(ValueError, match=rf"^1 of 32 files cannot be read: .*{message}"):
        ShapeNetPart(tmp_path, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, r"has no array 'data'; it holds \['label', 'pid'\]"),
        ({"pid": None}, r"has no array 'pid'"),
        ({"data": np.zeros((3, 11))}, r"data must be \(shapes, points, 3\), .* got \(3, 11\), \(3, 11\) and \(3, 1\)"),
        ({"data": np.zeros((3, 10, 3))}, r"pid \(shapes, points\) .* got \(3, 10, 3\), \(3, 11\)"),
        ({"label": np.array([[2], [2]])}, r"label \(shapes,\), got .* and \(2, 1\)"),
        (
            {"data": np.zeros((0, 11, 3)), "pid": np.zeros((0, 11)), "label": np.zeros(0)},
            r"data must be .* got \(0, 11",
        ),
        ({"label": np.array([2.0, 2, 15])}, "label and pid integers, got float32, float64 and uint8"),
        ({"pid": np.full((3, 11), 6.5)}, "label and pid integers, got float32, uint8 and float64"),
        ({"data": np.full((3, 11, 3), b"x")}, r"data must be floats, .* got \|S1"),
        ({"label": np.array([2, 2, 16])}, "label must be in 0..15, got 2..16"),
        ({"label": np.array([2, -1, 15])}, "label must be in 0..15, got -1..15"),
        ({"label": np.array([2, 0, 15])}, r"pid [67] of shape 1 is not a part of category Airplane, .* are 0, 1, 2, 3"),
        (
            {"pid": np.full((3, 11), 7)},
            r"pid 7 of shape 2 is not a part of category Table, whose labels are 47, 48, 49",
        ),
        ({"data": np.full((3, 11, 3), np.nan)}, "3 shapes have NaN or infinite coordinates, first: shape 0"),
    ],
)
def test_bad_h5(tmp_path, changes, message):
    write_h5(write_h5_layout(tmp_path) / "ply_data_test0.h5", [2, 2, 15], **changes)
    with pytest.raises(ValueError, match=rf"ply_data_test0.h5:? .*{message}"):
        ShapeNetPart(tmp_path, "test", categories=["Cap"])


def test_h5_files_that_are_not_there_or_broken(tmp_path):
    folder = write_h5_layout(tmp_path)
    path = folder / "ply_data_test0.h5"
    write_h5(path, [2] * 101)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"ply_data_test0.h5 is truncated or not HDF5 .* Obtain it again"):
        ShapeNetPart(tmp_path, "test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"No file .*ply_data_test0.h5"):
        ShapeNetPart(tmp_path, "test")
    (folder / "test_hdf5_file_list.txt").unlink()
    (folder / "ply_data_test1.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"No files ply_data_test\*.h5 under .*hdf5_data"):
        ShapeNetPart(tmp_path, "test")


def need(name):
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"{DATA / name} is not there; see data/README.md")


def expect_normalised(clouds):
    for index in range(len(clouds)):
        points = clouds.subset(torch.tensor([index])).points
        torch.testing.assert_close(points.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(points.norm(dim=1).amax(), torch.tensor(1.0))


@pytest.mark.real_data
@need(NORMALS)
def test_real_caps():
    for split, count in {"val": 5, "test": 11}.items():
        clouds = ShapeNetPart(DATA, split, layout="normals", with_normals=True, categories=["Cap"], cache=False)
        assert len(clouds) == count
        assert set(clouds.category.tolist()) == {2}
        assert set(clouds.label.tolist()) == {6, 7}
        assert int(clouds.sizes.min()) > 2000
        lengths = clouds.normals.norm(dim=1)
        assert (lengths - 1).abs().median() < 1e-4
        expect_normalised(clouds)


@pytest.mark.real_data
@need(POINTS)
def test_real_points_and_labels():
    clouds = ShapeNetPart(DATA / POINTS, "all", cache=False)
    assert set(clouds.category.tolist()) == set(range(16))
    assert len(clouds) >= 16
    expect_normalised(clouds)
