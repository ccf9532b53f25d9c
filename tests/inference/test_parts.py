"""Parts of points, by a network trained here: towers have a foot and a head, bars a left, a middle and a right."""

import warnings

import numpy as np
import pytest
import torch
import trimesh
from examples import NUM_POINTS, PARTS, describe_parts, true_parts
from examples import PART_NAMES as NAMES
from examples import PART_SIZES as SIZES
from examples import trained_on_parts as trained

from pcea.datasets.part_files import read_part_file
from pcea.inference.parts import (
    PartPredictor,
    find_category,
    read_object,
    write_parts,
)
from pcea.inference.points import load_cloud
from pcea.io.description import NetworkDescription
from pcea.io.points import Points, load_points, normalize_points
from pcea.models.point_segmenter import eat_part_segmenter
from pcea.visualization import palette


def cube(count, generator):
    return torch.rand(count, 3, generator=generator)


@pytest.mark.parametrize("category", PARTS)
@pytest.mark.parametrize(("count", "points_per_pass"), [(500, None), (500, 0), (500, 100), (40, None)])
def test_every_point_gets_a_part_of_its_category_in_order(generator, category, count, points_per_pass):
    points = cube(count, generator)
    prediction = trained().predict(Points(points), category=category, points_per_pass=points_per_pass)
    truth = true_parts(normalize_points(points), category)
    assert (prediction.part_label == truth).float().mean() > 0.85
    assert set(prediction.part_label.tolist()) == set(PARTS[category])
    assert prediction.shares == pytest.approx(
        {NAMES[c].split("/")[1]: float((prediction.part_label == c).float().mean()) for c in PARTS[category]}
    )


def test_the_network_sees_as_many_points_as_it_was_trained_for(generator):
    seen = []
    handle = trained().network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    for points_per_pass in (None, 50, 0):
        trained().predict(Points(cube(130, generator)), category="bar", points_per_pass=points_per_pass)
    handle.remove()
    assert seen == [(3, 64, 3), (3, 50, 3), (1, 130, 3)]


def test_unit_place_and_upward_axis_do_not_matter_and_come_back(generator):
    points = cube(300, generator)
    upright = trained().predict(Points(points), category="tower")
    moved = Points(50 * points[:, [0, 2, 1]] * torch.tensor([1, -1, 1]) + 7)  # stands along z
    prediction = trained().predict(moved, category="tower", up="z")
    assert prediction.points.equal(moved.points)
    assert prediction.part_label.equal(upright.part_label)
    torch.testing.assert_close(prediction.confidence, upright.confidence, atol=1e-3, rtol=0)


def test_a_survey_far_from_the_origin_is_labelled_as_well_and_written_to_the_centimetre(tmp_path, rng):
    near = np.round(rng.random((300, 3)) * 10, 2)
    far = np.round(near + np.array([500000, 5400000, 300]), 2)  # UTM; float32 would round to half a metre
    np.savetxt(tmp_path / "near.xyz", near, fmt="%.2f")
    np.savetxt(tmp_path / "far.xyz", far, fmt="%.2f")
    here, there = tmp_path / "near.xyz", tmp_path / "far.xyz"
    expected = trained().predict(here, category="tower").part_label
    prediction = trained().predict(there, category="tower")
    assert (prediction.part_label == expected).float().mean() > 0.99
    write_parts(tmp_path, "out", prediction)
    for extension in (".ply", ".npz"):
        assert np.array_equal(load_points(tmp_path / f"out{extension}").points.numpy(), far)


def constant(points, features=None, *, category=None):
    """Logits of every point: 0 and log 3 for the parts of a tower, more for a bar's."""
    return torch.tensor([9.0, 0.0, 9.0, np.log(3), 9.0]).expand(*points.shape[:2], 5)


@pytest.mark.filterwarnings("ignore:.*of 7 points it cannot tell")
def test_confidence_is_the_probability_among_the_parts_of_the_category(monkeypatch):
    monkeypatch.setattr(trained().network, "forward", constant)
    prediction = trained().predict(Points(torch.rand(7, 3)), category="tower")
    assert prediction.part_label.tolist() == [3] * 7
    torch.testing.assert_close(prediction.confidence, torch.full((7,), 0.75), atol=1e-4, rtol=0)


def test_scenes_have_no_category(generator):
    about = NetworkDescription("parts", "pcea.eat_part_segmenter", {}, NAMES, NUM_POINTS)
    network = PartPredictor(eat_part_segmenter(5, 0, **SIZES), about)
    prediction = network.predict(Points(cube(70, generator)))
    assert (prediction.category, prediction.parts) == ("", (0, 1, 2, 3, 4))
    assert list(prediction.shares) == list(NAMES)
    with pytest.raises(ValueError, match="no categories: leave category 'tower' out"):
        network.predict(Points(cube(70, generator)), category="tower")


def test_find_category():
    assert find_category({}, None) is None
    assert find_category({"mug": (0, 1)}, None) == "mug"
    assert find_category(PARTS, "bar") == "bar"
    with pytest.raises(ValueError, match="category must be one of tower, bar"):
        find_category(PARTS, None)
    with pytest.raises(ValueError, match="No category 'mug': category must be one of tower, bar"):
        find_category(PARTS, "mug")


