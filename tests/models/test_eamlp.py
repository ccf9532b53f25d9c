import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from reference import image_patches, sinusoid_positions
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pcea.models.eamlp import (
    ImageTransformer,
    TokensToToken,
    TransformerBlock,
    eamlp_7,
    eamlp_14,
    eamlp_19,
    sinusoid_table,
    soft_split,
    t2t_vit_7,
    t2t_vit_14,
    t2t_vit_19,
)
from pcea.nn.attention import ExternalAttention, MultiHeadExternalAttention, SelfAttention
from pcea.nn.recording import record_attention

ATTENTIONS = {
    "external": partial(MultiHeadExternalAttention, num_heads=2, memory_units=5),
    "softmax": partial(SelfAttention, key_dim=24, num_heads=2, value_bias=False, project=True),
}
attentions = pytest.mark.parametrize("attention", ATTENTIONS)


def tiny(attention: str = "external", **options: Any) -> ImageTransformer:
    """7 classes, width 24, two blocks, tokens of 4 x 4 pixels."""
    sizes: dict[str, Any] = {"kernel_sizes": (3, 3), "strides": (2, 2), "token_dim": 11, "token_memory_units": 13}
    sizes |= {"num_classes": 7, "dim": 24, "depth": 2, "token_dropout": 0.0}
    model = ImageTransformer(ATTENTIONS[attention], **sizes | options)
    # Small weights, as at the start of a training, would hide most of what the attentions do.
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, ExternalAttention):
            nn.init.normal_(module.key)
            nn.init.normal_(module.value)
    return model


# Published sizes


@pytest.mark.parametrize(
    ("build", "count", "giga"),
    [
        (eamlp_7, 6_146_638, 1.47),
        (eamlp_14, 29_877_070, 6.45),
        (eamlp_19, 54_559_054, 11.6),
        (t2t_vit_7, 4_246_222, 1.06),
        (t2t_vit_14, 21_481_550, 4.70),
        (t2t_vit_19, 39_113_422, 8.40),
    ],
)
def test_parameters_with_the_position_table_and_multiplications(
    build: Callable[[], ImageTransformer], count: int, giga: float
) -> None:
    with torch.device("meta"):
        model, image = build().eval(), torch.empty(1, 3, 224, 224)
    assert sum(p.numel() for p in model.parameters()) + model.position.numel() == count
    with FlopCounterMode(display=False) as counter:
        assert model(image).shape == (1, 1000)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.01)


def test_published_heads_have_64_channels() -> None:
    with torch.device("meta"):
        external, softmax = eamlp_14(5, norm="batch", drop_path=0.1), t2t_vit_19(5)
    assert external.blocks[0].attention.key.in_features == 64
    assert external.blocks[0].attention.num_heads == 4 * 6
    assert softmax.blocks[0].attention.num_heads == 7
    assert external.num_classes == external.head.out_features == 5


# Soft splits


def test_soft_split_by_hand() -> None:
    image = torch.arange(1.0, 13).view(1, 1, 3, 4)
    # 1  2  3  4
    # 5  6  7  8
    # 9 10 11 12
    patches = soft_split(image, kernel_size=3, stride=2)
    expected = [
        [[0, 0, 0, 0, 1, 2, 0, 5, 6], [0, 0, 0, 2, 3, 4, 6, 7, 8]],
        [[0, 5, 6, 0, 9, 10, 0, 0, 0], [6, 7, 8, 10, 11, 12, 0, 0, 0]],
    ]
    assert patches.tolist() == [expected]


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(7, 4, 2), (3, 2, 1), (3, 1, 1), (5, 2, 2), (2, 2, 0)])
@pytest.mark.parametrize("size", [(12, 20), (13, 11)])
def test_soft_split_patch_by_patch(kernel_size: int, stride: int, padding: int, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    patches = soft_split(image, kernel_size=kernel_size, stride=stride)
    assert torch.equal(patches, image_patches(image, kernel_size, stride, padding))
    if size == (12, 20):
        assert patches.shape == (2, 12 // stride, 20 // stride, 3 * kernel_size**2)


@pytest.mark.parametrize(("strides", "grid"), [((4, 2, 2), (2, 3)), ((2, 2, 1), (8, 12)), ((1, 2, 1), (16, 24))])
def test_tokens_of_an_image(strides: tuple[int, ...], grid: tuple[int, int]) -> None:
    tokenizer = TokensToToken(3, 17, kernel_sizes=(7, 3, 3), strides=strides)
    assert tokenizer(torch.randn(2, 3, 32, 48)).shape == (2, math.prod(grid), 17)


def test_one_soft_split_is_a_linear_map_of_patches() -> None:
    tokenizer, image = TokensToToken(3, 5, kernel_sizes=(4,), strides=(4,)), torch.randn(2, 3, 8, 12)
    rows = image.view(2, 3, 2, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).reshape(2, 6, 48)
    expected = F.linear(rows, tokenizer.project.weight.flatten(1), tokenizer.project.bias)
    torch.testing.assert_close(tokenizer(image), expected)


# Positions


def test_position_table_by_hand() -> None:
    expected = [[0, 1, 0, 1], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]]
    torch.testing.assert_close(sinusoid_table(2, 4), torch.tensor(expected))


@pytest.mark.parametrize("dim", [6, 7])
def test_position_table_by_formula(dim: int) -> None:
    assert sinusoid_table(1000, dim).dtype == torch.float32
    torch.testing.assert_close(sinusoid_table(1000, dim), sinusoid_positions(1000, dim), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (56, 60)])  # 64 tokens, and more than the 196 of the stored table
