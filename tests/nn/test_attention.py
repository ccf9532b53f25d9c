import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from reference import pct_offset, two_step_double_normalize
from torch import Tensor, nn

import pcea.nn.chunks
from pcea.nn import LinearNormAct, TokenMLP
from pcea.nn.attention import (
    ExternalAttention,
    MultiHeadExternalAttention,
    OffsetAttention,
    ResidualAttention,
    SelfAttention,
    double_normalize,
)
from pcea.nn.recording import record_attention

B, N, C, S = 2, 7, 12, 5


def with_value_bias() -> ExternalAttention:
    layer = ExternalAttention(C, memory_units=S, tied=False, value_bias=True)
    nn.init.normal_(layer.value_bias)
    return layer


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "external": lambda: ExternalAttention(C, memory_units=S),
    "external untied": lambda: ExternalAttention(C, memory_units=S, tied=False),
    "external value bias": with_value_bias,
    "external slots": lambda: ExternalAttention(C, memory_units=S, normalization="slots"),
    "external tokens": lambda: ExternalAttention(C, memory_units=S, normalization="tokens"),
    "multi-head external": lambda: MultiHeadExternalAttention(C, num_heads=3, memory_units=S),
    "self": lambda: SelfAttention(C),
    "self project": lambda: SelfAttention(C, num_heads=3, key_dim=C, value_bias=False, project=True),
    "self double": lambda: SelfAttention(C, normalization="double"),
    "self shared heads": lambda: SelfAttention(C, key_dim=6, num_heads=3, shared_query_key=True),
}
LAYERS = ATTENTIONS | {
    "residual": lambda: ResidualAttention(C, attention=partial(ExternalAttention, memory_units=S)),
    "offset": lambda: OffsetAttention(C),
    "offset external": lambda: OffsetAttention(C, attention=partial(ExternalAttention, memory_units=S)),
}
attentions = pytest.mark.parametrize("name", ATTENTIONS)
layers = pytest.mark.parametrize("name", LAYERS)


def padded() -> tuple[Tensor, Tensor]:
    """Tokens and a mask with holes; what stands at padded tokens would dominate every softmax."""
    mask = torch.tensor([[True] * 7, [True, False, True, True, False, True, False]])
    return torch.randn(B, N, C).masked_fill(~mask.unsqueeze(-1), 300.0), mask


# double_normalize


def test_double_normalize_by_hand() -> None:
    # Softmax over tokens gives the columns (1/2, 1/2) and (3/4, 1/4); then each row is divided by its sum.
    weights = double_normalize(torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log())
    torch.testing.assert_close(weights, torch.tensor([[0.4, 0.6], [2 / 3, 1 / 3]]))


def test_double_normalize_equals_two_steps() -> None:
    logits = 3 * torch.randn(B, 3, N, S, dtype=torch.float64)
    torch.testing.assert_close(double_normalize(logits), two_step_double_normalize(logits, eps=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 1e-5)])
def test_double_normalize_of_a_million_tokens(dtype: torch.dtype, tolerance: float) -> None:
    logits = (8 * torch.randn(1_000_000, 4)).to(dtype)
    weights = double_normalize(logits)
    assert weights.dtype == dtype
    exact = two_step_double_normalize(logits.double(), eps=0)
    torch.testing.assert_close(weights.double(), exact, atol=tolerance, rtol=0)
    torch.testing.assert_close(weights.double().sum(-1), torch.ones(1_000_000).double(), atol=2 * tolerance, rtol=0)


def test_two_steps_fail_in_half_precision_where_ours_does_not() -> None:
    logits = (8 * torch.randn(16_384, 64)).half()
    assert two_step_double_normalize(logits).isnan().any()
    torch.testing.assert_close(double_normalize(logits).float().sum(-1), torch.ones(16_384), atol=2e-3, rtol=0)


