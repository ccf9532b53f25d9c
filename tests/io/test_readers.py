import sys

import h5py
import numpy as np
import pytest
import trimesh
from examples import PLY_HOUSE as HOUSE_FACES
from examples import cloud, write
from examples import make_ply as make
from trimesh.transformations import translation_matrix

from pcea.io.arrays import read_numpy
from pcea.io.hdf5 import read_h5
from pcea.io.meshes import Mesh
from pcea.io.readers import import_open3d, read_file
from pcea.io.tables import read_table

HOUSE = "6 2 0\n0 0 0\n1 0 0\n1 1 0\n0.5 2 0\n0 1 0  # left\n\n3 0 0\n5 0 1 2 3 4\n3 1 5 2\n"
# UTM coordinates in centimetres, which float32 would round to 3 cm and 50 cm.
UTM = np.array([[500000.12, 5400000.34, 312.05], [500001.98, 5400002.76, 313.41], [500000.55, 5400001.07, 311.99]])


def save(path, table):
    """A cloud with the columns x y z, perhaps nx ny nz."""
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.suffix == ".npz":
        arrays = {"points": table[:, :3], "normals": table[:, 3:]} if table.shape[1] == 6 else {"points": table}
        np.savez(path, **arrays, colors=np.zeros(5))
    elif path.suffix in (".h5", ".hdf5"):
        with h5py.File(path, "w") as file:
            file["data"] = table[None, :, :3]  # one cloud of a set
            if table.shape[1] == 6:
                file["normal"] = table[None, :, 3:]
    elif path.suffix == ".ply":
        names = ["x", "y", "z", "nx", "ny", "nz"][: table.shape[1]]
        header = "".join(f"property float {name}\n" for name in names)
        rows = "\n".join(" ".join(map(str, row)) for row in table)
        path.write_text(f"ply\nformat ascii 1.0\nelement vertex {len(table)}\n{header}end_header\n{rows}\n")
    elif path.suffix == ".pcd":
        names = ["x", "y", "z", "normal_x", "normal_y", "normal_z"][: table.shape[1]]
        header = f"VERSION 0.7\nFIELDS {' '.join(names)}\n"
        for key, value in {"SIZE": 8, "TYPE": "F", "COUNT": 1}.items():
            header += f"{key} {' '.join([str(value)] * len(names))}\n"
        size = f"WIDTH {len(table)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(table)}\n"
        path.write_bytes((header + size + "DATA binary\n").encode() + table.astype("<f8").tobytes())
    elif path.suffix == ".las":
        laspy = pytest.importorskip("laspy")
        las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
        las.header.scales, las.header.offsets = [0.01] * 3, np.floor(table[:, :3].min(0))
        las.xyz = table[:, :3]
        las.write(path)
    else:
        np.savetxt(path, table, delimiter="," if path.suffix == ".csv" else " ")
    return path


@pytest.mark.parametrize("header", ["OFF\n", "OFF", "OFF # made by hand\n", "COFF\n", "NOFF\n"])
def test_off_with_a_pentagon_and_mixed_faces(tmp_path, header):
    mesh = read_file(write(tmp_path / "a.off", header + HOUSE))
    assert mesh.vertices[3].tolist() == [0.5, 2, 0]
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4], [1, 5, 2]]


def test_off_with_quads(tmp_path):
    mesh = read_file(write(tmp_path / "a.off", "OFF\n4 1 0\n0 0 0\n2 0 0\n2 1 0\n0 1 0\n4 3 0 1 2\n"))
    assert mesh.faces.tolist() == [[3, 0, 1], [3, 1, 2]]


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
def test_ply_with_mixed_faces(tmp_path, kind):
    (tmp_path / "a.ply").write_bytes(make(kind, HOUSE_FACES))
    mesh = read_file(tmp_path / "a.ply")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]]
    (tmp_path / "a.ply").write_bytes(make(kind, [(0, 1, 5)]))
    with pytest.raises(ValueError, match=r"a.ply could not be read as .ply \(a face names a vertex that is not there"):
        read_file(tmp_path / "a.ply")


@pytest.mark.parametrize("extension", ["off", "obj", "stl", "ply", "glb", "OFF"])
def test_mesh_formats(tmp_path, extension):
    path = tmp_path / f"box.{extension}"
    trimesh.creation.box((2, 2, 2)).export(path, file_type=extension.lower())
    mesh = read_file(path)
    assert isinstance(mesh, Mesh)
    assert np.abs(mesh.vertices).tolist() == [[1, 1, 1]] * len(mesh.vertices)
    assert trimesh.Trimesh(*mesh).volume == pytest.approx(8)  # negative, were the faces to look inwards


def two_boxes():
    """One box of side 1 under two nodes: at x 5, and mirrored, twice as large, below another node, at x -7."""
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.creation.box(), "left", "box", transform=translation_matrix([5, 0, 0]))
    scene.graph.update("arm", matrix=translation_matrix([-10, 0, 0]))
    scene.graph.update("right", "arm", geometry="box", matrix=translation_matrix([3, 0, 0]) @ np.diag([-2, 2, 2, 1]))
    return scene


