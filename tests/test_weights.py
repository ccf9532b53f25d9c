import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pcea import eat_classifier
from pcea.weights import SHIPPED, Weights, load_weights, save_weights

SIZES = {"num_classes": 5, "dim": 16, "num_centers": (16, 8), "num_neighbors": 4, "memory_units": 8,
         "out_channels": 32, "widths": (16, 8)}  # fmt: skip


@pytest.fixture
def network():
    network = eat_classifier(**SIZES)
    for name, buffer in network.named_buffers():
        if "running_var" in name:
            buffer.fill_(1e-7)  # below the smallest normal number of fp16
    return network.eval()


@pytest.fixture
def stored(network, tmp_path):
    path = tmp_path / "tiny.safetensors"
    about = Weights("eat_classifier", SIZES, network.state_dict(), tuple("abcde"), 32, {"commit": "1"})
    save_weights(path, about)
    return path, about


def test_everything_comes_back(stored):
    path, about = stored
    back = load_weights(path)
    assert (back.builder, back.class_names, back.num_points, back.source) == (
        about.builder, about.class_names, about.num_points, about.source,
    )  # fmt: skip
    assert back.state.keys() == about.state.keys()
    for name, value in about.state.items():
        expected = value if "running_" in name or not value.is_floating_point() else value.half().float()
        assert back.state[name].equal(expected), name
        assert back.state[name].dtype == value.dtype


def test_the_parts_come_back_in_the_order_of_the_categories(stored, tmp_path):
    assert load_weights(stored[0]).parts == {}
    parts = {"table": (0, 3), "chair": (1, 2, 4)}
    save_weights(tmp_path / "parts", stored[1]._replace(parts=parts))
    assert list(load_weights(tmp_path / "parts").parts.items()) == list(parts.items())


def test_what_images_need_comes_back(stored, tmp_path):
    assert load_weights(stored[0])[-4:] == ((), (), (), ())
    images = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "image_size": (224, 192), "category_ids": (3, 7)}
    save_weights(tmp_path / "images", stored[1]._replace(**images))
    back = load_weights(tmp_path / "images")
    assert {name: getattr(back, name) for name in images} == images


def test_files_from_before_there_were_parts_still_load(stored, tmp_path):
    with safe_open(stored[0], framework="pt") as file:
        metadata, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["about"])
    for name in ("parts", "mean", "std", "image_size", "category_ids"):
        del about[name]
    save_file(state, tmp_path / "old", metadata=metadata | {"about": json.dumps(about)})
    assert load_weights(tmp_path / "old")[-5:] == ({}, (), (), (), ())
    assert load_weights("modelnet40_eat_cpu").num_points == 1024


def test_the_builder_restores_the_network(stored, network):
    points = torch.randn(3, 32, 3)
    restored = eat_classifier(weights=stored[0]).eval()
    torch.testing.assert_close(restored(points), network(points), atol=0.05, rtol=0.05)
    assert restored.num_classes == 5


def test_half_precision_is_half_the_size(stored, network, tmp_path):
    save_file(network.state_dict(), tmp_path / "full.safetensors")
    assert stored[0].stat().st_size < 0.75 * (tmp_path / "full.safetensors").stat().st_size


def test_the_shipped_weights_stay_small():
    assert (SHIPPED / "modelnet40_eat_cpu.safetensors").stat().st_size < 4e6


def test_errors(tmp_path, stored):
    with pytest.raises(
        FileNotFoundError, match="neither a file nor one of those shipped: labeled_psb_eat, modelnet40_eat_cpu"
    ):
        load_weights("nothing")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match=r"text is not a weights file \(safetensors\)"):
        load_weights(tmp_path / "text")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not a weights file of pcea"):
        load_weights(tmp_path / "foreign.safetensors")
    save_weights(tmp_path / "other", stored[1]._replace(builder="pct_classifier"))
    with pytest.raises(ValueError, match="weights of pct_classifier, not of eat_classifier"):
        eat_classifier(weights=tmp_path / "other")
