from pathlib import Path

import numpy as np
import pytest
import trimesh
from examples import PLY_HOUSE as HOUSE
from examples import PLY_ORDERS as ORDERS
from examples import PLY_VERTICES as VERTICES
from examples import make_ply as make

from pcea.io.ply import read_ply, write_ply
from pcea.io.readers import import_open3d

PYRAMID = HOUSE[1:]


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("faces", [HOUSE, PYRAMID], ids=["mixed", "triangles"])
@pytest.mark.parametrize(
    "options", [{}, {"faces_first": True}, {"newline": "\r\n"}, {"name": "vertex_index"}], ids=lambda o: "".join(o)
)
def test_vertices_and_faces(tmp_path, kind, faces, options):
    (tmp_path / "a.ply").write_bytes(make(kind, faces, **options))
    columns, polygons = read_ply(tmp_path / "a.ply")
    assert list(columns) == ["x", "red", "y", "z"]
    assert np.stack([columns[axis] for axis in "xyz"], axis=1).tolist() == np.array(VERTICES).tolist()
    assert columns["red"].tolist() == [7] * 5
    assert columns["y"].dtype.itemsize == 8
    assert [tuple(polygon) for polygon in polygons] == faces


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
def test_what_trimesh_writes(tmp_path, encoding):
    ball = trimesh.creation.icosphere(2)
    ball.export(tmp_path / "a.ply", encoding=encoding, vertex_normal=True)
    columns, polygons = read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(np.stack([columns[a] for a in "xyz"], axis=1), ball.vertices, atol=1e-7)
    np.testing.assert_allclose(np.stack([columns["n" + a] for a in "xyz"], axis=1), ball.vertex_normals, atol=1e-7)
    np.testing.assert_array_equal(polygons, ball.faces)


def test_nothing_but_a_header(tmp_path):
    (tmp_path / "a.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n")
    columns, polygons = read_ply(tmp_path / "a.ply")
    assert columns == {}
    assert len(polygons) == 0


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("faces", [HOUSE, PYRAMID, []], ids=["mixed", "triangles", "cloud"])
def test_a_truncated_file_is_not_taken_for_a_smaller_one(tmp_path, kind, faces):
    whole = make(kind, faces)
    start = whole.index(b"end_header\n") + len(b"end_header\n")
    for end in [*range(start, len(whole) - 8, 5), len(whole) - 8 if kind != "ascii" else len(whole) - 4]:
        (tmp_path / "a.ply").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"a.ply could not be read as .ply \(it is shorter than its header says\)"):
            read_ply(tmp_path / "a.ply")


def text(*header, body="", kind="ascii"):
    return "\n".join(["ply", f"format {kind} 1.0", *header, "end_header", body])


X = ("element vertex 2", "property float x")
FACE = ("element face 1", "property list uchar int vertex_indices")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it does not begin with ply"),
        ("\x89PNG\r\n", "it does not begin with ply"),
        ("ply\n", "its header has no end"),
        ("ply\nend_header\n", "its header has the line 'end_header'"),
        (text(kind="binary"), "its header has the line 'format binary 1.0'"),
        (text("property float x"), "its header has the line 'property float x'"),
        (text("element vertex -1"), "its header has the line 'element vertex -1'"),
        (text("element vertex 2", "property real x"), "its header has the line 'property real x'"),
        (text("element face 2", "property list int real x"), "its header has the line 'property list int real x'"),
        (text("hello"), "its header has the line 'hello'"),
        (text("element vertex 2", "property float x", "property int x", body="1 2 3 4"), "'x' occurs more than once"),
        (text(*X, body="1 two"), "its body is not numbers"),
        (text(*X, body="1 \xff"), "its body is not numbers"),
        (text(*FACE, body="-1 2"), "it is shorter than its header says"),
        (text(*FACE, body="1e9 2"), "it is shorter than its header says"),
        (text(*FACE, body="inf 2"), "cannot convert float infinity to integer"),
        (text(*FACE, body="nan 2"), "cannot convert float NaN to integer"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "a.ply").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"a.ply could not be read as .ply \(.*{message}") as caught:
        read_ply(tmp_path / "a.ply")
    assert "\n" not in str(caught.value)


def columns_of(rng, n=7):
    columns = dict(zip("xyz", rng.normal(size=(3, n)) + 5e6))
    columns |= dict(zip(("nx", "ny", "nz"), trimesh.unitize(rng.normal(size=(n, 3))).astype(np.float32).T))
    columns |= {name: rng.integers(0, 256, n).astype(np.uint8) for name in ("red", "green", "blue")}
    return columns | {"part_label": np.arange(n, dtype=np.int32) - 3}


