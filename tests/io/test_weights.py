import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pcea import eat_classifier
from pcea.io.description import NetworkDescription, StoredNetwork
from pcea.io.weights import SHIPPED, load_weights, save_weights

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
    description = NetworkDescription(
        "points", "pcea.models.eat_classifier", SIZES, tuple("abcde"), 32, source={"commit": "1"}
    )
    stored = StoredNetwork(description, network.state_dict())
    save_weights(path, stored)
    return path, stored


def test_everything_comes_back(stored):
    path, given = stored
    back = load_weights(path)
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in SIZES.items()}
    assert back.description == given.description._replace(arguments=lists)
    assert back.state.keys() == given.state.keys()
    for name, value in given.state.items():
        expected = value if "running_" in name or not value.is_floating_point() else value.half().float()
        assert back.state[name].equal(expected), name
        assert back.state[name].dtype == value.dtype


def rewrite(path, target, change):
    """A weights file with other metadata."""
    with safe_open(path, framework="pt") as file:
        metadata, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["about"])
    metadata = {name: value for name, value in change(metadata, about).items() if value is not None}
    save_file(state, target, metadata=metadata)


@pytest.mark.parametrize(
    ("builder", "arguments", "path", "task", "has_normals"),
    [
        ("eat_classifier", {}, "pcea.models.eat_classifier", "points", False),
        ("eat_part_segmenter", {"in_channels": 6}, "pcea.models.eat_part_segmenter", "parts", True),
        ("eamlp_7", {}, "pcea.models.eamlp_7", "images", False),
        ("EANet", {}, "pcea.models.EANet", "masks", False),
        ("MaskRCNN", {}, "pcea.models.MaskRCNN", "objects", False),
    ],
)
def test_files_of_the_first_format_still_load(stored, tmp_path, builder, arguments, path, task, has_normals):
    about = {"builder": builder, "arguments": arguments, "class_names": ["a"], "num_points": 3, "source": {}}
    rewrite(stored[0], tmp_path / "old", lambda *_: {"format": "pcea weights 1", "about": json.dumps(about)})
    back = load_weights(tmp_path / "old").description
    assert (back.builder, back.task, back.has_normals) == (path, task, has_normals)
    assert back == NetworkDescription(task, path, arguments, ("a",), 3, has_normals, parts={}, source={})


def test_the_shipped_weights_say_what_they_are():
    points, parts = (load_weights(name).description for name in ("modelnet40_eat_cpu", "labeled_psb_eat"))
    assert (points.task, points.num_points, points.has_normals, len(points.class_names)) == ("points", 1024, False, 40)
    assert (parts.task, parts.num_points, parts.has_normals, len(parts.parts)) == ("parts", 1024, True, 19)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, _: m | {"about": "{"}, "description is not JSON"),
        (lambda m, _: m | {"about": "[" * 100_000}, "description is not JSON"),
        (lambda m, _: m | {"about": None}, "description is not JSON"),
        (lambda m, _: m | {"about": "3"}, "description of the network must be a mapping"),
        (lambda m, a: m | {"about": json.dumps(a | {"mean": 3})}, "mean of the network must be three numbers, got 3"),
        (lambda m, _: m | {"format": "pcea weights 1", "about": "{}"}, "builder of the network must be an import path"),
        (lambda m, _: m | {"format": "other"}, "not a weights file of pcea"),
    ],
)
def test_damaged_descriptions(stored, tmp_path, change, message):
    rewrite(stored[0], tmp_path / "bad", change)
    with pytest.raises(ValueError, match=rf"bad.*{message}"):
        load_weights(tmp_path / "bad")


def test_the_builder_restores_the_network(stored, network):
    points = torch.randn(3, 32, 3)
    restored = eat_classifier(weights=stored[0]).eval()
    torch.testing.assert_close(restored(points), network(points), atol=0.05, rtol=0.05)
    assert restored.num_classes == 5


def test_half_precision_is_half_the_size(stored, network, tmp_path):
    save_file(network.state_dict(), tmp_path / "full.safetensors")
    assert stored[0].stat().st_size < 0.75 * (tmp_path / "full.safetensors").stat().st_size


def test_the_shipped_weights_stay_small():
    assert all(path.stat().st_size < 4e6 for path in SHIPPED.glob("*.safetensors"))


def test_errors(tmp_path, stored):
    with pytest.raises(
        FileNotFoundError, match="neither a file nor one of those shipped: labeled_psb_eat, labeled_psb_p"
    ):
        load_weights("nothing")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match=r"text is not a weights file \(safetensors\)"):
        load_weights(tmp_path / "text")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not a weights file of pcea"):
        load_weights(tmp_path / "foreign.safetensors")


def test_what_is_out_of_the_range_of_half_precision_is_kept_in_single(network, stored, tmp_path):
    state = network.state_dict()
    path, _ = stored
    name = next(name for name, value in state.items() if value.ndim == 2)
    state[name] = state[name].fill_(1e5)
    save_weights(tmp_path / "large.safetensors", load_weights(path)._replace(state=state))
    assert torch.equal(load_weights(tmp_path / "large.safetensors").state[name], state[name])
