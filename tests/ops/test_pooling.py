from __future__ import annotations

import pytest
import torch
from reference import neighbor_maxima, quadratic_maxima
from torch import Tensor

from pcea.ops import max_neighbors, max_quadratic

B, N, M, C, K = 2, 11, 7, 5, 3


both_ways = pytest.mark.usefixtures("_both_ways")


def indices(k: int = K) -> Tensor:
    return torch.randint(N, (B, M, k))


@both_ways
def test_maximum_by_hand() -> None:
    values = torch.tensor([[[1.0, -1.0], [5.0, -7.0], [3.0, -2.0]]], requires_grad=True)
    index = torch.tensor([[[0, 1], [2, 0]]])
    out = max_neighbors(values, index, own=torch.tensor([[0, 2]]))
    # Of points 0 and 1 the maximum is (5, -1), of 2 and 0 it is (3, -1); less points 0 and 2.
    assert out.tolist() == [[[4, 0], [0, 1]]]
    out.backward(torch.tensor([[[1.0, 10.0], [100.0, 1000.0]]]))
    assert values.grad is not None
    assert values.grad.tolist() == [[[-1, 1000], [1, 0], [0, -1000]]]


@both_ways
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 16])
@pytest.mark.parametrize("with_own", [False, True])
def test_maximum_equals_the_loop(k: int, with_own: bool) -> None:
    values, index = torch.randn(B, N, C, requires_grad=True), indices(k)
    own = torch.randint(N, (B, M)) if with_own else None
    grad = torch.randn(B, M, C)
    out = max_neighbors(values, index, own=own)
    expected, expected_grad = neighbor_maxima(
        values.detach().numpy(), index.numpy(), None if own is None else own.numpy(), grad.numpy()
    )
    torch.testing.assert_close(out.detach(), torch.from_numpy(expected))
    # Where no gradient is wanted another loop takes the maxima.
    assert torch.equal(max_neighbors(values.detach(), index, own=own), out)
    (found,) = torch.autograd.grad(out, values, grad)
    torch.testing.assert_close(found, torch.from_numpy(expected_grad))


@both_ways
@pytest.mark.parametrize("k", [1, 2, 3, 16])
def test_quadratic_equals_the_loop(k: int) -> None:
    points, centers, weight = torch.randn(B, N, 3), torch.randn(B, M, 3), torch.randn(C, 10, requires_grad=True)
    index, grad = indices(k), torch.randn(B, M, C)
    out = max_quadratic(points, centers, index, weight)
    expected, expected_grad = quadratic_maxima(
        points.numpy(), centers.numpy(), index.numpy(), weight.detach().numpy(), grad.numpy()
    )
    torch.testing.assert_close(out.detach(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
    (found,) = torch.autograd.grad(out, weight, grad)
    torch.testing.assert_close(found, torch.from_numpy(expected_grad), atol=1e-4, rtol=1e-4)


def test_quadratic_by_hand() -> None:
    # The form -(x - 1)^2 = -1 + 2 x - xx is highest at the neighbour with offset (0.5, 2, 0).
    weight = torch.tensor([[-1.0, 2, 0, 0, -1, 0, 0, 0, 0, 0]])
    points = torch.tensor([[[0.5, 2, 0], [3, 0, 0], [-1, 0, 0]]])
    out = max_quadratic(points + 10, torch.full((1, 1, 3), 10.0), torch.tensor([[[0, 1, 2]]]), weight)
    assert out.tolist() == [[[-0.25]]]


@both_ways
def test_first_and_second_derivatives() -> None:
    index, own = indices(), torch.randint(N, (B, M))
    values = torch.randn(B, N, C, dtype=torch.float64, requires_grad=True)
    points, centers = (torch.randn(B, n, 3, dtype=torch.float64, requires_grad=True) for n in (N, M))
    weight = torch.randn(C, 10, dtype=torch.float64, requires_grad=True)

    def maximum(values: Tensor) -> Tensor:
        return max_neighbors(values, index, own=own)

    def quadratic(*inputs: Tensor) -> Tensor:
        return max_quadratic(inputs[0], inputs[1], index, inputs[2])

    assert torch.autograd.gradcheck(maximum, (values,))
    assert torch.autograd.gradgradcheck(maximum, (values,))
    assert torch.autograd.gradcheck(quadratic, (points, centers, weight))
    assert torch.autograd.gradgradcheck(quadratic, (points, centers, weight))
    # Without gradients of the points another loop computes that of the weight.
    assert torch.autograd.gradcheck(quadratic, (points.detach(), centers.detach(), weight))


@both_ways
def test_gradients_where_the_inputs_share_their_origin() -> None:
    weight, index = torch.randn(C, 10, dtype=torch.float64, requires_grad=True), indices()

    def of_points(points: Tensor) -> Tensor:
        moved = 2 * points
        return max_quadratic(moved, moved[:, :M], index, weight)

    points = torch.randn(B, N, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of_points, (points,))
    assert torch.autograd.gradgradcheck(of_points, (points,))


@both_ways
@pytest.mark.parametrize("with_gradient", [False, True])
def test_nan_is_not_lost(with_gradient: bool) -> None:
    for place in range(N):
        values = torch.randn(1, N, C)
        values[0, place, 2] = torch.nan
        out = max_neighbors(values.requires_grad_(with_gradient), torch.arange(N).expand(1, 1, N))
        assert out[0, 0].isnan().tolist() == [False, False, True, False, False]


@both_ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype) -> None:
    values, index = torch.randn(B, N, C).to(dtype), indices()
    out = max_neighbors(values, index)
    assert out.dtype == dtype
    assert torch.equal(out.float(), max_neighbors(values.float(), index))


@both_ways
def test_threads_change_nothing() -> None:
    values, index = torch.randn(B, N, C), indices()
    weight, points = torch.randn(C, 10, requires_grad=True), torch.randn(B, N, 3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = max_quadratic(points, points[:, :M], index, weight)
        results.append((max_neighbors(values, index), out, torch.autograd.grad(out.sum(), weight)[0]))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])
        torch.testing.assert_close(other[2], results[0][2])


