import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from pcea.models.sagan import (
    ConditionalBatchNorm,
    Discriminator,
    DiscriminatorBlock,
    Generator,
    GeneratorBlock,
    ScaledAttention,
)
from pcea.nn.attention import ExternalAttention, MultiHeadExternalAttention, SelfAttention
from pcea.nn.recording import record_attention

external = partial(ExternalAttention, memory_units=5)
LABEL = torch.tensor([0, 6, 2])


def generator(attention=external, **options):
    return Generator(attention, **{"num_classes": 7, "image_size": 16, "width": 2, "latent_dim": 11, **options})


def discriminator(attention=external, **options):
    return Discriminator(attention, **{"num_classes": 7, "image_size": 16, "width": 2, **options})


def call(network):
    """The network's answer to some noise or images."""
    shape = (3, 11) if isinstance(network, Generator) else (3, 3, 16, 16)
    return network(torch.randn(shape, generator=torch.Generator().manual_seed(1)), LABEL)


both = pytest.mark.parametrize("build", [generator, discriminator])


@pytest.mark.parametrize("image_size", [16, 32, 64])
def test_shapes_and_range(image_size):
    images = generator(image_size=image_size)(100 * torch.randn(3, 11), LABEL)
    assert images.shape == (3, 3, image_size, image_size)
    assert images.min() >= -1
    assert images.max() <= 1
    assert discriminator(image_size=image_size)(images, LABEL).shape == (3,)


def test_the_published_sizes_by_hand():
    block = 2 * (256 * 256 * 9 + 256) + 256 * 256 + 256 + 4 * 10 * 256
    expected = 128 * 4096 + 4096 + 3 * block + 2 * 256 + 256 * 3 * 9 + 3
    network = Generator()
    assert sum(p.numel() for p in network.parameters()) == expected
    with_attention = Generator(ExternalAttention)
    assert sum(p.numel() for p in with_attention.parameters()) == expected + 64 * 256 + 1
    conv = 128 * 128 * 9 + 128
    first = 3 * 128 * 9 + 128 + conv + 3 * 128 + 128
    expected = first + conv + conv + 128 * 128 + 128 + 4 * conv + 128 + 1 + 10 * 128
    assert sum(p.numel() for p in Discriminator().parameters()) == expected
    assert sum(p.numel() for p in Discriminator(ExternalAttention).parameters()) == expected + 64 * 128 + 1


@pytest.mark.parametrize(
    ("image_size", "widths", "side"),
    [(32, (4 * 2, 2 * 2), 16), (64, (2 * 2, 2), 32), (128, (2 * 2, 2), 64)],
)
def test_the_places_of_the_attention(image_size, widths, side):
    networks = generator(image_size=image_size), discriminator(image_size=image_size)
    with record_attention(nn.ModuleList(networks)) as maps:
        networks[1](networks[0](torch.randn(3, 11), LABEL), LABEL)
    assert {name: m.grid for name, m in maps.items()} == dict.fromkeys(
        ("0.attention.attention", "1.attention.attention"), (side, side)
    )
    assert maps["0.attention.attention"].weights.shape == (3, side * side, 5)
    assert tuple(network.attention.attention.dim for network in networks) == widths


def test_channels_of_larger_images():
    """Halved from block to block in the generator, doubled in the discriminator, 16 times the width at most."""
    convs = [block.conv2 for block in generator(image_size=128).blocks]
    assert [conv.out_channels for conv in convs] == [32, 16, 8, 4, 2]
    assert generator(image_size=128).blocks[0].conv1.in_channels == 32
    blocks = discriminator(image_size=128).blocks
    assert [block.conv2.out_channels for block in blocks] == [2, 4, 8, 16, 32, 32]
    assert [block.halve for block in blocks] == [True] * 5 + [False]
    assert [block.halve for block in discriminator(image_size=32).blocks] == [True, True, False, False]


@both
@pytest.mark.parametrize(
    "attention",
    [external, partial(external, tied=False), SelfAttention, partial(MultiHeadExternalAttention, num_heads=2)],
)
def test_every_matrix_has_spectral_norm_1(build, attention):
    network = build(attention)
    assert not [name for name, p in network.named_parameters() if p.ndim > 1 and not name.endswith(".original")]
    for name, parameter in network.named_parameters():
        if name.endswith(".original"):
            parameter.data = 3 * torch.randn_like(parameter)
    for _ in range(300):
        with torch.no_grad():
            call(network)
    network.eval()
    checked = set()
    for name, module in network.named_modules():
        if parametrize.is_parametrized(module):
            for weight in module.parametrizations:
                norm = torch.linalg.matrix_norm(getattr(module, weight).detach().flatten(1), 2)
                assert norm == pytest.approx(1, abs=0.01), f"{name}.{weight}"
                checked.add(f"{name}.{weight}")
    assert "linear.weight" in checked
    assert ("embedding.weight" if build is discriminator else "blocks.1.norm2.shift.weight") in checked
    memories = {"attention.attention.key"} if attention is external else set()
    if isinstance(attention, partial) and attention.keywords.get("tied") is False:
        memories = {"attention.attention.key", "attention.attention.value"}
    assert {name for name in checked if name.endswith((".key", ".value"))} == memories


class Twice(nn.Module):
    """Keeps its memory as it reads it, twice."""

    def __init__(self, dim):
        super().__init__()
        self.key = nn.Parameter(torch.randn(5, dim))

    def forward(self, tokens):
        Twice.seen = [self.key, self.key]
        return tokens


