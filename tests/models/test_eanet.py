from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pcea.models.eanet import EANet, eanet_50, eanet_101
from pcea.nn.recording import record_attention


def tiny(**options: Any) -> EANet:
    """7 classes, width 4: 128 channels of the backbone, 32 of the attention."""
    sizes: dict[str, Any] = {"num_classes": 7, "depth": (1, 1, 1, 2), "width": 4, "memory_units": 5, "dropout": 0.0}
    model = EANet(**sizes | options)
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):  # they start at zero, which would hide the backbone's blocks
            nn.init.constant_(parameter, 0.3)
    return model


# Published sizes


@pytest.mark.parametrize(("build", "count", "giga"), [(eanet_50, 34_846_933, 157), (eanet_101, 53_839_061, 237)])
def test_parameters_and_multiplications(build: Callable[[], EANet], count: int, giga: float) -> None:
    with torch.device("meta"):
        model, image = build().eval(), torch.empty(1, 3, 513, 513)
    assert sum(p.numel() for p in model.parameters()) == count
    with FlopCounterMode(display=False) as counter:
        assert model(image).shape == (1, 21, 513, 513)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.01)


def test_parameters_of_the_options() -> None:
    def count(**options: Any) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in EANet(**options).parameters())

    assert count(tied=True) == 34_846_933 - 64 * 512
    # The deep stem: 27, 576 and 1,152 rows of 64, 64 and 128 channels, three norms; the next two layers read 128.
    deep = 27 * 64 + 9 * 64 * 64 + 9 * 64 * 128 + 2 * (64 + 64 + 128) + 128 * (64 + 256)
    assert count(stem="plain") == 34_846_933 - deep + 3 * 49 * 64 + 2 * 64 + 64 * (64 + 256)
    assert count(width=32) < 34_846_933 / 3.9
    assert count(output_stride=16) == 34_846_933


def test_builders_pass_their_options_on() -> None:
    with torch.device("meta"):
        for build, blocks in ((eanet_50, 6), (eanet_101, 23)):
            model = build(5, output_stride=16, stem="plain")
            assert len(model.backbone.layer3) == blocks
            assert model.num_classes == model.classify.out_channels == 5
            assert isinstance(model.backbone.conv1, nn.Conv2d)
            assert model.backbone.layer4[1].conv2.dilation == (4, 4)
        with pytest.raises(ValueError, match="pretrained needs"):
            eanet_101(pretrained=True)


# The network


def test_head_by_formula() -> None:
    model, images = tiny().eval(), torch.randn(2, 3, 33, 25)
    nn.init.normal_(model.attention.attention.value)
    features = model.backbone(images)
    x = F.relu(F.batch_norm(F.conv2d(features, model.conv1[0].weight, padding=1), torch.zeros(32), torch.ones(32)))
    x = model.attention(x)
    x = F.relu(F.batch_norm(F.conv2d(x, model.conv2[0].weight, padding=1), torch.zeros(16), torch.ones(16)))
    coarse = F.conv2d(x, model.classify.weight, model.classify.bias)
    assert coarse.shape == (2, 7, 5, 4)
    logits = model(images)
    assert logits.shape == (2, 7, 33, 25)
    # Corners stay corners, so that every 8th pixel is one of the coarse map, and those between are means.
    torch.testing.assert_close(logits[..., ::8, ::8], coarse)
    torch.testing.assert_close(logits[..., 4, 0], (coarse[..., 0, 0] + coarse[..., 1, 0]) / 2)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1), (7, 130)])
def test_any_image_size(output_stride: int, size: tuple[int, int]) -> None:
    model = tiny(output_stride=output_stride, in_channels=5).eval()
    images = torch.randn(3, 5, *size)
    logits = model(images)
    assert logits.shape == (3, 7, *size)
    torch.testing.assert_close(logits, torch.cat([model(image[None]) for image in images]), atol=1e-5, rtol=1e-4)