@pytest.mark.parametrize("extension", ["glb", "gltf"])
def test_every_node_of_a_scene_is_where_its_transforms_put_it(tmp_path, extension):
    if extension == "glb":
        two_boxes().export(tmp_path / "scene.glb")
    else:
        for name, content in trimesh.exchange.gltf.export_gltf(two_boxes()).items():
            (tmp_path / name.replace("model", "scene")).write_bytes(content)
    mesh = read_file(tmp_path / f"scene.{extension}")
    assert (len(mesh.vertices), len(mesh.faces)) == (16, 24)
    parts = trimesh.Trimesh(*mesh).split()
    assert sorted(part.bounds.tolist() for part in parts) == [
        [[-8, -1, -1], [-6, 1, 1]],
        [[4.5, -0.5, -0.5], [5.5, 0.5, 0.5]],
    ]
    assert sorted(part.volume for part in parts) == pytest.approx([1, 8])  # both look outwards


def test_a_scene_of_points_is_a_cloud(tmp_path):
    trimesh.Scene([trimesh.PointCloud(cloud())]).export(tmp_path / "a.glb")
    np.testing.assert_allclose(read_file(tmp_path / "a.glb"), cloud(), rtol=1e-6)


def test_textures_are_left_alone(tmp_path, monkeypatch):
    from PIL import Image

    boxes = [trimesh.creation.box().apply_translation((3 * i, 0, 0)) for i in range(2)]
    for box, color in zip(boxes, ("red", "blue")):
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.new("RGB", (8, 8), color))
        box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
    trimesh.Scene(boxes).export(tmp_path / "a.glb")

    packed = []
    monkeypatch.setattr(trimesh.visual.objects, "pack", lambda *_, **__: packed.append(1))
    assert len(read_file(tmp_path / "a.glb").faces) == 24
    assert not packed


@pytest.mark.parametrize("extension", ["npy", "npz", "h5", "hdf5", "ply", "txt", "csv", "xyz", "pts"])
def test_cloud_formats(tmp_path, extension):
    for columns in (3, 6):
        table = cloud(7, columns)
        np.testing.assert_allclose(read_file(save(tmp_path / f"a.{extension}", table)), table, rtol=1e-15)


def test_pcd(tmp_path):
    for columns in (3, 6):
        table = cloud(7, columns)
        np.testing.assert_array_equal(read_file(save(tmp_path / "a.pcd", table)), table)


@pytest.mark.parametrize("extension", ["npy", "npz", "h5", "ply", "txt", "csv", "xyz", "pts", "las", "pcd"])
def test_coordinates_far_from_the_origin_keep_their_digits(tmp_path, extension):
    table = read_file(save(tmp_path / f"a.{extension}", UTM))
    np.testing.assert_allclose(table, UTM, rtol=0, atol=1e-8)


def test_a_single_array_of_any_name(tmp_path):
    np.savez(tmp_path / "a.npz", cloud())
    np.testing.assert_array_equal(read_file(tmp_path / "a.npz"), cloud())


@pytest.mark.parametrize("header", ["x,y,z\n", "3\n", "# x y z\n"])
def test_a_header_or_count_line_is_skipped(tmp_path, header):
    path = write(tmp_path / "a.txt", header + "0 0 1\n0 1 0\n1 0 0\n")
    np.testing.assert_array_equal(read_file(path), np.eye(3)[::-1])


def test_a_column_has_no_header(tmp_path):
    path = write(tmp_path / "a.seg", "3\n1\n2\n")
    np.testing.assert_array_equal(read_table(path, is_column=True), [[3], [1], [2]])
    with pytest.raises(ValueError, match=r"a.seg is not a table of numbers: could not convert string 'label'"):
        read_table(write(path, "label\n1\n2\n"), is_column=True)


def test_a_row_that_is_short_is_named_without_numpys_advice(tmp_path):
    with pytest.raises(ValueError, match=r"a.txt .*: the number of columns changed from 3 to 2 at row 2\.$"):
        read_table(write(tmp_path / "a.txt", "1 2 3\n1 2\n"))


