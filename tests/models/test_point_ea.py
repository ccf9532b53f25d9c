from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pcea.models.point_ea import (
    PointEAEncoder,
    point_ea_classifier,
    point_ea_part_segmenter,
)
from pcea.nn import (
    ExternalAttention,
    MultiHeadExternalAttention,
    SelfAttention,
    TokenMLP,
    record_attention,
)
from pcea.ops import farthest_point_sample

B, N = 3, 97
SIZES: dict[str, Any] = {"widths": (8, 12, 16), "depths": (1, 1, 2), "num_neighbors": 5, "memory_units": 7}
CENTERS = (41, 23, 11)


def classifier(**options: Any) -> nn.Module:
    return settled(point_ea_classifier(5, **{"num_centers": CENTERS, **SIZES, **options}))


def segmenter(**options: Any) -> nn.Module:
    return settled(point_ea_part_segmenter(5, 3, **{"num_centers": (None, 23, 11), **SIZES, **options}))


def settled(network: nn.Module) -> nn.Module:
    """In evaluation, with branches that act (their norms start at 0) and statistics of some data."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = {"features": torch.randn(8, N, network.encoder.in_channels - 3)} if network.encoder.in_channels > 3 else {}
    if getattr(network, "num_categories", 0):
        inputs["category"] = torch.arange(8) % network.num_categories
    with torch.no_grad():
        network(torch.randn(8, N, 3), **inputs)
    return network.eval()


# The encoder


def test_stages_sample_the_farthest_points_of_the_stage_before() -> None:
    encoder = classifier().encoder
    points = torch.randn(B, N, 3)
    stages = encoder(points)
    source = points
    for stage, count in zip(stages, CENTERS):
        index = farthest_point_sample(source, count)
        expected = source.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
        assert torch.equal(stage.centers, expected)
        source = stage.centers
    assert [stage.features.shape for stage in stages] == [(B, m, c) for m, c in zip(CENTERS, SIZES["widths"])]


def test_stages_after_one_that_keeps_all_points_sample_too() -> None:
    points = torch.randn(B, N, 3)
    stages = segmenter().encoder(points)
    assert torch.equal(stages[0].centers, points)
    index = farthest_point_sample(points, 23)
    assert torch.equal(stages[1].centers, points.gather(1, index.unsqueeze(-1).expand(-1, -1, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (8, 8)}, "one number per stage"),
        ({"num_centers": (8, 16, 4)}, "num_centers must decrease"),
        ({"num_centers": (8, 8, 4)}, "num_centers must decrease"),
        ({"num_centers": (8, None, 4)}, "only the first may be None"),
        ({"widths": (), "num_centers": (), "depths": ()}, "at least one stage"),
        ({"in_channels": 2}, "in_channels must be at least 3, num_neighbors 1 and depths 0, got 2"),
        ({"num_neighbors": 0}, "in_channels must be at least 3, num_neighbors 1 and depths 0, got 3, 0"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, got 1.0"),
    ],
)
def test_impossible_sizes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointEAEncoder(ExternalAttention, **options)


# The networks


@pytest.mark.parametrize(("size", "millions"), [("small", 0.61), ("base", 1.04)])
def test_sizes_of_the_presets(size: Any, millions: float) -> None:
    network = point_ea_classifier(40, size=size)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@torch.no_grad()
@pytest.mark.parametrize("build", [classifier, segmenter])
def test_the_order_of_the_points_does_not_matter(build: Any) -> None:
    network, points = build(), torch.randn(B, N, 3)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(N - 1)])  # sampling starts at the first
    options = {"category": torch.tensor([0, 1, 2])} if build is segmenter else {}
    out, other = network(points, **options), network(points[:, order], **options)
    torch.testing.assert_close(out if out.ndim == 2 else out[:, order], other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("build", [classifier, segmenter])
def test_translation_changes_only_what_the_coordinates_say(build: Any) -> None:
    """Everything but the first linear map sees offsets alone."""
    network, points = build(), torch.randn(B, N, 3)
    options = {"category": torch.tensor([0, 1, 2])} if build is segmenter else {}
    network.encoder.stages[0].reduce.skip.weight.zero_()
    if build is segmenter:
        network.input.weight.zero_()
    torch.testing.assert_close(network(points + 5, **options), network(points, **options), atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("build", [classifier, segmenter])
@pytest.mark.parametrize("with_normals", [False, True])
def test_padded_and_packed_clouds_equal_single_ones(build: Any, with_normals: bool) -> None:
    network = build(in_channels=6 if with_normals else 3)
    counts = (97, 30, 9)  # the last one has fewer points than centres
    clouds = [torch.randn(count, 3) for count in counts]
    normals = [F.normalize(torch.randn(count, 3), dim=1) for count in counts]
    category = torch.tensor([2, 0, 1])

    def call(points: torch.Tensor, features: torch.Tensor, which: torch.Tensor, **options: Any) -> torch.Tensor:
        extra = {"category": which} if build is segmenter else {}
        return network(points, features if with_normals else None, **extra, **options)

    singles = [call(p[None], n[None], c[None])[0] for p, n, c in zip(clouds, normals, category)]
    padded, padded_normals = (
        nn.utils.rnn.pad_sequence(t, batch_first=True, padding_value=7.0) for t in (clouds, normals)
    )
    mask = torch.arange(97) < torch.tensor(counts)[:, None]
    out = call(padded, padded_normals, category, mask=mask)
    batch = torch.arange(3).repeat_interleave(torch.tensor(counts))  # as in PyTorch Geometric
    packed = call(torch.cat(clouds), torch.cat(normals), category, batch=batch)
    if build is segmenter:
        torch.testing.assert_close(out[mask], torch.cat(singles), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed, torch.cat(singles), atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(out, torch.stack(singles), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed, torch.stack(singles), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [classifier, segmenter])
@pytest.mark.parametrize("is_training", [False, True])
def test_what_stands_at_padded_points_does_not_matter(build: Any, is_training: bool) -> None:
    network = build(in_channels=6).train(is_training)
    points, normals = torch.randn(B, N, 3), torch.randn(B, N, 3)
    mask = torch.arange(N) < torch.tensor([[97], [30], [9]])
    options = {"category": torch.tensor([0, 1, 2])} if build is segmenter else {}
    results = []
    for padding in (0.0, torch.nan, torch.inf):
        given = [values.masked_fill(~mask.unsqueeze(-1), padding).requires_grad_() for values in (points, normals)]
        torch.manual_seed(0)
        out = network(*given, mask=mask, **options)
        out = out[mask] if build is segmenter else out
        results.append([out, *torch.autograd.grad(out.square().sum(), [*given, *network.parameters()])])
    for other in results[1:]:
        for ours, expected in zip(other, results[0]):
            torch.testing.assert_close(ours, expected)


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 2, 11, 12, 41, 42, 64])
def test_any_number_of_points(n: int) -> None:
    assert classifier()(torch.randn(2, n, 3)).isfinite().all()
    logits = segmenter()(torch.randn(2, n, 3), category=torch.tensor([0, 1]))
    assert logits.shape == (2, n, 5)
    assert logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("build", [classifier, segmenter])
def test_without_numba_the_result_is_the_same(build: Any, request: pytest.FixtureRequest) -> None:
    network, points = build(), torch.randn(B, N, 3)
    options = {"category": torch.tensor([0, 1, 2])} if build is segmenter else {}
    expected = network(points, **options)
    request.getfixturevalue("_without_numba")
    torch.testing.assert_close(network(points, **options), expected, atol=1e-4, rtol=1e-4)


def test_gradients_without_numba_are_the_same(request: pytest.FixtureRequest) -> None:
    network, points = classifier().train(), torch.randn(B, N, 3)
    grads = []
    for _ in range(2):
        network.zero_grad()
        torch.manual_seed(0)
        network(points).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        request.getfixturevalue("_without_numba")
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < 1e-3


@pytest.mark.parametrize("build", [classifier, segmenter])
def test_gradients_of_the_points(build: Any, request: pytest.FixtureRequest) -> None:
    network, points = build().double(), torch.randn(B, N, 3, dtype=torch.float64, requires_grad=True)
    options = {"category": torch.tensor([0, 1, 2])} if build is segmenter else {}
    weights = torch.randn_like(network(points, **options))

    def loss(points: torch.Tensor) -> torch.Tensor:
        return (network(points, **options) * weights).sum()

    (slope,) = torch.autograd.grad(loss(points), points)
    if build is classifier:  # the weights of an interpolation count as constants
        direction = torch.randn_like(points) * 1e-7  # too small a step to change a neighbour or a maximum
        difference = (loss(points + direction) - loss(points - direction)).item() / 2
        assert float((slope * direction).sum()) == pytest.approx(difference, rel=1e-3)
    request.getfixturevalue("_without_numba")
    torch.testing.assert_close(torch.autograd.grad(loss(points), points)[0], slope)


@torch.no_grad()
def test_category_and_normals_count() -> None:
    network, points = segmenter(in_channels=6), torch.randn(1, N, 3)
    normals = torch.randn(1, N, 3)
    first = network(points, normals, category=torch.tensor([0]))
    assert not torch.allclose(first, network(points, normals, category=torch.tensor([1])))
    assert not torch.allclose(first, network(points, -normals, category=torch.tensor([0])))


@pytest.mark.parametrize(
    "attention",
    [
        partial(MultiHeadExternalAttention, num_heads=2, memory_units=7),
        SelfAttention,
        partial(TokenMLP, memory_units=7),
    ],
)
def test_other_attentions_stand_in(attention: Any) -> None:
    network = classifier(attention=attention)
    assert network(torch.randn(2, N, 3)).shape == (2, 5)
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(attention.func if isinstance(attention, partial) else attention) == 4
    assert ExternalAttention not in kinds


def test_no_attention_and_an_mlp_of_equal_size() -> None:
    count = {
        name: sum(p.numel() for p in classifier(**options).parameters())
        for name, options in {
            "external": {},
            "mlp": {"attention": partial(TokenMLP, memory_units=7)},
            "none": {"memory_units": 0},
        }.items()
    }
    assert count["external"] == count["mlp"] > count["none"]
    assert not any(isinstance(m, ExternalAttention) for m in classifier(memory_units=0).modules())


@torch.no_grad()
def test_attention_is_recorded_with_its_centers() -> None:
    network, points = classifier(), torch.randn(2, N, 3)
    with record_attention(network) as maps:
        network(points)
    stages = network.encoder(points)
    assert list(maps) == [
        f"encoder.stages.{stage}.blocks.{block}.attention.attention"
        for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1))
    ]
    for name, attention in maps.items():
        stage = stages[int(name.split(".")[2])]
        assert attention.weights.shape == (2, stage.centers.shape[1], 7)
        assert torch.equal(attention.points, stage.centers)
        torch.testing.assert_close(attention.weights.sum(-1), torch.ones(2, stage.centers.shape[1]))


@torch.no_grad()
@pytest.mark.parametrize("build", [classifier, segmenter])
def test_pooled_centers(build: Any) -> None:
    network, points = build(), torch.randn(2, N, 3)
    centers, winner = network.pooled_centers(points)
    features, expected, *_ = network.encoder(points)[-1]
    assert torch.equal(centers, expected)
    fused = network.fuse(features)
    assert torch.equal(fused.gather(1, winner.unsqueeze(1))[:, 0], fused.amax(1))


@pytest.mark.parametrize("build", [classifier, segmenter])
def test_it_can_learn_one_batch(build: Any) -> None:
    network = build(dropout=0.0).train()
    points = torch.randn(6, 40, 3)
    options = {"category": torch.arange(6) % 3} if build is segmenter else {}
    label = torch.randint(5, (6, 40) if build is segmenter else (6,))
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(points, **options).flatten(0, -2), label.flatten())
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"points": torch.zeros(2, 9, 2)}, r"points must be floating \(B, N, 3\)"),
        ({"points": torch.zeros(2, 9, 3), "features": torch.zeros(2, 9, 3)}, "features must have 0 channels, got 3"),
        ({"points": torch.zeros(2, 9, 3), "mask": torch.ones(2, 8).bool()}, r"mask must be bool \(2, 9\)"),
        ({"points": torch.zeros(9, 3), "batch": torch.zeros(8).long()}, r"packed points \(T, 3\) and batch \(T,\)"),
        ({"points": torch.zeros(3, 3), "batch": torch.tensor([0, 1, 0])}, "batch must be sorted"),
        ({"points": torch.zeros(3, 3), "batch": torch.zeros(3)}, "batch must be int64"),
        ({"points": torch.zeros(3, 3), "batch": torch.tensor([0, 0, 900])}, r"2 clouds from 0 to 1 without gaps.*900"),
        ({"points": torch.zeros(3, 3), "batch": torch.tensor([1, 1, 2])}, "from 0 to 1 without gaps.*from 1 to 2"),
        ({"points": torch.zeros(3, 3), "batch": torch.tensor([-1, 0, 1])}, "without gaps, got numbers from -1 to 1"),
        ({"points": torch.zeros(0, 3), "batch": torch.zeros(0).long()}, "batch must be int64 with a number for each"),
        (
            {"points": torch.zeros(3, 3), "batch": torch.zeros(3).long(), "features": torch.zeros(2, 3)},
            r"features \(2, 3\)",
        ),
        (
            {"points": torch.zeros(2, 3), "batch": torch.zeros(2).long(), "mask": torch.ones(2).bool()},
            "give one of them",
        ),
    ],
)
def test_wrong_input(inputs: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier()(**inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs the category of each cloud, \(B,\) in 0..2"),
        ({"category": torch.tensor([0, 3])}, r"category must be in 0..2, got 0..3"),
        ({"category": torch.zeros(2)}, r"category must be \(2,\) int64, got \(2,\) torch.float32"),
    ],
)
def test_wrong_category(options: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter()(torch.zeros(2, 9, 3), **options)
    with pytest.raises(ValueError, match="no categories"):
        point_ea_part_segmenter(5, 0, **SIZES)(torch.zeros(2, 9, 3), category=torch.zeros(2).long())


def test_an_unknown_size() -> None:
    with pytest.raises(ValueError, match="size must be one of small, base, got 'huge'"):
        point_ea_classifier(5, size="huge")  # type: ignore[arg-type]
