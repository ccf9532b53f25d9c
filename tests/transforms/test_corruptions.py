import pytest
import torch
import torch.nn.functional as F

from pcea.datasets.batches import PointBatch
from pcea.transforms import (
    Corruption,
    FirstPoints,
    Normalize,
    RandomBackground,
    RandomJitter,
    RandomOneOf,
    RandomOutliers,
    RandomPose,
    RandomRemoval,
    RandomScale,
    RandomSubset,
    RandomTilt,
)
from pcea.transforms.corruptions import CORRUPTIONS
from pcea.transforms.points import axis_rotations

B, N = 6, 200
KINDS = ("anywhere", "half_space", "ball", "slope")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch(generator: torch.Generator) -> PointBatch:
    points = torch.randn(B, N, 3, generator=generator)
    normals = F.normalize(torch.randn(B, N, 3, generator=generator), dim=-1)
    return PointBatch(points, torch.arange(B), normals)


def test_the_24_rotations_are_all_different_and_turn_axes_into_axes() -> None:
    rotations = axis_rotations()
    assert rotations.shape == (24, 3, 3)
    assert len(rotations.unique(dim=0)) == 24
    assert rotations[0].equal(torch.eye(3))
    assert torch.linalg.det(rotations).allclose(torch.ones(24))
    assert ((rotations.abs() == 1).sum(1) == 1).all()
    assert ((rotations == 0).sum(1) == 2).all()


def test_a_random_pose_is_each_of_the_24(batch: PointBatch) -> None:
    many = PointBatch(torch.eye(3).expand(2400, 3, 3), torch.zeros(2400, dtype=torch.long))
    turned = RandomPose()(many, generator=seeded(0)).points
    kinds, counts = turned.unique(dim=0, return_counts=True)
    assert len(kinds) == 24
    assert counts.min() > 50
    result = RandomPose()(batch, generator=seeded(0))
    torch.testing.assert_close(result.points.norm(dim=-1), batch.points.norm(dim=-1))
    # Normals turn with the points.
    assert batch.normals is not None
    assert result.normals is not None
    products = [(b.points * b.normals).sum(-1) for b in (batch, result)]
    torch.testing.assert_close(products[0], products[1])