def test_positions_are_added_to_class_token_and_tokens(size: tuple[int, int]) -> None:
    model, images = tiny().eval(), torch.randn(2, 3, *size)
    first: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda *call: first.extend(call[1]))
    model(images)
    plain = torch.cat([model.class_token.expand(2, 1, -1), model.tokenizer(images)], dim=1)
    torch.testing.assert_close(first[0], plain + sinusoid_positions(plain.shape[1], 24))


@pytest.mark.parametrize("assign", [True, False])
def test_a_network_without_values_is_complete_once_it_has_weights(assign: bool) -> None:
    network, images = tiny().eval(), torch.randn(2, 3, 32, 32)
    with torch.device("meta"):
        other = tiny().eval()
    if not assign:
        other.to_empty(device="cpu")
    other.load_state_dict(network.state_dict(), assign=assign)
    assert other(images).equal(network(images))


def test_positions_are_no_weights() -> None:
    model = tiny()
    assert "position" in dict(model.named_buffers())
    assert "position" not in model.state_dict()


# The network


def test_block_by_formula() -> None:
    block, tokens = TransformerBlock(24, attention=ATTENTIONS["external"], mlp_ratio=1.5), torch.randn(2, 7, 24)
    attended = tokens + block.attention(F.layer_norm(tokens, (24,)))
    assert block.mlp[0].out_features == 36
    expected = attended + block.mlp[2](F.gelu(block.mlp[0](F.layer_norm(attended, (24,)))))
    torch.testing.assert_close(block(tokens), expected)


@attentions
def test_a_block_does_not_see_the_order_and_the_network_does(attention: str) -> None:
    model, order = tiny(attention).eval(), torch.randperm(64)
    tokens = torch.randn(2, 64, 24)
    torch.testing.assert_close(model.blocks[0](tokens[:, order]), model.blocks[0](tokens)[:, order])
    model.tokenizer.forward = lambda *_: tokens  # type: ignore[method-assign]
    logits = model(torch.randn(2, 3, 32, 32))
    model.tokenizer.forward = lambda *_: tokens[:, order]  # type: ignore[method-assign]
    assert not torch.allclose(model(torch.randn(2, 3, 32, 32)), logits, atol=1e-5)


@attentions
@pytest.mark.parametrize("size", [(32, 32), (33, 29), (5, 70), (1, 1)])
def test_any_image_size(attention: str, size: tuple[int, int]) -> None:
    model = tiny(attention, in_channels=5).eval()
    images = torch.randn(3, 5, *size)
    logits = model(images)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, torch.cat([model(image[None]) for image in images]))


def test_init() -> None:
    published, xavier = eamlp_7(5), ImageTransformer(ATTENTIONS["external"], dim=192, depth=1, init="xavier")
    for network in (published, xavier):
        assert not any(
            module.bias.any()
            for module in network.modules()
            if isinstance(module, nn.Linear)
            if module.bias is not None
        )
        assert network.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for name in ("tokenizer.layers.0.embed", "tokenizer.project", "blocks.0.mlp.0"):
        assert published.get_submodule(name).weight.std().item() == pytest.approx(0.02, rel=0.1), name
        weight = xavier.get_submodule(name).weight.flatten(1)
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.99 * bound < weight.abs().max() <= bound, name