def test_trimesh_reads_what_is_written(tmp_path, rng):
    columns = columns_of(rng)
    write_ply(tmp_path / "a.ply", columns)
    cloud = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_array_equal(cloud.vertices.T, [columns[axis] for axis in "xyz"])
    np.testing.assert_array_equal(cloud.colors[:, :3].T, [columns[name] for name in ("red", "green", "blue")])
    vertex = cloud.metadata["_ply_raw"]["vertex"]["data"]
    assert vertex["part_label"].tolist() == [-3, -2, -1, 0, 1, 2, 3]


def test_open3d_reads_what_is_written(tmp_path, rng):
    try:
        open3d = import_open3d()
    except ImportError as error:
        pytest.skip(str(error))
    columns = columns_of(rng)
    write_ply(tmp_path / "a.ply", columns)
    cloud = open3d.io.read_point_cloud(str(tmp_path / "a.ply"))
    np.testing.assert_array_equal(np.asarray(cloud.points).T, [columns[axis] for axis in "xyz"])
    np.testing.assert_array_equal(np.asarray(cloud.normals).T, [columns["n" + axis] for axis in "xyz"])
    colors = np.rint(255 * np.asarray(cloud.colors)).T
    np.testing.assert_array_equal(colors, [columns[name] for name in ("red", "green", "blue")])


def test_every_type_comes_back(tmp_path):
    types = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8", ">f4")
    columns = {f"column{i}": np.array([0, 1, 100], dtype=kind) for i, kind in enumerate(types)}
    write_ply(tmp_path / "a.ply", columns)
    result = read_ply(tmp_path / "a.ply").columns
    assert {name: c.tolist() for name, c in result.items()} == {name: [0, 1, 100] for name in columns}
    assert [c.dtype.str[1:] for c in result.values()] == [*types[:-1], "f4"]
    assert b"property double column7\n" in (tmp_path / "a.ply").read_bytes()