BAD_FILES = [
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0", r"a.off could not be read as .off \(it ends before its 3 vertices and 1 faces"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n", r"a.off .*it ends before its 3 vertices and 1 faces"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", r"a.off .*names a vertex that is not there"),
    ("a.off", "OFF\n", "a.off could not be read as .off"),
    ("a.off", "hello", r"a.off could not be read as .off \(it does not begin with OFF\)"),
    ("a.off", "\xff\xd8\xff\xe0 JFIF", "a.off could not be read as .off"),
    ("a.off", "", "a.off could not be read as .off"),
    ("a.obj", "v 0 0 0\nf 1 2 x\n", "a.obj could not be read as .obj"),
    ("a.ply", "hello", r"a.ply could not be read as .ply \(it does not begin with ply\)"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty int u\nend_header\n1", "no vertices x y z; .* are u"),
    ("a.glb", "hello", "a.glb could not be read as .glb"),
    ("a.gltf", "hello", "a.gltf could not be read as .gltf"),
    ("a.txt", "1 2 3\n1 2\n", "a.txt is not a table of numbers"),
    ("a.csv", "hello\nworld of points\n", "a.csv is not a table of numbers"),
    ("a.xyz", "\x89PNG\r\n\xff", "a.xyz is not a table of numbers"),
    ("a.npy", "hello", "a.npy is not a NumPy file"),
    ("a.npz", "hello", "a.npz is not a NumPy file"),
    ("a.npz", "PK\x03\x04", "a.npz is not a NumPy file"),
    ("a.h5", "hello", "a.h5 is truncated or not HDF5"),
    ("a.foo", "hello", "unknown extension '.foo'; known are .3mf"),
    ("a", "hello", "unknown extension ''"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES)
def test_bad_files(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^No file .*missing.off\.$"):
        read_file(tmp_path / "missing.off")


def test_a_gltf_without_its_buffers(tmp_path):
    for name, content in trimesh.exchange.gltf.export_gltf(two_boxes()).items():
        if name.endswith(".gltf"):
            (tmp_path / "a.gltf").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.gltf could not be read as .gltf \(\w*Error: .*bin"):
        read_file(tmp_path / "a.gltf")


@pytest.mark.parametrize("place", [80, 2000])  # what cannot be decompressed, and what gives other numbers
def test_a_damaged_npz(tmp_path, place):
    np.savez_compressed(tmp_path / "a.npz", points=cloud(999))
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    damaged[place : place + 20] = bytes(20)
    (tmp_path / "a.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a.npz is not a NumPy file"):
        read_numpy(tmp_path / "a.npz")


def test_bad_arrays(tmp_path):
    np.save(tmp_path / "b.npy", np.array([{"not": "numbers"}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"b.npy is not a NumPy file .*Python objects, which are never loaded"):
        read_file(tmp_path / "b.npy")
    np.savez(tmp_path / "c.npz", left=np.zeros((4, 3)), right=np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"c.npz has no points: none of the arrays points, pos, xyz, data is there"):
        read_file(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", points=np.zeros((4, 3)), normals=np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"d.npz: normals must be \(4, 3\) like points, got \(5, 3\)"):
        read_file(tmp_path / "d.npz")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["data"] = np.zeros((2, 5, 3))
    with pytest.raises(ValueError, match=r"e.h5 holds 2 clouds; one cloud per file is"):
        read_file(tmp_path / "e.h5")


def test_h5_arrays_are_asked_for_by_name(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.arange(2)
        file.create_group("data")
    with pytest.raises(ValueError, match=r"a.h5 has no array 'data'; it holds \['data', 'label'\]"):
        read_h5(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"a.h5 has no points"):
        read_file(tmp_path / "a.h5")
    arrays = read_h5(tmp_path / "a.h5", required=("label",), optional=("data", "normal"))
    assert {name: array.tolist() for name, array in arrays.items()} == {"label": [0, 1]}
    with pytest.raises(FileNotFoundError, match=r"No file .*missing.h5"):
        read_h5(tmp_path / "missing.h5")


def test_open3d_without_its_system_libraries_says_which_to_install(monkeypatch):
    class Broken:
        def find_spec(self, name, *_):
            if name == "open3d":
                raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"libGL.so.1.*apt-get install libegl1 libgl1 .*libusb-1.0-0"):
        import_open3d()


def test_ply_clouds(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float X\nproperty float Y\nproperty float Z\n"
    rows = "0 0 0\nnan 0 0\n1 2 3\n"
    path = write(tmp_path / "a.ply", f"{header}end_header\n{rows}")
    with pytest.warns(UserWarning, match=r"a.ply: 1 of 3 points have NaN coordinates and are dropped"):
        np.testing.assert_array_equal(read_file(path), [[0, 0, 0], [1, 2, 3]])
    # Faces of one and two corners are points and lines.
    face = "element face 2\nproperty list uchar int vertex_index\n"
    path = write(tmp_path / "a.ply", f"{header}{face}end_header\n0 0 0\n1 1 1\n2 2 2\n1 0\n2 0 1\n")
    np.testing.assert_array_equal(read_file(path), [[0, 0, 0], [1, 1, 1], [2, 2, 2]])


@pytest.mark.parametrize("extension", ["asc", "xyzn", "xyzrgb", "XYZ"])
def test_more_extensions_of_text(tmp_path, extension):
    path = write(tmp_path / f"a.{extension}", "0 0 1 255 0 0\n0 1 0 255 0 0\n")
    np.testing.assert_array_equal(read_file(path)[:, :3], [[0, 0, 1], [0, 1, 0]])