def test_meshes_are_sampled_and_clouds_stay_whole_and_in_order(tmp_path, rng):
    box = trimesh.creation.box((1, 2, 3))
    points = rng.random((50, 3)).astype(np.float32)
    normals = np.tile(np.float32([0, 0, 1]), (50, 1))
    for name in ("box.off", "box.ply"):
        box.export(tmp_path / name)
    np.savetxt(tmp_path / "labelled.txt", np.hstack([points, normals, np.full((50, 1), 41)]))
    np.save(tmp_path / "bare.npy", points)
    trimesh.PointCloud(points).export(tmp_path / "cloud.ply")
    np.save(tmp_path / "colors.npy", np.hstack([points, 200 * points]))
    names = ("box.off", "box.ply", "labelled.txt", "bare.npy", "cloud.ply", "colors.npy")
    off, ply, *clouds = (load_cloud(tmp_path / name, mesh_points=30) for name in names)
    for mesh in (off, ply):
        assert mesh.points.shape == mesh.normals.shape == (30, 3)
    for cloud in clouds:
        assert cloud.points.numpy() == pytest.approx(points)
    assert clouds[0].normals.numpy() == pytest.approx(normals)
    assert [cloud.normals for cloud in clouds[1:]] == [None] * 3


@pytest.fixture
def written(tmp_path, generator):
    normals = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=1)
    prediction = trained().predict(Points(cube(200, generator), normals), category="bar")
    write_parts(tmp_path, "scan", prediction)
    return tmp_path, prediction


def test_the_npz(written):
    folder, prediction = written
    with np.load(folder / "scan.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"points", "normals", "part_label", "confidence", "part_names", "category"}
        for name in ("points", "normals", "part_label", "confidence"):
            assert np.array_equal(arrays[name], getattr(prediction, name).numpy())
        assert arrays["category"] == "bar"
        assert set(arrays["part_names"][arrays["part_label"]]) == {"bar/left", "bar/middle", "bar/right"}


def test_the_ply_in_trimesh(written):
    folder, prediction = written
    cloud = trimesh.load(folder / "scan.ply")
    vertex = cloud.metadata["_ply_raw"]["vertex"]["data"]
    assert np.array_equal(cloud.vertices, prediction.points.numpy())
    assert np.array_equal(np.stack([vertex[n] for n in ("nx", "ny", "nz")], 1), prediction.normals.numpy())
    assert np.array_equal(vertex["part_label"], prediction.part_label.numpy())
    assert np.array_equal(vertex["confidence"], prediction.confidence.numpy())
    for position, part in enumerate(PARTS["bar"]):
        colors = cloud.colors[vertex["part_label"] == part][:, :3]
        assert (colors == palette(3)[position].numpy()).all()
    assert b"comment part_label 2 middle: red 86 green 180 blue 233\n" in (folder / "scan.ply").read_bytes()


def test_the_ply_in_open3d(written):
    open3d = pytest.importorskip("open3d")
    folder, prediction = written
    cloud = open3d.io.read_point_cloud(str(folder / "scan.ply"))
    assert np.array_equal(np.asarray(cloud.points), prediction.points.numpy())
    assert np.array_equal(np.asarray(cloud.normals), prediction.normals.numpy())
    assert {tuple(row) for row in np.rint(255 * np.asarray(cloud.colors)).astype(int)} == {
        tuple(row) for row in palette(3).tolist()
    }


@pytest.mark.parametrize("extension", [".npz", ".ply"])
def test_the_result_is_a_labelled_cloud(written, extension):
    folder, prediction = written
    cloud = read_part_file((folder / "scan").with_suffix(extension), with_normals=True)
    assert cloud.label.equal(prediction.part_label)


def test_without_normals_there_are_none_in_the_files(tmp_path, generator):
    write_parts(tmp_path, "scan", trained().predict(Points(cube(70, generator)), category="bar"))
    assert "normals" not in np.load(tmp_path / "scan.npz")
    assert b"property float nx" not in (tmp_path / "scan.ply").read_bytes()


def test_errors(generator):
    cloud = Points(cube(70, generator))
    with pytest.raises(ValueError, match="points_per_pass must be at least 1, or 0 for all points, got -1"):
        trained().predict(cloud, category="bar", points_per_pass=-1)
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        trained().predict(cloud, category="bar", num_points=0)


def test_normals_are_estimated_with_a_warning(generator):
    pytest.importorskip("open3d")
    arguments = {"num_classes": 5, "num_categories": 2, "in_channels": 6, **SIZES}
    with_normals = PartPredictor(eat_part_segmenter(**arguments), describe_parts(arguments))
    with pytest.warns(UserWarning, match="The array has no normals, which the network needs: they are estimated"):
        prediction = with_normals.predict(cube(70, generator), category="bar")
    torch.testing.assert_close(prediction.normals.norm(dim=1), torch.ones(70))


def test_what_is_printed(generator):
    prediction = trained().predict(cube(300, generator), category="tower")
    foot = 100 * float((prediction.part_label == PARTS["tower"][0]).float().mean())
    confidence = 100 * float(prediction.confidence.mean())
    assert str(prediction) == (
        f"tower  300 points  foot {foot:.1f} %  head {100 - foot:.1f} %  mean confidence {confidence:.1f} %"
    )


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        trained().predict(cube(100, None), category="tower", seed=-1)


def test_what_makes_parts_wrong_is_said() -> None:
    points = torch.rand(5000, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_object(points, usual=2048)
        read_object(points[:256], usual=2048)
    with pytest.warns(UserWarning, match="trained on clouds of 2048 points: of 255 points it cannot tell"):
        read_object(points[:255], usual=2048)
    points[4321] = 10  # in no sample of a fifth of the points
    with pytest.warns(UserWarning, match="The array: 1 point lies far from all others: no part"):
        read_object(points, usual=2048)


def test_points_in_one_place_have_no_parts() -> None:
    with pytest.raises(ValueError, match="The array: all 100 points are in one place"):
        trained().predict(torch.ones(100, 3), category="tower")
