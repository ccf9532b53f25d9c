from collections.abc import Callable, Mapping
from functools import partial
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from pcea.models.dilated_resnet import DilatedResNet

OFF = {8: [False, True, True], 16: [False, False, True]}


def torchvision_features(model: ResNet, images: Tensor, *, output_stride: int) -> Tensor:
    """Output of the last stage of torchvision's dilated ResNet after its blocks got multi-grid 1, 2, 4."""
    for grid, block in zip((2, 4), model.layer4[1:]):
        dilation = 32 // output_stride * grid
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


def randomize(model: nn.Module) -> None:
    """Give batch norms the weights and statistics of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)


def dilations(stage: nn.Sequential) -> list[int]:
    return [block.conv2.dilation[0] for block in stage]


def test_dilations_by_hand() -> None:
    with torch.device("meta"):
        dense, coarse = DilatedResNet(output_stride=8), DilatedResNet(output_stride=16)
    for model in (dense, coarse):
        assert dilations(model.layer1) + dilations(model.layer2) == [1] * 7
    assert dilations(dense.layer3) == [1, 2, 2, 2, 2, 2]
    assert dilations(dense.layer4) == [2, 8, 16]
    assert dilations(coarse.layer3) == [1] * 6
    assert dilations(coarse.layer4) == [1, 4, 8]


@pytest.mark.parametrize("output_stride", [8, 16])
@torch.no_grad()
def test_features_of_torchvision(output_stride: int) -> None:
    depth, images = (1, 2, 2, 3), torch.randn(2, 3, 75, 50)
    theirs = ResNet(Bottleneck, list(depth), replace_stride_with_dilation=OFF[output_stride]).eval()
    randomize(theirs)
    ours = DilatedResNet(depth=depth, output_stride=output_stride, stem="plain").eval()
    ours.load_state_dict({name: weight for name, weight in theirs.state_dict().items() if name[:3] != "fc."})
    expected = torchvision_features(theirs, images, output_stride=output_stride)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_deep_stem_by_formula() -> None:
    model, images = DilatedResNet(in_channels=5, width=6, depth=(1, 1, 1, 1)).eval(), torch.randn(2, 5, 33, 20)
    randomize(model)
    first, norm1, _, second, norm2, _, third = model.conv1
    x = F.relu(norm1(F.conv2d(images, first.weight, stride=2, padding=1)))
    x = F.relu(norm2(F.conv2d(x, second.weight, padding=1)))
    x = F.relu(model.bn1(F.conv2d(x, third.weight, padding=1)))
    assert x.shape == (2, 12, 17, 10)
    x = model.layer2(model.layer1(F.max_pool2d(x, 3, 2, 1)))
    torch.testing.assert_close(model(images), model.layer4(model.layer3(x)))


@pytest.mark.parametrize("stem", ["deep", "plain"])
@pytest.mark.parametrize(("output_stride", "size"), [(8, (8, 5)), (16, (4, 3))])
def test_size_of_the_features(stem: str, output_stride: int, size: tuple[int, int]) -> None:
    model = DilatedResNet(depth=(1, 1, 1, 1), width=4, output_stride=output_stride, stem=stem)
    assert model(torch.randn(2, 3, 64, 37)).shape == (2, 32 * 4, *size)
    assert model.out_channels == 32 * 4


def test_blocks_start_as_their_shortcuts() -> None:
    model, x = DilatedResNet(depth=(1, 1, 1, 2), width=32), torch.randn(2, 512, 5, 7)
    assert model.layer4[0].conv1.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)  # 512 to 256
    expected = F.relu(F.batch_norm(F.conv2d(x, model.layer4[0].downsample[0].weight), None, None, training=True))
    torch.testing.assert_close(model.layer4(x), expected)


# ImageNet weights


def replace_download(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Mapping[str, Tensor]]) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *url, **_: answer(*url))


def test_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, urls = torchvision.models.resnet50(replace_stride_with_dilation=OFF[16]).eval(), []

    def answer(url: str) -> Mapping[str, Tensor]:
        urls.append(url)
        return theirs.state_dict()

    replace_download(monkeypatch, answer)
    model, images = DilatedResNet(output_stride=16, stem="plain", pretrained=True).eval(), torch.randn(1, 3, 40, 24)
    assert urls == ["https://download.pytorch.org/models/resnet50-0676ba61.pth"]
    expected = torchvision_features(theirs, images, output_stride=16)
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("error", [URLError("Name or service not known"), RuntimeError("invalid hash value")])
def test_imagenet_weights_that_cannot_be_downloaded(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> Mapping[str, Tensor]:
        raise error

    replace_download(monkeypatch, fail)
    message = r"weights from https://.*resnet101-.* failed: .*(not known|hash value).*Put that file into .*checkpoints"
    with torch.device("meta"), pytest.raises(FileNotFoundError, match=message):
        DilatedResNet(depth=(3, 4, 23, 3), stem="plain", pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "deep"}, "pretrained needs .* stem='plain', .* got in_channels=3, width=64, stem='deep'"),
        ({"stem": "plain", "width": 32}, "got in_channels=3, width=32, stem='plain'"),
        ({"stem": "plain", "in_channels": 1}, "got in_channels=1"),
        ({"stem": "plain", "depth": (2, 2, 2, 2)}, r"depth of \(3, 4, 6, 3\), .*got \[2, 2, 2, 2\]"),
    ],
)
def test_networks_without_imagenet_weights(options: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_download(monkeypatch, lambda *_: pytest.fail("downloads"))
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DilatedResNet(pretrained=True, **options)


# Errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(DilatedResNet, output_stride=4), "output_stride must be 8 or 16, got 4"),
        (partial(DilatedResNet, depth=(3, 4, 6)), r"depth must be 4 positive numbers of blocks, got \[3, 4, 6\]"),
        (partial(DilatedResNet, depth=(3, 4, 0, 3)), r"got \[3, 4, 0, 3\]"),
        (partial(DilatedResNet, stem="thick"), "stem must be deep or plain, got 'thick'"),
    ],
)
def test_constructor_errors(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
