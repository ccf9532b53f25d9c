"""Classes of files, with weights trained here on boxes that stand and boxes that lie; and parts of files."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from examples import (
    PART_SIZES,
    PARTS,
    assert_one_line,
    describe_parts,
    one_thread,
    run,
    trained_on_parts,
    true_parts,
)
from PIL import Image

from pcea import eat_classifier
from pcea.commands.predict import predict
from pcea.inference.networks import load
from pcea.io.checkpoints import read_network
from pcea.io.description import NetworkDescription, StoredNetwork
from pcea.io.points import normalize_points
from pcea.io.weights import save_weights
from pcea.models.point_segmenter import eat_part_segmenter

SIZES = {"dim": 16, "num_centers": (16, 8), "num_neighbors": 4, "memory_units": 8, "out_channels": 32,
         "widths": (16, 8), "dropout": 0.0}  # fmt: skip
NAMES = ("lying", "standing", "ball")
EXTENTS = {"lying": (3, 1, 3), "standing": (1, 4, 1)}


def boxes(count, generator):
    """Surface-like clouds of both kinds, (B, 64, 3), and their classes."""
    label = torch.arange(count) % 2
    extents = torch.tensor([EXTENTS["lying"], EXTENTS["standing"]], dtype=torch.float32)[label]
    points = torch.rand(count, 64, 3, generator=generator) - 0.5
    return normalize_points(points * extents[:, None]), label


@pytest.fixture(scope="module")
@one_thread()
def weights(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = eat_classifier(3, **SIZES)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        points, label = boxes(32, generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(points), label).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "boxes.safetensors"
    arguments = {"num_classes": 3, **SIZES}
    normals = arguments.get("in_channels") == 6
    description = NetworkDescription("points", "pcea.eat_classifier", arguments, NAMES, 64, normals)
    save_weights(path, StoredNetwork(description, network.state_dict()))
    return str(path)


@pytest.fixture
def classify(weights):
    return load(weights).predict


def write_mesh(path, kind):
    trimesh.creation.box(EXTENTS[kind]).export(path)
    return path


@pytest.mark.parametrize("extension", ["off", "stl", "ply", "obj"])
@pytest.mark.parametrize("kind", EXTENTS)
def test_meshes(tmp_path, classify, kind, extension):
    prediction = classify(write_mesh(tmp_path / f"box.{extension}", kind))
    assert prediction.class_names[0] == kind
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)


@pytest.mark.parametrize("count", [17, 64, 500])
def test_clouds_larger_and_smaller_than_in_training(tmp_path, classify, count):
    points = (np.random.default_rng(0).random((count, 3)) - 0.5) * EXTENTS["standing"] + 100
    np.save(tmp_path / "cloud.npy", points)
    for source in (tmp_path / "cloud.npy", points, torch.from_numpy(points)):
        assert classify(source).class_names[0] == "standing"


def test_up_turns_the_shape(tmp_path, classify):
    points = (np.random.default_rng(0).random((64, 3)) - 0.5) * (1, 1, 4)  # stands along z
    np.save(tmp_path / "z.npy", points)
    np.save(tmp_path / "y.npy", points[:, [0, 2, 1]] * (1, 1, -1))
    as_it_is = classify(tmp_path / "z.npy")
    turned = classify(tmp_path / "z.npy", up="z")
    upright = classify(tmp_path / "y.npy")
    assert turned.class_names[0] == "standing"
    assert turned == upright
    assert as_it_is.probabilities != pytest.approx(turned.probabilities, abs=0.01)


def test_what_is_printed_and_written(tmp_path, weights, capsys):
    files = [write_mesh(tmp_path / f"{kind}.off", kind) for kind in EXTENTS]
    predict(files, weights=weights, top=2, output=tmp_path / "out.csv")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [[str(f), kind] for f, kind in zip(files, EXTENTS)]
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["rank"]) for row in rows] == [(str(f), rank) for f in files for rank in ("1", "2")]
    assert rows[0]["class"] == "lying"
    # Rounded to 0.1 % on the screen and to 0.01 % in the file.
    assert float(lines[0].split()[2].rstrip("%")) == pytest.approx(100 * float(rows[0]["probability"]), abs=0.06)


def test_unreadable_files_are_counted_and_named_and_do_not_stop_the_others(tmp_path, weights, capsys):
    good = write_mesh(tmp_path / "box.off", "lying")
    (tmp_path / "picture.off").write_bytes(b"\x89PNG\r\n")
    np.save(tmp_path / "small.npy", np.random.default_rng(0).random((15, 3)))
    other = write_mesh(tmp_path / "other.off", "standing")
    files = [good, tmp_path / "picture.off", other, tmp_path / "small.npy", good]
    with pytest.raises(SystemExit, match="1"):
        predict(files, weights=weights, top=1, output=tmp_path / "out.csv")
    printed = capsys.readouterr()
    message = r"2 of 4 files cannot be read.*picture\.off.*small\.npy: The network needs at least 16 points"
    assert re.search(message, printed.err)
    assert [line.split()[0] for line in printed.out.splitlines()[:-1]] == [str(good), str(other)]
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [str(file) for file in files[:4]]
    assert [row["class"] for row in rows] == ["lying", "", "standing", ""]
    assert [row["error"][:12] for row in rows] == ["", str(files[1])[:12], "", str(files[3])[:12]]
    assert "The network needs at least 16 points" in rows[3]["error"]
    with pytest.raises(ValueError, match=r"picture\.off could not be read"):
        predict(files[1:2], weights=weights, output=tmp_path / "none.csv")
    assert "could not be read" in (tmp_path / "none.csv").read_text()


def test_errors(tmp_path, classify):
    with pytest.raises(FileNotFoundError, match=r"No such file: .*a\.off, .*b\.off"):
        predict([tmp_path / "a.off", tmp_path / "b.off"])
    box = write_mesh(tmp_path / "box.off", "lying")
    with pytest.raises(ValueError, match=r"^up must be one of x, y, z, -x, -y, -z, got 'q'"):
        predict([box], up="q")
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        classify(box, top=0)
    with pytest.raises(FileNotFoundError, match="modelnet40_eat_cpu"):
        predict([box], weights="nothing")
    with pytest.raises(ValueError, match=r"--output .* is a folder: .* writes a CSV file"):
        predict([box], output=tmp_path)
    with pytest.raises(ValueError, match="names the class of a mesh or cloud: --category is not for it"):
        predict([box], category="tower")


@pytest.fixture(scope="module")
def part_weights(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("weights") / "parts.safetensors")
    trained = trained_on_parts()
    save_weights(path, StoredNetwork(trained.description, trained.network.state_dict()))
    return path


@pytest.fixture
def cloud(tmp_path, rng):
    points = 3 * rng.random((300, 3)).astype(np.float32) + 10
    np.save(tmp_path / "cloud.npy", points)
    return tmp_path / "cloud.npy", torch.from_numpy(points)


def test_parts_are_printed_and_written(tmp_path, part_weights, cloud, capsys):
    file, points = cloud
    box = write_mesh(tmp_path / "box.off", "lying")
    options = {"weights": part_weights, "category": "tower", "num_points": 150}
    predict([file, box], output=tmp_path / "out", **options)
    printed = capsys.readouterr()
    assert printed.err == ""
    first, second, last = printed.out.splitlines()
    assert first.startswith(f"{file}  tower  300 points  foot ")
    assert second.startswith(f"{box}    tower  150 points  foot ")
    assert str(tmp_path / "out") in last
    names = ["box.npz", "box.ply", "cloud.npz", "cloud.ply", "predictions.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    arrays = np.load(tmp_path / "out" / "cloud.npz")
    assert np.array_equal(arrays["points"], points.numpy())
    assert (torch.from_numpy(arrays["part_label"]) == true_parts(normalize_points(points), "tower")).sum() > 255
    foot = 100 * float((arrays["part_label"] == PARTS["tower"][0]).mean())
    assert f"foot {foot:.1f} %  head {100 - foot:.1f} %" in first
    assert first.endswith(f"mean confidence {100 * float(arrays['confidence'].mean()):.1f} %")

    predict([file, box], **options)
    assert capsys.readouterr().out.splitlines() == [first, second]


def test_files_of_others_are_not_replaced(tmp_path, part_weights, cloud, capsys):
    own = tmp_path / "cloud.ply"
    own.write_text("mine")
    command = ("predict", cloud[0], "--weights", part_weights, "--category", "tower", "--output", tmp_path)
    assert_one_line(run(capsys, *command), f"{own.name} would be written over", "or --overwrite")
    assert own.read_text() == "mine"
    code, _, errors = run(capsys, *command, "--overwrite")
    assert (code, own.read_bytes()[:3]) == (0, b"ply"), errors


def test_what_is_written_if_a_file_of_points_cannot_be_read(tmp_path, part_weights, cloud, capsys):
    (tmp_path / "bad.npy").write_text("no cloud")
    with pytest.raises(SystemExit, match="1"):
        predict([tmp_path / "bad.npy", cloud[0]], weights=part_weights, category="bar", output=tmp_path / "out")
    assert re.search(r"1 of 2 files cannot be read: .*bad\.npy", capsys.readouterr().err)
    names = ["cloud.npz", "cloud.ply", "predictions.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_errors_of_parts(tmp_path, part_weights, cloud):
    with pytest.raises(ValueError, match="category must be one of tower, bar"):
        predict([cloud[0]], weights=part_weights)
    with pytest.raises(ValueError, match="names the parts of points: --top is not for it"):
        predict([cloud[0]], weights=part_weights, category="bar", top=3)
    np.savetxt(tmp_path / "cloud.txt", cloud[1])
    with pytest.raises(ValueError, match="would both be written"):
        predict([cloud[0], tmp_path / "cloud.txt"], weights=part_weights, category="bar", output=tmp_path / "out")


@pytest.fixture
def weights_with_normals(tmp_path):
    arguments = {"num_classes": 5, "num_categories": 2, "in_channels": 6, **PART_SIZES}
    state = eat_part_segmenter(**arguments).state_dict()
    path = str(tmp_path / "normals.safetensors")
    save_weights(path, StoredNetwork(describe_parts(arguments), state))
    return path


def test_normals_are_estimated_where_there_are_none(tmp_path, weights_with_normals, cloud, capsys):
    pytest.importorskip("open3d")
    box = write_mesh(tmp_path / "box.off", "lying")
    with pytest.warns(UserWarning, match=r"cloud\.npy has no normals, which the network needs: they are estimated"):
        predict([cloud[0], box], weights=weights_with_normals, category="bar", output=tmp_path / "out")
    capsys.readouterr()
    normals = np.load(tmp_path / "out" / "cloud.npz")["normals"]
    assert np.linalg.norm(normals, axis=1) == pytest.approx(np.ones(300), abs=1e-5)
    predict([box], weights=weights_with_normals, category="bar")
    assert capsys.readouterr().err == ""


def test_normals_without_open3d(weights_with_normals, cloud, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with (
        pytest.raises(ImportError, match=r"open3d"),
        pytest.warns(UserWarning, match=r"cloud\.npy has no normals, which the network needs"),
    ):
        predict([cloud[0]], weights=weights_with_normals, category="bar")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["modelnet40_eat_cpu", "modelnet40_pointea_fast", "modelnet40_pointea_files"])
def test_the_shipped_weights_know_40_classes(name):
    trained = load(name)
    assert not trained.network.training
    about = trained.description
    assert (len(about.class_names), about.class_names[0], about.num_points) == (40, "airplane", 1024)
    assert trained.network(torch.randn(2, 1024, 3)).shape == (2, 40 + about.background)
    assert about.background == (name == "modelnet40_pointea_files")


def test_weights_of_another_builder(tmp_path):
    save_weights(tmp_path / "other", StoredNetwork(NetworkDescription("points", "pcea.resnet"), {"x": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"other names pcea\.resnet, which cannot be imported"):
        load(tmp_path / "other")


@pytest.mark.parametrize("task", ["parts", "objects"])
def test_a_network_that_is_not_what_its_file_says(tmp_path, capsys, weights, cloud, task):
    stored = read_network(weights)
    description = stored.description._replace(task=task, mean=(0.5,) * 3, std=(0.5,) * 3)
    save_weights(tmp_path / "odd.safetensors", stored._replace(description=description))
    file = cloud[0]
    if task != "parts":
        file = tmp_path / "image.png"
        Image.new("RGB", (30, 20)).save(file)
    for command in (["predict"], ["visualize", "--output", tmp_path / "x.png"]):
        result = run(capsys, command[0], file, *command[1:], "--weights", tmp_path / "odd.safetensors")
        assert_one_line(result, "odd.safetensors does not work as one for the task", task)


def test_what_is_alike(weights, tmp_path, capsys):
    """Two folders of boxes of other sizes than in training; the files are told apart by their alike."""
    generator = np.random.default_rng(0)
    kinds = {"tower": (1, 6, 1), "plate": (5, 0.5, 5)}
    for name, extents in kinds.items():
        (tmp_path / "examples" / name).mkdir(parents=True)
        for k in range(3):
            np.save(tmp_path / "examples" / name / f"{k}.npy", (generator.random((64, 3)) - 0.5) * extents)
        np.save(tmp_path / f"{name}.npy", (generator.random((64, 3)) - 0.5) * extents)
    files = [tmp_path / f"{name}.npy" for name in kinds]
    code, output, errors = run(capsys, "predict", *files, "--weights", weights, "--like", tmp_path / "examples")
    assert code == 0, errors
    assert [line.split()[1] for line in output.splitlines()] == ["tower", "plate"]
    assert_one_line(
        run(capsys, "predict", *files, "--weights", weights, "--like", tmp_path / "examples" / "tower"),
        "at least two folders of examples",
    )
    assert_one_line(
        run(capsys, "predict", *files, "--weights", weights, "--like", tmp_path / "examples", "--up", "z"),
        "--up is not for --like",
    )
    assert_one_line(
        run(capsys, "predict", *files, "--weights", weights, "--like", tmp_path / "examples", "--explain"), "--like out"
    )


def test_what_decided(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("tower.npy", (np.random.default_rng(0).random((64, 3)) - 0.5) * (1, 6, 1))
    # Where nothing can be drawn, the coloured points are written.
    monkeypatch.setattr("pcea.commands.predict.can_draw", lambda: False)
    code, output, errors = run(capsys, "predict", "tower.npy", "--weights", weights, "--explain")
    assert code == 0, errors
    lines = output.splitlines()
    assert lines[0].startswith("tower.npy  standing ")
    assert len(lines) == 11
    assert re.fullmatch(r"  in this pose alone: standing \d+ %", lines[1])
    assert all(
        re.match(r"  \d\. (top|middle|bottom), (inner|outer) +\d+ % of the points, decides", line)
        for line in lines[2:10]
    )
    assert lines[10] == "  tower_explained.ply"
    assert len(trimesh.load("tower_explained.ply").vertices) == 64


def test_what_cannot_be_explained_does_not_stop_the_others(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pcea.commands.predict.can_draw", lambda: False)
    np.save("few.npy", np.repeat(np.random.default_rng(0).random((8, 3)), 8, axis=0))
    np.save("tower.npy", (np.random.default_rng(0).random((64, 3)) - 0.5) * (1, 6, 1))
    command = ("predict", "few.npy", "tower.npy", "--weights", weights, "--explain", "--output", "table.csv")
    code, output, errors = run(capsys, *command)
    assert code == 1
    assert "few.npy: no explanation: At least 9 different points are needed, got" in errors
    assert "tower_explained.ply" in output
    with Path("table.csv").open(newline="") as file:
        assert {row["file"] for row in csv.DictReader(file) if not row["error"]} == {"few.npy", "tower.npy"}
    assert_one_line(run(capsys, *command, "--overwrite", "--strict"), "few.npy: no explanation")


@pytest.mark.parametrize("output", ["points.csv", "folder/../points.csv", "points.parquet"])
def test_an_input_is_not_overwritten(output, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    np.savetxt("points.csv", np.random.default_rng(0).random((64, 3)), delimiter=",")
    before = (tmp_path / "points.csv").read_bytes()
    result = run(capsys, "predict", "points.csv", "--weights", weights, "--output", output, "--overwrite")
    assert_one_line(result, "The result would overwrite points.csv, which is to be read")
    assert (tmp_path / "points.csv").read_bytes() == before


def test_a_table_needs_a_folder(weights, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((64, 3)))
    output = tmp_path / "nowhere" / "table.csv"
    result = run(capsys, "predict", tmp_path / "x.npy", "--weights", weights, "--output", output)
    assert_one_line(result, "No folder", "nowhere to write table.csv into")


def test_a_network_without_background_finds_no_pose(weights, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((64, 3)))
    command = ("predict", tmp_path / "x.npy", "--weights", weights)
    code, output, errors = run(capsys, *command, "--up", "auto")
    assert code == 0
    assert errors.count("\n") == 1
    assert "cannot find poses, as it was trained without background: y is up" in errors
    assert output == run(capsys, *command)[1] == run(capsys, *command, "--up", "y")[1]
    assert run(capsys, *command)[2] == ""


def test_two_explanations_of_one_name(weights, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.random.default_rng(0).random((64, 3)))
    files = [tmp_path / folder / "x.npy" for folder in ("a", "b")]
    result = run(capsys, "predict", *files, "--weights", weights, "--explain")
    assert_one_line(result, "would both be written to x_explained.png")


def test_no_explanation_of_parts(part_weights, cloud, capsys):
    result = run(capsys, "predict", cloud[0], "--weights", part_weights, "--explain")
    assert_one_line(result, "names the parts of points", "--explain is not for it")


def test_a_table_of_another_name_beside_the_input(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savetxt("points.csv", np.random.default_rng(0).random((64, 3)), delimiter=",")
    assert run(capsys, "predict", "points.csv", "--weights", weights, "--output", "points.txt")[0] == 0