def test_double_normalize_ignores_padding() -> None:
    _, mask = padded()
    logits = torch.randn(B, 3, N, S)
    weights = double_normalize(logits, mask=mask[:, None])
    torch.testing.assert_close(weights[1, :, mask[1]], double_normalize(logits[1, :, mask[1]]))
    assert not weights[1, :, ~mask[1]].any()


def test_double_normalize_ignores_missing_slots() -> None:
    logits = torch.randn(B, N, S)
    weights = double_normalize(logits, slot_mask=torch.arange(S) < 3)
    torch.testing.assert_close(weights[..., :3], double_normalize(logits[..., :3]))
    assert not weights[..., 3:].any()


def test_double_normalize_gradient() -> None:
    logits = torch.randn(N, S, dtype=torch.float64, requires_grad=True)
    batch = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    assert torch.autograd.gradcheck(double_normalize, logits)
    assert torch.autograd.gradcheck(partial(double_normalize, batch=batch), logits)


# Properties of every layer


@layers
def test_mask_equals_removal_forward_and_backward(name: str) -> None:
    layer = LAYERS[name]().eval()  # in training, batch norm sees other tokens; test_layers covers that
    tokens, mask = padded()
    tokens.requires_grad_()
    weight = torch.randn(B, N, C)

    out = layer(tokens, mask=mask)
    grads = torch.autograd.grad((out * weight)[mask].sum(), [tokens, *layer.parameters()])

    alone = [layer(tokens[b, mask[b]][None])[0] for b in range(B)]
    loss = sum((alone[b] * weight[b, mask[b]]).sum() for b in range(B))
    expected = torch.autograd.grad(loss, [tokens, *layer.parameters()])
    torch.testing.assert_close(out[mask], torch.cat(alone))
    for ours, theirs in zip(grads, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)  # sums over tokens in another order


@layers
def test_padded_tokens_get_zeros(name: str) -> None:
    tokens, mask = padded()
    assert not LAYERS[name]()(tokens, mask=mask)[~mask].any()


MASKED = LAYERS | {
    "mlp": lambda: TokenMLP(C, memory_units=S),
    "linear, norm, activation": lambda: LinearNormAct(C, S),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("padding", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_at_padded_tokens_does_not_matter(name: str, is_training: bool, padding: float) -> None:
    layer = MASKED[name]().train(is_training)
    tokens, mask = padded()
    results = []
    for value in (0.0, padding):
        given = tokens.masked_fill(~mask.unsqueeze(-1), value).requires_grad_()
        out = layer(given, mask=mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), [given, *layer.parameters()])])
    for ours, expected in zip(results[1], results[0]):
        torch.testing.assert_close(ours, expected)


@attentions
def test_recorded_weights_do_not_see_what_stands_at_padded_tokens(name: str) -> None:
    layer = ATTENTIONS[name]()
    tokens, mask = padded()
    with record_attention(layer) as maps:
        out = layer(tokens.masked_fill(~mask.unsqueeze(-1), torch.nan), mask=mask)
    assert maps[""].weights.isfinite().all()
    torch.testing.assert_close(out, layer(tokens, mask=mask))


@attentions
def test_cloud_without_a_real_token_gives_zeros(name: str) -> None:
    layer = ATTENTIONS[name]()
    tokens = torch.randn(B, N, C, requires_grad=True)
    mask = torch.tensor([True, False])[:, None].expand(B, N)
    out = layer(tokens, mask=mask)
    assert out[0].all()
    assert not out[1].any()
    for grad in torch.autograd.grad(out.sum(), [tokens, *layer.parameters()], materialize_grads=True):
        assert grad.isfinite().all()


@layers
def test_permuting_tokens_permutes_the_result(name: str) -> None:
    layer, tokens, order = LAYERS[name](), torch.randn(B, N, C), torch.randperm(N)
    torch.testing.assert_close(layer(tokens[:, order]), layer(tokens)[:, order])


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"external tokens"}))  # there, weights of duplicates halve
def test_duplicating_every_token_changes_nothing(name: str) -> None:
    layer, tokens = LAYERS[name](), torch.randn(B, N, C)
    torch.testing.assert_close(layer(tokens.repeat(1, 2, 1))[:, :N], layer(tokens))


