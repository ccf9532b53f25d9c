import pytest
import torch
import torch.nn.functional as F

from pcea.datasets.batches import PointBatch
from pcea.ops import farthest_point_sample
from pcea.transforms.points import (
    FarthestSubset,
    RandomDropNormals,
    RandomDropPoints,
    RandomJitter,
    RandomOrientation,
    RandomRotate,
    RandomScale,
    RandomSubset,
    RandomTranslate,
    select_points,
)

B, N = 5, 23
ALL = [
    RandomScale(),
    RandomScale(anisotropic=False),
    RandomTranslate(),
    RandomRotate(),
    RandomOrientation(),
    RandomJitter(),
    RandomDropPoints(),
    RandomSubset(num_points=7),
    FarthestSubset(num_points=7),
]
RANDOM = ALL[:-1]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch(generator):
    """Clouds whose label of a point is its row, so that a selection shows which rows it took."""
    points = torch.randn(B, N, 3, generator=generator)
    normals = F.normalize(torch.randn(B, N, 3, generator=generator), dim=-1)
    return PointBatch(points, torch.arange(N).expand(B, N).clone(), normals)


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: type(transform).__name__)
def test_nothing_happens_in_place(transform, batch):
    before = [None if value is None else value.clone() for value in batch]
    result = transform(batch, generator=seeded(1))
    assert result.points.data_ptr() != batch.points.data_ptr()
    result.points.zero_()
    for value, old in zip(batch, before):
        assert value is old is None or torch.equal(value, old)


@pytest.mark.parametrize("transform", RANDOM, ids=lambda transform: type(transform).__name__)
def test_the_generator_decides(transform, batch):
    first, again, other = (transform(batch, generator=seeded(seed)).points for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_cloud_draws_its_own_numbers(batch):
    batch = batch._replace(points=batch.points[:1].expand(B, N, 3))
    for transform in (RandomScale(), RandomTranslate(), RandomRotate(), RandomOrientation(), RandomJitter()):
        points = transform(batch, generator=seeded(0)).points
        assert all(not torch.equal(points[0], points[b]) for b in range(1, B))


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: type(transform).__name__)
def test_float64_and_clouds_without_normals(transform, batch):
    result = transform(batch._replace(points=batch.points.double(), normals=None), generator=seeded(0))
    assert result.points.dtype == torch.float64
    assert result.normals is None


def test_scale_draws_one_factor_an_axis_within_bounds():
    batch = PointBatch(torch.ones(1000, 2, 3), torch.zeros(1000, dtype=torch.long))
    factor = RandomScale(low=0.5, high=2.0)(batch, generator=seeded(0)).points
    assert torch.equal(factor[:, 0], factor[:, 1])
    assert 0.5 <= factor.min() < 0.51
    assert 1.99 < factor.max() <= 2.0
    assert torch.corrcoef(factor[:, 0].T).triu(1).abs().max() < 0.1
    same = RandomScale(low=0.5, high=2.0, anisotropic=False)(batch, generator=seeded(0)).points
    assert torch.equal(same, same[:, :1, :1].expand_as(same))


def test_normals_stay_unit_and_perpendicular_to_a_scaled_plane(generator):
    normal = F.normalize(torch.randn(B, 1, 3, generator=generator), dim=-1)
    points = torch.randn(B, N, 3, generator=generator)
    points = points - (points * normal).sum(-1, keepdim=True) * normal  # N points of a plane through the origin
    batch = PointBatch(points, torch.zeros(B, dtype=torch.long), normal.expand(B, N, 3))
    scaled = RandomScale()(batch, generator=generator)
    torch.testing.assert_close(scaled.normals.norm(dim=-1), torch.ones(B, N))
    torch.testing.assert_close((scaled.points * scaled.normals).sum(-1), torch.zeros(B, N), atol=1e-5, rtol=0)
    assert (scaled.normals * normal).sum(-1).min() < 0.999


