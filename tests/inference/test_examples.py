import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import POINT_SIZES as SIZES

from pcea import eat_classifier
from pcea.datasets.shapes import Shapes
from pcea.inference.examples import feature_of, fit_examples, read_examples
from pcea.inference.points import PointPredictor, make_denser
from pcea.io.description import NetworkDescription
from pcea.io.points import Points, normalize_points
from pcea.io.surroundings import SurroundedShape
from pcea.transforms.points import axis_rotations


@pytest.fixture(scope="module")
def network() -> PointPredictor:
    torch.manual_seed(0)
    names = tuple("abcdef")
    return PointPredictor(eat_classifier(6, **SIZES).eval(), NetworkDescription("points", "own", {}, names, 128))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three examples of each of three kinds of shapes, each in another pose."""
    root = tmp_path_factory.mktemp("examples")
    shapes = Shapes("train", num_shapes=240, num_points=400)
    for number in (0, 3, 7):
        (root / shapes.class_names[number]).mkdir()
        for k, cloud in enumerate(shapes.points[shapes.label == number][:3]):
            np.save(root / shapes.class_names[number] / f"{k}.npy", (cloud @ axis_rotations()[5 * k].T).numpy())
    return root


def test_an_example_is_like_itself_and_the_pose_does_not_matter(network: PointPredictor, folder: Path) -> None:
    examples = read_examples(network, folder)
    assert examples.class_names == tuple(sorted(path.name for path in folder.iterdir()))
    assert examples.label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for file in sorted(folder.glob("*/*.npy")):
        found = network.predict(file, like=examples)
        assert found.class_names[0] == file.parent.name
        assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
        turned = network.predict(torch.from_numpy(np.load(file)) @ axis_rotations()[7].T, like=examples)
        assert turned.class_names == found.class_names
        assert turned.probabilities == pytest.approx(found.probabilities, abs=1e-3)
    assert network.predict(file, like=folder)[:2] == found[:2]
    assert [row[3] for row in network.rows(found)] == ["yes", "yes", "yes"]


def test_copies_say_nothing_about_how_alike_examples_are(network: PointPredictor, folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*/*.npy"):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        for name in (file.name, f"copy of {file.name}"):
            (tmp_path / file.parent.name / name).write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match=r"0.npy and .*copy of 0.npy are the same example, and 8 more pairs are"):
        twice = read_examples(network, tmp_path)
    assert twice.temperature == pytest.approx(read_examples(network, folder).temperature, rel=0.05)


def test_what_is_like_no_example_is_not_known() -> None:
    generator = torch.Generator().manual_seed(0)
    center = 10 * torch.randn(3, 16, generator=generator)
    label = torch.arange(3).repeat_interleave(40)
    examples = fit_examples(tuple("abc"), center[label] + torch.randn(120, 16, generator=generator), label)
    assert examples.known_above is not None

    def known_share(features: torch.Tensor) -> float:
        return sum(examples.score(feature) >= examples.known_above for feature in features) / len(features)

    assert known_share(examples.features * examples.std + examples.mean) == 1  # each is the nearest to itself
    assert known_share(center[label] + torch.randn(120, 16, generator=generator)) > 0.9
    assert known_share(center[label] + 1.4 * torch.randn(120, 16, generator=generator)) < 0.9
    assert known_share(10 * torch.randn(40, 16, generator=generator)) == 0
    assert known_share(center[label] + 30 * torch.randn(120, 16, generator=generator)) == 0
    alone = fit_examples(tuple("abc"), center, torch.arange(3))
    assert alone.known_above is None


def test_of_files_unlike_all_examples_it_is_unsure(network: PointPredictor, folder: Path) -> None:
    examples = read_examples(network, folder)
    slab = torch.rand(128, 3) * torch.tensor([1, 1, 1e-2])
    score = network.predict(slab, like=examples).score
    assert score == pytest.approx(examples.score(network.embed(slab)), abs=1e-4)
    found = network.predict(slab, like=examples._replace(known_above=score + 0.01))
    assert not found.is_known
    assert str(found).startswith("unsure: nothing it knows (closest: ")
    assert network.rows(found)[0][3] == "no"


def test_examples_are_of_one_network(network: PointPredictor, folder: Path) -> None:
    examples = read_examples(network, folder)
    torch.manual_seed(1)
    other = PointPredictor(eat_classifier(6, **SIZES).eval(), network.description)
    assert other.digest() != network.digest()
    with pytest.raises(ValueError, match="examples were read with another network"):
        other.predict(torch.rand(200, 3), like=examples)


def test_the_ground_under_a_shape_is_not_compared(network: PointPredictor, folder: Path) -> None:
    """If that is more like an example; an untrained network may say otherwise."""
    examples = read_examples(network, folder)
    whole = SurroundedShape(torch.rand(128, 3))
    whole.standing = (Points(torch.from_numpy(np.load(min(folder.glob("*/*.npy")))[:128])),)
    clouds = [Points(*whole), *whole.standing]
    closest = max(clouds, key=lambda cloud: float(examples.compare(network.embed(cloud)).max()))
    assert closest is whole.standing[0]
    found, expected = network.predict_contents([whole, closest], like=examples)
    assert found == expected


def test_few_points_are_compared_as_more_between_them(network: PointPredictor) -> None:
    few = torch.rand(16, 3)
    turned = normalize_points(few) @ axis_rotations().mT
    with torch.inference_mode():
        expected = feature_of(network.network, make_denser(turned, 64)).mean(0)
    torch.testing.assert_close(network.embed(few), expected, rtol=1e-4, atol=1e-4)


def test_the_feature_is_what_the_last_layer_gets(network: PointPredictor) -> None:
    points = torch.rand(2, 100, 3)
    with torch.inference_mode():
        feature = feature_of(network.network, points)
        torch.testing.assert_close(network.network.head[-1](feature), network.network(points))
    with pytest.raises(ValueError, match="Identity has no linear layer that gives its classes"):
        feature_of(torch.nn.Identity(), points)


def test_examples_in_splits_are_of_their_classes(network: PointPredictor, folder: Path, tmp_path: Path) -> None:
    for number, file in enumerate(sorted(folder.glob("*/*.npy"))):
        target = tmp_path / ("test" if number % 3 == 2 else "train") / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    examples, whole = read_examples(network, tmp_path), read_examples(network, folder)
    assert examples.class_names == whole.class_names
    assert torch.equal(examples.label, whole.label)
    (tmp_path / "more").mkdir()
    with pytest.raises(ValueError, match="holds folders, as a split does"):
        read_examples(network, tmp_path)


def test_too_few_folders(network: PointPredictor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No folder"):
        read_examples(network, tmp_path / "missing")
    (tmp_path / "chair").mkdir()
    np.save(tmp_path / "chair" / "1.npy", np.random.default_rng(0).random((200, 3)))
    np.save(tmp_path / "loose.npy", np.random.default_rng(0).random((200, 3)))
    with pytest.raises(ValueError, match=r"must hold at least two folders of examples, .*, got 1: expected .*<class>"):
        read_examples(network, tmp_path)


def test_what_examples_cannot_be_used_is_said(network: PointPredictor, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "nothing").mkdir()
    with pytest.warns(UserWarning, match="nothing is like 'nothing', as there is no mesh or cloud file in the folder"):
        examples = read_examples(network, tmp_path)
    with pytest.raises(ValueError, match="up='z' is not for `like`, which compares shapes in all poses"):
        network.predict(np.eye(3), like=examples, up="z")
    (tmp_path / "nothing" / "a.stl").write_text("no mesh")
    (tmp_path / "nothing" / "b.npy").write_text("no array")
    with pytest.raises(
        ValueError, match=r"^2 of 11 files cannot be read: .*a.stl.*; .*b.npy is not.* Repair or remove"
    ):
        read_examples(network, tmp_path)


def test_one_example_a_folder_is_enough(network: PointPredictor, folder: Path, tmp_path: Path) -> None:
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
    files = sorted(folder.glob("*/0.npy"))[:2]
    for name, file in zip(("left", "right"), files):
        (tmp_path / name / "x.npy").write_bytes(file.read_bytes())
    examples = read_examples(network, tmp_path)
    assert [network.predict(file, like=examples).class_names[0] for file in files] == ["left", "right"]


def test_an_explanation_takes_regions_away(network: PointPredictor, folder: Path) -> None:
    file = next(folder.glob("*/0.npy"))
    explanation = network.explain(file, num_regions=5)
    assert len(explanation.regions) == 5
    assert sum(region.share_of_points for region in explanation.regions) == pytest.approx(1)
    assert sum(region.share_of_feature or 0 for region in explanation.regions) == pytest.approx(1)
    name = explanation.prediction.class_names[0]
    left = [r.without.probabilities[r.without.class_names.index(name)] for r in explanation.regions]
    assert left == sorted(left)  # what matters most comes first
    # By hand: the network's answer to the points of the file without the first region.
    cloud = network.read(file)
    seen = explanation.points  # a cloud is drawn whole
    assert len(seen) == 400
    assert str(explanation).count("\n") == 5
    assert explanation.upright.title in str(explanation)
    assert explanation.regions[0].without.title in str(explanation)
    view = explanation.view()
    # Both in the pose that was found: what the network says of all poses together is another probability.
    posed = network.pose(cloud)
    turned = cloud.points @ posed.rotation.T
    alone = network.predict(turned, up="y", top=len(network.class_names))
    assert explanation.upright.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
    assert view.values.equal(explanation.region_of)
    for number, (text, color) in enumerate(view.legend):
        region = explanation.regions[number]
        assert text == f"{number + 1}. {region.place}: {name} {100 * left[number]:.0f} % without it"
        assert (view.colors[explanation.region_of == number] == torch.tensor(color)).all()
    assert len(cloud.points) == 128


def test_a_stray_point_that_the_network_does_not_see_moves_no_region(network: PointPredictor, folder: Path) -> None:
    points = torch.from_numpy(np.load(next(folder.glob("*/0.npy")))).float()
    before = network.explain(points)
    seen = network.read(points).points
    unseen = next(i for i in range(len(points)) if not (points[i] == seen).all(1).any())
    points[unseen] = 1e3
    with pytest.warns(UserWarning, match="is drawn without 1 point far from all others"):
        after = network.explain(points)
    assert [region.place for region in after.regions] == [region.place for region in before.regions]
    others = torch.arange(len(points)) != unseen
    assert after.region_of.equal(before.region_of[others])


def test_no_explanation_of_a_few_points(network: PointPredictor) -> None:
    with pytest.raises(ValueError, match="At least 9 different points are needed, got 3"):
        network.explain(torch.rand(3, 3).repeat(50, 1))
