from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from reference import two_step_double_normalize
from torch import nn

from pcea.nn.attention import ExternalAttention, OffsetAttention
from pcea.nn.layers import Dropout, ExternalAttention2d, LinearNormAct
from pcea.nn.recording import record_attention


def trained_norm(channels: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 3)
    return norm.eval()


@pytest.mark.parametrize("bias", [False, True])
def test_linear_norm_act_in_training_and_evaluation(bias: bool) -> None:
    layer, tokens = LinearNormAct(5, 3, bias=bias), torch.randn(2, 7, 4, 5)
    layer.norm = trained_norm(3).train()
    plain = nn.Sequential(deepcopy(layer.linear), deepcopy(layer.norm), nn.ReLU())
    for training in (True, False):
        layer.train(training)
        plain.train(training)
        torch.testing.assert_close(layer(tokens), plain(tokens.flatten(0, 2)).view(2, 7, 4, 3))
    torch.testing.assert_close(layer.norm.running_var, plain[1].running_var)


def test_linear_norm_act_counts_real_tokens_only() -> None:
    layer, alone = LinearNormAct(5, 3), LinearNormAct(5, 3)
    alone.load_state_dict(layer.state_dict())
    mask = torch.rand(2, 7) > 0.4
    tokens = torch.randn(2, 7, 5).masked_fill(~mask.unsqueeze(-1), 1e6)
    torch.testing.assert_close(layer(tokens, mask=mask)[mask], alone(tokens[mask]))
    torch.testing.assert_close(layer.norm.running_mean, alone.norm.running_mean)


def test_attention_layers_count_real_tokens_only_in_training() -> None:
    layer = OffsetAttention(12)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    tokens = torch.randn(2, 7, 12).masked_fill(~mask.unsqueeze(-1), 1e4)
    offset = tokens - layer.attention(tokens, mask=mask)
    plain = deepcopy(layer.norm)
    out = layer(tokens, mask=mask)
    torch.testing.assert_close(out[mask], tokens[mask] + F.relu(plain(layer.linear(offset[mask]))))
    torch.testing.assert_close(layer.norm.running_var, plain.running_var)
    assert not out[~mask].any()


def test_linear_norm_act_takes_an_activation() -> None:
    layer = LinearNormAct(5, 3, activation=torch.tanh).eval()
    tokens = torch.randn(7, 5)
    torch.testing.assert_close(layer(tokens), torch.tanh(layer.norm(layer.linear(tokens))))


@pytest.mark.parametrize(("tied", "count"), [(True, 558_592), (False, 591_360)])
def test_eanet_block_parameter_count(tied: bool, count: int) -> None:
    assert sum(p.numel() for p in ExternalAttention2d(512, tied=tied).parameters()) == count


@pytest.mark.parametrize("tied", [True, False])
def test_eanet_block_equals_two_convolutions_with_a_memory(tied: bool) -> None:
    block = ExternalAttention2d(11, memory_units=5, tied=tied)
    image = torch.randn(2, 11, 3, 7)
    key = block.attention.key
    value = key if tied else nn.init.normal_(block.attention.value)
    logits = F.conv2d(block.conv_in(image), key[:, :, None, None]).flatten(2)  # (B, S, H W)
    weights = two_step_double_normalize(logits.transpose(1, 2), eps=0).transpose(1, 2).view(2, 5, 3, 7)
    attended = F.conv2d(weights, value.T[:, :, None, None])
    torch.testing.assert_close(block(image), F.relu(image + block.norm(block.conv_out(attended))))


def test_eanet_block_passes_its_options_on() -> None:
    block = ExternalAttention2d(11, memory_units=5, normalization="slots")
    with record_attention(block) as maps:
        block(torch.randn(2, 11, 3, 7))
    assert maps["attention"].weights.shape == (2, 21, 5)
    assert isinstance(block.attention, ExternalAttention)
    assert block.attention.normalization == "slots"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    tokens = torch.ones(2, 101, 499, dtype=dtype, requires_grad=True)  # not a multiple of four numbers
    out = Dropout(p)(tokens)
    dropped = (out == 0).float()
    assert dropped.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / tokens.numel()) ** 0.5)
    # Four numbers share a draw: none of them follows from its neighbours.
    neighbours = (dropped.flatten()[1:] * dropped.flatten()[:-1]).mean().item()
    assert neighbours == pytest.approx(p * p, abs=0.01)
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)))
    assert out.dtype == dtype
    out.sum().backward()
    assert torch.equal(tokens.grad, out.detach())


def test_dropout_is_seeded_and_off_in_evaluation() -> None:
    layer, tokens = Dropout(0.5), torch.randn(7, 5)
    torch.manual_seed(3)
    first = layer(tokens)
    assert not torch.equal(layer(tokens), first)
    torch.manual_seed(3)
    assert torch.equal(layer(tokens), first)
    assert torch.equal(layer.eval()(tokens), tokens)
    assert torch.equal(Dropout(0.0)(tokens), tokens)
    assert not Dropout(1.0)(tokens).any()


def test_the_attention_of_a_feature_map_knows_its_rows_and_columns() -> None:
    block = ExternalAttention2d(5, memory_units=3)
    with record_attention(block) as maps:
        block(torch.randn(2, 5, 7, 11))
    assert maps["attention"].grid == (7, 11)


def test_a_narrow_eanet_block_attends_in_its_width() -> None:
    block, image = ExternalAttention2d(11, width=5, memory_units=3), torch.randn(2, 11, 3, 7)
    assert {name: tuple(weight.shape) for name, weight in block.named_parameters() if "norm" not in name} == {
        "conv_in.weight": (5, 11, 1, 1),
        "conv_in.bias": (5,),
        "attention.key": (3, 5),
        "conv_out.weight": (11, 5, 1, 1),
    }
    tokens = block.attention(block.conv_in(image).flatten(2).transpose(1, 2))  # (B, H W, width)
    attended = F.linear(tokens, block.conv_out.weight[:, :, 0, 0]).transpose(1, 2).view(2, 11, 3, 7)
    torch.testing.assert_close(block(image), F.relu(image + block.norm(attended)))


def test_eanet_block_errors() -> None:
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        ExternalAttention2d(11, width=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("p", [0.0, 1e-7, 0.5, 1 - 2**-15, 1 - 2**-16, 1 - 1e-6, 1.0])
def test_dropout_near_its_ends_stays_finite(p: float, dtype: torch.dtype) -> None:
    assert not Dropout(p)(torch.full((10_000,), 1e-3, dtype=dtype)).isnan().any()


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), F.relu_], ids=["module", "function"])
def test_activations_in_place(activation):
    torch.manual_seed(0)
    tokens = torch.randn(2, 6, 8)
    results = []
    for each in (F.relu, activation):
        torch.manual_seed(1)
        layer = LinearNormAct(8, 8, activation=each).train()
        layer(tokens).square().sum().backward()
        results.append([parameter.grad for parameter in layer.parameters()])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_without_bias(training):
    layer = LinearNormAct(8, 4)
    layer.norm = nn.BatchNorm1d(4)
    layer.norm.bias = None
    tokens = torch.randn(2, 6, 8)
    out = layer.train(training)(tokens)
    expected = F.relu(layer.norm(layer.linear(tokens).flatten(0, 1))).view(2, 6, 4)
    torch.testing.assert_close(out, expected)