def test_a_tilt_stays_within_its_angle(batch: PointBatch) -> None:
    axes = PointBatch(torch.eye(3).expand(500, 3, 3), torch.zeros(500, dtype=torch.long))
    turned = RandomTilt(degrees=20)(axes, generator=seeded(0)).points
    angle = torch.rad2deg(((turned.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos())
    assert 18 < angle.max() <= 20.01
    assert angle.min() < 2


@pytest.mark.parametrize("where", KINDS)
def test_as_many_points_are_removed_as_were_asked_for(where: str, batch: PointBatch) -> None:
    result = RandomRemoval(where, low=0.3, high=0.3)(batch, generator=seeded(0))
    assert result.mask is not None
    assert result.mask.sum(1).tolist() == [140] * B
    assert result.points.equal(batch.points)
    # A second removal takes from what is left.
    again = RandomRemoval(where, low=0.5, high=0.5)(result, generator=seeded(1))
    assert again.mask is not None
    assert again.mask.sum(1).tolist() == [70] * B
    assert (again.mask <= result.mask).all()
    assert RandomRemoval(where, low=1, high=1)(batch, generator=seeded(0)).mask.sum(1).tolist() == [1] * B  # type: ignore[union-attr]


def test_what_is_removed_lies_where_it_should(batch: PointBatch) -> None:
    def removed(where: str) -> tuple[torch.Tensor, torch.Tensor]:
        mask = RandomRemoval(where, low=0.3, high=0.3)(batch, generator=seeded(3)).mask  # type: ignore[arg-type]
        assert mask is not None
        return batch.points[0][mask[0]], batch.points[0][~mask[0]]

    # A ball: its middle is one of the removed points, and no kept point is nearer to it than the farthest of them.
    kept, gone = removed("ball")
    reach = torch.cdist(gone, gone).amax(1)
    assert (torch.cdist(gone, kept).amin(1) >= reach - 1e-5).any()
    # A half-space: some direction separates the two sides, so a linear program (here: a perceptron) finds it.
    kept, gone = removed("half_space")
    points, side = torch.cat([kept, gone]), torch.cat([-torch.ones(len(kept)), torch.ones(len(gone))])
    plane = torch.zeros(4)
    extended = torch.cat([points, torch.ones(len(points), 1)], dim=1)
    for _ in range(5000):
        wrong = (side * (extended @ plane) <= 0).nonzero()
        if not len(wrong):
            break
        plane += side[wrong[0, 0]] * extended[wrong[0, 0]]
    assert (side * (extended @ plane) > 0).all()
    # A slope: one direction along which the removed points lie farther, though not all of them.
    kept, gone = removed("slope")
    direction = F.normalize(gone.mean(0) - kept.mean(0), dim=0)
    assert (gone @ direction).mean() > (kept @ direction).mean() + 0.3
    assert (gone @ direction).min() < (kept @ direction).max()


def test_outliers_lie_in_the_sphere_and_are_as_many_as_asked() -> None:
    points = F.normalize(torch.randn(50, 1000, 3, generator=seeded(0)), dim=-1)
    batch = PointBatch(points, torch.zeros(50, dtype=torch.long))
    result = RandomOutliers(low=0.2, high=0.2)(batch, generator=seeded(0))
    moved = (result.points != points).any(-1)
    assert moved.float().mean() == pytest.approx(0.2, abs=0.01)
    radius = result.points.norm(dim=-1)
    assert radius.max() <= 1 + 1e-5
    # Uniform in the volume: an eighth lies within half of the radius.
    assert (radius[moved] < 0.5).float().mean() == pytest.approx(1 / 8, abs=0.02)


def test_one_of_several_for_each_cloud_or_none() -> None:
    batch = PointBatch(torch.ones(3000, 1, 3), torch.zeros(3000, dtype=torch.long))
    doubled, tripled = (RandomScale(low=factor, high=factor, anisotropic=False) for factor in (2, 3))
    result = RandomOneOf([doubled, tripled], probability=0.5)(batch, generator=seeded(0))
    values, counts = result.points[:, 0, 0].unique(return_counts=True)
    assert values.tolist() == [1, 2, 3]
    assert (counts / 3000).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    changed = [
        not RandomOneOf([doubled], probability=1, batches=0.3)(batch, generator=seeded(seed)).points.equal(batch.points)
        for seed in range(200)
    ]
    assert sum(changed) / 200 == pytest.approx(0.3, abs=0.1)


def test_a_removal_among_others_gives_all_clouds_a_mask(batch: PointBatch) -> None:
    removal = RandomRemoval("ball", low=0.5, high=0.5)
    result = RandomOneOf([removal], probability=0.5)(batch, generator=seeded(0))
    assert result.mask is not None
    assert set(result.mask.sum(1).tolist()) == {N, N // 2}


def test_normalize_sees_real_points_only(batch: PointBatch) -> None:
    mask = torch.rand(B, N, generator=seeded(0)) < 0.5
    result = Normalize()(batch._replace(points=5 + 3 * batch.points, mask=mask))
    for points, real in zip(result.points, mask):
        torch.testing.assert_close(points[real].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        assert points[real].norm(dim=1).max() == pytest.approx(1, abs=1e-5)
    whole = Normalize()(batch)
    torch.testing.assert_close(
        whole.points, Normalize()(batch._replace(mask=torch.ones(B, N, dtype=torch.bool))).points
    )


def test_normalize_is_as_exact_with_a_mask_and_keeps_the_type() -> None:
    points, label = torch.randn(2, 1000, 3) * 30 + torch.tensor([4e5, 1e2, 5e6]), torch.zeros(2, dtype=torch.int64)
    expected = Normalize()(PointBatch(points.double(), label)).points.float()
    for mask in (None, torch.ones(2, 1000, dtype=torch.bool)):
        torch.testing.assert_close(Normalize()(PointBatch(points, label, mask=mask)).points, expected)
    assert Normalize()(PointBatch(torch.zeros(2, 4, 3), label)).points.equal(torch.zeros(2, 4, 3))


def test_mixtures_of_padded_clouds_have_half_of_the_real_points_of_each() -> None:
    mask = torch.arange(256) < torch.tensor([[64], [100], [255]])
    points = torch.arange(3.0)[:, None, None] + 1 + torch.zeros(3, 256, 3)
    points[~mask] = torch.nan
    mixed = RandomBackground(poses=0, orientations=0, mixtures=1)(
        PointBatch(points, torch.arange(3), mask=mask), generator=torch.Generator().manual_seed(0)
    )
    assert mixed.mask is not None
    assert mixed.mask.sum(1).tolist() == [32 + 128, 50 + 32, 127 + 50]
    whose = (mixed.points.norm(dim=2) / 3**0.5).round()
    for i, (own, other) in enumerate([(32, 128), (50, 32), (127, 50)]):
        assert [int((whose[i, mixed.mask[i]] == j + 1).sum()) for j in (i, (i - 1) % 3)] == [own, other]


def test_background_has_its_shares_and_keeps_the_others_as_they_are() -> None:
    points = torch.randn(4000, 8, 3, generator=seeded(0))
    batch = PointBatch(points, torch.arange(4000))
    result = RandomBackground(poses=0.2, orientations=0.1, mixtures=0.1)(batch, generator=seeded(0))
    is_background = result.label == -1
    assert is_background.float().mean() == pytest.approx(0.4, abs=0.03)
    assert result.label[~is_background].equal(batch.label[~is_background])
    assert result.points[~is_background].equal(points[~is_background])
    # Poses keep the coordinates up to order and sign; orientations keep distances from the origin; mixtures neither.
    sizes = points.norm(dim=-1)
    keeps_size = (result.points.norm(dim=-1) - sizes).abs().amax(1) < 1e-5
    sorted_coordinates = [p.abs().sort(dim=-1).values for p in (points, result.points)]
    keeps_axes = (sorted_coordinates[0] - sorted_coordinates[1]).abs().amax((1, 2)) < 1e-5
    assert (is_background & keeps_axes).float().mean() == pytest.approx(0.2, abs=0.03)
    assert (is_background & keeps_size & ~keeps_axes).float().mean() == pytest.approx(0.1, abs=0.02)
    assert (is_background & ~keeps_size).float().mean() == pytest.approx(0.1, abs=0.02)


def test_no_background_of_parts(batch: PointBatch) -> None:
    with pytest.raises(ValueError, match=r"one label per cloud, \(B,\), got \(6, 200\)"):
        RandomBackground()(batch._replace(label=torch.zeros(B, N, dtype=torch.long)))


def test_a_mixture_is_half_of_one_cloud_and_half_of_the_next() -> None:
    # Every cloud has points at its own distance from the origin, which a rotation keeps.
    radius = torch.arange(1.0, 7).view(6, 1, 1)
    batch = PointBatch(radius * F.normalize(torch.randn(6, 40, 3, generator=seeded(0)), dim=-1), torch.arange(6))
    result = RandomBackground(poses=0, orientations=0, mixtures=1)(batch, generator=seeded(0))
    for cloud, points in enumerate(result.points):
        values, counts = points.norm(dim=-1).round().unique(return_counts=True)
        assert sorted(values.tolist()) == sorted([cloud + 1, (cloud - 1) % 6 + 1])
        assert counts.tolist() == [20, 20]


def test_a_subset_of_a_random_size(batch: PointBatch) -> None:
    subset = RandomSubset(num_points=100, fewest=10, probability=0.5)
    sizes = [subset(batch, generator=seeded(seed)).points.shape[1] for seed in range(300)]
    assert sizes.count(100) / 300 == pytest.approx(0.5, abs=0.1)
    smaller = [size for size in sizes if size < 100]
    assert min(smaller) < 15
    assert sum(size < 32 for size in smaller) / len(smaller) == pytest.approx(0.5, abs=0.12)  # the logarithmic middle
    with pytest.raises(ValueError, match=r"fewest must be in 1\.\.num_points=100, got 200"):
        RandomSubset(num_points=100, fewest=200)
    everything = RandomSubset(num_points=None)(batch, generator=seeded(0)).points
    assert not everything.equal(batch.points)
    assert everything.sort(dim=1).values.equal(batch.points.sort(dim=1).values)


def test_a_subset_without_padding_is_as_large_as_the_smallest_cloud(batch: PointBatch) -> None:
    mask = torch.arange(N) < torch.tensor([200, 150, 120, 90, 110, 200]).unsqueeze(1)
    result = RandomSubset(num_points=100, padded=False)(batch._replace(mask=mask), generator=seeded(0))
    assert result.mask is None
    assert result.points.shape == (B, 90, 3)
    assert RandomSubset(num_points=100)(batch._replace(mask=mask), generator=seeded(0)).mask is not None


def test_the_first_points(batch: PointBatch) -> None:
    result = FirstPoints(num_points=5)(batch)
    assert result.points.equal(batch.points[:, :5])
    with pytest.raises(ValueError, match=r"num_points must be in 1..N=200"):
        FirstPoints(num_points=201)(batch)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_at_every_level(name: str, batch: PointBatch) -> None:
    batch = Normalize()(batch)
    far = []
    for level in range(1, 6):
        result, again = (Corruption(name, level)(batch) for _ in "ab")
        assert result.points.equal(again.points)
        assert not result.points.equal(Corruption(name, level, seed=1)(batch).points)
        real = torch.ones(B, N, dtype=torch.bool) if result.mask is None else result.mask
        assert result.points[real].norm(dim=-1).max() <= 1 + 1e-5
        far.append(int((~real).sum()) or float((result.points - batch.points).norm(dim=-1).mean()))
    assert far[-1] > far[0]  # the last level changes more than the first


def test_a_corruption_goes_on_from_its_seed(batch: PointBatch) -> None:
    corruption = Corruption("jitter", 3)
    assert not corruption(batch).points.equal(corruption(batch).points)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Corruption("rust", 1), "name must be one of axis_pose, .*, got 'rust'"),
        (lambda: Corruption("jitter", 6), "level must be in 1..5, got 6"),
        (lambda: RandomRemoval("middle"), "where must be one of anywhere, half_space, ball, slope, got 'middle'"),  # type: ignore[arg-type]
        (lambda: RandomRemoval("ball", low=0.5, high=0.2), "0 <= low <= high <= 1 expected"),
        (lambda: RandomOutliers(high=2), "0 <= low <= high <= 1 expected"),
        (lambda: RandomOneOf([]), "needs at least one transform"),
        (lambda: RandomOneOf([RandomJitter()], probability=2), "probability must be in 0..1, got 2"),
        (lambda: RandomBackground(poses=0.9, mixtures=0.2), "must sum to at most 1, got 1.2"),
        (lambda: RandomTilt(degrees=200), "degrees must be in 0..180"),
    ],
)
def test_impossible_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_nan_at_padding_changes_no_real_point(batch: PointBatch, name: str) -> None:
    mask = torch.arange(N).expand(B, N) < N - 20
    results = []
    for filling in (0.0, torch.nan):
        points = batch.points.masked_fill(~mask.unsqueeze(-1), filling)
        out = Corruption(name, 3)(PointBatch(points, batch.label, None, mask=mask), generator=seeded(1))
        results.append(out.points[mask if out.mask is None else out.mask])
    assert results[0].isfinite().all()
    assert torch.equal(*results)