def test_every_pixel_sees_every_other_by_the_attention() -> None:
    model = tiny(depth=(1, 1, 1, 1)).eval()
    images = torch.randn(1, 3, 8, 640)
    changed = images.clone()
    changed[..., 600:] += 10
    nn.init.normal_(model.attention.attention.key)
    nn.init.normal_(model.attention.attention.value)
    difference = (model(changed) - model(images)).abs().amax((1, 2))[0]
    with record_attention(model) as maps:
        model(images)
    assert difference[0] > 1e-5
    model.attention.forward = lambda x: x  # type: ignore[method-assign]
    assert not (model(changed) - model(images))[..., 0].any()
    assert maps["attention.attention"].weights.shape == (1, 80, 5)
    torch.testing.assert_close(maps["attention.attention"].weights.sum(2), torch.ones(1, 80))


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_reaches_every_parameter(tied: bool) -> None:
    model = tiny(tied=tied)
    F.cross_entropy(model(torch.randn(4, 3, 33, 32)), torch.randint(7, (4, 33, 32))).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_one_batch_can_be_overfitted() -> None:
    model = tiny(width=8)
    label = torch.randint(7, (4, 2, 2)).repeat_interleave(16, 1).repeat_interleave(16, 2)  # squares of 16 pixels
    images = F.one_hot(label, 7).float().movedim(3, 1)[:, :3] + 0.1 * torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = model(images)
        F.cross_entropy(logits, label).backward()
        optimizer.step()
    # Half of the pixels lie between the centres of two squares.
    assert (logits.argmax(1) == label).float().mean() > 0.85


def test_whole_maps_are_dropped_in_training_only() -> None:
    model, images = tiny(dropout=0.5), torch.randn(2, 3, 40, 40)
    maps: list[Tensor] = []
    model.classify.register_forward_pre_hook(lambda *call: maps.append(call[1][0]))
    model(images)
    dropped = (maps[0].flatten(2) == 0).all(2)
    assert 4 <= dropped.sum() <= 28  # half of 32, and those that ReLU makes zero
    assert torch.equal(model.eval()(images), model(images))


# Precision and configuration


def test_bf16_and_channels_last_stay_near() -> None:
    model, images = tiny(), torch.randn(4, 3, 48, 48)
    plain, low = deepcopy(model), model.to(memory_format=torch.channels_last)
    label = torch.randint(7, (4, 48, 48))
    logits = plain(images)
    F.cross_entropy(logits, label).backward()
    torch.testing.assert_close(
        deepcopy(low)(images.to(memory_format=torch.channels_last)), logits, atol=1e-4, rtol=1e-4
    )
    with torch.autocast("cpu", torch.bfloat16):
        approximate = low(images.to(memory_format=torch.channels_last)).float()
    F.cross_entropy(approximate, label).backward()
    # Twenty rounded layers, each rescaled to unit variance by batch norm, there and back.
    assert (approximate - logits).square().mean().sqrt() < 0.05 * logits.std()
    for name, parameter in low.named_parameters():
        assert parameter.grad.isfinite().all(), name
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (low, plain)]
    assert F.cosine_similarity(*gradients, dim=0) > 0.9


def test_a_small_network_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    sizes = {"num_classes": 3, "depth": [1, 1, 1, 1], "width": 8, "output_stride": 16, "stem": "plain", "tied": True}
    config = {"class_path": "pcea.models.EANet", "init_args": sizes}
    model = parser.instantiate(parser.parse_object({"network": config})).network
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    assert model.attention.attention.value is None


# Errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(tiny, stem="thick"), "stem must be deep or plain"),
        (partial(tiny, memory_units=0), "memory_units must be positive"),
        (partial(tiny, pretrained=True), "pretrained needs"),
    ],
)
def test_constructor_errors(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32)])
def test_wrong_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \("):
        tiny()(torch.randn(shape))
