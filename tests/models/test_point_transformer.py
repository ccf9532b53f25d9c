from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import (
    StraightforwardClassifier,
    StraightforwardOffsetAttention,
    nearest_points,
    neighbor_embedding,
)
from torch import Tensor, nn

from pcea.models.point_transformer import (
    PointTransformerClassifier,
    PointTransformerEncoder,
    eat_classifier,
    naive_pct_classifier,
    pct_classifier,
)
from pcea.nn.attention import ExternalAttention, OffsetAttention, ResidualAttention, SelfAttention
from pcea.nn.recording import record_attention
from pcea.ops import farthest_point_sample, gather_points

ATTENTIONS = {
    "external": partial(OffsetAttention, attention=partial(ExternalAttention, memory_units=5)),
    "offset": OffsetAttention,
    "self": partial(ResidualAttention, attention=partial(SelfAttention, num_heads=2)),
}


def tiny(attention: str = "external", *, num_centers: tuple[int, ...] = (16, 8), **options: Any) -> nn.Module:
    encoder = PointTransformerEncoder(
        ATTENTIONS[attention],
        dim=32,
        depth=2,
        num_centers=num_centers,
        num_neighbors=5,
        out_channels=64,
        **options,
    )
    return PointTransformerClassifier(encoder, num_classes=7, widths=(32, 16), dropout=0.0)


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(tiny, name) for name in ATTENTIONS},
    "without neighbour embedding": partial(tiny, num_centers=(), input_layers=0),
    "one stage": partial(tiny, num_centers=(8,)),
    "positional embedding": partial(tiny, "offset", positional_embedding=True),
}
variants = pytest.mark.parametrize("name", VARIANTS)


def trained(model: nn.Module) -> nn.Module:
    """A model whose running statistics are those of some data, in evaluation."""
    for _ in range(3):
        model(torch.randn(8, 40, 3))
    return model.eval()


# Parameter counts, published sizes


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (pct_classifier, 2_876_136),
        (eat_classifier, 2_612_968),
        (partial(eat_classifier, tied=False), 2_612_968 + 4 * 64 * 256),
        (naive_pct_classifier, 1_360_552),
    ],
)
def test_parameter_counts(build: Callable[[], nn.Module], count: int) -> None:
    assert sum(p.numel() for p in build().parameters()) == count


def test_pct_has_the_parameters_of_its_straightforward_form() -> None:
    straightforward = StraightforwardClassifier(attention=StraightforwardOffsetAttention)
    assert sum(p.numel() for p in straightforward.parameters()) == 2_876_136


def test_published_models_run_at_their_size() -> None:
    points = torch.randn(2, 600, 3)
    for build in (eat_classifier, pct_classifier, naive_pct_classifier):
        assert build(13).eval()(points).shape == (2, 13)


# Properties


@variants
def test_mask_equals_unpadded_clouds_in_evaluation(name: str) -> None:
    model = trained(VARIANTS[name]())
    points = torch.randn(2, 40, 3)
    mask = torch.arange(40) < torch.tensor([40, 23])[:, None]
    points[~mask] = 50
    logits = model(points, mask=mask)
    alone = torch.cat([model(points[:1]), model(points[1:, :23])])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)


@variants
def test_padding_leaves_training_unchanged(name: str) -> None:
    model = VARIANTS[name]()
    plain = deepcopy(model)
    points = torch.randn(4, 30, 3)
    padded = torch.cat([points, torch.full((4, 11, 3), 50.0)], dim=1)
    mask = (torch.arange(41) < 30).expand(4, 41)
    torch.testing.assert_close(model(padded, mask=mask), plain(points), atol=1e-5, rtol=1e-4)
    for (buffer_name, buffer), expected in zip(model.named_buffers(), plain.buffers()):
        torch.testing.assert_close(buffer, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=buffer_name: f"{n}: {m}")


@torch.no_grad()
@variants
def test_packed_clouds_equal_single_ones(name: str) -> None:
    model = trained(VARIANTS[name]())
    clouds = [torch.randn(n, 3) for n in (37, 16, 21)]
    batch = torch.arange(3).repeat_interleave(torch.tensor([37, 16, 21]))  # as in PyTorch Geometric
    singles = torch.cat([model(cloud[None]) for cloud in clouds])
    torch.testing.assert_close(model(torch.cat(clouds), batch=batch), singles, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_cloud_with_fewer_real_points_than_centres(training: bool) -> None:
    model = trained(tiny()).train(training)
    points = torch.randn(2, 40, 3)
    mask = torch.arange(40) < torch.tensor([40, 6])[:, None]
    points[~mask] = 50
    logits = model(points, mask=mask)
    assert logits.isfinite().all()
    points[~mask] = -7  # padding is not looked at
    torch.testing.assert_close(model(points, mask=mask), logits)


@variants
def test_order_of_points_does_not_matter(name: str) -> None:
    model, points = trained(VARIANTS[name]()), torch.randn(2, 40, 3)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])  # point 0 starts the sampling
    torch.testing.assert_close(model(points[:, order]), model(points), atol=1e-5, rtol=1e-4)


