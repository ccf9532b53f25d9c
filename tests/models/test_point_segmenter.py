from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import (
    StraightforwardExternalAttention,
    StraightforwardOffsetAttention,
    StraightforwardSegmenter,
    nearest_points,
    neighbor_embedding,
)
from torch import Tensor, nn

import pcea.models.neighbor_embedding
import pcea.models.point_transformer
import pcea.nn.attention
import pcea.nn.chunks
from pcea.models import point_segmenter
from pcea.models.point_segmenter import (
    PointTransformerSegmenter,
    eat_part_segmenter,
    eat_semantic_segmenter,
    pct_part_segmenter,
)
from pcea.models.point_transformer import PointTransformerEncoder
from pcea.nn.attention import OffsetAttention
from pcea.nn.recording import record_attention


def stream(monkeypatch: pytest.MonkeyPatch, above: int) -> None:
    """Keep nothing but results of more than so many points."""
    for module in (point_segmenter, pcea.nn.attention):
        monkeypatch.setattr(module, "STREAMED", above)


B, N, P, CATEGORIES, K = 3, 37, 7, 4, 5
CATEGORY = torch.tensor([2, 0, 3])
SIZES: dict[str, Any] = {"dim": 16, "num_neighbors": K, "out_channels": 24, "widths": (20, 12), "dropout": 0.0}

VARIANTS: dict[str, Callable[..., PointTransformerSegmenter]] = {
    "eat": partial(eat_part_segmenter, P, CATEGORIES, memory_units=6, **SIZES),
    "eat pointwise": partial(eat_part_segmenter, P, CATEGORIES, memory_units=6, neighbor_embedding=False, **SIZES),
    "pct": partial(pct_part_segmenter, P, CATEGORIES, **SIZES),
    "pct pointwise": partial(pct_part_segmenter, P, CATEGORIES, neighbor_embedding=False, **SIZES),
}
variants = pytest.mark.parametrize("name", VARIANTS)
pointwise = pytest.mark.parametrize("name", ["eat pointwise", "pct pointwise"])


def trained(model: PointTransformerSegmenter) -> PointTransformerSegmenter:
    """A model whose running statistics are those of some data, in evaluation."""
    for _ in range(3):
        points = torch.randn(8, 40, 3, dtype=model.last.weight.dtype)
        model(points, category=torch.arange(8) % model.num_categories)
    return model.eval()


def padded() -> tuple[Tensor, Tensor]:
    """Clouds (B, N, 3) and their mask: all real, real points in between, fewer real ones than K."""
    mask = torch.stack([torch.ones(N, dtype=torch.bool), torch.arange(N) % 3 > 0, torch.arange(N) < 4])
    return torch.randn(B, N, 3), mask


def gradients(model: nn.Module, logits: Tensor) -> list[Tensor]:
    """Gradients of all parameters for fixed random weights of the logits."""
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
    return list(torch.autograd.grad((logits * weight).sum(), list(model.parameters())))


def assert_same_gradients(ours: list[Tensor], expected: list[Tensor], *, tolerance: float) -> None:
    """Compare relative to the largest entry of each, as many entries are sums that cancel."""
    for mine, theirs in zip(ours, expected, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(mine, theirs.view_as(mine), atol=tolerance * scale, rtol=tolerance)


# Published sizes and formulas


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (partial(eat_part_segmenter, neighbor_embedding=False), 2_396_466),
        (partial(pct_part_segmenter, neighbor_embedding=False), 2_446_130),
        (partial(StraightforwardSegmenter, attention=StraightforwardExternalAttention), 2_396_466),
        (partial(StraightforwardSegmenter, attention=StraightforwardOffsetAttention), 2_446_130),
    ],
)
def test_parameter_counts(build: Callable[[], nn.Module], count: int) -> None:
    assert sum(p.numel() for p in build().parameters()) == count


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("build", "attention"),
    [
        (eat_part_segmenter, StraightforwardExternalAttention),
        (pct_part_segmenter, StraightforwardOffsetAttention),
    ],
)
def test_equals_the_straightforward_formulation(
    build: Callable[..., PointTransformerSegmenter], attention: Callable[[int], nn.Module], training: bool
) -> None:
    model = build(P, CATEGORIES, neighbor_embedding=False, dim=16, dropout=0.0).double()
    trained(model).train(training)
    straightforward = StraightforwardSegmenter(P, CATEGORIES, attention=attention, dim=16, dropout=0.0).double()
    with torch.no_grad():  # both define their layers in the order of the forward pass
        for kind in (nn.Module.parameters, nn.Module.buffers):
            for ours, theirs in zip(kind(model), kind(straightforward), strict=True):
                theirs.copy_(ours.view_as(theirs))
    straightforward.train(training)

    points, category = torch.randn(5, N, 3).double(), torch.arange(5) % CATEGORIES
    logits, expected = model(points, category=category), straightforward(points, category=category)
    # The published eps of 1e-9 shifts its attention weights by up to 1e-9 N / S.
    torch.testing.assert_close(logits, expected, atol=1e-7, rtol=1e-7)
    assert_same_gradients(gradients(model, logits), gradients(straightforward, expected), tolerance=1e-6)
    for buffer, other in zip(model.buffers(), straightforward.buffers()):
        torch.testing.assert_close(buffer, other)