@layers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    layer, tokens = LAYERS[name]().eval(), torch.randn(B, N, C)
    expected = layer(tokens)
    out = layer.to(dtype)(tokens.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.05)  # weights and inputs are rounded too


@layers
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_evaluation_in_blocks_equals_the_whole(name: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[name]().eval()
    tokens, mask = padded()
    mask = mask if masked else None
    whole = layer(tokens, mask=mask)
    for block in (3, 8):  # stretches of a cloud; one cloud
        monkeypatch.setattr(pcea.nn.chunks, "_CPU_CHUNK", block)
        torch.testing.assert_close(layer(tokens, mask=mask), whole)


# ExternalAttention


@pytest.mark.parametrize("normalization", ["double", "slots", "tokens"])
def test_external_attention_mixes_memories_in_blocks(normalization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, tokens = ExternalAttention(C, memory_units=S, normalization=normalization).eval(), torch.randn(B, N, C)
    monkeypatch.setattr(pcea.nn.chunks, "_CPU_CHUNK", 3)
    shapes: list[tuple[int, ...]] = []
    normalize = pcea.nn.attention._NORMALIZATIONS[normalization]

    def watched(logits: Tensor, *others: Tensor) -> Tensor:
        shapes.append(tuple(logits.shape))
        return normalize(logits, *others)

    monkeypatch.setitem(pcea.nn.attention._NORMALIZATIONS, normalization, watched)
    in_one = layer(tokens)
    assert shapes == [(B, N, S)]  # gradients are recorded: one call
    shapes.clear()
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), in_one)
        assert shapes == [(1, 3, S), (1, 3, S), (1, 1, S)] * B
        shapes.clear()
        with record_attention(layer) as maps:
            torch.testing.assert_close(layer(tokens), in_one)
        assert maps[""].weights.shape == (B, N, S)
        layer.train()(tokens)
        layer.eval().dropout.register_forward_hook(lambda *_: None)
        layer(tokens)  # a watched module is called once
    assert shapes == [(B, N, S)] * 3


@pytest.mark.parametrize("tied", [True, False])
def test_external_attention_is_two_linear_layers(tied: bool) -> None:
    layer, tokens = ExternalAttention(C, memory_units=S, tied=tied).double(), torch.randn(B, N, C).double()
    if not tied:
        nn.init.normal_(layer.value)
    value = layer.key if tied else layer.value
    expected = two_step_double_normalize(tokens @ layer.key.T, eps=0) @ value
    torch.testing.assert_close(layer(tokens), expected)


def test_external_attention_with_value_bias() -> None:
    layer, tokens = with_value_bias(), torch.randn(B, N, C)
    plain = ExternalAttention(C, memory_units=S, tied=False)
    plain.load_state_dict({"key": layer.key, "value": layer.value})
    torch.testing.assert_close(layer(tokens), plain(tokens) + layer.value_bias)
    assert not ExternalAttention(C, value_bias=True).value_bias.any()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(tokens).dtype == torch.bfloat16


def test_normalizations_for_the_ablation() -> None:
    tokens = torch.randn(B, N, C)
    for normalization, axis in (("slots", -1), ("tokens", -2)):
        layer = ExternalAttention(C, memory_units=S, normalization=normalization)
        torch.testing.assert_close(layer(tokens), (tokens @ layer.key.T).softmax(axis) @ layer.key)


@pytest.mark.parametrize("normalization", ["double", "slots", "tokens"])
@pytest.mark.parametrize("batch", [[0, 0, 1, 1, 1, 3, 3], [3, 0, 1, 0, 3, 1, 1]])  # cloud 2 is empty
def test_packed_clouds_equal_single_clouds(normalization: str, batch: list[int]) -> None:
    layer = ExternalAttention(C, memory_units=S, normalization=normalization)
    tokens, batch = torch.randn(N, C), torch.tensor(batch)
    out = layer(tokens, batch=batch)
    for cloud in (0, 1, 3):
        torch.testing.assert_close(out[batch == cloud], layer(tokens[batch == cloud][None])[0])


