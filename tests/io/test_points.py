import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from examples import cloud, write

from pcea.inference.points import load_cloud
from pcea.io.ply import write_ply
from pcea.io.points import (
    Normalization,
    Points,
    as_points,
    estimate_normals,
    load_points,
    normalize_points,
    orient,
    sample_points,
)
from pcea.io.readers import import_open3d

DATA = Path(os.environ.get("PCEA_DATA", Path(__file__).parents[2] / "data"))
SQUARE = "OFF\n4 1 0\n0 0 0\n2 0 0\n2 1 0\n0 1 0\n4 0 1 2 3\n"  # a 2 x 1 rectangle in the plane z = 0, one quad


def save(path, table):
    np.save(path, table)
    return path


@pytest.fixture
def needs_open3d():
    try:
        import_open3d()
    except ImportError as error:
        pytest.skip(str(error))


def test_meshes_are_sampled_by_area(tmp_path):
    points, normals = load_points(write(tmp_path / "a.off", SQUARE), 2000, normals="file")
    assert points.shape == normals.shape == (2000, 3)
    assert points.dtype == normals.dtype == torch.float32
    assert (points[:, 2] == 0).all()
    assert (normals == torch.tensor([0.0, 0.0, 1.0])).all()
    # The mean is the middle, and a quarter of the points lies in each quarter.
    torch.testing.assert_close(points.mean(0), torch.tensor([1.0, 0.5, 0.0]), atol=0.05, rtol=0)
    quarter = (points[:, 0] < 1) & (points[:, 1] < 0.5)
    assert abs(quarter.float().mean() - 0.25) < 0.04


@pytest.mark.parametrize("extension", ["off", "obj", "stl", "ply", "glb"])
def test_points_lie_on_the_surface_and_faces_look_outwards(tmp_path, extension):
    path = tmp_path / f"box.{extension}"
    trimesh.creation.box((2, 2, 2)).export(path)
    points, normals = load_points(path, 501, normals="required")
    torch.testing.assert_close(points.abs().amax(1), torch.ones(501))
    torch.testing.assert_close((points * normals).sum(1), torch.ones(501))


def test_a_scene_is_one_mesh(tmp_path):
    scene = trimesh.Scene([trimesh.creation.box(), trimesh.creation.box().apply_translation((9, 0, 0))])
    scene.export(tmp_path / "two.glb")
    points = load_points(tmp_path / "two.glb", 999).points
    assert 0.4 < (points[:, 0] > 5).float().mean() < 0.6


def test_the_seed_decides_the_sample(tmp_path):
    path = write(tmp_path / "a.off", SQUARE)
    first = load_points(path, 11, seed=3).points
    assert torch.equal(first, load_points(path, 11, seed=3).points)
    assert not torch.equal(first, load_points(path, 11, seed=4).points)


def test_how_many_points(tmp_path):
    mesh, table = write(tmp_path / "a.off", SQUARE), cloud(13)
    path = save(tmp_path / "a.npy", table)
    assert torch.equal(load_points(path, mesh_points=5).points, torch.from_numpy(table).float())  # whole, in order
    assert [len(load_points(file, 7, mesh_points=5).points) for file in (mesh, path)] == [7, 7]
    assert len(load_points(mesh, mesh_points=5).points) == 5
    assert len(load_points(mesh).points) == 10_000
    some = load_points(path, 5, seed=1).points
    assert len({*map(tuple, some.tolist())} & {*map(tuple, table.astype(np.float32).tolist())}) == 5
    assert len(load_points(path, 17, min_points=11).points) == 13
    assert len(load_points(path, 7, min_points=9).points) == 7
    with pytest.raises(ValueError, match="holds 13 points, fewer than num_points=15"):
        load_points(path, 17, min_points=15)


def test_columns_behind_the_coordinates(tmp_path):
    """Intensities, colours and labels are ignored, and normals found before them."""
    table = cloud(7, 10)
    for columns in range(3, 11):
        np.savetxt(tmp_path / "a.txt", table[:, :columns])
        points, normals = load_points(tmp_path / "a.txt", normals="file")
        torch.testing.assert_close(points, torch.from_numpy(table[:, :3]).float())
        if columns < 6:
            assert normals is None
        else:
            torch.testing.assert_close(normals, torch.from_numpy(table[:, 3:6]).float())


