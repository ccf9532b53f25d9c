import numpy as np
import pytest
import torch
from reference import interpolate

from pcea.ops import interpolate_features


def test_by_hand() -> None:
    source = torch.tensor([[[1.0, 0, 0], [-2, 0, 0], [50, 0, 0]]])
    features = torch.tensor([[[10.0], [20.0], [1000.0]]])
    # Weights 1 and 1/4: (10 + 20 / 4) / (1 + 1 / 4) = 12.
    assert interpolate_features(torch.zeros(1, 1, 3), source, features, k=2).item() == pytest.approx(12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_loop(k: int) -> None:
    query, source, features = torch.randn(2, 11, 3), torch.randn(2, 7, 3), torch.randn(2, 7, 5)
    out = interpolate_features(query, source, features, k=k)
    expected = [interpolate(query[b].numpy(), source[b].numpy(), features[b].numpy(), k) for b in range(2)]
    torch.testing.assert_close(out, torch.from_numpy(np.stack(expected)).float())


@pytest.mark.parametrize("unit", [1e-15, 1e-9, 1e6])
def test_weights_do_not_depend_on_the_unit(unit: float) -> None:
    query, source, features = torch.rand(1, 5, 3), torch.rand(1, 9, 3), torch.randn(1, 9, 2)
    expected = interpolate_features(query, source, features)
    torch.testing.assert_close(interpolate_features(unit * query, unit * source, features), expected)


def test_coinciding_points_keep_their_features() -> None:
    source, features = torch.randn(2, 7, 3), torch.randn(2, 7, 5)
    torch.testing.assert_close(interpolate_features(source, source, features), features)


def test_constant_features_stay_constant() -> None:
    out = interpolate_features(torch.randn(2, 11, 3), torch.randn(2, 7, 3), torch.full((2, 7, 5), 4.0))
    torch.testing.assert_close(out, torch.full((2, 11, 5), 4.0))


def test_mask_equals_removal() -> None:
    query, source, features = torch.randn(2, 11, 3), torch.randn(2, 7, 3), torch.randn(2, 7, 5)
    mask = torch.tensor([[True] * 7, [True, False, True, True, False, True, False]])
    out = interpolate_features(query, source, features, mask=mask)
    for b in range(2):
        alone = interpolate_features(query[b : b + 1], source[b, mask[b]][None], features[b, mask[b]][None])
        torch.testing.assert_close(out[b], alone[0])


def test_labels_are_refused() -> None:
    """Weights below 1 would be 0 in whole numbers."""
    points = torch.rand(1, 5, 3)
    with pytest.raises(ValueError, match=r"features must be floating, got torch.int64: for labels, take the index"):
        interpolate_features(points, points, torch.ones(1, 5, 1, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    query, source, features = (torch.randn(2, n, c).to(dtype) for n, c in ((11, 3), (7, 3), (7, 5)))
    query[:, 0] = source[:, 0]
    out = interpolate_features(query, source, features)
    assert out.dtype == dtype
    expected = interpolate_features(query.float(), source.float(), features.float())
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)


def test_gradient() -> None:
    query, source = torch.randn(2, 11, 3, dtype=torch.float64), torch.randn(2, 7, 3, dtype=torch.float64)
    features = torch.randn(2, 7, 5, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (query, source, features)]
    assert torch.autograd.gradcheck(interpolate_features, inputs)
    assert torch.autograd.gradgradcheck(interpolate_features, inputs, fast_mode=True)
    expected = torch.autograd.grad(interpolate_features(*inputs).square().sum(), inputs)
    found = torch.func.grad(lambda *args: interpolate_features(*args).square().sum(), argnums=(0, 1, 2))(
        *(tensor.detach() for tensor in inputs)
    )
    torch.testing.assert_close(found, expected)


def test_errors() -> None:
    query, source = torch.randn(2, 11, 3), torch.randn(2, 7, 3)
    with pytest.raises(ValueError, match="k must be at most N=7 and at least 1, got k=8"):
        interpolate_features(query, source, torch.randn(2, 7, 5), k=8)
    with pytest.raises(ValueError, match=r"features must be \(B, N, C\) beside source \(2, 7, 3\), got \(2, 6, 5\)"):
        interpolate_features(query, source, torch.randn(2, 6, 5))


def test_with_fewer_real_points_than_k_none_counts_twice() -> None:
    source = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [9, 9, 9]]])
    features, mask = torch.tensor([[[0.0], [1.0], [50.0]]]), torch.tensor([[True, True, False]])
    middle = torch.tensor([[[1.0, 0, 0]]])
    assert interpolate_features(middle, source, features, k=3, mask=mask).item() == pytest.approx(0.5)
