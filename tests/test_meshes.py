import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import trimesh

from pcea.meshes import Points, import_open3d, normalize_points, orient, read_points, read_table, sample_points

DATA = Path(os.environ.get("PCEA_DATA", Path(__file__).parents[1] / "data"))
SQUARE = "4 1 0\n0 0 0\n2 0 0\n2 1 0\n0 1 0\n4 0 1 2 3\n"  # a 2 x 1 rectangle in the plane z = 0, one quad


def write(path, text):
    path.write_text(text)
    return path


def cloud(n=7, columns=3, seed=0):
    table = np.random.default_rng(seed).normal(size=(n, columns))
    if columns >= 6:
        table[:, 3:6] /= np.linalg.norm(table[:, 3:6], axis=1, keepdims=True)
    return table


@pytest.mark.parametrize("header", ["OFF\n", "OFF", "OFF # made by hand\n"])
def test_off_with_and_without_glued_header(tmp_path, header):
    points, normals = read_points(write(tmp_path / "a.off", header + SQUARE), num_points=2000, with_normals=True)
    assert points.shape == normals.shape == (2000, 3)
    assert points.dtype == torch.float32
    assert (points[:, 2] == 0).all()
    assert (normals == torch.tensor([0.0, 0.0, 1.0])).all()
    # Uniform by area: the mean is the middle, and a quarter of the points lies in each quarter.
    torch.testing.assert_close(points.mean(0), torch.tensor([1.0, 0.5, 0.0]), atol=0.05, rtol=0)
    quarter = (points[:, 0] < 1) & (points[:, 1] < 0.5)
    assert abs(quarter.float().mean() - 0.25) < 0.04


def test_off_with_a_pentagon_and_mixed_faces(tmp_path):
    text = "OFF\n6 2 0\n0 0 0\n1 0 0\n1 1 0\n0.5 2 0\n0 1 0  # left\n\n3 0 0\n5 0 1 2 3 4\n3 1 5 2\n"
    points = read_points(write(tmp_path / "a.off", text), num_points=4000).points
    # The house has area 1.5; the triangle at its side has base 2, height 1 and area 1.
    assert abs((points[:, 0] > 1).float().mean() - 1 / 2.5) < 0.03


@pytest.mark.parametrize("extension", ["off", "obj", "stl", "ply", "glb"])
def test_mesh_formats_give_points_on_the_surface(tmp_path, extension):
    path = tmp_path / f"box.{extension}"
    trimesh.creation.box((2, 2, 2)).export(path)
    points, normals = read_points(path, num_points=501, with_normals=True)
    torch.testing.assert_close(points.abs().amax(1), torch.ones(501))
    torch.testing.assert_close((points * normals).sum(1), torch.ones(501))  # faces look outwards


def test_a_scene_is_one_mesh(tmp_path):
    scene = trimesh.Scene([trimesh.creation.box(), trimesh.creation.box().apply_translation((9, 0, 0))])
    scene.export(tmp_path / "two.glb")
    points = read_points(tmp_path / "two.glb", num_points=999).points
    assert 0.4 < (points[:, 0] > 5).float().mean() < 0.6


def test_the_seed_decides_the_sample(tmp_path):
    path = write(tmp_path / "a.off", "OFF\n" + SQUARE)
    first = read_points(path, num_points=11, seed=3).points
    assert torch.equal(first, read_points(path, num_points=11, seed=3).points)
    assert not torch.equal(first, read_points(path, num_points=11, seed=4).points)


def save(path, table):
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.suffix == ".npz":
        np.savez(path, points=table, colors=np.zeros(5))
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["data"] = table
    elif path.suffix == ".ply":
        names = ["x", "y", "z", "nx", "ny", "nz"][: table.shape[1]]
        header = "".join(f"property float {name}\n" for name in names)
        rows = "\n".join(" ".join(map(str, row)) for row in table)
        path.write_text(f"ply\nformat ascii 1.0\nelement vertex {len(table)}\n{header}end_header\n{rows}\n")
    else:
        np.savetxt(path, table, delimiter="," if path.suffix == ".csv" else " ")
    return path


@pytest.mark.parametrize("extension", ["npy", "npz", "h5", "ply", "txt", "csv", "xyz", "pts"])
def test_cloud_formats(tmp_path, extension):
    table = cloud(7, 6)
    path = save(tmp_path / f"a.{extension}", table)
    points, normals = read_points(path, num_points=None, with_normals=True)
    torch.testing.assert_close(points, torch.from_numpy(table[:, :3]).float())
    torch.testing.assert_close(normals, torch.from_numpy(table[:, 3:]).float())
    assert read_points(path, num_points=None).normals is None
    some = read_points(path, num_points=5, seed=1).points
    assert len({*map(tuple, some.tolist())} & {*map(tuple, points.tolist())}) == 5