@pytest.mark.usefixtures("needs_open3d")
def test_normals(tmp_path):
    table = cloud(50, 6)
    full, bare = save(tmp_path / "full.npy", table), save(tmp_path / "bare.npy", table[:, :3])
    colors = save(tmp_path / "colors.npy", np.hstack([table[:, :3], np.full((50, 3), 200)]))
    bright = save(tmp_path / "bright.npy", np.hstack([table[:, :3], np.random.default_rng(1).random((50, 3))]))
    pure, grey, plane = (
        save(tmp_path / f"{name}.npy", np.hstack([table[:, :3], colors]))
        for name, colors in (
            ("pure", np.eye(3)[np.arange(50) % 3]),
            ("grey", np.full((50, 3), 0.577)),
            ("plane", np.tile([0.0, 0, 1], (50, 1))),
        )
    )
    given = torch.from_numpy(table[:, 3:]).float()
    estimated = estimate_normals(torch.from_numpy(table[:, :3]).float())
    for path, option, expected in (
        (full, "none", None),
        (full, "file", given),
        (full, "required", given),
        (full, "estimate", given),
        (bare, "file", None),
        (bare, "estimate", estimated),
        (colors, "file", None),
        (colors, "estimate", estimated),
        (bright, "file", None),
        (pure, "file", None),
        (grey, "file", None),
        (plane, "file", torch.tensor([[0.0, 0, 1]]).expand(50, 3)),
    ):
        torch.testing.assert_close(load_points(path, normals=option).normals, expected)
    some = load_points(bare, 30, normals="estimate", up="z")
    torch.testing.assert_close(
        some.normals, orient(estimate_normals(load_points(bare, 30).points), "z"), atol=1e-6, rtol=0
    )
    with pytest.raises(ValueError, match=r"bare.npy has no normals. Read it without them"):
        load_points(bare, normals="required")
    with pytest.raises(ValueError, match=r"colors.npy: columns 4 to 6 are not unit normals \(colours\?\)"):
        load_points(colors, normals="required")


def test_normals_by_name_may_have_any_length(tmp_path):
    table = cloud(20, 6)
    np.savez(tmp_path / "a.npz", points=np.hstack([table[:, :3], np.ones((20, 1))]), normals=3 * table[None, :, 3:])
    names = ("x", "y", "z", "normal_x", "normal_y", "normal_z")
    write_ply(tmp_path / "a.ply", dict(zip(names, np.hstack([table[:, :3], 2 * table[:, 3:]]).T)))
    for name in ("a.npz", "a.ply"):
        normals = load_points(tmp_path / name, normals="file").normals
        torch.testing.assert_close(normals, torch.from_numpy(table[:, 3:]).float())


def test_a_vertex_of_no_face_may_be_nan(tmp_path):
    (tmp_path / "a.off").write_text("OFF\n4 1 0\n0 0 0\n1 0 0\n0 1 0\nnan nan nan\n3 0 1 2\n")
    assert load_points(tmp_path / "a.off", 10).points.isfinite().all()


def test_normals_of_a_mesh_are_never_taken_for_colours(tmp_path):
    """All normals of this corner of a cube are positive."""
    faces = "3 0 1 2\n3 0 2 3\n3 0 3 1\n"
    (tmp_path / "a.off").write_text("OFF\n4 3 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n" + faces)
    assert (load_points(tmp_path / "a.off", 50, normals="file").normals >= 0).all()


def test_normals_are_scaled_to_unit_length(tmp_path):
    table = np.hstack([cloud(3), [[0, 0, 1.02], [0, -0.98, 0], [0, 0, 0]]])
    normals = load_points(save(tmp_path / "a.npy", table), normals="file").normals
    assert normals.tolist() == [[0, 0, 1], [0, -1, 0], [0, 0, 0]]


# A survey of one square kilometre, in centimetres: float32 would round 3 cm and 50 cm away.
UTM = np.round(np.random.default_rng(0).random((50, 3)) * [1000, 1000, 50] + [500000, 5400000, 300], 2)


