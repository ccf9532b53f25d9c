import pytest
import torch

from pcea.ops.checks import check_mask, check_points


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floating_points_pass(dtype: torch.dtype) -> None:
    points = torch.zeros(2, 7, 3, dtype=dtype)
    check_points(points=points)
    check_points(query=torch.zeros(2, 5, 3), source=points)
    check_mask(None, points)
    check_mask(torch.ones(2, 7, dtype=torch.bool), points)


@pytest.mark.parametrize("bad", [torch.zeros(7, 3), torch.zeros(2, 7, 4), torch.zeros(2, 7, 3, dtype=torch.int64)])
def test_the_wrong_tensor_is_named(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"source must be floating \(B, N, 3\), got torch\."):
        check_points(query=torch.zeros(2, 5, 3), source=bad)


def test_batch_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"query and source must have the same batch size, got query \(2, 5, 3\)"):
        check_points(query=torch.zeros(2, 5, 3), source=torch.zeros(3, 5, 3))


@pytest.mark.parametrize("mask", [torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 7, dtype=torch.uint8)])
def test_mask_must_be_bool_and_fit(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 7\), got torch\.(bool \(2, 6\)|uint8 \(2, 7\))"):
        check_mask(mask, torch.zeros(2, 7, 3))


def test_a_cloud_of_padding_is_named() -> None:
    mask = torch.tensor([[True] * 7, [False] * 7, [True] * 7])
    with pytest.raises(ValueError, match="cloud 1 is all padding"):
        check_mask(mask, torch.zeros(3, 7, 3))
