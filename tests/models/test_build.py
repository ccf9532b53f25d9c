"""Networks from descriptions, and files that try to get something else done."""

import re
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch
from torch import nn

import pcea
from pcea import (
    ExternalAttention,
    MultiHeadExternalAttention,
    SelfAttention,
    eat_classifier,
    eat_semantic_segmenter,
    point_ea_classifier,
)
from pcea.cli import main
from pcea.io.description import NetworkDescription, StoredNetwork
from pcea.io.weights import save_weights
from pcea.models.build import actual_arguments, build_network, builds_networks
from pcea.models.eamlp import ImageTransformer
from pcea.models.pct_checkpoint import load_pct_checkpoint
from pcea.models.resnet import imagenet_weights
from pcea.tasks.generation import load_generator

SIZES = {"num_classes": 3, "dim": 8, "num_centers": [8, 4], "num_neighbors": 4, "memory_units": 4, "out_channels": 8,
         "widths": [8, 8]}  # fmt: skip
VIT = {"num_classes": 3, "dim": 8, "depth": 1, "token_dim": 4, "kernel_sizes": [3, 3], "strides": [2, 2]}


def stored(network, builder, arguments, task="points"):
    return StoredNetwork(NetworkDescription(task, builder, arguments, tuple("abc")), network.state_dict())


@pytest.fixture
def classifier():
    return eat_classifier(**SIZES).eval()


@pytest.mark.parametrize(
    "build",
    [
        eat_classifier,
        partial(pcea.eat_part_segmenter, num_categories=2),
        partial(eat_classifier, weights="modelnet40_eat_cpu"),
        pcea.point_ea_classifier,
        partial(pcea.point_ea_part_segmenter, num_categories=2),
        partial(pcea.eamlp_7),
        partial(pcea.EANet),
    ],
)
def test_a_network_without_classes_is_refused(build):
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        build(num_classes=0)


@pytest.mark.parametrize("build", [pcea.eat_part_segmenter, pcea.point_ea_part_segmenter])
def test_a_negative_number_of_categories_is_refused(build):
    with pytest.raises(ValueError, match="num_categories must be at least 0, got -1"):
        build(5, num_categories=-1)


def test_a_network_comes_back(classifier):
    back = build_network(stored(classifier, "pcea.models.eat_classifier", SIZES), "file")
    points = torch.rand(2, 16, 3)
    assert torch.equal(back(points), classifier(points))
    assert not back.training


@pytest.mark.parametrize("path", ["pcea.SelfAttention", "pcea.nn.SelfAttention"])
def test_a_part_is_prepared_where_the_builder_takes_a_function(path):
    attention = {"class_path": path, "init_args": {"key_dim": 4}}
    network = ImageTransformer(lambda dim: SelfAttention(dim, key_dim=4), **VIT).eval()
    made = stored(network, "pcea.models.ImageTransformer", {"attention": attention, **VIT}, "images")
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(build_network(made, "file")(images), network(images))


def test_a_part_is_built_where_the_builder_takes_a_module(classifier):
    attention = {
        "class_path": "pcea.OffsetAttention",
        "init_args": {"attention": {"class_path": "pcea.ExternalAttention"}},
    }
    sizes = {"dim": 8, "num_centers": [8, 4], "num_neighbors": 4, "out_channels": 8, "depth": 1}
    encoder = {"class_path": "pcea.PointTransformerEncoder", "init_args": {"attention": attention, **sizes}}
    made = NetworkDescription(
        "points", "pcea.PointTransformerClassifier", {"encoder": encoder, "num_classes": 3, "widths": [8, 8]}
    )
    with pytest.raises(ValueError, match="are of another network"):  # of another depth
        build_network(StoredNetwork(made, classifier.state_dict()), "file")


def evil(marker):
    """What the reports' files hold: an argument that is a class to be made, whose argument is a command to be run."""
    command = {"class_path": "subprocess.Popen", "init_args": {"args": f"touch {marker}", "shell": True}}
    return {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1, "device": command}}


def checkpoint(network, state):
    return {"state_dict": {f"network.{n}": v for n, v in state.items()}, "epoch": 0, "class_names": list("abc"),
            "num_points": 16, **network}  # fmt: skip


def old(network):
    """As Lightning noted the configuration."""
    noted = {
        "_class_path": "pcea.tasks.point_classification.PointClassificationTask",
        "_instantiator": "x",
        "network": network,
    }
    return {"hyper_parameters": noted}


def new(network):
    return {"network": {"task": "points", "builder": network["class_path"], "arguments": network["init_args"]}}


