"""Networks for images from weights files and checkpoints; those for clouds are in test_predict and test_training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pcea.attention import MultiHeadExternalAttention, SelfAttention
from pcea.models.eamlp import ImageTransformer
from pcea.models.eanet import EANet
from pcea.trained_network import TrainedImageNetwork, build_network, load_network
from pcea.weights import Weights, save_weights

NAMES = ("a", "b", "c")
SIZES = {"num_classes": 3, "dim": 8, "depth": 1, "token_dim": 4, "kernel_sizes": [3, 3], "strides": [2, 2]}


def attention(path, **arguments):
    return {"class_path": path, "init_args": arguments}


def image_weights(builder, network, arguments):
    return Weights(
        builder, arguments, network.state_dict(), NAMES, 0, {}, {}, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (16, 24)
    )


@pytest.mark.parametrize(
    ("written", "made"),
    [
        (
            attention("pcea.MultiHeadExternalAttention", num_heads=2, memory_units=5, expansion=3),
            lambda dim: MultiHeadExternalAttention(dim, num_heads=2, memory_units=5, expansion=3),
        ),
        (attention("pcea.attention.SelfAttention", key_dim=4), lambda dim: SelfAttention(dim, key_dim=4)),
        ({"class_path": "pcea.attention.SelfAttention"}, SelfAttention),
    ],
)
def test_a_classifier_comes_back_from_its_weights(tmp_path, written, made):
    network = ImageTransformer(made, **SIZES).eval()
    save_weights(tmp_path / "w", image_weights("ImageTransformer", network, {"attention": written, **SIZES}))
    trained = load_network(str(tmp_path / "w"))
    assert trained[1:] == (NAMES, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (16, 24), False)
    assert not trained.network.training
    images = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(trained.network(images), network(images), atol=0.01, rtol=0.01)


def test_a_segmenter_comes_back_from_its_weights(tmp_path):
    arguments = {"num_classes": 3, "depth": [1, 1, 1, 1], "width": 4}
    network = EANet(**arguments).eval()
    save_weights(tmp_path / "w", image_weights("EANet", network, arguments))
    trained = load_network(str(tmp_path / "w"))
    assert trained.labels_pixels
    images = torch.randn(1, 3, 17, 24)
    torch.testing.assert_close(trained.network(images), network(images), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("written", [attention("mine.SelfAttention"), attention("pcea.OffsetAttention"), "os.system"])
def test_only_known_attentions_are_built(written):
    network = ImageTransformer(SelfAttention, **SIZES)
    weights = image_weights("ImageTransformer", network, {"attention": written, **SIZES})
    path = written if isinstance(written, str) else written["class_path"]
    with pytest.raises(ValueError, match=rf"^the\.ckpt has the attention {path}, not one of ExternalAttention, "):
        build_network(weights, "the.ckpt")


class Own(nn.Module):
    num_classes = 2


def load_task_as(monkeypatch, **fields):
    task = SimpleNamespace(network=Own(), class_names=(), num_points=0, **fields)
    monkeypatch.setattr("pcea.training.load_task", lambda _: task)


def test_a_network_of_the_users_own(monkeypatch):
    load_task_as(monkeypatch, mean=(0.5,) * 3, std=(0.2,) * 3, image_size=(), labels_pixels=True)
    trained = load_network("own.ckpt")
    assert isinstance(trained, TrainedImageNetwork)
    assert (trained.class_names, trained.labels_pixels) == (("class 0", "class 1"), True)


def test_a_network_that_is_neither_for_clouds_nor_for_images(monkeypatch):
    for fields in ({}, {"mean": ()}):
        load_task_as(monkeypatch, **fields)
        with pytest.raises(
            ValueError, match=r"own\.ckpt holds a Own, which is neither a network of pcea for point cloud"
        ):
            load_network("own.ckpt")
