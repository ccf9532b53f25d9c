import pytest
import torch
from torch import Tensor

from pcea.models.point_segmenter import eat_part_segmenter
from pcea.models.subsets import classify_in_subsets

N, P = 23, 5


class Recorder:
    """A network of random logits, which keeps what came in and what it answered."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.features: list[Tensor | None] = []
        self.categories: list[Tensor | None] = []
        self.logits: list[Tensor] = []

    def __call__(self, points: Tensor, features: Tensor | None = None, *, category: Tensor | None = None) -> Tensor:
        self.points.append(points)
        self.features.append(features)
        self.categories.append(category)
        self.logits.append(torch.randn(*points.shape[:2], P))
        return self.logits[-1]


def numbered() -> Tensor:
    """A cloud whose point n has n in each coordinate."""
    return torch.arange(N).float().unsqueeze(1).repeat(1, 3)


def pointwise(points: Tensor, features: Tensor | None = None, *, category: Tensor | None = None) -> Tensor:
    return points[..., :1] * torch.tensor([0.1, -0.2, 0.3, 0.0, 0.05])


@pytest.fixture
def network() -> torch.nn.Module:
    sizes = {"dim": 16, "num_neighbors": 4, "out_channels": 24, "widths": (20, 12)}
    model = eat_part_segmenter(P, 3, **sizes)
    model(torch.randn(6, N, 3), category=torch.arange(6) % 3)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("num_points", [None, N, N + 1, 10_000])
def test_small_clouds_are_seen_whole(network: torch.nn.Module, num_points: int | None) -> None:
    points, category = torch.randn(N, 3), torch.tensor(2)
    out = classify_in_subsets(network, points, category=category, num_points=num_points)
    torch.testing.assert_close(out, network(points[None], category=category[None])[0].softmax(-1))


@pytest.mark.parametrize("num_points", [1, 4, 7, 22, 23])  # 23 is prime: all but 1 and 23 leave a rest
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_point_gets_its_own_answer(num_points: int, batch_size: int) -> None:
    out = classify_in_subsets(pointwise, numbered(), num_points=num_points, batch_size=batch_size)
    torch.testing.assert_close(out, pointwise(numbered()).softmax(-1))


def test_probabilities_among_some_classes() -> None:
    out = classify_in_subsets(pointwise, numbered(), classes=[3, 0], num_points=4, batch_size=2)
    torch.testing.assert_close(out, pointwise(numbered())[:, [3, 0]].softmax(-1))


def test_subsets_of_one_size_in_batches() -> None:
    recorder = Recorder()
    classify_in_subsets(recorder, numbered(), num_points=4, batch_size=4)
    assert [tuple(points.shape) for points in recorder.points] == [(4, 4, 3), (2, 4, 3)]
    subsets = torch.cat(recorder.points)[..., 0]  # (6, 4)
    assert all(len(set(subset)) == 4 for subset in subsets.tolist())
    assert sorted(subsets.flatten()[:N].tolist()) == list(range(N))
    assert subsets[-1, -1] == subsets[0, 0]  # 24 places for 23 points
    assert subsets.flatten()[:N].tolist() != list(range(N))  # at random


def test_points_seen_twice_get_the_mean_of_their_probabilities() -> None:
    recorder = Recorder()
    out = classify_in_subsets(recorder, numbered(), num_points=9, batch_size=2)
    seen: dict[int, list[Tensor]] = {}
    for points, logits in zip(recorder.points, recorder.logits):
        for number, row in zip(points[..., 0].flatten().tolist(), logits.flatten(0, 1)):
            seen.setdefault(int(number), []).append(row.softmax(-1))
    assert sorted(len(rows) for rows in seen.values()) == [1] * 19 + [2] * 4  # 27 places for 23 points
    torch.testing.assert_close(out, torch.stack([torch.stack(seen[n]).mean(0) for n in range(N)]))


def test_features_and_category_follow_the_points() -> None:
    recorder = Recorder()
    classify_in_subsets(recorder, numbered(), 10 * numbered(), category=torch.tensor(2), num_points=4, batch_size=4)
    for points, features, category in zip(recorder.points, recorder.features, recorder.categories):
        assert torch.equal(features, 10 * points)
        assert torch.equal(category, torch.full((len(points),), 2))
    recorder = Recorder()
    classify_in_subsets(recorder, numbered(), num_points=4)
    assert recorder.features == [None]
    assert recorder.categories == [None]


def test_generator_decides_the_subsets(network: torch.nn.Module) -> None:
    points = torch.randn(N, 3)

    def classify(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return classify_in_subsets(network, points, category=torch.tensor(2), num_points=6, generator=generator)

    first = classify(1)
    assert torch.equal(classify(1), first)
    assert not torch.allclose(classify(2), first)
    torch.testing.assert_close(first.sum(1), torch.ones(N))


def test_half_precision_gives_probabilities_in_fp32() -> None:
    points = numbered()
    out = classify_in_subsets(lambda *args, **options: pointwise(*args, **options).bfloat16(), points, num_points=4)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, pointwise(points).bfloat16().float().softmax(-1))


@pytest.mark.parametrize(("n", "num_points"), [(0, 4), (0, None), (N, 0)])
def test_nothing_to_see(n: int, num_points: int | None) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got N={n}, num_points={num_points}"):
        classify_in_subsets(pointwise, numbered()[:n], num_points=num_points)