@both
def test_weights_are_normalized_once_a_pass_and_in_fp32(build):
    network = build(Twice)
    half = copy.deepcopy(network)
    call(network)
    first, second = Twice.seen
    assert first is second
    iterating = []
    # Which operations run in half precision depends on the device.
    half.linear.parametrizations.weight[0].register_forward_hook(
        lambda *_: iterating.append(torch.is_autocast_enabled("cpu"))
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = call(half)
    assert iterating == [False]
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert Twice.seen[0].dtype == torch.float32
    torch.testing.assert_close(Twice.seen[0], first, rtol=0, atol=0)


@both
def test_sigma_starts_at_0(build):
    network, without = build().eval(), build(None).eval()
    unknown = network.load_state_dict(without.state_dict(), strict=False)
    assert all(name.startswith("attention.") for name in unknown.missing_keys)
    assert not unknown.unexpected_keys
    assert network.attention.sigma == 0
    assert torch.equal(call(network), call(without))
    network.attention.sigma.data.fill_(1)
    assert not torch.allclose(call(network), call(without))


def test_the_scaled_attention_by_hand():
    layer = ScaledAttention(4, attention=external)
    layer.sigma.data.fill_(0.5)
    image = torch.randn(2, 4, 3, 7)
    tokens = image.permute(0, 2, 3, 1).reshape(2, 21, 4)
    attended = layer.attention(tokens).reshape(2, 3, 7, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(image), image + 0.5 * attended)


@both
def test_every_parameter_has_a_gradient(build):
    network = build()
    network.attention.sigma.data.fill_(1)
    call(network).square().sum().backward()
    lacking = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert lacking == []


@both
def test_the_class_matters(build):
    network = build().eval()
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            module.parametrizations.weight.original.data.normal_()
    one = torch.randn((1, 11) if build is generator else (1, 3, 16, 16))
    out = network(one.expand(7, *one.shape[1:]), torch.arange(7)).reshape(7, -1)
    assert (torch.cdist(out, out) + torch.eye(7)).min() > 1e-4


def test_an_image_is_judged_by_itself():
    network = discriminator().eval()
    network.attention.sigma.data.fill_(1)
    images = torch.randn(3, 3, 16, 16)
    alone = torch.cat([network(images[i : i + 1], LABEL[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(images, LABEL), alone)


def test_the_projection_by_hand():
    network = discriminator(None).eval()
    seen = []
    network.blocks[-1].register_forward_hook(lambda *args: seen.append(args[2]))
    scores = call(network)
    features = seen[0].relu().sum((2, 3))
    of_class = (features * network.embedding.weight[LABEL]).sum(1)
    expected = features @ network.linear.weight[0] + network.linear.bias + of_class
    torch.testing.assert_close(scores, expected)


def test_the_colours_by_hand():
    network = generator(None).eval()
    seen = []
    network.blocks[-1].register_forward_hook(lambda *args: seen.append(args[2]))
    images = call(network)
    torch.testing.assert_close(images, network.conv(network.norm(seen[0]).relu()).tanh())


def test_conditional_batch_norm_by_hand():
    layer = ConditionalBatchNorm(1, 2)
    layer.scale.weight.data = torch.tensor([[0.5], [2.0]])
    layer.shift.weight.data = torch.tensor([[10.0], [20.0]])
    image = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(2, 1, 1, 2)  # mean 4, variance 5
    out = layer(image, torch.tensor([1, 0]))
    z = (image - 4) / (5 + 1e-4) ** 0.5
    torch.testing.assert_close(out, torch.stack([20 + 3 * z[0], 10 + 1.5 * z[1]]))


def test_blocks_equal_the_published_order():
    """There the skip comes after the change of size."""
    image = torch.randn(3, 5, 6, 4)
    block = GeneratorBlock(5, 7, 7)
    double = partial(F.interpolate, scale_factor=2)
    x = block.conv1(double(block.norm1(image, LABEL).relu()))
    expected = block.conv2(block.norm2(x, LABEL).relu()) + block.skip(double(image))
    torch.testing.assert_close(block(image, LABEL), expected)

    down = DiscriminatorBlock(5, 7, halve=True, first=False)
    main = down.conv2(down.conv1(image.relu()).relu())
    torch.testing.assert_close(down(image), F.avg_pool2d(main + down.skip(image), 2))
    first = DiscriminatorBlock(5, 7, halve=True, first=True)
    main = first.conv2(first.conv1(image).relu())
    torch.testing.assert_close(first(image), F.avg_pool2d(main + first.skip(image), 2))
    same = DiscriminatorBlock(5, 5, halve=False, first=False)
    torch.testing.assert_close(same(image), image + same.conv2(same.conv1(image.relu()).relu()))


@both
@pytest.mark.parametrize("image_size", [8, 24, 31, 48, 0])
def test_other_sizes(build, image_size):
    with pytest.raises(ValueError, match=f"image_size must be 16, 32, 64 or a further doubling, got {image_size}"):
        build(image_size=image_size)


def test_other_inputs():
    with pytest.raises(ValueError, match=r"latent must be \(B, 11\), got \(3, 12\)"):
        generator()(torch.randn(3, 12), LABEL)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 16, 16\), got \(3, 3, 16, 17\)"):
        discriminator()(torch.randn(3, 3, 16, 17), LABEL)