def test_translate_shifts_every_axis_within_the_extent():
    batch = PointBatch(torch.zeros(1000, 2, 3), torch.zeros(1000, dtype=torch.long))
    shift = RandomTranslate(extent=0.2)(batch, generator=seeded(0)).points
    assert torch.equal(shift[:, 0], shift[:, 1])
    assert (shift.amin((0, 1)) < -0.19).all()
    assert (shift.amin((0, 1)) >= -0.2).all()
    assert (shift.amax((0, 1)) > 0.19).all()
    assert (shift.amax((0, 1)) <= 0.2).all()


def test_rotation_is_about_the_vertical_axis(batch):
    rotated = RandomRotate()(batch, generator=seeded(0))
    assert torch.equal(rotated.points[..., 1], batch.points[..., 1])
    torch.testing.assert_close(torch.cdist(rotated.points, rotated.points), torch.cdist(batch.points, batch.points))
    # Points and normals turn together, and nothing is mirrored.
    torch.testing.assert_close((rotated.points * rotated.normals).sum(-1), (batch.points * batch.normals).sum(-1))
    triple, before = (torch.linalg.det(cloud.points[:, :3]) for cloud in (rotated, batch))
    torch.testing.assert_close(triple, before)


def test_rotation_angles_fill_the_range_and_no_more():
    x_axis = torch.tensor([[[1.0, 0.0, 0.0]]]).expand(2000, 1, 3)
    batch = PointBatch(x_axis, torch.zeros(2000, dtype=torch.long))
    x, _, z = RandomRotate(degrees=30)(batch, generator=seeded(0)).points.squeeze(1).T
    angle = torch.rad2deg(torch.atan2(z, x))
    assert -30.001 <= angle.min() < -29.5
    assert 29.5 < angle.max() <= 30.001


def orientations(count, **options):
    """Rotations (count, 3, 3) that take the axes to the transformed points, in columns."""
    axes = torch.eye(3).expand(count, 3, 3)
    batch = PointBatch(axes, torch.zeros(count, dtype=torch.long), axes.flip(1))
    result = RandomOrientation(**options)(batch, generator=seeded(0))
    torch.testing.assert_close(result.normals, result.points.flip(1))  # normals turn with the points
    return result.points.mT


def test_an_orientation_is_a_rotation():
    rotation = orientations(100)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(100, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(100))


def test_orientations_are_uniform_over_all_rotations():
    count = 4000
    rotation = orientations(count)
    # An axis lands anywhere on the sphere, where every coordinate is uniform in -1..1 (Archimedes).
    expected = torch.linspace(-1, 1, count)[:, None]
    for axis in rotation.unbind(2):
        assert (axis.sort(0).values - expected).abs().max() < 0.07  # twice the 1 % point of Kolmogorov's test
        assert torch.corrcoef(axis.T).triu(1).abs().max() < 0.07
    # The angle has density (1 - cos) / pi over 0..pi: mean pi / 2 + 2 / pi, deviation 0.65.
    trace = rotation.diagonal(dim1=1, dim2=2).sum(1)
    angle = ((trace - 1) / 2).clamp(-1, 1).arccos()
    assert angle.mean().item() == pytest.approx(torch.pi / 2 + 2 / torch.pi, abs=0.04)


def test_a_share_of_the_clouds_is_turned():
    def turned(probability):
        return (orientations(2000, probability=probability) != torch.eye(3)).flatten(1).any(1)

    assert turned(1.0).all()
    assert not turned(0.0).any()
    assert turned(0.3).float().mean().item() == pytest.approx(0.3, abs=0.04)  # deviation 0.01
    first = turned(0.5)
    assert not first[:1000].equal(first[1000:])


def test_jitter_has_its_deviation_and_is_clipped():
    batch = PointBatch(torch.zeros(100, 100, 3), torch.zeros(100, dtype=torch.long))
    noise = RandomJitter(std=0.01, clip=0.05)(batch, generator=seeded(0)).points
    assert noise.std().item() == pytest.approx(0.01, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=3e-4)  # 5 standard errors
    clipped = RandomJitter(std=0.01, clip=0.005)(batch, generator=seeded(0)).points
    torch.testing.assert_close(clipped, noise.clamp(-0.005, 0.005))
    assert noise.abs().max() > 0.005