def test_packed_batch_without_tokens() -> None:
    out = ExternalAttention(C)(torch.empty(0, C), batch=torch.empty(0, dtype=torch.int64))
    assert out.shape == (0, C)


def test_dropout_acts_on_weights_in_training_only() -> None:
    layer, tokens = ExternalAttention(C, memory_units=S, dropout=0.5), torch.randn(B, N, C)
    plain = ExternalAttention(C, memory_units=S)
    plain.load_state_dict(layer.state_dict())
    with record_attention(layer) as maps:
        dropped = layer(tokens)
    assert not torch.allclose(dropped, plain(tokens))
    torch.testing.assert_close(maps[""].weights.sum(-1), torch.ones(B, N))  # recorded before dropout
    torch.testing.assert_close(layer.eval()(tokens), plain(tokens))


def test_tied_memories_are_one_parameter_and_stay_one() -> None:
    layer, tokens = ExternalAttention(C, memory_units=S), torch.randn(B, N, C).double()
    loaded = ExternalAttention(C, memory_units=S)
    loaded.load_state_dict(layer.state_dict())
    for twin in (layer, deepcopy(layer), loaded):
        twin = twin.to(torch.float64)
        assert [tuple(p.shape) for p in twin.parameters()] == [(S, C)]
        assert list(twin.state_dict()) == ["key"]
        before = twin.key.detach().clone()
        optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
        twin(tokens).square().sum().backward()
        optimizer.step()
        assert not torch.equal(twin.key, before)
        torch.testing.assert_close(twin(tokens), two_step_double_normalize(tokens @ twin.key.T, eps=0) @ twin.key)


def test_untied_memories_start_equal_and_drift_apart() -> None:
    layer = ExternalAttention(C, memory_units=S, tied=False)
    assert torch.equal(layer.key, layer.value)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.randn(B, N, C)).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(layer.key, layer.value)


# The other layers


def test_multi_head_external_attention_head_by_head() -> None:
    layer, tokens = MultiHeadExternalAttention(C, num_heads=3, memory_units=S), torch.randn(B, N, C)
    wide = layer.expand(tokens)  # (B, N, 4C): 12 heads of width 4
    heads = [layer.value(two_step_double_normalize(layer.key(head), eps=0)) for head in wide.split(4, dim=-1)]
    assert len(heads) == 12
    torch.testing.assert_close(layer(tokens), layer.project(torch.cat(heads, dim=-1)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_self_attention_fused_path_equals_explicit_path(num_heads: int, masked: bool) -> None:
    layer = SelfAttention(C, key_dim=6, num_heads=num_heads)
    tokens, mask = padded()
    mask = mask if masked else None
    with record_attention(layer) as maps:
        explicit = layer(tokens, mask=mask)
    torch.testing.assert_close(layer(tokens, mask=mask), explicit)
    assert maps[""].weights.shape == ((B, N, N) if num_heads == 1 else (B, num_heads, N, N))


def test_self_attention_by_formula() -> None:
    layer, tokens = SelfAttention(C, key_dim=5), torch.randn(B, N, C)
    logits = layer.query(tokens) @ layer.key(tokens).transpose(1, 2) / 5**0.5
    torch.testing.assert_close(layer(tokens), logits.softmax(-1) @ layer.value(tokens))


def test_self_attention_of_a_vision_transformer() -> None:
    layer, tokens = SelfAttention(C, key_dim=C, num_heads=3, value_bias=False, project=True), torch.randn(B, N, C)
    weights = torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])
    theirs = nn.MultiheadAttention(C, 3, batch_first=True)
    theirs.in_proj_weight.data.copy_(weights)
    theirs.out_proj.load_state_dict(layer.project.state_dict())
    torch.testing.assert_close(layer(tokens), theirs(tokens, tokens, tokens, need_weights=False)[0])
    assert sum(p.numel() for p in layer.parameters()) == 4 * C * C + C


