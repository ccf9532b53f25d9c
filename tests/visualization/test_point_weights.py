import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pcea.nn.recording import AttentionMap
from pcea.visualization import interpolate_tokens, point_weights, weights_at
from pcea.visualization.point_weights import select_tokens


def on_a_line(*x):
    return torch.tensor([[float(value), 0, 0] for value in x])


# interpolate_tokens


def test_interpolation_by_hand():
    features, positions = torch.tensor([[1.0, 10], [3, 20], [100, 0]]), on_a_line(0, 2, 3)
    # In the middle of two: their mean. With the third, twice as far: weights 1, 1 and 1/4.
    assert interpolate_tokens(features, positions, on_a_line(1), k=2).tolist() == [[2, 15]]
    expected = torch.tensor([[(1 + 3 + 100 / 4) / 2.25, 30 / 2.25]])
    torch.testing.assert_close(interpolate_tokens(features, positions, on_a_line(1)), expected)
    # At the tokens, in an order of their own, and beyond the end at the nearest one.
    torch.testing.assert_close(interpolate_tokens(features, positions, on_a_line(3, 0, 2)), features[[2, 0, 1]])
    assert interpolate_tokens(features, positions, on_a_line(9, -1), k=1).tolist() == [[100, 0], [1, 10]]


def test_a_single_token_is_the_same_everywhere():
    assert interpolate_tokens(torch.tensor([[7.0, 5]]), on_a_line(2), on_a_line(1, 2, 3)).tolist() == [[7, 5]] * 3


def test_tokens_that_are_the_points_are_not_mixed():
    positions = torch.cat([torch.randn(5, 3), torch.zeros(2, 3)])  # two in one place
    features = torch.randn(7, 2).half()
    out = interpolate_tokens(features, positions, positions.clone())
    assert out.dtype == torch.float32
    assert out.equal(features.float())


def test_points_keep_their_own_order():
    features, positions, points = torch.randn(7, 5), torch.randn(7, 3), torch.randn(11, 3)
    order = torch.randperm(11)
    torch.testing.assert_close(
        interpolate_tokens(features, positions, points[order]), interpolate_tokens(features, positions, points)[order]
    )


def test_many_points_are_interpolated_in_chunks(monkeypatch):
    features, positions, points = torch.randn(7, 2), torch.randn(7, 3), torch.randn(13, 3)
    whole, sizes, interpolate = interpolate_tokens(features, positions, points), [], point_weights.interpolate_features

    def watched(query, *arguments, **options):
        sizes.append(query.shape[1])
        return interpolate(query, *arguments, **options)

    monkeypatch.setattr(point_weights, "interpolate_features", watched)
    monkeypatch.setattr(point_weights, "_CHUNK", 5)
    torch.testing.assert_close(interpolate_tokens(features, positions, points), whole)
    assert sizes == [5, 5, 3]


# select_tokens and weights_at


def test_tokens_of_one_cloud():
    weights, centers, points = torch.rand(2, 5, 7), torch.randn(2, 5, 3), torch.randn(11, 3)
    for cloud in (0, 1):
        found = select_tokens(points, AttentionMap(weights, points=centers), cloud=cloud)
        assert found[0].equal(weights[cloud])
        assert found[1].equal(centers[cloud])


def test_padded_tokens_are_left_out():
    weights, centers = torch.rand(2, 5, 7), torch.randn(2, 5, 3)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    found = select_tokens(torch.randn(11, 3), AttentionMap(weights, mask, centers), cloud=1)
    assert found[0].equal(weights[1, [0, 2, 3]])
    assert found[1].equal(centers[1, [0, 2, 3]])


def test_padded_tokens_are_neither_rows_nor_columns_of_self_attention():
    weights, points = torch.rand(1, 3, 3), torch.randn(2, 3)
    mask = torch.tensor([[True, False, True]])
    found, positions = select_tokens(points, AttentionMap(weights, mask, slots_are_tokens=True))
    assert found.equal(weights[0][[0, 2]][:, [0, 2]])
    assert positions.equal(points)  # as many as there are real tokens


def test_heads():
    weights, points = torch.rand(2, 3, 5, 7), torch.randn(5, 3)
    assert select_tokens(points, AttentionMap(weights), cloud=1, head=2)[0].equal(weights[1, 2])
    expected = (weights[1, 0] + weights[1, 1] + weights[1, 2]) / 3
    torch.testing.assert_close(select_tokens(points, AttentionMap(weights), cloud=1)[0], expected)
    torch.testing.assert_close(weights_at(points, AttentionMap(weights), cloud=1), expected)
    assert weights_at(points, AttentionMap(weights), cloud=1, head=2).equal(weights[1, 2])


def test_weights_at_any_points():
    weights, centers = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]]), on_a_line(0, 2)[None]
    out = weights_at(on_a_line(2, 1, 0), AttentionMap(weights, points=centers))
    torch.testing.assert_close(out, torch.tensor([[0.3, 0.7], [0.6, 0.4], [0.9, 0.1]]))


def test_errors_of_select_tokens():
    points, weights = torch.randn(5, 3), torch.rand(2, 5, 7)
    with pytest.raises(ValueError, match=r"packed clouds, .* give `weights` of one cloud as \(1, N, S\)"):
        select_tokens(points, AttentionMap(weights[0]))
    for cloud in (2, -1):
        with pytest.raises(ValueError, match=rf"cloud must be in 0\.\.1, got {cloud}"):
            select_tokens(points, AttentionMap(weights), cloud=cloud)
    with pytest.raises(ValueError, match=r"of 2 clouds: choose one of them with cloud=0\.\.1"):
        select_tokens(points, AttentionMap(weights))
    with pytest.raises(ValueError, match=r"head must be in 0\.\.0, got 1"):
        select_tokens(points, AttentionMap(weights), cloud=0, head=1)
    for head in (3, -1):
        with pytest.raises(ValueError, match=rf"head must be in 0\.\.2, got {head}"):
            select_tokens(points, AttentionMap(torch.rand(1, 3, 5, 7)), head=head)
    with pytest.raises(ValueError, match=r"of 5 tokens, but there are 6 points.*attention\._replace\(points=\.\.\.\)"):
        select_tokens(torch.randn(6, 3), AttentionMap(weights), cloud=0)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with pytest.raises(ValueError, match="The cloud is padded: give its real points"):
        select_tokens(points, AttentionMap(weights, mask), cloud=1)
    with pytest.raises(ValueError, match="self-attention, which has no slots: give a query point"):
        weights_at(points, AttentionMap(torch.rand(1, 5, 5), slots_are_tokens=True))


@pytest.mark.parametrize(("points_on", "attention_on"), [("cpu", "cuda"), ("cuda", "cuda"), ("cuda", "cpu")])
def test_weights_are_computed_where_the_points_are(points_on, attention_on):
    """With tensors that have a device but no values, so that no GPU is needed; test_devices.py compares values."""
    with FakeTensorMode():
        points, weights = torch.empty(9, 3, device=points_on), torch.empty(2, 4, 6, 5, device=attention_on)
        found = weights_at(points, AttentionMap(weights, grid=(2, 3)), cloud=1)
        assert (found.shape, found.device.type) == ((9, 5), points_on)
        centers = torch.empty(2, 6, 3, device=attention_on)
        tokens = select_tokens(points, AttentionMap(weights, points=centers), cloud=1, head=2)
        assert {tensor.device.type for tensor in tokens} == {points_on}