def test_dropped_points_become_the_first_one_with_all_that_belongs_to_it(batch):
    dropped = RandomDropPoints(max_ratio=0.9)(batch, generator=seeded(0))
    rows = dropped.label  # (B, N): the row that each point came from
    assert ((rows == 0) | (rows == torch.arange(N))).all()
    assert rows.eq(0).sum() > B
    for b in range(B):
        assert torch.equal(dropped.points[b], batch.points[b, rows[b]])
        assert torch.equal(dropped.normals[b], batch.normals[b, rows[b]])


def test_normals_of_whole_clouds_are_dropped():
    points, normals = torch.randn(400, 3, 3), F.normalize(torch.randn(400, 3, 3), dim=-1)
    batch = PointBatch(points, torch.zeros(400, dtype=torch.long), normals)
    dropped = RandomDropNormals(probability=0.25)(batch, generator=seeded(0))
    is_dropped = (dropped.normals == 0).flatten(1).all(1)
    assert 0.18 < is_dropped.float().mean() < 0.32  # three standard deviations
    assert torch.equal(dropped.normals[~is_dropped], normals[~is_dropped])
    assert torch.equal(dropped.points, points)
    again = RandomDropNormals(probability=0.25)(batch, generator=seeded(0))
    assert torch.equal(again.normals, dropped.normals)
    with pytest.raises(ValueError, match=r"needs normals: set data.init_args.with_normals to true"):
        RandomDropNormals()(batch._replace(normals=None))


@pytest.fixture
def padded(batch):
    """Clouds of 23, 17, 7, 5 and 2 real points, which lie anywhere between padded ones."""
    mask = torch.zeros(B, N, dtype=torch.bool)
    for row, count in zip(mask, (23, 17, 7, 5, 2)):
        row[torch.randperm(N)[:count]] = True
    assert not mask[:, 0].all()
    return batch._replace(mask=mask, points=batch.points.masked_fill(~mask[..., None], 99.0))


def test_padded_points_are_neither_dropped_nor_repeated(padded):
    dropped = RandomDropPoints(max_ratio=0.9)(padded, generator=seeded(0))
    assert torch.equal(dropped.mask, padded.mask)
    first = padded.mask.int().argmax(1, keepdim=True)
    rows = dropped.label  # the row that each point came from
    assert ((rows == torch.arange(N)) | ((rows == first) & padded.mask)).all()
    assert (rows != torch.arange(N)).sum() > B
    assert torch.equal(dropped.points == 99, padded.points == 99)


def test_a_random_subset_takes_real_points_first(padded):
    for seed in range(20):
        subset = RandomSubset(num_points=7)(padded, generator=seeded(seed))
        assert subset.mask.sum(1).tolist() == [7, 7, 7, 5, 2]
        assert torch.equal((subset.points == 99).all(-1), ~subset.mask)
        for rows, real, mask in zip(subset.label, padded.mask, subset.mask):
            assert real[rows[mask]].all()
            assert len(rows.unique()) == 7


def test_a_subset_without_padding_has_no_mask(padded):
    assert RandomSubset(num_points=2)(padded, generator=seeded(0)).mask is None
    assert RandomSubset(num_points=3)(padded, generator=seeded(0)).mask is not None
    assert RandomSubset(num_points=3)(padded._replace(mask=None), generator=seeded(0)).mask is None


def test_the_dropped_share_is_uniform_up_to_its_maximum():
    points = torch.arange(1000.0).view(1, 1000, 1).expand(400, 1000, 3)
    batch = PointBatch(points, torch.zeros(400, dtype=torch.long))
    share = RandomDropPoints(max_ratio=0.8)(batch, generator=seeded(0)).points[..., 0].eq(0).float().mean(1)
    assert share.max() < 0.8 + 0.05
    assert share.max() > 0.8 - 0.05
    assert share.min() < 0.03
    assert share.mean().item() == pytest.approx(0.4, abs=0.04)


