from typing import Any

import numpy as np
import pytest
import torch
from reference import farthest_points, straightforward_sample

from pcea.ops import farthest_point_sample, knn

LARGE = 32768  # clouds from here on go through the k-d tree


@pytest.fixture(params=["compiled loop", "plain loop"])
def _both_loops(request: pytest.FixtureRequest) -> None:
    if request.param == "plain loop":
        request.getfixturevalue("_without_numba")


both_loops = pytest.mark.usefixtures("_both_loops")


@both_loops
def test_by_hand() -> None:
    line = torch.tensor([0.0, 1.0, 10.0, 4.0])
    points = torch.stack([line, torch.zeros(4), torch.zeros(4)], dim=-1)[None]
    # From 0 the farthest is 10, then 4 (4 from the nearest chosen), then 1.
    assert farthest_point_sample(points, 4).tolist() == [[0, 2, 3, 1]]


@both_loops
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [97, 128, 300])  # the compiled loop takes 128 points at a time
def test_equals_numpy_loop(n: int, dtype: torch.dtype) -> None:
    points = torch.randn(3, n, 3, dtype=dtype)
    index = farthest_point_sample(points, 31)
    assert index.dtype == torch.int64
    assert index.tolist() == [farthest_points(cloud.numpy(), 31) for cloud in points]
    assert torch.equal(straightforward_sample(points, 31), index)


@both_loops
def test_points_near_the_origin_are_not_skipped() -> None:
    points = torch.tensor([[[1.0, 0, 0], [1.1, 0, 0], [0.0, 0, 0], [0.01, 0, 0]]])
    assert farthest_point_sample(points, 3).tolist() == [[0, 2, 1]]


@both_loops
def test_equal_points_are_chosen_once_each() -> None:
    assert farthest_point_sample(torch.ones(2, 7, 3), 7).sort().values.tolist() == [list(range(7))] * 2


@both_loops
def test_of_equally_far_points_the_first_is_chosen() -> None:
    grid = torch.cartesian_prod(*[torch.arange(7.0)] * 3)[None, torch.randperm(343)]
    assert farthest_point_sample(grid, 343)[0].tolist() == farthest_points(grid[0].numpy(), 343)


@both_loops
@pytest.mark.parametrize("n", [97, 300])
def test_mask_equals_removal(n: int) -> None:
    points, mask = torch.randn(3, n, 3), torch.rand(3, n) > 0.4
    points[~mask] = 100
    index = farthest_point_sample(points, 31, mask=mask)
    for b in range(3):
        rows = mask[b].nonzero().squeeze(1)
        assert index[b].tolist() == rows[farthest_points(points[b, rows].numpy(), 31)].tolist()


@both_loops
@pytest.mark.parametrize("n", [11, LARGE])
def test_fewer_real_points_than_asked(n: int) -> None:
    mask = torch.zeros(1, n, dtype=torch.bool)
    mask[0, [2, 5, 9]] = True
    index = farthest_point_sample(torch.randn(1, n, 3), 7, mask=mask)[0].tolist()
    assert sorted(index[:3]) == [2, 5, 9]  # all of them first
    assert set(index[3:]) <= {2, 5, 9}
    assert len(set(index[3:])) == 1


def test_random_start(generator: torch.Generator) -> None:
    points, mask = torch.randn(64, 11, 3), torch.arange(11) < 4
    mask = mask.expand(64, 11)
    index = farthest_point_sample(points, 3, mask=mask, generator=generator)
    assert set(index[:, 0].tolist()) == {0, 1, 2, 3}
    again = farthest_point_sample(points, 3, mask=mask, generator=torch.Generator().manual_seed(0))
    assert torch.equal(index, again)
    for b in range(64):
        assert index[b].tolist() == farthest_points(points[b, :4].numpy(), 3, start=int(index[b, 0]))


