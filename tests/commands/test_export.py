"""Weights files and graphs of trained networks; what hostile files try is in tests/models/test_build.py."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import PARTS, assert_one_line, run, trained_on_parts

from pcea.datasets.shapes import Shapes
from pcea.inference.networks import DEFAULT_WEIGHTS, load
from pcea.io.checkpoints import read_network
from pcea.io.description import StoredNetwork
from pcea.io.points import Points
from pcea.io.weights import save_weights
from pcea.visualization.subject import shared_views

EXAMPLE = Path(__file__).parents[2] / "scripts" / "examples" / "run_onnx.py"


def export(capsys, weights, output):
    code, printed, errors = run(capsys, "export", weights, "--output", output)
    assert code == 0, errors
    assert printed.startswith(f"{output}: ")


def test_weights_files_come_from_any_weights(capsys, tmp_path):
    export(capsys, "modelnet40_eat_cpu", tmp_path / "copy.safetensors")
    shipped, copy = load("modelnet40_eat_cpu"), load(tmp_path / "copy.safetensors")
    points = torch.rand(300, 3)
    assert shipped.predict(points) == copy.predict(points)
    assert copy.description.source["epoch"] == 70


@pytest.mark.slow
def test_a_graph_of_the_default_network_runs_without_pcea(capsys, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export(capsys, DEFAULT_WEIGHTS, tmp_path / "model.onnx")
    shape = Shapes("test", num_shapes=60, num_points=1024).points[48]
    noise = torch.rand(1024, 3, generator=torch.Generator().manual_seed(0))
    default, unsure = load(), []
    for points in (shape, noise):  # an airplane, and nothing
        np.save(tmp_path / "cloud.npy", points.numpy())
        code = (
            "import sys; sys.modules['torch'] = sys.modules['pcea'] = None; "
            f"sys.argv[1:] = ['model.onnx', 'cloud.npy']; exec(open({str(EXAMPLE)!r}).read())"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        expected = default.pose(Points(points), up="y")
        prediction = default.rank(expected.logits, 1, score=expected.score)
        printed = f"{prediction.class_names[0]} {prediction.probabilities[0]:.1%}"
        unsure.append(not prediction.is_known)
        assert done.stdout.strip() == (printed if prediction.is_known else f"unsure, closest: {printed}")
    assert unsure == [False, True]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert len(json.loads(metadata["class_names"])) == 40
    about, description = json.loads(metadata["preprocessing"]), default.description
    assert {name: about[name] for name in ("background", "temperature", "known_above", "min_points")} == {
        "background": True,
        "temperature": description.temperature,
        "known_above": description.known_above,
        "min_points": 1,
    }
    for n in (1, 64, 100, 400, 512, 513):  # its first stage has 512 centres
        points = shape[None, :n]
        (logits,) = session.run(None, {"points": points.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), default.network(points), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_export_names_the_fewest_points_of_a_graph(capsys, tmp_path):
    code, printed, errors = run(capsys, "export", "modelnet40_eat_cpu", "--output", tmp_path / "eat.pt2")
    assert code == 0, errors
    fewest = load("modelnet40_eat_cpu").network.min_points
    assert printed.strip().endswith(f" MB, for clouds of at least {fewest} points")
    extra = {"metadata.json": ""}
    torch.export.load(tmp_path / "eat.pt2", extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert json.loads(metadata["preprocessing"])["min_points"] == fewest


def test_help_says_what_a_graph_needs(capsys):
    _, printed, _ = run(capsys, "export", "--help")
    words = " ".join(printed.split())
    assert "import pcea.ops.neighbors, pcea.ops.sampling" in words
    assert "program.module()(points=points)" in words
    assert "min_points, the fewest points of a cloud" in words


@pytest.mark.slow
def test_a_program_keeps_its_metadata(capsys, tmp_path):
    trained = trained_on_parts()
    save_weights(tmp_path / "parts.safetensors", StoredNetwork(trained.description, trained.network.state_dict()))
    export(capsys, tmp_path / "parts.safetensors", tmp_path / "parts.pt2")
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "parts.pt2", extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert json.loads(metadata["class_names"]) == list(trained.class_names)
    assert json.loads(metadata["parts"]) == {name: list(classes) for name, classes in PARTS.items()}
    assert json.loads(metadata["preprocessing"])["num_points"] == 64
    network = load(tmp_path / "parts.safetensors").network
    points, category = torch.rand(3, 90, 3), torch.tensor([0, 1, 1])
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(points=points, category=category), network(points, category=category), atol=1e-4, rtol=1e-4
        )


def test_bad_input(capsys, tmp_path):
    assert_one_line(run(capsys, "export", "modelnet40_eat_cpu", "--output", tmp_path / "x.txt"), "must end in", "x.txt")
    assert_one_line(run(capsys, "export", "modelnet40_eat_cpu", "--output", tmp_path / "no" / "x.onnx"), "No folder")
    assert_one_line(run(capsys, "export", "nothing", "--output", tmp_path / "x.onnx"), "No trained network 'nothing'")
    assert list(tmp_path.iterdir()) == []


def test_colors_chosen_by_examples_mean_the_same_in_every_file(capsys, tmp_path):
    (tmp_path / "examples").mkdir()
    files = [tmp_path / "0.npy", *(tmp_path / "examples" / f"{i}.npy" for i in (1, 2, 3))]
    for file, points in zip(files, Shapes("train", num_shapes=4, num_points=1024).points):
        np.save(file, points.numpy())
    stored = read_network("modelnet40_eat_cpu")
    bare = tmp_path / "without.safetensors"
    save_weights(bare, stored._replace(description=stored.description._replace(color_bases={})))
    code, _, errors = run(
        capsys, "export", bare, "--output", tmp_path / "with.safetensors", "--examples", files[1].parent
    )
    assert code == 0, errors

    def colors(weights, *shown):
        subjects = [load(tmp_path / f"{weights}.safetensors").subject(file, up="y") for file in shown]
        return shared_views(subjects, "colors", layer=3)[0].colors

    assert colors("with", files[0]).equal(colors("with", files[0], files[2]))
    assert not colors("without", files[0]).equal(colors("without", files[0], files[2]))
    # Found from the very files that are shown, the colours are those that were stored.
    stored, found = (colors(weights, *files[1:]).int() for weights in ("with", "without"))
    assert (stored - found).abs().max() <= 1