def hostile(marker):
    """Checkpoints that want a command to be run, by what they try."""
    network = {"class_path": "pcea.models.eat_classifier", "init_args": SIZES}
    nested = {**network, "init_args": {**SIZES, "dim": evil(marker)}}
    in_list = {**network, "init_args": {**SIZES, "widths": [evil(marker), 8]}}
    attention = {"class_path": "pcea.models.ImageTransformer", "init_args": {**VIT, "attention": evil(marker)}}
    made = {"class_path": "pcea.models.Generator", "init_args": {"attention": evil(marker)}}
    generator = {"_class_path": "pcea.tasks.generation.GenerationTask", "_instantiator": "x", "generator": made}
    yield "the network", old(evil(marker))
    yield "the network, new", new(evil(marker))
    for name, form in (("old", old), ("new", new)):
        yield f"an argument, {name}", form(nested)
        yield f"in a list, {name}", form(in_list)
        yield f"the attention, {name}", form(attention)
        yield f"a module here, {name}", form({"class_path": "evil_mod.Network", "init_args": {}})
        yield (
            f"an installed module, {name}",
            form({"class_path": "timm.create_model", "init_args": {}}),
        )
        command = {"class_path": "pcea.cli.main", "init_args": {"arguments": ["download", "modelnet40"]}}
        yield f"a command of pcea, {name}", form(command)
        yield (
            f"a module seen through pcea, {name}",
            form({"class_path": "pcea.models.rcnn.torch.load", "init_args": {}}),
        )
        load = {"class_path": "pcea.models.resnet.imagenet_weights", "init_args": {"weights": "ResNet18_Weights"}}
        yield f"a download, {name}", form(load)
    yield "the generator", {"hyper_parameters": generator}
    task = old(network)
    task["hyper_parameters"]["_class_path"] = "evil_mod.Task"
    yield "the task", task