@pytest.mark.parametrize("transform", [RandomSubset(num_points=7), FarthestSubset(num_points=7)])
def test_a_subset_takes_distinct_rows_of_everything(transform, batch):
    subset = transform(batch, generator=seeded(0))
    assert subset.points.shape == (B, 7, 3)
    for b in range(B):
        rows = subset.label[b]
        assert len(rows.unique()) == 7
        assert torch.equal(subset.points[b], batch.points[b, rows])
        assert torch.equal(subset.normals[b], batch.normals[b, rows])


def test_a_random_subset_can_hold_any_point():
    batch = PointBatch(torch.rand(300, 5, 3), torch.arange(5).expand(300, 5))
    count = RandomSubset(num_points=2)(batch, generator=seeded(0)).label.flatten().bincount(minlength=5)
    assert ((count - 120).abs() < 35).all()  # 120 expected, standard deviation 8.5


def test_a_farthest_subset_is_that_of_farthest_point_sampling(batch):
    rows = FarthestSubset(num_points=7)(batch).label
    assert torch.equal(rows, farthest_point_sample(batch.points, 7))


def test_a_farthest_subset_of_fewer_real_points_counts_each_once():
    points = torch.randn(2, 5, 3)
    mask = torch.tensor([[True] * 5, [False, True, False, True, False]])
    subset = FarthestSubset(num_points=3)(PointBatch(points, torch.arange(10).view(2, 5), mask=mask))
    assert subset.mask.tolist() == [[True, True, True], [True, True, False]]
    assert sorted(subset.label[1, :2].tolist()) == [6, 8]
    assert FarthestSubset(num_points=2)(PointBatch(points, torch.arange(10).view(2, 5), mask=mask)).mask is None


def test_class_labels_are_not_selected(batch):
    batch = batch._replace(label=torch.arange(B), mask=None)
    for transform in (RandomSubset(num_points=7), FarthestSubset(num_points=7), RandomDropPoints()):
        assert transform(batch, generator=seeded(0)).label is batch.label


def test_select_points_by_hand():
    points = torch.tensor([[[0.0, 1, 2], [3, 4, 5], [6, 7, 8]]])
    batch = PointBatch(
        points, torch.tensor([[7, 8, 9]]), -points, torch.tensor([4]), torch.tensor([[True, True, False]])
    )
    chosen = select_points(batch, torch.tensor([[2, 0]]))
    assert chosen.points.tolist() == [[[6, 7, 8], [0, 1, 2]]]
    assert chosen.normals.tolist() == [[[-6, -7, -8], [0, -1, -2]]]
    assert chosen.label.tolist() == [[9, 7]]
    assert chosen.mask.tolist() == [[False, True]]
    assert chosen.category.tolist() == [4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomScale(low=0.0), "0 < low <= high expected, got low=0.0"),
        (lambda: RandomScale(low=2.0, high=1.0), "got low=2.0, high=1.0"),
        (lambda: RandomTranslate(extent=-0.1), "extent must not be negative, got -0.1"),
        (lambda: RandomRotate(degrees=181), "degrees must be in 0..180, got 181"),
        (lambda: RandomOrientation(probability=1.5), "probability must be in 0..1, got 1.5"),
        (lambda: RandomJitter(std=-1), "must not be negative, got std=-1"),
        (lambda: RandomDropNormals(probability=1.5), "probability must be in 0..1, got 1.5"),
        (lambda: RandomDropPoints(max_ratio=1.0), "max_ratio must be at least 0 and below 1, got 1.0"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("transform", [RandomSubset(num_points=24), FarthestSubset(num_points=24)])
def test_more_points_than_there_are(transform, batch):
    with pytest.raises(ValueError, match=r"num_points must be in 1..N=23, the cloud size, got 24"):
        transform(batch)