@both_ways
def test_nothing_to_do() -> None:
    assert max_neighbors(torch.randn(0, N, C), torch.zeros(0, M, K, dtype=torch.int64)).shape == (0, M, C)
    none = torch.zeros(B, 0, K, dtype=torch.int64)
    assert max_neighbors(torch.randn(B, N, C), none).shape == (B, 0, C)
    assert max_quadratic(torch.randn(B, N, 3), torch.randn(B, 0, 3), none, torch.randn(C, 10)).shape == (B, 0, C)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch itself
def test_op_check() -> None:
    values, index, own = torch.randn(B, N, C, requires_grad=True), indices(), torch.randint(N, (B, M))
    torch.library.opcheck(torch.ops.pcea.max_neighbors, (values, index, own))
    points, weight = torch.randn(B, N, 3), torch.randn(C, 10, requires_grad=True)
    torch.library.opcheck(torch.ops.pcea.max_quadratic, (points, points[:, :M].contiguous(), index, weight))


def test_errors() -> None:
    values, index = torch.randn(B, N, C), indices()
    with pytest.raises(ValueError, match=r"values \(B, N, C\) and index \(B, M, K\) expected"):
        max_neighbors(values[0], index)
    with pytest.raises(ValueError, match=r"own must be \(2, 7\) beside index, got \(2, 11\)"):
        max_neighbors(values, index, own=torch.zeros(B, N, dtype=torch.int64))
    points = torch.randn(B, N, 3)
    with pytest.raises(ValueError, match=r"index \(B, M, K\) and weight \(C, 10\) expected"):
        max_quadratic(points, points[:, :M], index, torch.randn(C, 9))
    with pytest.raises(ValueError, match="points must be floating"):
        max_quadratic(values, points[:, :M], index, torch.randn(C, 10))


@both_ways
@pytest.mark.parametrize("wrong", [-1, N, 10**7])
def test_an_index_out_of_range_is_refused(wrong: int) -> None:
    values, points, weight = torch.randn(B, N, C), torch.randn(B, N, 3), torch.randn(C, 10)
    index = indices()
    index[1, 2, 0] = wrong
    with pytest.raises(ValueError, match=rf"index must be in 0\.\.{N - 1}, got"):
        max_neighbors(values, index)
    with pytest.raises(ValueError, match="index must be in"):
        max_quadratic(points, points[:, :M], index, weight)
    with pytest.raises(ValueError, match="own must be in"):
        max_neighbors(values, indices(), own=index[..., 0])


@both_ways
def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"index must be int64, got torch.float32"):
        max_neighbors(torch.randn(B, N, C), indices().float())
    with pytest.raises(ValueError, match=r"values must be floating, got torch.int64"):
        max_neighbors(torch.ones(B, N, C, dtype=torch.int64), indices())


@both_ways
def test_double_precision_far_from_the_origin() -> None:
    points, weight, index = torch.randn(B, N, 3, dtype=torch.float64), torch.randn(C, 10), indices()
    out = max_quadratic(points + 1e6, points[:, :M] + 1e6, index, weight)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, max_quadratic(points, points[:, :M], index, weight), atol=1e-4, rtol=1e-4)