@pytest.mark.parametrize("masked", [False, True])
def test_large_clouds_are_sampled_exactly_from_their_own_start(masked: bool) -> None:
    points = torch.randn(2, LARGE + 1000, 3)
    mask = torch.rand(2, LARGE + 1000) > 0.3 if masked else torch.ones(2, LARGE + 1000, dtype=torch.bool)
    index = farthest_point_sample(points, 200, mask=mask if masked else None)
    for b in range(2):
        rows = mask[b].nonzero().squeeze(1)
        start = int((rows == index[b, 0]).nonzero())
        assert index[b].tolist() == rows[farthest_points(points[b, rows].numpy(), 200, start=start)].tolist()


def test_large_clouds_of_equal_points() -> None:
    index = farthest_point_sample(torch.ones(1, LARGE, 3), 50)
    assert len(index.unique()) == 50
    points = torch.randn(1, 40, 3).repeat(1, LARGE // 32, 1)
    index = farthest_point_sample(points, 50)
    assert len(index.unique()) == 50
    assert len((index[0, :40] % 40).unique()) == 40  # one of each kind first


def test_large_clouds_start_at_random_with_a_generator(generator: torch.Generator) -> None:
    points = torch.randn(1, LARGE, 3).expand(8, -1, -1)
    assert len(farthest_point_sample(points, 2, generator=generator)[:, 0].unique()) > 4
    assert len(farthest_point_sample(points, 2)[:, 0].unique()) == 1


def test_half_precision_and_gradients_do_not_disturb() -> None:
    points = torch.randn(2, 97, 3).half().requires_grad_()
    index = farthest_point_sample(points, 31)
    assert index.tolist() == [farthest_points(cloud.detach().float().numpy(), 31) for cloud in points]


@pytest.mark.parametrize(
    ("points", "num_points", "options", "message"),
    [
        (torch.zeros(2, 7, 3), 8, {}, "num_points must be at most N=7 and at least 1, got 8"),
        (torch.zeros(2, 7, 3), 0, {}, "at least 1, got 0"),
        (torch.zeros(7, 3), 2, {}, r"points must be floating \(B, N, 3\), got torch.float32 \(7, 3\)"),
        (torch.zeros(2, 3, 7), 2, {}, r"got torch.float32 \(2, 3, 7\)"),
        (torch.zeros(2, 7, 3).int(), 2, {}, "got torch.int32"),
        (torch.zeros(2, 7, 3), 2, {"mask": torch.ones(2, 6).bool()}, r"mask must be bool \(2, 7\)"),
        (torch.zeros(2, 7, 3), 2, {"mask": torch.tensor([[True] * 7, [False] * 7])}, "cloud 1 is all padding"),
    ],
)
def test_errors(points: torch.Tensor, num_points: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(points, num_points, **options)


def test_the_oracle_by_hand() -> None:
    points = np.array([[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [4, 0, 0]])
    assert farthest_points(points, 4, start=1) == [1, 2, 3, 0]


def test_large_clouds_far_from_the_origin_keep_their_digits() -> None:
    points = torch.rand(1, LARGE, 3, dtype=torch.float64)
    assert torch.equal(farthest_point_sample(points + 2.0**23, 32), farthest_point_sample(points, 32))


@both_loops
def test_one_point_with_nan_does_not_hide_the_others() -> None:
    points = torch.randn(1, 60, 3, generator=torch.Generator().manual_seed(0))
    points[0, 7, 1] = torch.nan
    assert len(farthest_point_sample(points, 40)[0].unique()) == 40


@pytest.mark.parametrize("number", [100, LARGE])
def test_another_default_device(number: int) -> None:
    """As `torch.set_default_device` sets it in notebooks."""
    points = torch.randn(1, number, 3, generator=torch.Generator().manual_seed(0))
    expected = [farthest_point_sample(points, 20), *knn(points[:, :20], points, k=4)]
    with torch.device("meta"):
        results = [farthest_point_sample(points, 20), *knn(points[:, :20], points, k=4)]
    for mine, theirs in zip(results, expected):
        if mine is not None:
            torch.testing.assert_close(mine, theirs)