def test_a_cloud_in_binary_ply(tmp_path):
    table = cloud(7, 6).astype("<f4")
    header = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    text = f"ply\nformat binary_little_endian 1.0\nelement vertex 7\n{header}end_header\n"
    (tmp_path / "a.ply").write_bytes(text.encode() + table.tobytes())
    points, normals = read_points(tmp_path / "a.ply", num_points=None, with_normals=True)
    torch.testing.assert_close(torch.cat([points, normals], dim=1), torch.from_numpy(table))


@pytest.mark.parametrize("header", ["x,y,z\n", "3\n", "# x y z\n"])
def test_a_header_or_count_line_is_skipped(tmp_path, header):
    path = write(tmp_path / "a.txt", header + "0 0 1\n0 1 0\n1 0 0\n")
    assert torch.equal(read_points(path, num_points=None).points, torch.eye(3).flip(0))


def test_a_column_has_no_header(tmp_path):
    path = write(tmp_path / "a.seg", "3\n1\n2\n")
    np.testing.assert_array_equal(read_table(path, is_column=True), [[3], [1], [2]])
    np.testing.assert_array_equal(read_table(path), [[1], [2]])  # here the first line counts the others
    with pytest.raises(ValueError, match=r"a.seg is not a table of numbers: could not convert string 'label'"):
        read_table(write(path, "label\n1\n2\n"), is_column=True)


def test_a_row_that_is_short_is_named_without_numpys_advice(tmp_path):
    with pytest.raises(ValueError, match=r"a.txt .*: the number of columns changed from 3 to 2 at row 2\.$"):
        read_table(write(tmp_path / "a.txt", "1 2 3\n1 2\n"))


def test_pcd(tmp_path):
    try:
        open3d = import_open3d()
    except ImportError as error:
        pytest.skip(str(error))
    table = cloud()
    open3d.io.write_point_cloud(
        str(tmp_path / "a.pcd"), open3d.geometry.PointCloud(open3d.utility.Vector3dVector(table))
    )
    points = read_points(tmp_path / "a.pcd", num_points=None).points
    torch.testing.assert_close(points, torch.from_numpy(table).float())
    with pytest.raises(ValueError, match=r"b.pcd is empty or unreadable"):
        read_points(write(tmp_path / "b.pcd", "hello"), num_points=2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "a.off is a mesh of zero area"),
        ("a.off", "OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "a.off is a mesh without faces"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 nan\n0 1 0\n3 0 1 2\n", "a.off has vertices with NaN"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0", r"a.off could not be read as .off"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n", r"a.off .*it ends before its 3 vertices and 1 faces"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", r"a.off .*names a vertex that is not there"),
        ("a.off", "OFF\n", "a.off could not be read as .off"),
        ("a.off", "hello", r"a.off could not be read as .off \(it does not begin with OFF\)"),
        ("a.off", "\xff\xd8\xff\xe0 JFIF", "a.off could not be read as .off"),
        ("a.off", "", "a.off could not be read as .off"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 nan 0\nv 0 1 0\nf 1 2 3\nf 1 2 4\n", "a.obj has vertices with NaN"),
        ("a.obj", "hello", "a.obj is a mesh without faces, or not a .obj file"),
        ("a.ply", "hello", "a.ply could not be read as .ply"),
        ("a.glb", "hello", "a.glb could not be read as .glb"),
        ("a.txt", "", "a.txt is empty"),
        ("a.txt", "1 2 3\n", "a.txt holds one point"),
        ("a.txt", "1 2 3\n1 2 nan\n1 2 inf\n", "a.txt: 2 of 3 points have NaN or infinite"),
        ("a.txt", "1 2 3\n1 2 1e39\n", "a.txt: 1 of 2 points have NaN or infinite"),
        ("a.txt", "1 2 3\n1 2\n", "a.txt is not a table of numbers"),
        ("a.txt", "hello\nworld of points\n", "a.txt is not a table of numbers"),
        ("a.txt", "1 2 3 4\n1 2 3 4\n", r"rows of x y z .* got float64 of shape \(2, 4\)"),
        ("a.npy", "hello", "a.npy is not a NumPy file"),
        ("a.npz", "hello", "a.npz is not a NumPy file"),
        ("a.h5", "hello", "a.h5 is truncated or not HDF5"),
        ("a.foo", "hello", "unknown extension '.foo'; known are .3mf"),
        ("a", "hello", "unknown extension ''"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        read_points(path, num_points=2)
    assert "\n" not in str(caught.value)


def test_bad_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 5, 3)))
    with pytest.raises(ValueError, match=r"a.npy must hold numbers in rows .* shape \(2, 5, 3\)"):
        read_points(tmp_path / "a.npy", num_points=2)
    np.save(tmp_path / "b.npy", np.array([{"not": "numbers"}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"b.npy is not a NumPy file .*allow_pickle"):
        read_points(tmp_path / "b.npy", num_points=2)
    np.savez(tmp_path / "c.npz", left=np.zeros((4, 3)), right=np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"must hold an array 'points', got \['left', 'right'\]"):
        read_points(tmp_path / "c.npz", num_points=2)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["label"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"d.h5 has no array 'data'; it holds \['label'\]"):
        read_points(tmp_path / "d.h5", num_points=2)
    save(tmp_path / "e.h5", np.zeros((2, 5, 3)))
    with pytest.raises(ValueError, match=r"e.h5 holds 2 clouds; one cloud a file"):
        read_points(tmp_path / "e.h5", num_points=2)


def test_bad_requests(tmp_path):
    path = save(tmp_path / "a.txt", cloud(7))
    with pytest.raises(FileNotFoundError, match=r"No file .*missing.off"):
        read_points(tmp_path / "missing.off", num_points=2)
    with pytest.raises(ValueError, match=r"a.txt holds 7 points, fewer than num_points=8"):
        read_points(path, num_points=8)
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        read_points(path, num_points=0)
    with pytest.raises(ValueError, match=r"a.txt has no normals"):
        read_points(path, num_points=5, with_normals=True)
    colors = save(tmp_path / "c.txt", np.hstack([cloud(7), np.full((7, 3), 200)]))
    with pytest.raises(ValueError, match=r"not unit normals \(colours\?\)"):
        read_points(colors, num_points=5, with_normals=True)
    with pytest.raises(ValueError, match="is a mesh, which is sampled: num_points"):
        read_points(write(tmp_path / "a.off", "OFF\n" + SQUARE), num_points=None)
    with pytest.raises(ValueError, match="up must be one of x, y, z, -x, -y, -z, got 'w'"):
        read_points(path, num_points=5, up="w")


def test_sample_points_keeps_normals_with_their_points():
    points = torch.arange(21.0).reshape(7, 3)
    some = sample_points(Points(points, points + 100), 5)
    assert torch.equal(some.normals, some.points + 100)
    assert len(some.points.unique(dim=0)) == 5


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_orient_is_a_rotation_that_brings_up_to_y(up):
    sign = -1.0 if up[0] == "-" else 1.0
    axis = sign * torch.eye(3)["xyz".index(up[-1])]
    assert torch.equal(orient(axis, up), torch.tensor([0.0, 1.0, 0.0]))
    rotation = orient(torch.eye(3), up)  # the images of the axes
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
    assert torch.linalg.det(rotation) == 1


def test_up_rotates_points_and_normals(tmp_path):
    path = write(tmp_path / "a.off", "OFF\n" + SQUARE)
    points, normals = read_points(path, num_points=13, up="z", with_normals=True)
    assert (points[:, 1] == 0).all()
    assert (normals == torch.tensor([0.0, 1.0, 0.0])).all()


def test_normalize_points():
    points = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0], [2.0, 8.0, 0.0]])  # mean (2, 6, 0), radius 2
    expected = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(normalize_points(points), expected)
    batch = torch.stack([points, 7 * points + 1e3])
    torch.testing.assert_close(normalize_points(batch), torch.stack([expected] * 2), atol=1e-4, rtol=0)
    for value in (0.1, 0.3, -12345.678):  # whose mean of 1,000 is not exactly themselves
        assert torch.equal(normalize_points(torch.full((2, 1000, 3), value)), torch.zeros(2, 1000, 3))