@pytest.mark.parametrize("extension", ["txt", "npy"])
def test_points_far_from_the_origin_come_back_to_the_centimetre(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    np.savetxt(path, UTM, fmt="%.2f") if extension == "txt" else np.save(path, UTM)
    survey = load_points(path)
    assert survey.points.dtype == torch.float64
    np.testing.assert_array_equal(survey.points.numpy(), UTM)
    # Through the unit sphere in float32, as a network sees it, and back.
    near = normalize_points(survey.points)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, normalize_points(torch.from_numpy(UTM - UTM[0])), atol=1e-6, rtol=0)
    back = survey.normalization.restore(near)
    assert (back - torch.from_numpy(UTM)).abs().max() < 0.001
    write_ply(tmp_path / "out.ply", dict(zip("xyz", survey.points.numpy().T)))
    np.testing.assert_array_equal(load_points(tmp_path / "out.ply").points.numpy(), UTM)


def test_a_mesh_far_from_the_origin(tmp_path):
    box = trimesh.creation.box((2, 2, 2)).apply_translation((5e5, 5.4e6, 300))
    box.export(tmp_path / "a.off", digits=12)
    survey = load_points(tmp_path / "a.off", 99)
    around = survey.points - torch.tensor([5e5, 5.4e6, 300], dtype=torch.float64)
    torch.testing.assert_close(around.abs().amax(1), torch.ones(99, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("table", "dtype"),
    [
        (cloud(50), torch.float32),
        (cloud(50) + 2, torch.float32),
        (cloud(50) + 1000, torch.float64),
        ((cloud(50) + 1000).astype(np.float32), torch.float32),  # the file has no more digits
        (1e-40 * cloud(50), torch.float64),
        (np.arange(150).reshape(50, 3) + 2**24, torch.float64),
        (np.arange(150).reshape(50, 3), torch.float32),
        (np.full((50, 3), 0.1), torch.float64),
    ],
)
def test_float64_only_where_float32_would_lose_digits(table, dtype):
    points = as_points(table, path=Path("a")).points
    assert points.dtype == dtype
    np.testing.assert_allclose(points.numpy(), table, rtol=1e-7 if dtype == torch.float32 else 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "a.off is a mesh of zero area"),
        ("a.off", "OFF\n0 0 0\n", "a.off is a mesh without faces"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 nan\n0 1 0\n3 0 1 2\n", "a.off has vertices with NaN"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 nan 0\nv 0 1 0\nf 1 2 3\nf 1 2 4\n", "a.obj has vertices with NaN"),
        ("a.obj", "hello", "a.obj is a mesh without faces, or not a .obj file"),
        ("a.stl", "hello", r"a.stl could not be read as .stl \(it does not begin with solid"),
        ("a.stl", "", r"a.stl could not be read as .stl \(it does not begin with solid"),
        ("a.gltf", "{}", "a.gltf could not be read as .gltf"),
        ("a.txt", "", "a.txt is empty"),
        ("a.txt", "x y z\n", "a.txt is empty"),
        ("a.txt", "1 2 3\n", "a.txt holds one point"),
        ("a.txt", "1 2 3\n1 2 nan\n1 2 inf\n", "a.txt: 2 of 3 points have NaN or infinite"),
        ("a.txt", "1 2 3\n1 2 1e39\n", "a.txt: 1 of 2 points have NaN or infinite"),
        ("a.csv", "1,2\n1,2\n1,2\n", r"a.csv must hold numbers in rows of x y z .* got float64 of shape \(3, 2\)"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n", "a.ply is empty"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_points(write(tmp_path / name, text), 2)
    assert "\n" not in str(caught.value)


def test_an_empty_las(tmp_path):
    laspy = pytest.importorskip("laspy")
    laspy.LasData(laspy.LasHeader(point_format=3, version="1.2")).write(tmp_path / "a.las")
    with pytest.raises(ValueError, match=r"a.las is empty"):
        load_points(tmp_path / "a.las")


@pytest.mark.parametrize(
    "table", [np.zeros((2, 5, 3)), np.zeros((5, 11)), np.zeros((5, 3), dtype=bool), np.zeros(5), np.array([["a"] * 3])]
)
def test_arrays_that_are_not_points(table):
    with pytest.raises(ValueError, match=rf"a.npy must hold numbers in rows .* got {table.dtype} of shape"):
        as_points(table, path=Path("a.npy"))


def test_bad_requests(tmp_path):
    path = save(tmp_path / "a.npy", cloud(7))
    with pytest.raises(FileNotFoundError, match=r"No file .*missing.off"):
        load_points(tmp_path / "missing.off", 2)
    with pytest.raises(ValueError, match=r"a.npy holds 7 points, fewer than num_points=8"):
        load_points(path, 8)
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        load_points(path, 0)
    with pytest.raises(ValueError, match="mesh_points must be at least 1, got 0"):
        load_points(path, mesh_points=0)
    with pytest.raises(ValueError, match="normals must be one of none, file, usable, estimate, required, got True"):
        load_points(path, normals=True)
    with pytest.raises(ValueError, match="up must be one of x, y, z, -x, -y, -z, got 'w'"):
        load_points(path, 5, up="w")


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
    points, normals = load_points(write(tmp_path / "a.off", SQUARE), 13, up="z", normals="file")
    assert (points[:, 1] == 0).all()
    assert (normals == torch.tensor([0.0, 1.0, 0.0])).all()


TRIANGLE = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0], [2.0, 8.0, 0.0]])  # mean (2, 6, 0), radius 2
UNIT_TRIANGLE = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 1.0, 0.0]])