def test_published_network_takes_any_image_size() -> None:
    model = eamlp_7(5).eval()
    assert model(torch.randn(1, 3, 61, 47)).shape == (1, 5)
    assert model(torch.randn(1, 3, 3, 3)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\) with H and W at least 3, got \(1, 3, 9, 2\)"):
        model(torch.randn(1, 3, 9, 2))


@attentions
@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"pool": "mean"}])
def test_gradient_reaches_every_parameter(attention: str, options: dict[str, str]) -> None:
    model = tiny(attention, **options)
    F.cross_entropy(model(torch.randn(7, 3, 16, 16)), torch.arange(7)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@attentions
def test_one_batch_can_be_overfitted(attention: str) -> None:
    model, images, label = tiny(attention), torch.randn(14, 3, 16, 16), torch.arange(14) % 7
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), label)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_weights_start_small_and_memories_of_the_tokens_equal() -> None:
    model = ImageTransformer(ATTENTIONS["external"], dim=96, depth=1, kernel_sizes=(3, 3), strides=(2, 2))
    for weight in (model.head.weight, model.blocks[0].attention.expand.weight, model.tokenizer.project.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert not model.head.bias.any()
    memory = model.tokenizer.layers[0].attention
    assert memory.key.std().item() == pytest.approx(0.02, rel=0.15)
    assert torch.equal(memory.key, memory.value)
    assert memory.key is not memory.value


# Options


def test_batch_norm_before_the_mlps() -> None:
    model, tokens = tiny(norm="batch"), torch.randn(3, 7, 24)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms == ["blocks.0.norm2", "blocks.1.norm2"]
    block, plain = model.blocks[0], nn.BatchNorm1d(24)
    for training in (True, False):
        block.norm2.train(training)
        before = tokens + block.attention(block.norm1(tokens))
        normalized = plain.train(training)(before.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(block(tokens), before + block.mlp(normalized))


def test_mean_of_the_tokens_for_the_class_token() -> None:
    model, images = tiny(pool="mean", depth=1), torch.randn(2, 3, 20, 32)
    assert model.class_token is None
    tokens = model.tokenizer(images) + sinusoid_positions(5 * 8, 24)
    expected = model.head(F.layer_norm(model.blocks[0](tokens), (24,)).mean(1))
    torch.testing.assert_close(model(images), expected)


def test_class_token_is_what_is_classified() -> None:
    model, images = tiny(depth=1), torch.randn(2, 3, 20, 32)
    tokens = torch.cat([model.class_token.expand(2, 1, -1), model.tokenizer(images)], dim=1)
    tokens = model.blocks[0](tokens + sinusoid_positions(41, 24))
    torch.testing.assert_close(model(images), model.head(F.layer_norm(tokens[:, 0], (24,))))


def test_drop_path_grows_and_is_off_in_evaluation() -> None:
    model, images = tiny(depth=3, drop_path=0.5), torch.randn(5, 3, 16, 16)
    plain = tiny(depth=3)
    plain.load_state_dict(model.state_dict())
    assert [block.drop_path.p for block in model.blocks] == [0, 0.25, 0.5]
    assert not torch.allclose(model(images), model(images))
    torch.testing.assert_close(model.eval()(images), plain.eval()(images))


def test_a_dropped_image_skips_the_block_whole() -> None:
    block, tokens = (
        TransformerBlock(24, attention=ATTENTIONS["external"], mlp_ratio=2, drop_path=0.5),
        torch.ones(40, 7, 24),
    )
    change = (block(tokens) - tokens).flatten(1)
    skipped = ~change.bool().any(1)
    assert 1 <= skipped.sum() <= 25  # a quarter of 40
    assert change[~skipped].all(1).any()


def test_dropout_of_the_tokens_is_off_in_evaluation() -> None:
    model, images = tiny(token_dropout=0.5), torch.randn(5, 3, 16, 16)
    plain = tiny()
    plain.load_state_dict(model.state_dict())
    layer, exact, patches = model.tokenizer.layers[0], plain.tokenizer.layers[0], torch.randn(2, 7, 27)
    assert layer.attention.dropout.p == layer.dropout.p == 0.5
    for on_weights, after_attention in ((0.5, 0.0), (0.0, 0.5)):
        layer.attention.dropout.p, layer.dropout.p = on_weights, after_attention
        assert not torch.allclose(layer(patches), exact(patches))
    torch.testing.assert_close(model.eval()(images), plain.eval()(images))


# Precision, recording, configuration


@attentions
def test_bf16_and_channels_last_stay_near(attention: str) -> None:
    model, images = tiny(attention, norm="batch"), torch.randn(8, 3, 32, 32)
    low = deepcopy(model).to(memory_format=torch.channels_last)
    logits = model(images)
    F.cross_entropy(logits, torch.arange(8) % 7).backward()
    with torch.autocast("cpu", torch.bfloat16):
        approximate = low(images.to(memory_format=torch.channels_last)).float()
    F.cross_entropy(approximate, torch.arange(8) % 7).backward()
    torch.testing.assert_close(approximate, logits, atol=0.02 * logits.abs().max().item(), rtol=0)
    for name, parameter in low.named_parameters():
        assert parameter.grad.isfinite().all(), name
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (low, model)]
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_attention_of_every_layer_can_be_recorded() -> None:
    shapes = {"tokenizer.layers.0.attention": (2, 16 * 12, 13)}
    images = torch.randn(2, 3, 32, 24)
    for attention, shape in (("external", (2, 8, 49, 5)), ("softmax", (2, 2, 49, 49))):
        model = tiny(attention)
        expected = model(images)
        with record_attention(model) as maps:
            torch.testing.assert_close(model(images), expected)
        assert {name: tuple(recorded.weights.shape) for name, recorded in maps.items()} == shapes | {
            "blocks.0.attention": shape,
            "blocks.1.attention": shape,
        }


@pytest.mark.parametrize("pool", ["class", "mean"])
@pytest.mark.parametrize("size", [(32, 48), (37, 30)])
def test_attention_knows_the_grid_of_its_tokens(size: tuple[int, int], pool: str) -> None:
    model = ImageTransformer(ExternalAttention, num_classes=5, dim=8, depth=2, token_dim=4, pool=pool)
    images = torch.randn(2, 3, *size)
    with record_attention(model) as maps:
        model(images)
    image, expected = images, {}
    for name, kernel_size, stride in (("tokenizer.layers.0", 7, 4), ("tokenizer.layers.1", 3, 2), ("blocks", 3, 2)):
        patches = image_patches(image, kernel_size, stride, padding=2 if stride == 4 else 1)
        expected[name] = tuple(patches.shape[1:3])
        image = patches[..., :3].permute(0, 3, 1, 2)
    for name, recorded in maps.items():
        rows, columns = recorded.grid
        assert (rows, columns) == expected[name.partition(".")[0] if "blocks" in name else name.rpartition(".")[0]]
        others = int(pool == "class" and "blocks" in name)
        assert recorded.weights.shape[-2] == rows * columns + others
    assert len(maps) == 4


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        ("MultiHeadExternalAttention", {"num_heads": 4, "memory_units": 32}),
        ("SelfAttention", {"key_dim": 32, "num_heads": 4, "value_bias": False, "project": True}),
    ],
)
def test_a_small_network_from_yaml(attention: str, options: dict[str, Any]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    sizes = {"num_classes": 10, "dim": 32, "depth": 3, "kernel_sizes": [3, 3], "strides": [2, 2], "drop_path": 0.1}
    config = {
        "class_path": "pcea.models.ImageTransformer",
        "init_args": {"attention": {"class_path": f"pcea.nn.attention.{attention}", "init_args": options}, **sizes},
    }
    model = parser.instantiate(parser.parse_object({"network": config})).network
    assert type(model.blocks[2].attention).__name__ == attention
    assert model.blocks[2].attention.dim == 32
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


# Errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(tiny, norm="group"), "norm must be layer or batch, got 'group'"),
        (partial(TransformerBlock, 4, attention=SelfAttention, mlp_ratio=2, norm="Layer"), "batch, got 'Layer'"),
        (partial(tiny, kernel_sizes=(3,)), r"same length.* got \[3\] and \[2, 2\]"),
        (partial(tiny, strides=(2, 4)), r"no stride above its kernel size, got \[3, 3\] and \[2, 4\]"),
        (partial(tiny, kernel_sizes=(), strides=()), r"got \[\] and \[\]"),
        (partial(tiny, pool="max"), "pool must be class or mean, got 'max'"),
        (partial(tiny, init="zeros"), "init must be normal or xavier, got 'zeros'"),
        (partial(tiny, drop_path=1.0), r"drop_path must be at least 0 and below 1, got 1\.0"),
    ],
)
def test_constructor_errors(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32)])
def test_wrong_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\) .* got \("):
        tiny()(torch.randn(shape))