def test_comments_stay_on_their_line(tmp_path):
    write_ply(tmp_path / "a.ply", {"x": np.zeros(2)}, ["two\nlines", "na\u00efve", ""])
    lines = (tmp_path / "a.ply").read_bytes().split(b"\n")
    assert lines[2:5] == [b"comment two lines", b"comment na\\xefve", b"comment "]
    assert read_ply(tmp_path / "a.ply").columns["x"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"must be of one length, \(N,\), got none"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, r"must be of one length, \(N,\), got x \(2,\), y \(3,\)"),
        ({"x": np.zeros((2, 3))}, r"must be of one length, \(N,\), got x \(2, 3\)"),
        ({"x": np.zeros(2, dtype=np.int64)}, "PLY holds float32, float64 and integers .*; 'x' is int64"),
        ({"x": np.zeros(2, dtype=bool)}, "'x' is bool"),
    ],
)
def test_columns_that_cannot_be_written(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        write_ply(tmp_path / "a.ply", columns)
    assert not list(tmp_path.iterdir())


def test_a_file_appears_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.ply"
    renamed = []
    monkeypatch.setattr(Path, "replace", lambda self, target: renamed.append((self, target, read_ply(self))))
    write_ply(path, {"x": np.ones(2)})
    [(temporary, target, (columns, _))] = renamed
    assert (temporary.parent, target) == (tmp_path, path)  # a rename between two disks would copy
    assert columns["x"].tolist() == [1, 1]


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.ply"
    write_ply(path, {"x": np.zeros(2)})
    before = path.read_bytes()
    write_bytes = Path.write_bytes

    def full(self, content):
        write_bytes(self, content[:20])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a.ply'$"):
        write_ply(path, {"x": np.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"'.*missing/a.ply'$"):
        write_ply(tmp_path / "missing" / "a.ply", {"x": np.zeros(2)})
    with pytest.raises(NotADirectoryError, match=r"'.*file/a.ply'$"):
        write_ply(tmp_path / "file" / "a.ply", {"x": np.zeros(2)})
    (tmp_path / "b.ply").mkdir()
    with pytest.raises(IsADirectoryError, match=r"'.*/b.ply'$"):
        write_ply(tmp_path / "b.ply", {"x": np.zeros(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.ply", "file"]


HEADER = ("element vertex 4", "property float x", "property float y", "property float z")
CORNERS = ("0 0 0", "1 0 0", "1 1 0", "0 1 0")


def write(path, *lines):
    path.write_text("\n".join(["ply", "format ascii 1.0", *lines, ""]))
    return path


def test_what_follows_on_a_row_is_ignored(tmp_path):
    """As old VCGLIB writes the colours of wedges: more numbers than the header says."""
    rows = [*(f"{row} 9 9" for row in CORNERS), "3 0 1 2 9 1 1 1 1 1 1 1 1 1", "3 0 2 3 9 1 1 1 1 1 1 1 1 1"]
    face = ("element face 2", "property list uchar int vertex_indices", "property uchar red")
    columns, polygons = read_ply(write(tmp_path / "a.ply", *HEADER, *face, "end_header", *rows))
    assert columns["y"].tolist() == [0, 0, 1, 1]
    assert polygons.tolist() == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize("separator", [" ", "\n"])
def test_rows_over_several_lines_are_a_stream(tmp_path, separator):
    face = ("element face 1", "property list uchar int vertex_indices")
    body = " ".join([*CORNERS, "4 0 1 2 3"]).replace(" ", separator)
    columns, polygons = read_ply(write(tmp_path / "a.ply", *HEADER, *face, "end_header", body))
    assert columns["x"].tolist() == [0, 1, 1, 0]
    assert [*map(list, polygons)] == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="1 numbers are left over after what its header says"):
        read_ply(write(tmp_path / "a.ply", *HEADER, *face, "end_header", body + separator + "7"))


@pytest.mark.parametrize(("kind", "code"), [("int64", "i8"), ("uint64", "u8"), ("bool", "u1"), ("double", "f8")])
@pytest.mark.parametrize("order", ["<", ">"])
def test_types_of_other_programs(tmp_path, kind, code, order):
    name = {"<": "little", ">": "big"}[order]
    header = (
        f"ply\nformat binary_{name}_endian 1.0\nelement vertex 3\nproperty float x\nproperty {kind} mark\nend_header\n"
    )
    rows = np.array([(0.5, 1), (1.5, 0), (2.5, 1)], [("x", order + "f4"), ("mark", order + code)])
    (tmp_path / "a.ply").write_bytes(header.encode() + rows.tobytes())
    columns = read_ply(tmp_path / "a.ply").columns
    assert columns["x"].tolist() == [0.5, 1.5, 2.5]
    assert columns["mark"].tolist() == [1, 0, 1]


def test_strips_of_triangles(tmp_path):
    strip = ("element tristrips 1", "property list int int vertex_indices")
    row = "9 0 1 2 3 -1 3 2 1 0"
    polygons = read_ply(write(tmp_path / "a.ply", *HEADER, *strip, "end_header", *CORNERS, row)).polygons
    assert [*map(list, polygons)] == [[0, 1, 2], [2, 1, 3], [3, 2, 1], [1, 2, 0]]


def test_faces_without_vertices_are_refused(tmp_path):
    face = ("element face 1", "property uchar red")
    with pytest.raises(ValueError, match="its faces have no list of vertices, but red"):
        read_ply(write(tmp_path / "a.ply", *HEADER, *face, "end_header", *CORNERS, "7"))


def test_an_element_without_properties_costs_nothing(tmp_path):
    columns, _ = read_ply(write(tmp_path / "a.ply", "element edge 999999999999", *HEADER, "end_header", *CORNERS))
    assert columns["x"].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("order", ["<", ">"])
def test_mixed_polygons_with_64_bits(tmp_path, order):
    header = [
        "ply", f"format binary_{'little' if order == '<' else 'big'}_endian 1.0", "element vertex 4",
        *(f"property double {axis}" for axis in "xyz"), "property int64 id",
        "element face 2", "property list uint64 int64 vertex_indices", "end_header", "",
    ]  # fmt: skip
    rows = np.array(
        [(0, 0, 0, 7), (1, 0, 0, 8), (1, 1, 0, 9), (0, 1, 0, 10)], f"{order}f8,{order}f8,{order}f8,{order}i8"
    )
    faces = np.array([3, 0, 1, 2, 4, 0, 1, 2, 3], order + "i8")
    (tmp_path / "a.ply").write_bytes("\n".join(header).encode() + rows.tobytes() + faces.tobytes())
    columns, polygons = read_ply(tmp_path / "a.ply")
    assert [*map(list, polygons)] == [[0, 1, 2], [0, 1, 2, 3]]
    assert columns["id"].tolist() == [7, 8, 9, 10]