@pytest.fixture
def tempting(tmp_path, monkeypatch):
    """A folder with a module that a checkpoint may name, which leaves a mark when it is imported."""
    marker = tmp_path / "executed"
    (tmp_path / "evil_mod.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return marker


@pytest.mark.parametrize("attempt", [name for name, _ in hostile("x")])
@pytest.mark.parametrize("command", ["predict", "visualize", "export", "load_generator"])
def test_a_file_does_not_execute_anything(tempting, tmp_path, classifier, capsys, attempt, command):
    content = dict(hostile(tempting))[attempt]
    torch.save(checkpoint(content, classifier.state_dict()), tmp_path / "hostile.ckpt")
    torch.save({}, tmp_path / "cloud.npy")
    options = {
        "predict": ["predict", "cloud.npy", "--weights", "hostile.ckpt"],
        "visualize": ["visualize", "cloud.npy", "--weights", "hostile.ckpt", "--output", "x.png"],
        "export": ["export", "hostile.ckpt", "--output", "out.safetensors"],
    }
    before = set(sys.modules)
    if command == "load_generator":
        with pytest.raises(ValueError, match=r"hostile\.ckpt"):
            load_generator("hostile.ckpt")
    else:
        with pytest.raises(SystemExit, match="2"):
            main(options[command])
        assert re.search(r"^pcea: error: .*hostile\.ckpt", capsys.readouterr().err)
    assert not tempting.exists()
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {"evil_mod", "timm"}
    assert not (tmp_path / "out.safetensors").exists()


def test_the_users_own_word_opens_a_package(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\nclass Own(nn.Linear):\n    def __init__(self, width): super().__init__(width, 3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = StoredNetwork(NetworkDescription("points", "own_networks.Own", {"width": 2}), nn.Linear(2, 3).state_dict())
    with pytest.raises(ValueError, match=r"names own_networks\.Own, which is not part of pcea.*--trust own_networks"):
        build_network(made, "file")
    assert build_network(made, "file", packages=["own_networks"])(torch.ones(1, 2)).shape == (1, 3)


def test_sizes_are_compared_before_memory_is_taken(classifier):
    large = stored(classifier, "pcea.models.eat_classifier", {**SIZES, "dim": 1_000_000_000})
    code = textwrap.dedent("""
        import resource, sys, torch
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        from pcea.models.build import build_network
        from pcea.io.description import NetworkDescription, StoredNetwork
        try:
            about = NetworkDescription("points", "pcea.eat_classifier", {"dim": 10**9})
            build_network(StoredNetwork(about, {}), "file")
        except ValueError as error:
            print(error)
    """)
    with pytest.raises(ValueError, match=r"are of another network: .* differ, first encoder"):
        build_network(large, "file")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "are of another network" in done.stdout


def test_a_network_of_endless_depth_is_stopped():
    blocks = {"class_path": "pcea.SelfAttention"}
    about = NetworkDescription("images", "pcea.models.ImageTransformer", {**VIT, "depth": 10_000, "attention": blocks})
    with pytest.raises(ValueError, match="far more parameters than the file has weights"):
        build_network(StoredNetwork(about, {}), "file")
    about.arguments["depth"] = 10**9
    with pytest.raises(ValueError, match="depth must be at most 10,000 blocks"):
        build_network(StoredNetwork(about, {}), "file")
    deep = NetworkDescription("points", "pcea.point_ea_classifier", {"num_classes": 3, "depths": [10**9, 1, 1]})
    with pytest.raises(ValueError, match="depths must be at most 10,000 blocks"):
        build_network(StoredNetwork(deep, {}), "file")
    nn.ModuleList(nn.Linear(1, 1) for _ in range(200))  # nothing is counted afterwards


def test_weights_that_are_not_finite(classifier):
    made = stored(classifier, "pcea.eat_classifier", SIZES)
    made.state["head.4.bias"][1] = torch.nan
    with pytest.raises(ValueError, match=r"file holds NaN or infinite weights, first in head\.4\.bias"):
        build_network(made, "file")


@pytest.mark.parametrize(
    "arguments", [{"dims": 8}, {"dim": "wide"}, {"num_centers": 3}, {"dim": 7}, {"num_neighbors": [4]}]
)
def test_arguments_that_build_nothing(classifier, arguments):
    with pytest.raises(ValueError, match=r"^file|in file"):
        build_network(stored(classifier, "pcea.eat_classifier", SIZES | arguments), "file")


def test_what_a_file_may_call():
    assert builds_networks(eat_classifier)
    assert builds_networks(ExternalAttention)
    for function in (load_pct_checkpoint, imagenet_weights, build_network, print, torch.load):
        assert not builds_networks(function)


@pytest.fixture
def weights(tmp_path, classifier):
    path = tmp_path / "three.safetensors"
    save_weights(path, stored(classifier, "pcea.eat_classifier", SIZES))
    return path


def test_other_classes_get_a_new_head(weights, classifier):
    same, other = eat_classifier(weights=weights), eat_classifier(5, weights=weights)
    assert (same.num_classes, other.num_classes) == (3, 5)
    assert other.training
    for name, value in other.state_dict().items():
        if name.startswith("encoder."):
            torch.testing.assert_close(value, classifier.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert torch.equal(same.state_dict()["head.4.bias"], classifier.state_dict()["head.4.bias"].half().float())
    assert other(torch.rand(2, 16, 3)).shape == (2, 5)


def test_arguments_beside_weights_replace_those_of_the_file(weights, classifier):
    network = eat_classifier(weights=weights, dropout=0.25)
    assert max(m.p for m in network.modules() if isinstance(m, nn.Dropout)) == 0.25
    same = eat_classifier(weights=weights, num_centers=tuple(SIZES["num_centers"]))
    for name, value in classifier.state_dict().items():
        for each in (network, same):
            torch.testing.assert_close(each.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert eat_classifier(5, weights=weights, dropout=0.25).num_classes == 5
    written = {"weights": str(weights), "num_classes": None, "dropout": 0.25, "in_channels": 3}
    described = actual_arguments("pcea.eat_classifier", written, network)
    assert described == {**SIZES, "num_classes": 3, "dropout": 0.25}


@pytest.mark.parametrize("num_classes", [None, 5])
def test_arguments_that_do_not_fit_the_weights_are_refused(weights, num_classes):
    with pytest.raises(ValueError, match=r"three.safetensors do not fit in_channels=6: 1 of \d+ differ, first encoder"):
        eat_classifier(num_classes, weights=weights, in_channels=6)


def test_a_new_head_on_an_encoder_with_another_attention(tmp_path):
    """The file names the attention; it is built for the new network too."""
    sizes = {"num_classes": 3, "widths": [8, 16, 24], "num_centers": [12, 6, 3], "num_neighbors": 4}
    part = {"class_path": "pcea.nn.attention.MultiHeadExternalAttention", "init_args": {"num_heads": 2}}
    network = point_ea_classifier(attention=partial(MultiHeadExternalAttention, num_heads=2), **sizes)
    path = tmp_path / "heads.safetensors"
    save_weights(path, stored(network, "pcea.point_ea_classifier", {**sizes, "attention": part}))
    other = point_ea_classifier(5, weights=path)
    assert sum(isinstance(m, MultiHeadExternalAttention) for m in other.modules()) == 5
    assert other.eval()(torch.rand(2, 64, 3)).shape == (2, 5)


def test_a_network_for_scenes_starts_from_its_own_weights(tmp_path):
    sizes = {"num_classes": 3, "dim": 8, "num_neighbors": 4, "out_channels": 8, "widths": [8, 8]}
    network, path = eat_semantic_segmenter(**sizes), tmp_path / "scenes.safetensors"
    save_weights(path, stored(network, "pcea.eat_semantic_segmenter", sizes))
    same, other = eat_semantic_segmenter(weights=path), eat_semantic_segmenter(5, weights=path)
    assert (same.num_classes, other.num_classes) == (3, 5)
    halved = {name: value.half().float() for name, value in network.state_dict().items()}
    for name, value in other.encoder.state_dict().items():
        torch.testing.assert_close(value.float(), halved[f"encoder.{name}"].float())
    written = {"num_classes": 5, "weights": str(path)}
    assert actual_arguments("pcea.eat_semantic_segmenter", written, other) == sizes | {"num_classes": 5}
    with pytest.raises(ValueError, match="num_classes is needed where there are no weights"):
        eat_semantic_segmenter()


def test_weights_of_another_builder(weights):
    from pcea import eat_part_segmenter

    with pytest.raises(ValueError, match="weights of eat_classifier, not of eat_part_segmenter"):
        eat_part_segmenter(weights=weights)