def test_open3d_without_its_system_libraries_says_which_to_install(monkeypatch):
    class Broken:
        def find_spec(self, name, *_):
            if name == "open3d":
                raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"libGL.so.1.*apt-get install libusb-1.0-0 libegl1 libgl1"):
        import_open3d()


def test_importing_needs_neither_open3d_nor_trimesh():
    code = "import sys, pcea.meshes; print(sorted({'open3d', 'trimesh', 'h5py', 'torch_geometric'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "psb_meshes").is_dir(), reason=f"{DATA}/psb_meshes is not there; see data/README.md")
def test_the_psb_meshes_are_read():
    files = sorted((DATA / "psb_meshes").glob("*.off"))
    assert len(files) == 19
    for file in files:
        mesh = trimesh.load(file, process=False)
        points, normals = read_points(file, num_points=101, with_normals=True)
        low, high = torch.tensor(mesh.bounds.tolist())
        assert ((points >= low - 1e-5) & (points <= high + 1e-5)).all()
        torch.testing.assert_close(normals.norm(dim=1), torch.ones(101))


def test_a_small_cloud_is_kept_whole_down_to_min_points(tmp_path):
    np.save(tmp_path / "small.npy", np.random.default_rng(0).random((13, 3)))
    assert read_points(tmp_path / "small.npy", num_points=17, min_points=11).points.shape == (13, 3)
    assert read_points(tmp_path / "small.npy", num_points=7, min_points=5).points.shape == (7, 3)
    with pytest.raises(ValueError, match="holds 13 points, fewer than num_points=15"):
        read_points(tmp_path / "small.npy", num_points=17, min_points=15)
