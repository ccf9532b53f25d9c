from collections.abc import Mapping
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pcea.models.resnet import ResNet
from pcea.nn.recording import record_attention


def randomize(model: nn.Module) -> None:
    """Give batch norms the weights and statistics of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)


def without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight for name, weight in state.items() if name[:3] != "fc."}


def torchvision_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        features.append(x := stage(x))
    return features


@torch.no_grad()
def test_features_of_torchvision() -> None:
    theirs, images = torchvision.models.resnet18().eval(), torch.randn(2, 3, 75, 50)
    randomize(theirs)
    ours = ResNet(depth=18, external_attention=False).eval()
    ours.load_state_dict(without_classifier(theirs.state_dict()))
    features = ours(images)
    assert list(features) == ["0", "1", "2", "3"]
    for found, expected in zip(features.values(), torchvision_features(theirs, images)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("depth", "channels"),
    [(18, [64, 128, 256, 512]), (34, [64, 128, 256, 512]), (50, [256, 512, 1024, 2048]), (101, [256, 512, 1024, 2048])],
)
def test_sizes(depth: int, channels: list[int]) -> None:
    with torch.device("meta"):
        model, theirs = ResNet(depth=depth), torchvision.models.get_model(f"resnet{depth}")
        features = model(torch.empty(2, 3, 64, 37))
    assert model.channels == channels
    sizes = [(16, 10), (8, 5), (4, 3), (2, 2)]
    assert [tuple(f.shape) for f in features.values()] == [(2, c, *size) for c, size in zip(channels, sizes)]
    names = [name for name in model.state_dict() if not name.startswith("attention.")]
    assert names == list(without_classifier(theirs.state_dict()))


@torch.no_grad()
def test_the_block_starts_as_the_identity_and_then_attends() -> None:
    images = torch.randn(2, 3, 96, 64)
    torch.manual_seed(1)
    model = ResNet(depth=18, attention_width=5, memory_units=3).eval()
    randomize(model.layer4)
    plain = ResNet(depth=18, external_attention=False).eval()
    state = {name: weight for name, weight in model.state_dict().items() if not name.startswith("attention.")}
    plain.load_state_dict(state)
    expected = plain(images)
    assert expected["3"].std() > 0.1
    for name, found in model(images).items():
        assert torch.equal(found, expected[name])
    assert model.attention.attention.key.shape == (3, 5)
    assert not model.attention.attention.tied
    nn.init.ones_(model.attention.norm.weight)
    torch.testing.assert_close(model(images)["3"], model.attention(expected["3"]))
    assert torch.equal(model(images)["2"], expected["2"])


def test_same_seed_same_weights_with_and_without_the_block() -> None:
    states, next_draws = [], []
    for external_attention in (True, False):
        torch.manual_seed(2)
        states.append(ResNet(depth=18, external_attention=external_attention).state_dict())
        next_draws.append(torch.randn(5))
    assert torch.equal(*next_draws)
    assert states[1].keys() == {name for name in states[0] if not name.startswith("attention.")}
    for name, weight in states[1].items():
        assert torch.equal(weight, states[0][name]), name


def test_rows_and_columns_of_the_attention() -> None:
    model = ResNet(depth=18, memory_units=3)
    with record_attention(model) as maps:
        model(torch.randn(2, 3, 96, 64))
    assert maps["attention.attention"].grid == (3, 2)
    assert maps["attention.attention"].weights.shape == (2, 6, 3)


def test_residual_blocks_start_as_their_shortcuts() -> None:
    batch, frozen = ResNet(depth=18), ResNet(depth=18, norm="frozen")
    assert not batch.layer3[1].bn2.weight.any()
    assert frozen.layer3[1].bn2.weight.all()  # would stay zero
    batch50 = ResNet(depth=50)
    assert not batch50.layer3[1].bn3.weight.any()
    assert batch50.layer3[1].bn2.weight.all()


def test_frozen_norms_do_not_learn() -> None:
    model = ResNet(depth=18, norm="frozen")
    assert {name for name, _ in model.named_parameters() if "bn" in name or "downsample.1" in name} == set()
    before = {name: value.clone() for name, value in model.named_buffers() if not name.startswith("attention.")}
    model(torch.randn(2, 3, 64, 64))
    for name, value in model.named_buffers():
        if name in before:
            assert torch.equal(value, before[name])
    assert model.attention.norm.running_var.ne(1).any()  # nothing has trained it yet


@pytest.mark.parametrize(
    ("stages", "trained"),
    [
        (0, set()),
        (1, {"layer4"}),
        (3, {"layer2", "layer3", "layer4"}),
        (4, {"layer1", "layer2", "layer3", "layer4"}),
        (5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_trainable_stages(stages: int, trained: set[str]) -> None:
    with torch.device("meta"):
        model = ResNet(depth=18, trainable_stages=stages)
    names = {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    assert names == trained | {"attention"}
    assert all(w.requires_grad for name, w in model.named_parameters() if name.split(".")[0] in names)


# ImageNet weights


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_imagenet_weights(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, urls, images = torchvision.models.resnet18().eval(), [], torch.randn(1, 3, 64, 96)
    randomize(theirs)

    def answer(url: str, **_: object) -> Mapping[str, Tensor]:
        urls.append(url)
        return theirs.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", answer)
    model = ResNet(depth=18, norm=norm, pretrained=True, trainable_stages=3).eval()
    assert urls == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    for found, expected in zip(model(images).values(), torchvision_features(theirs, images)):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_imagenet_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    message = r"weights from https://.*resnet34-.* failed: .*not known.*Put that file into .*checkpoints"
    with torch.device("meta"), pytest.raises(FileNotFoundError, match=message):
        ResNet(depth=34, pretrained=True)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "depth must be 18, 34, 50 or 101, got 20"),
        ({"norm": "group"}, "norm must be batch or frozen, got 'group'"),
        ({"trainable_stages": 6}, r"trainable_stages must be in 0\.\.5, got 6"),
        ({"depth": 18, "attention_width": 0}, "width must be positive, got 0"),
    ],
)
def test_constructor_errors(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_images_of_another_shape() -> None:
    with torch.device("meta"):
        model = ResNet(depth=18)
        with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(2, 1, 64, 64\)"):
            model(torch.empty(2, 1, 64, 64))
