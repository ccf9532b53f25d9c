"""Networks for images from weights files and checkpoints; those for clouds are in test_predict and test_training."""

import pytest
import torch

from pcea.inference.masks import MaskPredictor
from pcea.inference.networks import find_device, load
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
    trained = load(tmp_path / "w")
    about = trained.description
    assert (about.mean, about.std, about.image_size) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (16, 24))
    assert trained.class_names == NAMES
    assert not trained.network.training
    images = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(trained.network(images), network(images), atol=0.01, rtol=0.01)


def test_a_segmenter_comes_back_from_its_weights(tmp_path):
    arguments = {"num_classes": 3, "depth": [1, 1, 1, 1], "width": 4}
    network = EANet(**arguments).eval()
    save_weights(tmp_path / "w", image_weights("EANet", network, arguments))
    trained = load(tmp_path / "w")
    assert isinstance(trained, MaskPredictor)
    images = torch.randn(1, 3, 17, 24)
    torch.testing.assert_close(trained.network(images), network(images), atol=0.03, rtol=0.03)


def test_a_network_of_the_users_own(tmp_path, monkeypatch):
    """It is used by its task alone, and imported on the user's word alone."""
    (tmp_path / "own_package.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    num_classes = 2\n"
        "    def __init__(self, scale):\n"
        "        super().__init__()\n        self.scale = torch.nn.Parameter(torch.tensor(float(scale)))\n"
        "    def forward(self, points, features=None, *, mask=None):\n"
        "        return self.scale * torch.stack((points[..., 1].amax(1), points[..., 0].amax(1)), 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    description = NetworkDescription("points", "own_package.Net", {"scale": 1}, ("tall", "wide"))
    save_weights(tmp_path / "own", StoredNetwork(description, {"scale": torch.tensor(50.0)}))
    with pytest.raises(ValueError, match=r"names own_package\.Net, which is not part of pcea.*--trust own_package"):
        load(tmp_path / "own")
    trained = load(tmp_path / "own", trust=["own_package"])
    assert trained.predict(torch.rand(100, 3) * torch.tensor([1.0, 5, 1])).class_names[0] == "tall"


def test_generators_are_loaded_elsewhere(tmp_path):
    save_weights(tmp_path / "g", StoredNetwork(NetworkDescription("generation", "pcea.models.Generator"), {}))
    with pytest.raises(ValueError, match="makes images and takes none"):
        load(tmp_path / "g")


def test_devices():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=rf"No device '{name}' on this machine .*Use auto or cpu"):
            find_device(name)


def test_as_many_names_as_classes(tmp_path):
    arguments = {**SIZES, "attention": attention("pcea.SelfAttention")}
    stored = image_weights("ImageTransformer", ImageTransformer(SelfAttention, **SIZES), arguments)
    for names in (NAMES[:2], (*NAMES, "d")):
        description = stored.description._replace(class_names=names)
        save_weights(tmp_path / "file.safetensors", stored._replace(description=description))
        with pytest.raises(ValueError, match=rf"file\.safetensors names {len(names)} classes, .* has 3"):
            load(tmp_path / "file.safetensors")