def test_offset_attention_equals_the_published_formula() -> None:
    layer, tokens = OffsetAttention(C), torch.randn(B, N, C)
    offset = pct_offset(tokens, layer.attention.query, layer.attention.value)
    expected = tokens + F.relu(layer.norm(layer.linear(offset).transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(layer(tokens), expected)


def test_residual_attention_by_formula() -> None:
    layer, tokens = ResidualAttention(C, attention=ExternalAttention).eval(), torch.randn(B, N, C)
    layer.norm.running_mean.normal_()
    attended = layer.linear(layer.attention(tokens))
    expected = tokens + F.relu(layer.norm(attended.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(layer(tokens), expected)


def test_parameter_counts_of_offset_layers() -> None:
    def count(layer: nn.Module) -> int:
        return sum(p.numel() for p in layer.parameters())

    wrapper = 256 * 256 + 256 + 2 * 256
    assert count(OffsetAttention(256)) == wrapper + 64 * 256 + 256 * 256 + 256  # q = k, v with bias
    assert count(OffsetAttention(256, attention=ExternalAttention)) == wrapper + 64 * 256


# record_attention


def test_record_attention_names_and_weights() -> None:
    model = nn.Sequential(
        OffsetAttention(C, attention=partial(ExternalAttention, memory_units=S)),
        MultiHeadExternalAttention(C, num_heads=3, memory_units=S),
    )
    tokens = torch.randn(B, N, C)
    expected = model(tokens)
    with record_attention(model) as maps:
        out = model(tokens)
    torch.testing.assert_close(out, expected)
    assert {name: tuple(recorded.weights.shape) for name, recorded in maps.items()} == {
        "0.attention": (B, N, S),
        "1": (B, 12, N, S),
    }
    assert not maps["0.attention"].weights.requires_grad
    by_hand = two_step_double_normalize(tokens @ model[0].attention.key.T, eps=0)
    torch.testing.assert_close(maps["0.attention"].weights, by_hand.detach())


def test_record_attention_keeps_mask_and_kind() -> None:
    model = nn.ModuleDict({"external": ExternalAttention(C), "self": SelfAttention(C, key_dim=2)})
    mask = torch.rand(B, N) > 0.3
    with record_attention(model) as maps:
        for layer in model.values():
            layer(torch.randn(B, N, C), mask=mask)
    assert all(recorded.mask.equal(mask) and recorded.points is None for recorded in maps.values())
    assert (maps["external"].slots_are_tokens, maps["self"].slots_are_tokens) == (False, True)


class Located(NamedTuple):
    tokens: torch.Tensor
    centers: torch.Tensor


class Locating(nn.Module):
    """A network of the user's own that says where its tokens are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ExternalAttention(C)

    def forward(self, points: torch.Tensor) -> Located:
        return Located(self.layer(points @ torch.ones(3, C)), points)


def test_record_attention_takes_positions_from_the_module_around() -> None:
    model = nn.ModuleDict({"located": Locating(), "bare": ExternalAttention(C)})
    points = torch.randn(B, N, 3)
    with record_attention(model) as maps:
        model["located"](points)
        model["bare"](torch.randn(B, N, C))
    assert maps["located.layer"].points is not None
    assert maps["located.layer"].points.equal(points)
    assert maps["bare"].points is None


class Gridded(nn.ModuleList):
    """A network of images whose layer 1 is at half the resolution of the eleven others."""

    def forward(self, image: torch.Tensor) -> None:
        for i, layer in enumerate(self):
            layer((image[..., ::2, ::2] if i == 1 else image).flatten(2).transpose(1, 2))

    def token_grids(self, image: torch.Tensor) -> dict[str, tuple[int, int]]:
        rows, columns = image.shape[2:]
        return {f"{i}": (rows, columns) for i in range(12) if i != 1} | {"1": (rows // 2, columns // 2)}


def test_record_attention_takes_grids_from_the_module_around() -> None:
    layers = [nn.Sequential(ExternalAttention(C)) for _ in range(12)]
    model = nn.Sequential(nn.Identity(), Gridded(layers))
    with record_attention(model) as maps:
        model(torch.randn(B, C, 4, 6))
        layers[0](torch.randn(B, N, C))  # on its own it is at no place
    expected = {f"1.{i}.0": (4, 6) for i in range(12)} | {"1.0.0": None, "1.1.0": (2, 3)}
    assert {name: recorded.grid for name, recorded in maps.items()} == expected  # 10 and 11 are not in 1


def test_record_attention_ends_with_the_block() -> None:
    layer, tokens = ExternalAttention(C), torch.randn(B, N, C)
    with record_attention(layer) as maps:
        layer(tokens)
        with pytest.raises(ValueError, match="tokens must be"):
            layer(tokens[0])
    first = maps[""]
    layer(2 * tokens)
    assert maps[""] is first


def test_record_attention_needs_an_attention_layer() -> None:
    with pytest.raises(ValueError, match="Linear contains no attention layer"), record_attention(nn.Linear(2, 2)):
        pass


# Errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExternalAttention(0), "dim and memory_units must be positive, got dim=0"),
        (lambda: ExternalAttention(C, memory_units=0), "memory_units=0"),
        (lambda: ExternalAttention(C, normalization="rows"), "one of double, slots, tokens, got 'rows'"),
        (lambda: MultiHeadExternalAttention(C, num_heads=5), "dim divisible by num_heads, got dim=12, num_heads=5"),
        (lambda: MultiHeadExternalAttention(C, num_heads=2, memory_units=0), "must be positive .* memory_units=0"),
        (lambda: MultiHeadExternalAttention(C, num_heads=0), "must be positive .* num_heads=0"),
        (lambda: TokenMLP(C, memory_units=0), "must be positive, got dim=12, memory_units=0"),
        (lambda: SelfAttention(C, key_dim=6, num_heads=4), "num_heads must divide dim and key_dim, got 4"),
        (lambda: SelfAttention(C, num_heads=0), "num_heads must divide dim and key_dim, got 0"),
        (lambda: SelfAttention(C, normalization="rows"), "normalization must be softmax or double, got 'rows'"),
    ],
)
def test_constructor_errors(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@attentions
def test_wrong_tokens_and_masks(name: str) -> None:
    layer, tokens = ATTENTIONS[name](), torch.randn(B, N, C)
    with pytest.raises(ValueError, match=r"tokens must be \(B, N, C\) with C=12, got \(7, 12\)"):
        layer(tokens[0])
    with pytest.raises(ValueError, match=r"tokens must be .* got \(2, 7, 11\)"):
        layer(tokens[..., 1:])
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 7\), got torch.bool \(2, 6\)"):
        layer(tokens, mask=torch.ones(B, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 7\), got torch.float32"):
        layer(tokens, mask=torch.ones(B, N))


def test_wrong_packed_tokens() -> None:
    layer, batch = ExternalAttention(C), torch.zeros(N, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"tokens must be \(N, C\) with C=12, got \(2, 7, 12\)"):
        layer(torch.randn(B, N, C), batch=batch)
    with pytest.raises(ValueError, match=r"batch must be \(7,\), got \(6,\)"):
        layer(torch.randn(N, C), batch=batch[1:])
    with pytest.raises(ValueError, match="give one of them"):
        layer(torch.randn(N, C), batch=batch, mask=torch.ones(N, dtype=torch.bool))
    for packed in (layer, MultiHeadExternalAttention(C, num_heads=3)):
        with pytest.raises(ValueError, match=r"batch must be int64, the number of each token's cloud, got torch"):
            packed(torch.randn(N, C), batch=batch.float())
        with pytest.raises(ValueError, match="batch must not be negative: clouds are numbered from 0, got -2"):
            packed(torch.randn(N, C), batch=batch - 2)


@pytest.mark.parametrize("build", [ExternalAttention, partial(MultiHeadExternalAttention, num_heads=3)])
def test_memory_does_not_grow_with_gaps_between_clouds(build, monkeypatch) -> None:
    layer, tokens = build(C), torch.randn(5, C)
    batch, counts = torch.tensor([2, 0, 1, 2, 0]), []
    expected = layer(tokens, batch=batch)
    scatter = Tensor.scatter_reduce
    monkeypatch.setattr(Tensor, "scatter_reduce", lambda *a, **k: counts.append(a[0].shape[-2]) or scatter(*a, **k))
    torch.testing.assert_close(layer(tokens, batch=1000 * batch), expected)
    assert counts == [5]


def test_import_needs_torch_alone() -> None:
    code = "import sys; from pcea.nn.attention import ExternalAttention; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"lightning", "torch_geometric", "open3d", "torchvision", "torchmetrics", "h5py", "scipy"}


def test_packed_clouds_with_a_mask() -> None:
    logits, batch = torch.randn(11, 5), torch.tensor([0] * 4 + [2] * 7)
    mask = torch.tensor([True, False, True, True] + [True] * 5 + [False] * 2)
    logits[~mask] = 50
    weights = double_normalize(logits, mask=mask, batch=batch)
    assert not weights[~mask].any()
    for cloud in (0, 2):
        real = mask & (batch == cloud)
        torch.testing.assert_close(weights[real], double_normalize(logits[real]))


def test_multi_head_attention_of_packed_clouds() -> None:
    layer = MultiHeadExternalAttention(8, num_heads=2, memory_units=3)
    clouds = [torch.randn(n, 8) for n in (5, 3, 7)]
    batch = torch.arange(3).repeat_interleave(torch.tensor([5, 3, 7]))
    order = torch.randperm(15)
    with record_attention(layer) as maps:
        packed = layer(torch.cat(clouds)[order], batch=batch[order])
    expected = torch.cat([layer(cloud[None])[0] for cloud in clouds])[order]
    torch.testing.assert_close(packed, expected)
    assert maps[""].weights.shape == (2 * 4, 15, 3)


@torch.no_grad()
def test_packed_clouds_in_a_graph() -> None:
    layer = ExternalAttention(5, memory_units=3).eval()
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)
    for clouds in ([0, 0, 1, 1, 1], [7, 2, 2, 7, 9, 2, 0]):  # in any order, with gaps
        tokens, batch = torch.randn(len(clouds), 5), torch.tensor(clouds)
        torch.testing.assert_close(compiled(tokens, batch=batch), layer(tokens, batch=batch))
    torch._dynamo.reset()


@pytest.mark.parametrize("normalization", ["double", "slots", "tokens"])
@pytest.mark.parametrize("wrapper", [ResidualAttention, OffsetAttention])
def test_a_residual_layer_of_many_tokens_keeps_only_the_result(monkeypatch, wrapper, normalization):
    layer = wrapper(8, attention=partial(ExternalAttention, memory_units=5, normalization=normalization)).eval()
    tokens, mask = torch.randn(3, 40, 8), torch.arange(40) < torch.tensor([[40], [13], [25]])
    tokens[1, 13:] = torch.nan
    sizes = []
    attend = ExternalAttention.attend
    monkeypatch.setattr(ExternalAttention, "attend", lambda *a: sizes.append(a[1].shape[:2].numel()) or attend(*a))
    with torch.no_grad():
        for given in (mask, None):
            tokens = tokens if given is mask else tokens.nan_to_num(nan=0.5)
            expected = layer(tokens, mask=given)
            assert not sizes
            with monkeypatch.context() as patch:
                patch.setattr("pcea.nn.attention.STREAMED", 39)
                patch.setattr("pcea.nn.chunks._CPU_CHUNK", 16)
                torch.testing.assert_close(layer(tokens, mask=given), expected)
                half = layer(tokens.half(), mask=given)
                assert half.dtype == torch.float16
                torch.testing.assert_close(half.float(), expected, atol=5e-3, rtol=5e-3)
            assert max(sizes) <= 16
            sizes.clear()
