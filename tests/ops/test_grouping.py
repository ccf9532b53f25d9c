import pytest
import torch

from pcea.ops import gather_points, group_neighbors
from pcea.ops.grouping import flat_index


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3), (2, 0)])
def test_gather_points_equals_indexing(shape: tuple[int, ...]) -> None:
    points, index = torch.randn(2, 7, 11), torch.randint(7, shape)
    expected = torch.stack([cloud[rows] for cloud, rows in zip(points, index)])
    assert torch.equal(gather_points(points, index), expected)


def test_gather_points_gradient() -> None:
    points, index = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True), torch.randint(7, (2, 5, 3))
    assert torch.autograd.gradcheck(lambda p: gather_points(p, index), points)


@pytest.mark.parametrize(("points", "index"), [((7, 3), (7, 2)), ((2, 7, 3), (2,)), ((2, 7, 3), (3, 5))])
def test_gather_points_errors(points: tuple[int, ...], index: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"points \(B, N, C\) and index \(B, \.\.\.\) expected, got"):
        gather_points(torch.zeros(points), torch.zeros(index, dtype=torch.int64))


def test_group_neighbors_by_hand() -> None:
    features = torch.tensor([[[1.0, 10], [2, 20], [4, 40]]])
    centers = features[:, 1:2]
    expected = [[[[-1, -10, 2, 20], [2, 20, 2, 20]]]]
    assert group_neighbors(features, centers, torch.tensor([[[0, 2]]])).tolist() == expected


def test_flat_index_by_hand() -> None:
    assert flat_index(torch.tensor([[[0, 6]], [[1, 2]]]), 7).tolist() == [[[0, 6]], [[8, 9]]]


@pytest.mark.parametrize("bad", [-1, 7])
def test_an_index_of_another_cloud_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=r"index must be in 0\.\.6, got"):
        gather_points(torch.zeros(2, 7, 3), torch.tensor([[0], [bad]]))
    with pytest.raises(ValueError, match=r"index must be int64, got torch\.bool"):
        gather_points(torch.zeros(2, 7, 3), torch.ones(2, 7, dtype=torch.bool))