@variants
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = VARIANTS[name]()
    F.cross_entropy(model(torch.randn(8, 40, 3)), torch.arange(8) % 7).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@variants
def test_batch_size_does_not_matter_in_evaluation(name: str) -> None:
    model, points = trained(VARIANTS[name]()), torch.randn(3, 40, 3)
    one_by_one = torch.cat([model(cloud[None]) for cloud in points])
    torch.testing.assert_close(model(points), one_by_one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_one_batch_can_be_overfitted(attention: str) -> None:
    model, points, label = tiny(attention), torch.randn(14, 24, 3), torch.arange(14) % 7
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(points), label)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("n", [16, 17, 101])
def test_any_number_of_points_from_the_number_of_centres_on(n: int) -> None:
    assert tiny().eval()(torch.randn(2, n, 3)).shape == (2, 7)


def test_normals_are_features() -> None:
    model = tiny(in_channels=6)
    points, normals = torch.randn(4, 40, 3), torch.randn(4, 40, 3)
    logits = model(points, normals)
    assert not torch.allclose(model(points, -normals), logits)
    mask = torch.ones(4, 40, dtype=torch.bool)
    torch.testing.assert_close(model(points, normals, mask=mask), logits)


def test_sampling_stays_exact_under_autocast() -> None:
    model, points = trained(tiny()), torch.randn(2, 40, 3) + 50  # bf16 steps of 0.25 here
    with torch.autocast("cpu", torch.bfloat16):
        centers = model.encoder(points).centers
    assert centers.dtype == torch.float32
    assert torch.equal(centers, model.encoder(points).centers)


def test_bf16_autocast_is_close() -> None:
    model, points = trained(tiny()), torch.randn(16, 40, 3)
    logits = model(points)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(points)
    assert (rounded - logits).norm() < 0.05 * logits.norm()


def test_encoder_returns_its_centres() -> None:
    points = torch.randn(2, 40, 3)
    mask = torch.arange(40) < torch.tensor([40, 6])[:, None]
    encoded = tiny().encoder(points, mask=mask)
    assert [output.shape for output in encoded.outputs] == [(2, 8, 32)] * 3
    assert encoded.mask.sum(1).tolist() == [8, 6]
    # The first centre is the first point, and all six real points of the second cloud are kept.
    assert torch.equal(encoded.centers[:, 0], points[:, 0])
    kept = {tuple(p) for p in encoded.centers[1, :6].tolist()}
    assert kept == {tuple(p) for p in points[1, :6].tolist()}


def test_record_attention_of_eat() -> None:
    model = eat_classifier(7, dim=32, num_centers=(16, 8), num_neighbors=5, memory_units=11)
    points = torch.randn(2, 40, 3)
    centers = gather_points(points, farthest_point_sample(points, 8))
    with record_attention(model) as maps:
        model(points)
    assert all(recorded.points.equal(centers) for recorded in maps.values())
    assert {name: tuple(recorded.weights.shape) for name, recorded in maps.items()} == {
        f"encoder.blocks.{i}.attention": (2, 8, 11) for i in range(4)
    }
    for recorded in maps.values():
        torch.testing.assert_close(recorded.weights.sum(-1), torch.ones(2, 8))


def test_state_dict_gives_equal_outputs() -> None:
    model, other, points = trained(tiny()), tiny(), torch.randn(2, 40, 3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(points), model(points))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 2}, "in_channels must be at least 3, num_neighbors 1 and depth 0, got 2"),
        ({"num_centers": (8, 16)}, r"num_centers must decrease and be positive, got \[8, 16\]"),
        ({"num_centers": (8, 8)}, "num_centers must decrease"),
        ({"num_centers": (8, 0)}, "be positive"),
        ({"num_centers": (16, 8, 4), "dim": 36}, "dim must be divisible by 8, got 36"),
    ],
)
def test_constructor_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointTransformerEncoder(OffsetAttention, **options)


