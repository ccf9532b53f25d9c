"""Networks for images from weights files and checkpoints; those for clouds are in test_predict and test_training."""

import pytest
import torch

from pcea.inference.networks import load_network
from pcea.io.description import NetworkDescription, StoredNetwork
from pcea.io.weights import save_weights
from pcea.models.eamlp import ImageTransformer
from pcea.models.eanet import EANet
from pcea.nn.attention import MultiHeadExternalAttention, SelfAttention

NAMES = ("a", "b", "c")
SIZES = {"num_classes": 3, "dim": 8, "depth": 1, "token_dim": 4, "kernel_sizes": [3, 3], "strides": [2, 2]}


def attention(path, **arguments):
    return {"class_path": path, "init_args": arguments}


def image_weights(builder, network, arguments):
    task = "masks" if builder == "EANet" else "images"
    description = NetworkDescription(
        task, f"pcea.{builder}", arguments, NAMES, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), image_size=(16, 24)
    )
    return StoredNetwork(description, network.state_dict())


@pytest.mark.parametrize(
    ("written", "made"),
    [
        (
            attention("pcea.MultiHeadExternalAttention", num_heads=2, memory_units=5, expansion=3),
            lambda dim: MultiHeadExternalAttention(dim, num_heads=2, memory_units=5, expansion=3),
        ),
        (attention("pcea.nn.SelfAttention", key_dim=4), lambda dim: SelfAttention(dim, key_dim=4)),
        ({"class_path": "pcea.nn.SelfAttention"}, SelfAttention),
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