def test_normalize_points():
    torch.testing.assert_close(normalize_points(TRIANGLE), UNIT_TRIANGLE)
    batch = torch.stack([TRIANGLE, 7 * TRIANGLE + 1e3])
    torch.testing.assert_close(normalize_points(batch), torch.stack([UNIT_TRIANGLE] * 2), atol=1e-4, rtol=0)
    for value in (0.1, 0.3, -12345.678):  # whose mean of 1,000 is not exactly themselves
        assert torch.equal(normalize_points(torch.full((2, 1000, 3), value)), torch.zeros(2, 1000, 3))


def test_normalisation_is_what_it_was_when_the_recorded_networks_were_trained(generator):
    points = 3 * torch.rand(7, 100, 3, generator=generator) + 1
    moved = points - points[:, :1]
    moved = moved - moved.mean(1, keepdim=True)
    assert torch.equal(normalize_points(points), moved / moved.norm(dim=2, keepdim=True).amax(1, keepdim=True))


def test_the_normalization_of_a_cloud():
    normalization = Points(TRIANGLE).normalization
    torch.testing.assert_close(normalization.center, torch.tensor([[2.0, 6.0, 0.0]]))
    torch.testing.assert_close(normalization.scale, torch.tensor([[2.0]]))
    torch.testing.assert_close(normalization.apply(TRIANGLE), UNIT_TRIANGLE)
    others = torch.tensor([[2.0, 6.0, 4.0]])  # of the same coordinates, but not of the cloud
    torch.testing.assert_close(normalization.apply(others), torch.tensor([[0.0, 0.0, 2.0]]))
    torch.testing.assert_close(normalization.restore(torch.tensor([[0.0, 0.0, 2.0]])), others)