@pytest.mark.parametrize(
    ("points", "features", "message"),
    [
        ((40, 3), None, r"points must be \(B, N, 3\), got \(40, 3\)"),
        ((2, 3, 40), None, r"points must be \(B, N, 3\), got \(2, 3, 40\)"),
        ((2, 15, 3), None, "at least 16 points per cloud, got N=15"),
        ((2, 40, 3), (2, 40, 3), "features must have 0 channels, got 3"),
    ],
)
def test_input_errors(points: tuple[int, ...], features: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(torch.zeros(points), None if features is None else torch.zeros(features))


def test_missing_features() -> None:
    with pytest.raises(ValueError, match="features must have 3 channels, got 0"):
        tiny(in_channels=6)(torch.zeros(2, 40, 3))


@pytest.mark.parametrize("shape", [(2, 39, 3), (1, 40, 3)])
def test_features_of_other_points(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features must be \(B, N, C\) beside points \(2, 40, 3\), got"):
        tiny(in_channels=6)(torch.zeros(2, 40, 3), torch.zeros(shape))


@pytest.mark.parametrize("name", ["external", "without neighbour embedding"])
def test_wrong_masks(name: str) -> None:
    model, points = VARIANTS[name](), torch.randn(2, 40, 3)
    for mask in (torch.ones(2, 39, dtype=torch.bool), torch.ones(2, 40)):
        with pytest.raises(ValueError, match=r"mask must be bool \(2, 40\)"):
            model(points, mask=mask)
    with pytest.raises(ValueError, match="cloud 1 is all padding"):
        model(points, mask=torch.tensor([[True], [False]]).expand(2, 40))


def test_more_neighbors_than_points() -> None:
    with pytest.raises(ValueError, match=r"A stage of 4 centres is too small for the next one, .* 5 nearest"):
        tiny(num_centers=(4, 2))
    with pytest.raises(ValueError, match=r"A stage of 14 centres .* 15 nearest"):
        tiny(num_centers=(14, 2), dilations=(1, 3))


def seen(model: nn.Module, points: Tensor) -> Tensor:
    return model.encoder.fuse_outputs(model.encoder(points).outputs)


def test_pooling_takes_the_maximum_over_centres() -> None:
    model, points = trained(tiny()), torch.randn(2, 40, 3)
    torch.testing.assert_close(model(points), model.head(seen(model, points).max(1).values))


def test_pooled_centers_name_the_winner() -> None:
    model, points = trained(tiny()), torch.randn(2, 40, 3)
    centers, winner = model.pooled_centers(points)
    features = seen(model, points)
    torch.testing.assert_close(features.gather(1, winner[:, None]), features.max(1, keepdim=True).values)
    assert torch.equal(centers, model.encoder(points).centers)


@pytest.mark.parametrize(
    ("num_centers", "dilations", "expected"),
    [((16, 8), (1, 1), 16), ((None, 8), (3, 1), 8), ((8, 6), (2, 1), 10), ((None, None), (1, 1), 1), ((), (), 1)],
)
def test_min_points(num_centers, dilations, expected) -> None:
    encoder = PointTransformerEncoder(
        OffsetAttention, dim=16, num_centers=num_centers, num_neighbors=5, dilations=dilations
    )
    model = PointTransformerClassifier(encoder, num_classes=3).eval()
    assert model.min_points == encoder.min_points == expected
    assert model(torch.randn(1, expected, 3)).shape == (1, 3)
    if expected > 1:
        with pytest.raises(ValueError, match=f"at least {expected} points per cloud, got N={expected - 1}"):
            model(torch.randn(1, expected - 1, 3))


def test_stages_that_keep_all_points_and_dilation() -> None:
    attention = partial(OffsetAttention, attention=ExternalAttention)
    encoder = PointTransformerEncoder(
        attention, dim=16, depth=1, num_centers=(None, None), num_neighbors=3, dilations=(1, 2), input_layers=0
    )
    encoder = trained(encoder)
    points = torch.randn(1, 11, 3)
    x = points
    for layer in encoder.stem:
        x = layer(x)
    index = torch.from_numpy(nearest_points(points[0].numpy(), points[0].numpy(), 6)[0])[None]
    x = neighbor_embedding(encoder.stages[0], x, x, index[..., :3])
    x = neighbor_embedding(encoder.stages[1], x, x, index[..., ::2])
    encoded = encoder(points)
    torch.testing.assert_close(encoded.outputs[-1], x)
    assert torch.equal(encoded.centers, points)


def test_all_points_then_a_few() -> None:
    encoder = PointTransformerEncoder(OffsetAttention, dim=16, num_centers=(None, 5), num_neighbors=3, dilations=(2, 1))
    mask = torch.arange(11) < torch.tensor([11, 4])[:, None]
    encoded = encoder(torch.randn(2, 11, 3), mask=mask)
    assert encoded.centers.shape == (2, 5, 3)
    assert encoded.mask.sum(1).tolist() == [5, 4]


@pytest.mark.parametrize("dilations", [(1,), (0, 1)])
def test_wrong_dilations(dilations: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="dilations must be 2 positive numbers, got"):
        PointTransformerEncoder(OffsetAttention, dilations=dilations)