def concatenated(model: PointTransformerSegmenter, local: Tensor, category: Tensor) -> Tensor:
    """The head as published: the cloud's features repeated for every point of one cloud, local (B, N, D)."""
    one_hot = F.one_hot(category, model.num_categories).to(local.dtype)
    cloud = torch.cat([local.amax(1), local.mean(1), model.category(one_hot)], dim=1)
    x = torch.cat([local, cloud.unsqueeze(1).expand(-1, local.shape[1], -1)], dim=-1)
    return model.last(model.second(model.first(x)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("n", "k"), [(N, K), (3, 3)])  # a cloud of 3 points has 3 neighbours
def test_neighbor_embedding_of_every_point_equals_the_unfactored_one(n: int, k: int, training: bool) -> None:
    model = trained(VARIANTS["eat"]()).train(training)
    oracle = deepcopy(model)
    points = torch.randn(B, n, 3)
    logits = model(points, category=CATEGORY)

    x = points
    for layer in oracle.encoder.stem:
        x = layer(x)
    index = torch.stack([torch.from_numpy(nearest_points(cloud, cloud, k)[0]) for cloud in points.numpy()])
    for stage in oracle.encoder.stages:
        x = neighbor_embedding(stage, x, x, index)
    outputs = [x]
    for block in oracle.encoder.blocks:
        outputs.append(block(outputs[-1]))
    local = oracle.encoder.fuse(torch.cat([*outputs[1:], x], dim=-1))
    expected = concatenated(oracle, local, CATEGORY)

    # In fp32, through some ten layers whose statistics are of as few as 3 clouds.
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert_same_gradients(gradients(model, logits), gradients(oracle, expected), tolerance=1e-3)


# Evaluation in blocks


@variants
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("block", [16, 100])  # stretches of a cloud; two clouds, then one
@torch.no_grad()
def test_streaming_equals_the_whole(name: str, is_masked: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(VARIANTS[name]())
    points, mask = padded()
    mask = mask if is_masked else None
    seen: list[int] = []
    activation = model.encoder.fuse.activation

    def watched(tokens: Tensor) -> Tensor:
        seen.append(tokens.shape[:2].numel())
        return activation(tokens)

    model.encoder.fuse.activation = watched
    with torch.enable_grad():  # nothing goes in blocks then
        whole = model(points, category=CATEGORY, mask=mask)
    assert seen == [B * N]
    seen.clear()
    monkeypatch.setattr(pcea.models.neighbor_embedding, "_CACHED", 10 * K * SIZES["dim"])
    stream(monkeypatch, N - 1)
    monkeypatch.setattr(pcea.nn.chunks, "_CPU_CHUNK", block)
    streamed = model(points, category=CATEGORY, mask=mask)
    assert max(seen) <= block
    assert sum(seen) == 2 * B * N
    real = slice(None) if mask is None else mask
    torch.testing.assert_close(streamed[real], whole[real], atol=1e-5, rtol=1e-5)
    seen.clear()
    model.second.register_forward_hook(lambda *_: None)
    model(points, category=CATEGORY, mask=mask)
    assert seen == [B * N]  # a watched layer is called once, with all points


@pytest.mark.parametrize("name", ["eat", "eat pointwise"])
def test_outputs_of_many_points_are_kept_in_half_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = trained(VARIANTS[name]()), torch.randn(B, N, 3)
    stream(monkeypatch, N - 1)
    monkeypatch.setattr(pcea.nn.chunks, "_CPU_CHUNK", 16)
    with torch.no_grad():
        exact = model(points, category=CATEGORY)
        monkeypatch.setattr(pcea.models.point_transformer, "_HALVED", N - 1)
        outputs, halved = model.encoder(points).outputs, model(points, category=CATEGORY)
        assert {output.dtype for output in outputs} == {torch.float16}
        assert halved.dtype == torch.float32
        assert 0 < float((halved - exact).abs().max()) < 0.005 * float(exact.abs().max())
        # Of what is watched, of other precisions and of training all is kept as it is.
        with record_attention(model):
            assert model.encoder(points).outputs[0].dtype == torch.float32
        assert deepcopy(model).double().encoder(points.double()).outputs[0].dtype == torch.float64
    assert model.encoder(points).outputs[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["eat", "eat pointwise"])
def test_what_half_precision_cannot_hold_is_kept_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs such as an intensity of 100,000, which are not normalized in Python."""
    model, points = trained(VARIANTS[name]()), 1e7 * torch.randn(B, N, 3)
    stream(monkeypatch, N - 1)
    with torch.no_grad():
        exact = model(points, category=CATEGORY)
        assert max(float(output.abs().max()) for output in model.encoder(points).outputs) > 65504
        monkeypatch.setattr(pcea.models.point_transformer, "_HALVED", N - 1)
        torch.testing.assert_close(model(points, category=CATEGORY), exact)


def test_gradients_do_not_depend_on_the_streaming_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = trained(VARIANTS["eat"]()), torch.randn(B, N, 3)
    expected = gradients(model, model(points, category=CATEGORY))
    stream(monkeypatch, N - 1)
    monkeypatch.setattr(pcea.nn.chunks, "_CPU_CHUNK", 16)
    assert_same_gradients(gradients(model, model(points, category=CATEGORY)), expected, tolerance=1e-6)


# Properties


@variants
def test_permuting_the_points_permutes_the_logits(name: str) -> None:
    model, points, order = trained(VARIANTS[name]()), torch.randn(B, N, 3), torch.randperm(N)
    logits = model(points, category=CATEGORY)
    # Sums over the points in another order.
    torch.testing.assert_close(model(points[:, order], category=CATEGORY), logits[:, order], atol=1e-5, rtol=1e-4)


@variants
@pytest.mark.parametrize("garbage", [0.0, 50.0, 1e30])
def test_mask_equals_unpadded_clouds_in_evaluation(name: str, garbage: float) -> None:
    model = trained(VARIANTS[name]())
    points, mask = padded()
    points[~mask] = garbage
    logits = model(points, category=CATEGORY, mask=mask)
    alone = [model(points[b, mask[b]][None], category=CATEGORY[b : b + 1])[0] for b in range(B)]
    # Sums over the points in another order.
    torch.testing.assert_close(logits[mask], torch.cat(alone), atol=1e-5, rtol=1e-4)


@pointwise
def test_duplicating_every_point_changes_nothing(name: str) -> None:
    model, points = trained(VARIANTS[name]()), torch.randn(B, N, 3)
    logits = model(points, category=CATEGORY)
    twice = model(points.repeat(1, 2, 1), category=CATEGORY)
    # Sums over twice as many points.
    torch.testing.assert_close(twice, logits.repeat(1, 2, 1), atol=1e-5, rtol=1e-4)


@variants
def test_padding_leaves_training_unchanged(name: str) -> None:
    model = VARIANTS[name]()
    plain = deepcopy(model)
    points = torch.randn(B, N, 3)
    more = torch.cat([torch.full((B, 11, 3), 50.0), points], dim=1)
    mask = (torch.arange(N + 11) >= 11).expand(B, -1)
    logits, expected = model(more, category=CATEGORY, mask=mask)[:, 11:], plain(points, category=CATEGORY)
    # Batch norm over 3 clouds and sums in another order.
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert_same_gradients(gradients(model, logits), gradients(plain, expected), tolerance=1e-3)
    for buffer, other in zip(model.buffers(), plain.buffers()):
        torch.testing.assert_close(buffer, other, atol=1e-5, rtol=1e-4)


@variants
def test_training_does_not_look_at_padded_points(name: str) -> None:
    model = VARIANTS[name]()
    other = deepcopy(model)
    points, mask = padded()
    changed = points.masked_fill(~mask.unsqueeze(-1), 1e4)
    logits, same = model(points, category=CATEGORY, mask=mask)[mask], other(changed, category=CATEGORY, mask=mask)[mask]
    torch.testing.assert_close(same, logits)
    assert_same_gradients(gradients(other, same), gradients(model, logits), tolerance=1e-5)
    for buffer, changed_buffer in zip(model.buffers(), other.buffers()):
        torch.testing.assert_close(changed_buffer, buffer)


@torch.no_grad()
@variants
def test_packed_clouds_equal_single_ones(name: str) -> None:
    model = trained(VARIANTS[name]())
    clouds = [torch.randn(n, 3) for n in (37, 9, 21)]
    batch = torch.arange(3).repeat_interleave(torch.tensor([37, 9, 21]))  # as in PyTorch Geometric
    logits = model(torch.cat(clouds), category=CATEGORY, batch=batch)
    singles = [model(cloud[None], category=c[None])[0] for cloud, c in zip(clouds, CATEGORY)]
    torch.testing.assert_close(logits, torch.cat(singles), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_padded_batch_equals_packed_clouds(training: bool) -> None:
    model = trained(VARIANTS["eat pointwise"]().double()).train(training)
    packed = deepcopy(model)
    points, mask = padded()
    points = points.double()
    logits = model(points, category=CATEGORY, mask=mask)[mask]

    x, batch = points[mask], mask.nonzero()[:, 0]  # (ΣN, 3), (ΣN,)
    for layer in packed.encoder.stem:
        x = layer(x)
    outputs = []
    for block in packed.encoder.blocks:
        x = x + F.relu(block.norm(block.linear(x - block.attention(x, batch=batch))))
        outputs.append(x)
    local = packed.encoder.fuse(torch.cat(outputs, dim=-1))
    own = packed.category(F.one_hot(CATEGORY, CATEGORIES).double())
    clouds = [torch.cat([local[batch == b].amax(0), local[batch == b].mean(0), own[b]]) for b in range(B)]
    expected = packed.last(packed.second(packed.first(torch.cat([local, torch.stack(clouds)[batch]], dim=-1))))

    torch.testing.assert_close(logits, expected)
    assert_same_gradients(gradients(model, logits), gradients(packed, expected), tolerance=1e-6)
    for buffer, other in zip(model.buffers(), packed.buffers()):
        torch.testing.assert_close(buffer, other)


@variants
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = VARIANTS[name]()
    logits = model(torch.randn(8, N, 3), category=torch.arange(8) % CATEGORIES)
    F.cross_entropy(logits.flatten(0, 1), torch.arange(8 * N) % P).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@variants
def test_one_batch_can_be_overfitted(name: str) -> None:
    model, points = VARIANTS[name](), torch.randn(6, 24, 3)
    category = torch.arange(6) % CATEGORIES
    label = (points[..., 0] > 0) + 2 * (category % 2).unsqueeze(1)  # by the point, and by the category alone
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(points, category=category).flatten(0, 1), label.flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_category_of_one_cloud_changes_its_logits_alone() -> None:
    model, points = trained(VARIANTS["eat"]()), torch.randn(B, N, 3)
    logits, other = model(points, category=CATEGORY), model(points, category=torch.tensor([2, 1, 3]))
    torch.testing.assert_close(other[[0, 2]], logits[[0, 2]])
    assert (other[1] - logits[1]).abs().amax(1).gt(1e-3).all()


def test_normals_are_features() -> None:
    model = eat_part_segmenter(P, CATEGORIES, in_channels=6, **SIZES)
    points, normals = torch.randn(B, N, 3), torch.randn(B, N, 3)
    logits = model(points, normals, category=CATEGORY)
    assert logits.shape == (B, N, P)
    assert not torch.allclose(model(points, -normals, category=CATEGORY), logits)


@pytest.mark.parametrize("n", [1, K, 101])
def test_semantic_segmenter_needs_no_category(n: int) -> None:
    model = eat_semantic_segmenter(P, in_channels=6, **SIZES).eval()
    assert model(torch.randn(2, n, 3), torch.randn(2, n, 3)).shape == (2, n, P)
    assert model.category is None


@pytest.mark.parametrize("training", [True, False])
def test_bf16_autocast_is_close(training: bool) -> None:
    model, points = trained(VARIANTS["eat"]()).train(training), torch.randn(B, N, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = model(points, category=CATEGORY)
    logits = model(points, category=CATEGORY)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - logits).norm() < 0.1 * logits.norm()  # bf16 keeps 8 bits, through some ten layers


def test_bf16_autocast_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = trained(VARIANTS["eat"]()), torch.randn(B, N, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model(points, category=CATEGORY)
        stream(monkeypatch, N - 1)
        monkeypatch.setattr(pcea.nn.chunks, "_CPU_CHUNK", 16)
        streamed = model(points, category=CATEGORY)
    assert streamed.dtype == torch.bfloat16
    assert (streamed - whole).norm() < 0.02 * whole.norm()  # products of other sizes round otherwise


@pytest.mark.parametrize("name", ["eat", "eat pointwise"])
def test_record_attention_of_eat(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = trained(VARIANTS[name]()), torch.randn(B, N, 3)
    monkeypatch.setattr(
        pcea.nn.chunks, "_CPU_CHUNK", 16
    )  # weights are recorded of all points at once, whatever the block
    with torch.no_grad(), record_attention(model) as maps:
        model(points, category=CATEGORY)
    assert {key: tuple(recorded.weights.shape) for key, recorded in maps.items()} == {
        f"encoder.blocks.{i}.attention": (B, N, 6) for i in range(4)
    }
    for recorded in maps.values():
        torch.testing.assert_close(recorded.weights.sum(-1), torch.ones(B, N))


def test_record_attention_of_pct() -> None:
    model = trained(VARIANTS["pct pointwise"]())
    with record_attention(model) as maps:
        model(torch.randn(B, N, 3), category=CATEGORY)
    assert [tuple(recorded.weights.shape) for recorded in maps.values()] == [(B, N, N)] * 4


# Errors


@pytest.mark.parametrize(
    ("category", "message"),
    [
        (None, r"needs the category of each cloud, \(B,\) in 0..3"),
        (torch.tensor([0, 1, 4]), r"category must be in 0..3, got 0..4"),
        (torch.tensor([0, -1, 3]), r"category must be in 0..3, got -1..3"),
        (torch.tensor([0, 1]), r"category must be \(3,\) int64, got \(2,\)"),
        (torch.tensor([[0], [1], [2]]), r"category must be \(3,\) int64, got \(3, 1\)"),
        (torch.tensor([0.0, 1.0, 2.0]), r"category must be \(3,\) int64, got \(3,\) torch.float32"),
    ],
)
def test_wrong_categories(category: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VARIANTS["eat"]()(torch.randn(B, N, 3), category=category)


def test_category_that_is_not_wanted() -> None:
    with pytest.raises(ValueError, match="has no categories: leave category out"):
        eat_semantic_segmenter(P, **SIZES)(torch.randn(B, N, 3), category=CATEGORY)


@pytest.mark.parametrize("num_centers", [(32, 8), (None, 8)])
def test_encoder_that_drops_points(num_centers: tuple[int | None, ...]) -> None:
    encoder = PointTransformerEncoder(OffsetAttention, dim=16, num_centers=num_centers)
    with pytest.raises(ValueError, match=r"num_centers must be \(\) or only None, got \(.*8\)"):
        PointTransformerSegmenter(encoder, num_classes=P)


def test_wrong_points_and_masks() -> None:
    model = VARIANTS["eat"]()
    with pytest.raises(ValueError, match=r"points must be \(B, N, 3\), got \(3, 37, 4\)"):
        model(torch.zeros(B, N, 4), category=CATEGORY)
    with pytest.raises(ValueError, match=r"mask must be bool \(3, 37\)"):
        model(torch.zeros(B, N, 3), category=CATEGORY, mask=torch.ones(B, N - 1, dtype=torch.bool))


def test_what_other_code_asks_of_any_point_network() -> None:
    model, points = VARIANTS["eat"]().eval(), torch.randn(2, 11, 3)
    assert model.min_points == 1
    assert model(points[:, :1], category=CATEGORY[:2]).shape == (2, 1, P)
    centers, winner = model.pooled_centers(points)
    assert torch.equal(centers, points)
    assert torch.equal(winner, model.encoder.fuse_outputs(model.encoder(points).outputs).argmax(1))