def test_normalizations_of_a_batch_in_float64(generator):
    batch = torch.rand(2, 5, 3, generator=generator, dtype=torch.float64) + torch.tensor([5e5, 5.4e6, 0])
    normalization = Normalization.of(batch)
    near = normalization.apply(batch)
    assert near.dtype == torch.float64
    torch.testing.assert_close(near.norm(dim=2).amax(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(near.mean(1), torch.zeros(2, 3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(normalization.restore(near), batch, atol=1e-9, rtol=0)


@pytest.mark.usefixtures("needs_open3d")
def test_estimated_normals_look_outwards(generator):
    sphere = torch.nn.functional.normalize(torch.randn(2000, 3, generator=generator), dim=1)
    for points in (40 + 5 * sphere, 5e6 + 5 * sphere.double()):
        normals = estimate_normals(points)
        assert ((normals * sphere).sum(1) > 0.97).all()
        assert normals.dtype == torch.float32
    torus = trimesh.creation.torus(3, 1, 60, 40)  # a normal of its inner half looks to the centre
    expected = torch.from_numpy(torus.vertex_normals.copy()).float()
    normals = estimate_normals(torch.from_numpy(torus.vertices.copy()).float())
    assert ((normals * expected).sum(1) > 0.8).all()
    dome = sphere[sphere[:, 2] > 0.2]  # Open3D starts at its lowest point, where the outside is above
    assert ((estimate_normals(dome) * dome).sum(1) > 0.9).all()


@pytest.mark.usefixtures("needs_open3d")
def test_the_points_of_a_large_cloud_look_to_the_side_of_their_neighbours(monkeypatch):
    torus = trimesh.creation.torus(3, 1, 100, 60)
    points, expected = (torch.from_numpy(table.copy()).float() for table in (torus.vertices, torus.vertex_normals))
    oriented = []
    cloud_type = import_open3d().geometry.PointCloud
    orient_normals = cloud_type.orient_normals_consistent_tangent_plane
    monkeypatch.setattr(
        cloud_type,
        "orient_normals_consistent_tangent_plane",
        lambda cloud, k: (oriented.append(len(cloud.points)), orient_normals(cloud, k)),
    )
    monkeypatch.setattr("pcea.io.points._MAX_ORIENTED", 2000)
    assert ((estimate_normals(points) * expected).sum(1) > 0.8).all()
    assert oriented == [2000]
    assert len(points) == 6000


@pytest.mark.usefixtures("needs_open3d")
@pytest.mark.parametrize(
    "points",
    [torch.rand(2, 3), torch.rand(50, 3) * torch.tensor([1, 0, 1]), torch.ones(9, 3)],
    ids=["two", "flat", "same"],
)
def test_normals_of_clouds_without_a_volume(points):
    torch.testing.assert_close(estimate_normals(points).norm(dim=1), torch.ones(len(points)))


def test_importing_needs_neither_open3d_nor_trimesh():
    heavy = {"open3d", "trimesh", "h5py", "laspy", "torch_geometric"}
    code = f"import sys, pcea.io.points; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "psb_meshes").is_dir(), reason=f"{DATA}/psb_meshes is not there; see data/README.md")
def test_the_psb_meshes_are_read():
    files = sorted((DATA / "psb_meshes").glob("*.off"))
    assert len(files) == 19
    for file in files:
        mesh = trimesh.load(file, process=False)
        points, normals = load_points(file, 101, normals="file")
        assert points.dtype == torch.float32
        low, high = torch.tensor(mesh.bounds.tolist())
        assert ((points >= low - 1e-5) & (points <= high + 1e-5)).all()
        torch.testing.assert_close(normals.norm(dim=1), torch.ones(101))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e15, 1e20, 3e22, 1e37])
def test_extreme_coordinates_normalize_like_others(scale):
    table = cloud(50)
    points = as_points(scale * table, path=Path("a")).points
    torch.testing.assert_close(normalize_points(points), normalize_points(torch.from_numpy(table)), atol=1e-5, rtol=0)
    single = torch.from_numpy(scale * table).float()
    if scale > 1e-38:  # whose digits float32 does not hold
        expected = normalize_points(torch.from_numpy(table))
        torch.testing.assert_close(normalize_points(single), expected, atol=1e-5, rtol=0)
        batch = torch.stack([single, single + 1])
        assert normalize_points(batch).isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_normalized(value):
    with pytest.raises(ValueError, match="Points with NaN or infinite coordinates cannot be normalized"):
        normalize_points(torch.tensor([[0.0, 0.0, 0.0], [1.0, value, 0.0]]))


def test_normals_of_nan_are_refused(tmp_path):
    table = cloud(7, 6)
    table[2, 4] = np.nan
    path = save(tmp_path / "a.npy", table)
    with pytest.raises(ValueError, match=r"a.npy: 1 of 7 normals are NaN or infinite"):
        load_points(path, normals="file")
    assert load_points(path).normals is None
    # Networks without normals take the file; the others do not.
    assert load_points(path, normals="usable").normals is None
    assert load_cloud(path).normals is None
    assert load_cloud(table).normals is None
    with pytest.raises(ValueError, match="1 of 7 normals are NaN"):
        load_cloud(path, with_normals=True)
    assert load_points(save(tmp_path / "b.npy", cloud(7, 6)), normals="usable").normals is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_any_precision(dtype):
    points = torch.tensor([[0, 0, 1], [0.5, 0, 0], [0, -2, 0]], dtype=dtype, requires_grad=True)
    assert load_cloud(points).points.tolist() == [[0, 0, 1], [0.5, 0, 0], [0, -2, 0]]
