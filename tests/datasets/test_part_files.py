from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import trimesh

from pcea.datasets.cache import join
from pcea.datasets.part_files import PartCloud, as_part_cloud, read_part_file, read_part_files

LABELS = [3, 0, 3, 1, 0, 7, 3]


def table(with_normals):
    rows = np.random.default_rng(0).normal(size=(7, 6 if with_normals else 3))
    if with_normals:
        rows[:, 3:] /= np.linalg.norm(rows[:, 3:], axis=1, keepdims=True)
    return np.hstack([rows, np.array(LABELS)[:, None]])


def save_named(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


def save(path, rows):
    points, normals, label = rows[:, :3], rows[:, 3:-1], rows[:, -1].astype(np.int32)
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix in (".npz", ".h5", ".hdf5"):
        save_named(path, points=points, label=label, **({"normals": normals} if normals.size else {}))
    elif path.suffix == ".ply":
        names = ["x", "y", "z", "nx", "ny", "nz"][: rows.shape[1] - 1]
        header = "".join(f"property float {name}\n" for name in names) + "property int label\n"
        lines = "\n".join(" ".join(map(str, row[:-1])) + f" {int(row[-1])}" for row in rows)
        path.write_text(f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\n{header}end_header\n{lines}\n")
    else:
        np.savetxt(path, rows, delimiter="," if path.suffix == ".csv" else " ", fmt="%.8f")
    return path


@pytest.mark.parametrize("with_normals", [False, True])
@pytest.mark.parametrize("extension", ["txt", "csv", "xyz", "pts", "TXT", "npy", "npz", "h5", "hdf5", "ply"])
def test_formats(tmp_path, extension, with_normals):
    rows = table(with_normals)
    cloud = read_part_file(save(tmp_path / f"a.{extension}", rows), with_normals=with_normals)
    torch.testing.assert_close(cloud.points, torch.from_numpy(rows[:, :3]).float(), atol=1e-6, rtol=0)
    assert cloud.label.tolist() == LABELS
    assert cloud.label.dtype == torch.int64
    if with_normals:
        torch.testing.assert_close(cloud.normals, torch.from_numpy(rows[:, 3:6]).float(), atol=1e-6, rtol=0)
    else:
        assert cloud.normals is None


def test_fields_of_a_record_array(tmp_path):
    """Normals as the PCL calls them; labels in half precision, of which 2**31 is no number."""
    names = ("x", "y", "z", "normal_x", "normal_y", "normal_z", "label")
    records = np.zeros(4, dtype=[(name, np.float16) for name in names])
    records["x"], records["normal_y"], records["label"] = range(4), 1, [0, 1, 1, 2]
    np.save(tmp_path / "a.npy", records)
    cloud = read_part_file(tmp_path / "a.npy", with_normals=True)
    assert cloud.points.tolist() == [[i, 0, 0] for i in range(4)]
    assert cloud.normals.tolist() == [[0, 1, 0]] * 4
    assert cloud.label.tolist() == [0, 1, 1, 2]


def test_normals_are_left_out_unless_asked_for(tmp_path):
    assert read_part_file(save(tmp_path / "a.txt", table(True))).normals is None
    assert read_part_file(save(tmp_path / "a.npz", table(True))).normals is None


def test_binary_ply(tmp_path):
    rows = table(False)
    cloud = trimesh.PointCloud(rows[:, :3])
    types = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("part", "<u1")]
    header = "property float x\nproperty float y\nproperty float z\nproperty uchar part\n"
    packed = np.array([tuple(row) for row in rows], dtype=types).tobytes()
    text = f"ply\nformat binary_little_endian 1.0\nelement vertex 7\n{header}end_header\n"
    (tmp_path / "a.ply").write_bytes(text.encode() + packed)
    result = read_part_file(tmp_path / "a.ply")
    torch.testing.assert_close(result.points, torch.from_numpy(np.array(cloud.vertices)).float())
    assert result.label.tolist() == LABELS


@pytest.mark.parametrize("name", ["label", "part_label", "part", "pid", "seg"])
def test_names_and_shapes_of_arrays(tmp_path, name):
    rows, label = table(True), np.array(LABELS, dtype=np.uint8)
    arrays = {"data": rows[None, :, :3], "normal": rows[None, :, 3:6], name: label[None]}  # one cloud of an HDF5 set
    cloud = read_part_file(save_named(tmp_path / "a.h5", **arrays), with_normals=True)
    torch.testing.assert_close(cloud.normals, torch.from_numpy(rows[:, 3:6]).float(), atol=1e-6, rtol=0)
    assert cloud.label.tolist() == LABELS
    path = save_named(tmp_path / "a.npz", points=rows[:, :3], **{name: label[:, None]})
    assert read_part_file(path).label.tolist() == LABELS


def test_a_header_is_skipped_and_labels_may_be_written_as_floats(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x y z label\n0 0 1 6.000000\n0 1 0 7.000000\n")
    assert read_part_file(path).label.tolist() == [6, 7]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "a.txt is empty: it holds no points"),
        ("a.txt", "\n\n", "a.txt is empty: it holds no points"),
        ("a.txt", "1 2 3 0\n", "a.txt holds one point"),
        (
            "a.txt",
            "1 2 3\n4 5 6\n",
            r"a.txt must have rows x y z label or x y z nx ny nz label, 4 or 7 columns, got 3",
        ),
        ("a.txt", "1 2 3 0 0\n4 5 6 0 0\n", r"a.txt must have rows .* 4 or 7 columns, got 5"),
        ("a.txt", "1 2 3 0\n1 2 3 0 0 1 0\n", "a.txt is not a table of numbers: the number of columns changed"),
        ("a.txt", "1 2 3 0\n1 2 3 chair\n", "a.txt is not a table of numbers: could not convert string 'chair'"),
        ("a.txt", "\xff\xd8\xff\xe0", "a.txt is not a table of numbers: '.*' is not a row of numbers"),
        ("a.txt", "1 2 3 0\n4 5 6 1.5\n", r"a.txt: 1 of 2 labels are not whole numbers, first 1.5\."),
        ("a.txt", "1 2 3 nan\n4 5 6 1\n7 8 9 nan\n", r"a.txt: 2 of 3 labels are not whole numbers, first nan\."),
        ("a.txt", "1 2 3 -inf\n4 5 6 1\n", r"a.txt: 1 of 2 labels are not whole numbers, first -inf\."),
        ("a.txt", "1 2 3 1e30\n4 5 6 1\n", r"a.txt: 1 of 2 labels are not whole numbers, first 1e\+30\."),
        ("a.txt", "1 2 nan 0\n4 5 6 0\n7 inf 9 0\n", "a.txt: 2 of 3 points have NaN or infinite coordinates"),
        ("a.npy", "hello", "a.npy is not a NumPy file of numbers"),
        ("a.npz", "hello", "a.npz is not a NumPy file of numbers"),
        ("a.h5", "hello", "a.h5 is truncated or not HDF5"),
        ("a.ply", "hello", "a.ply could not be read as .ply"),
        ("a.off", "OFF", "a.off has an unknown extension '.off'; labelled points are in .txt .csv"),
        ("a", "hello", "unknown extension ''"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        read_part_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": np.zeros(7)}, "has no points: none of the arrays points, pos, xyz, data is there"),
        ({"points": np.zeros((7, 3))}, "has no labels: it has none of label, part_label, .* It holds 'points': rename"),
        ({"vertices": np.zeros((7, 3)), "n": 0}, "has no points: none of .* It holds 'n', 'vertices': rename them"),
        ({"points": np.zeros((7, 2)), "label": np.zeros(7)}, r"points must be \(N, 3\) .* got \(7, 2\) and \(7,\)"),
        ({"points": np.zeros((7, 3)), "label": np.zeros(5)}, r"with N labels, got \(7, 3\) and \(5,\)"),
        (
            {"points": np.zeros((7, 3)), "label": np.zeros(7), "normals": np.zeros((5, 3))},
            r"normals must be \(7, 3\) like points, got \(5, 3\)",
        ),
        ({"points": np.zeros((7, 3)), "label": np.full(7, 0.5)}, "7 of 7 labels are not whole numbers, first 0.5"),
    ],
)
@pytest.mark.parametrize("extension", ["npz", "h5"])
def test_bad_arrays(tmp_path, extension, arrays, message):
    path = save_named(tmp_path / f"a.{extension}", **arrays)
    with pytest.raises(ValueError, match=rf"a.{extension}.* {message}"):
        read_part_file(path)


