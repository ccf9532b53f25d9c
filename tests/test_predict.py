"""Classes of files, with weights trained here on boxes that stand and boxes that lie."""

import csv
from functools import partial

import numpy as np
import pytest
import torch
import trimesh

from pcea import eat_classifier
from pcea.meshes import normalize_points
from pcea.predict import classify_files, load_classifier, predict
from pcea.weights import Weights, save_weights

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
    save_weights(path, Weights("eat_classifier", arguments, network.state_dict(), NAMES, 64, {}))
    return str(path)


@pytest.fixture
def classify(weights):
    return partial(classify_files, weights=weights)


def write_mesh(path, kind):
    trimesh.creation.box(EXTENTS[kind]).export(path)
    return path


@pytest.mark.parametrize("extension", ["off", "stl", "ply", "obj"])
@pytest.mark.parametrize("kind", EXTENTS)
def test_meshes(tmp_path, classify, kind, extension):
    [prediction] = classify([write_mesh(tmp_path / f"box.{extension}", kind)])
    assert prediction.class_names[0] == kind
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)


@pytest.mark.parametrize("count", [17, 64, 500])
def test_clouds_larger_and_smaller_than_in_training(tmp_path, classify, count):
    points = (np.random.default_rng(0).random((count, 3)) - 0.5) * EXTENTS["standing"] + 100
    np.save(tmp_path / "cloud.npy", points)
    assert classify([tmp_path / "cloud.npy"])[0].class_names[0] == "standing"


def test_up_turns_the_shape(tmp_path, classify):
    points = (np.random.default_rng(0).random((64, 3)) - 0.5) * (1, 1, 4)  # stands along z
    np.save(tmp_path / "z.npy", points)
    np.save(tmp_path / "y.npy", points[:, [0, 2, 1]] * (1, 1, -1))
    [as_it_is] = classify([tmp_path / "z.npy"])
    [turned] = classify([tmp_path / "z.npy"], up="z")
    [upright] = classify([tmp_path / "y.npy"])
    assert as_it_is.class_names[0] == "lying"
    assert turned[1:] == upright[1:]


def test_what_is_printed_and_written(tmp_path, weights, capsys):
    files = [write_mesh(tmp_path / f"{kind}.off", kind) for kind in EXTENTS]
    predict(files, weights=weights, top=2, output=tmp_path / "out.csv")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[str(f), kind] for f, kind in zip(files, EXTENTS)]
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["rank"]) for row in rows] == [(str(f), rank) for f in files for rank in ("1", "2")]
    assert rows[0]["class"] == "lying"
    # Rounded to 0.1 % on the screen and to 0.01 % in the file.
    assert float(lines[0].split()[2].rstrip("%")) == pytest.approx(100 * float(rows[0]["probability"]), abs=0.06)


def test_unreadable_files_are_counted_and_named_and_nothing_is_written(tmp_path, weights, capsys):
    good = write_mesh(tmp_path / "box.off", "lying")
    (tmp_path / "picture.off").write_bytes(b"\x89PNG\r\n")
    np.save(tmp_path / "small.npy", np.random.default_rng(0).random((15, 3)))
    files = [good, tmp_path / "picture.off", good, tmp_path / "small.npy"]
    with pytest.raises(ValueError, match=r"2 of 4 files cannot be read.*picture\.off.*small\.npy holds 15 points"):
        predict(files, weights=weights, output=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert capsys.readouterr().out == ""


def test_errors(tmp_path, classify):
    with pytest.raises(FileNotFoundError, match=r"No such file: .*a\.off, .*b\.off"):
        classify([tmp_path / "a.off", tmp_path / "b.off"])
    box = write_mesh(tmp_path / "box.off", "lying")
    with pytest.raises(ValueError, match=r"^up must be one of x, y, z, -x, -y, -z, got 'q'"):
        classify([box], up="q")
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        classify([box], top=0)
    with pytest.raises(FileNotFoundError, match="modelnet40_eat_cpu"):
        classify_files([box], weights="nothing")


def test_the_shipped_weights_know_40_classes():
    network, names, num_points = load_classifier("modelnet40_eat_cpu")
    assert not network.training
    assert (len(names), names[0], num_points) == (40, "airplane", 1024)
    assert network(torch.randn(2, 1024, 3)).shape == (2, 40)