@pytest.mark.parametrize("shape", [(), (7,), (2, 7, 4)])
def test_an_array_of_another_rank(shape):
    with pytest.raises(ValueError, match=r"a.npy must have rows x y z label .* got shape \("):
        as_part_cloud(np.zeros(shape), path=Path("a.npy"))


def test_a_ply_without_labels(tmp_path):
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "a.ply")
    with pytest.raises(ValueError, match=r"a.ply has no labels: it has none of label, part_label, part, pid, seg"):
        read_part_file(tmp_path / "a.ply")


def test_bad_requests(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file .*a.txt"):
        read_part_file(tmp_path / "a.txt")
    with pytest.raises(
        ValueError, match=r"a.txt has no normals: it has 4 columns, but x y z nx ny nz label, 7 columns"
    ):
        read_part_file(save(tmp_path / "a.txt", table(False)), with_normals=True)
    colors = table(True)
    colors[:, 3:6] = 200
    with pytest.raises(ValueError, match=r"b.txt: columns 4 to 6 are not unit normals"):
        read_part_file(save(tmp_path / "b.txt", colors), with_normals=True)


PARTS = {"mug": (0, 1), "lamp": (2, 3, 4)}


def clouds(with_normals=False):
    """A mug of 2 points and lamps of 3 and 2, by file name."""
    points = {
        "a": torch.tensor([[0.0, 0, 0], [0, 4, 0]]),
        "b": torch.tensor([[1.0, 0, 0], [3, 0, 0], [5, 0, 0]]),
        "c": torch.tensor([[9.0, 9, 9], [9, 9, 7]]),
    }
    labels = {"a": [1, 0], "b": [2, 4, 2], "c": [3, 3]}
    return {
        name: PartCloud(p, -torch.ones_like(p) if with_normals else None, torch.tensor(labels[name]))
        for name, p in points.items()
    }


def read_three(read, **options):
    files = [Path(name) for name in "abc"]
    return join(read_part_files(files, [0, 1, 1], PARTS, read, description="Reading", **options))


def test_clouds_are_normalised_and_lie_one_behind_the_other():
    arrays = read_three(lambda path: clouds(with_normals=True)[path.name])
    expected = [[0, -1, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, -1]]
    np.testing.assert_array_equal(arrays["data"], expected)
    assert arrays["data"].dtype == np.float32
    assert arrays["label"].tolist() == [1, 0, 2, 4, 2, 3, 3]
    assert arrays["sizes"].tolist() == [2, 3, 2]
    assert arrays["category"].tolist() == [0, 1, 1]
    np.testing.assert_array_equal(arrays["normal"], -np.ones((7, 3)))
    assert len(arrays["skipped"]) == 0
    assert arrays["classes"].tolist() == [0, 1, 2, 3, 4]
    assert {arrays[name].dtype for name in ("label", "sizes", "category")} == {np.dtype(np.int64)}
    assert "normal" not in read_three(lambda path: clouds()[path.name])


def test_clouds_far_from_the_origin_keep_their_shape(tmp_path):
    rows = table(False)
    arrays = []
    for place in (0, 5e6):
        path = save(tmp_path / f"{place}.txt", rows + np.array([place, place, place, 0]))
        arrays.append(join(read_part_files([path], [0], {"mug": LABELS}, read_part_file, description="Reading")))
    assert arrays[1]["data"].dtype == np.float32
    np.testing.assert_allclose(arrays[1]["data"], arrays[0]["data"], atol=1e-6)


def test_labels_may_count_the_parts_of_a_category():
    def read(path):
        return PartCloud(torch.eye(3), None, torch.tensor([2, 1, 2]))

    assert read_three(read, first_label=1)["label"].tolist() == [1, 0, 1, 3, 2, 3, 3, 2, 3]
    with pytest.raises(ValueError, match=r"^1 of 3 files .*: a: label 2 is not a part of category mug, .* are 0, 1\."):
        read_three(read, first_label=0)
    with pytest.raises(ValueError, match=r"^3 of 3 .*: a: label 2 .* are 0, 1; b: label 1 .* lamp, .* are 2, 3, 4; c"):
        read_three(read)


def test_unreadable_files_are_counted_and_named():
    def read(path):
        if path.name == "b":
            raise ValueError("b is bad.")
        if path.name == "c":
            raise OSError("c is on a broken disk")
        return clouds()[path.name]

    with pytest.raises(
        ValueError,
        match=r"^2 of 3 files cannot be read: b is bad; c is on a broken disk. Repair .* or set skip_unreadable.$",
    ):
        read_three(read)
    with pytest.raises(ValueError, match=r"a broken disk. Ask somebody.$"):
        read_three(read, advice="Ask somebody.")
    arrays = read_three(read, skip_unreadable=True)
    assert arrays["category"].tolist() == [0]
    assert arrays["sizes"].tolist() == [2]
    assert arrays["classes"].tolist() == [0, 1]
    assert arrays["skipped"].tolist() == [b"b is bad.", b"c is on a broken disk"]
    with pytest.raises(ValueError, match="1 of 1 files cannot be read"):
        join(read_part_files([Path("b")], [1], PARTS, read, description="", skip_unreadable=True))
    with pytest.raises(ValueError, match="Reading: this split has no files"):
        join(read_part_files([], [], PARTS, read, description="Reading"))


@pytest.mark.parametrize("name", ["Label", "class", "scalar_Label", "part", "Seg"])
def test_columns_by_name(tmp_path, name):
    rows = table(True)
    path = tmp_path / "a.csv"
    shuffled = np.hstack([rows[:, 6:], np.full((7, 1), 9.0), rows[:, 3:6], rows[:, :3]])
    np.savetxt(path, shuffled, fmt="%.8f", delimiter=";", header=f"{name};intensity;nx;ny;nz;X;Y;Z", comments="")
    cloud = read_part_file(path, with_normals=True)
    torch.testing.assert_close(cloud.points, torch.from_numpy(rows[:, :3]).float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(cloud.normals, torch.from_numpy(rows[:, 3:6]).float(), atol=1e-6, rtol=0)
    assert cloud.label.tolist() == LABELS

    records = np.rec.fromarrays([rows[:, 6], *rows[:, :3].T], names=f"{name},x,y,z")
    np.save(tmp_path / "a.npy", records)
    assert read_part_file(tmp_path / "a.npy").label.tolist() == LABELS

    header = f"element vertex 7\nproperty float X\nproperty float Y\nproperty float Z\nproperty int64 {name}\n"
    body = "".join(f"{x} {y} {z} {label}\n" for (x, y, z), label in zip(rows[:, :3], LABELS))
    (tmp_path / "a.ply").write_text(f"ply\nformat ascii 1.0\n{header}end_header\n{body}")
    assert read_part_file(tmp_path / "a.ply").label.tolist() == LABELS


def test_a_header_without_a_label(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z,intensity\n1,2,3,0\n4,5,6,1\n")
    with pytest.raises(ValueError, match=r"a.csv has no labels: its header names none of label, part_label, "):
        read_part_file(tmp_path / "a.csv")


def test_labels_that_are_words(tmp_path):
    np.savez(tmp_path / "a.npz", points=table(False)[:, :3], label=np.array(["leg"] * 7))
    with pytest.raises(ValueError, match=r"a.npz: labels must be numbers, .*, got <U3, first leg"):
        read_part_file(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", table(False)[None])
    assert read_part_file(tmp_path / "a.npy").label.tolist() == LABELS


def test_colours_of_xyzrgb_are_no_normals(tmp_path):
    (tmp_path / "a.xyzrgb").write_text("0 1 2 1 0 0 3\n4 5 6 0 1 0 4\n")
    cloud = read_part_file(tmp_path / "a.xyzrgb")
    assert (cloud.points.tolist(), cloud.label.tolist()) == ([[0, 1, 2], [4, 5, 6]], [3, 4])
    with pytest.raises(ValueError, match=r"a.xyzrgb has no normals"):
        read_part_file(tmp_path / "a.xyzrgb", with_normals=True)
