from typing import Any

import pytest
import torch
from reference import nearest_points, points_in_ball

from pcea.ops import ball_query, knn, neighbors

# knn has four ways to its result; each must give the same.
PATHS: dict[str, dict[str, Any]] = {
    "compiled loop": {},
    "one block": {},
    "many blocks": {"_BLOCK": 1, "_CACHED": 1},
    "tree": {"_TREE_OR_MATRIX": (1, 0)},
}


@pytest.fixture(params=PATHS)
def _every_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "compiled loop":
        request.getfixturevalue("_without_numba")
    for name, value in PATHS[request.param].items():
        monkeypatch.setattr(neighbors, name, value)


every_path = pytest.mark.usefixtures("_every_path")


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knn_equals_brute_force(dtype: torch.dtype) -> None:
    query, source = torch.randn(2, 11, 3, dtype=dtype), torch.randn(2, 97, 3, dtype=dtype)
    index, squared_distance = knn(query, source, k=7)
    assert index.dtype == torch.int64
    assert squared_distance.dtype == dtype
    for b in range(2):
        expected, distance = nearest_points(query[b].numpy(), source[b].numpy(), 7)
        assert index[b].tolist() == expected.tolist()
        torch.testing.assert_close(squared_distance[b].double(), torch.from_numpy(distance), atol=0, rtol=1e-6)


@every_path
def test_distances_are_differentiable() -> None:
    query, source = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 9, 3, dtype=torch.float64)
    inputs = query.requires_grad_(), source.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, s: knn(q, s, k=4).squared_distance, inputs)
    with torch.no_grad():
        assert knn(*inputs, k=4).squared_distance.grad_fn is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_distances_are_differentiable_forward_and_in_a_captured_graph() -> None:
    query, source, v = torch.randn(1, 4, 3), torch.randn(1, 9, 3), torch.randn(1, 4, 3)

    def total(query: torch.Tensor) -> torch.Tensor:
        return knn(query, source, k=3).squared_distance.sum()

    expected = torch.func.grad(total)(query)
    torch.testing.assert_close(torch.func.jvp(total, (query,), (v,))[1], (expected * v).sum())
    torch.testing.assert_close(torch.func.jacfwd(total)(query), expected)

    class Total(torch.nn.Module):
        def forward(self, query: torch.Tensor) -> torch.Tensor:
            return total(query)

    program = torch.export.export(Total(), (query,)).module()
    torch.testing.assert_close(torch.autograd.grad(program(query.requires_grad_()), query)[0], expected)


def test_large_units_in_half_precision() -> None:
    points = (1000 * torch.rand(1, 64, 3)).half()
    found = knn(points, points, k=32)
    assert found.squared_distance.dtype == torch.half
    exact = knn(points.float(), points.float(), k=32)
    assert found.index.equal(exact.index)
    inside = ball_query(points, points, radius=300.0, k=8).mask
    assert inside.equal(exact.squared_distance[..., :8] <= 300**2)
    assert not inside.all()


@pytest.mark.parametrize("n", [100, 3100])
def test_nan_is_nobodys_neighbour(n: int) -> None:
    source = torch.rand(1, n, 3) + 1
    assert knn(torch.full((1, 1, 3), torch.nan), source, k=3).squared_distance.isnan().all()
    source[0, 7] = -torch.tensor(torch.nan)  # with its sign bit
    mask = torch.arange(n)[None] < n - 1
    for dtype in (torch.float32, torch.float64):
        for real in (None, mask):
            assert 7 not in knn(torch.zeros(1, 1, 3, dtype=dtype), source.to(dtype), k=3, mask=real).index


@pytest.mark.parametrize("n", [100, 3100])
def test_what_is_infinitely_far_is_no_neighbour(n: int) -> None:
    source = torch.rand(1, n, 3)
    query = torch.tensor([[[0.5, 0.5, torch.inf], [0.5, 0.5, 0.5]]])
    assert knn(query, source, k=3).squared_distance.isinf().all(-1).tolist() == [[True, False]]
    assert ball_query(query, source, radius=1.0, k=3).mask.all(-1).tolist() == [[False, True]]
    source[0, 7] = torch.inf
    assert 7 not in knn(query[:, 1:], source, k=3).index


def test_knn_mask_equals_removal() -> None:
    query, source, mask = torch.randn(2, 11, 3), torch.randn(2, 97, 3), torch.rand(2, 97) > 0.4
    source[~mask] = query[:, :1].expand_as(source)[~mask]  # padding as near as can be
    index, squared_distance = knn(query, source, k=7, mask=mask)
    for b in range(2):
        rows = mask[b].nonzero().squeeze(1)
        expected, distance = nearest_points(query[b].numpy(), source[b, rows].numpy(), 7)
        assert index[b].tolist() == rows[torch.from_numpy(expected)].tolist()
        torch.testing.assert_close(squared_distance[b].double(), torch.from_numpy(distance), atol=0, rtol=1e-6)


@every_path
def test_knn_fills_up_with_the_nearest() -> None:
    source = torch.tensor([[[9.0, 0, 0], [3, 0, 0], [1, 0, 0], [0, 0, 0]]])
    mask = torch.tensor([[False, True, True, False]])
    index, squared_distance = knn(torch.zeros(1, 1, 3), source, k=4, mask=mask)
    assert index.tolist() == [[[2, 1, 2, 2]]]
    assert squared_distance.tolist() == [[[1, 9, 1, 1]]]


@every_path
def test_knn_is_exact_far_from_the_origin() -> None:
    # Steps of 1/512 are exact in fp32 at 10,000, but squares of 1e8 are not.
    points = torch.randint(0, 512, (1, 300, 3)) / 512 + 10_000
    index, squared_distance = knn(points, points, k=5)
    expected, distance = nearest_points(points[0].numpy(), points[0].numpy(), 5)
    torch.testing.assert_close(squared_distance[0].double(), torch.from_numpy(distance), atol=0, rtol=1e-6)
    assert index[0, :, 0].tolist() == list(range(300))

    squares = points.square().sum(-1)
    expanded = squares[:, :, None] + squares[:, None] - 2 * points @ points.transpose(1, 2)
    wrong = expanded.topk(5, largest=False).indices[0] != torch.from_numpy(expected)
    assert wrong.float().mean() > 0.5


@every_path
@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 300])
def test_knn_of_all_sizes(n: int) -> None:
    source = torch.randn(2, n, 3)
    for k in {1, min(4, n), n}:
        index, squared_distance = knn(source, source, k=k)
        for b in range(2):
            expected, distance = nearest_points(source[b].numpy(), source[b].numpy(), k)
            assert index[b].tolist() == expected.tolist()
            torch.testing.assert_close(squared_distance[b].double(), torch.from_numpy(distance), atol=0, rtol=1e-5)


@every_path
def test_knn_of_equal_points() -> None:
    points = torch.ones(1, 500, 3)
    index, squared_distance = knn(points[:, :3], points, k=20)
    assert (squared_distance == 0).all()
    assert all(len(set(row)) == 20 for row in index[0].tolist())


@every_path
def test_knn_of_far_points() -> None:
    # Their squared distances overflow to infinity.
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1e30, 0, 0]]])
    index, squared_distance = knn(points[:, :1], points, k=3)
    assert index.tolist() == [[[0, 1, 2]]]
    assert squared_distance.tolist() == [[[0, 1, torch.inf]]]


@every_path
def test_knn_of_no_query() -> None:
    index, squared_distance = knn(torch.empty(2, 0, 3), torch.randn(2, 7, 3), k=3)
    assert index.shape == squared_distance.shape == (2, 0, 3)
    assert index.dtype == torch.int64


@pytest.mark.parametrize("n", [2_500, 10_000])
def test_large_sources_take_the_loop_or_the_tree(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_knn_matrix", None)
    monkeypatch.setattr(neighbors, "_knn_tree" if n < 3_000 else "_knn_compiled", None)
    query, source = torch.randn(1, n, 3), torch.randn(1, n, 3)
    expected, _ = nearest_points(query[0].numpy(), source[0].numpy(), 3)
    assert knn(query, source, k=3).index[0].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("source", "k", "message"),
    [
        (torch.zeros(2, 7, 3), 8, "k must be at most N=7 and at least 1, got k=8"),
        (torch.zeros(2, 7, 3), 0, "got k=0"),
        (torch.zeros(2, 7, 2), 1, r"source must be floating \(B, N, 3\), got torch.float32 \(2, 7, 2\)"),
        (torch.zeros(3, 7, 3), 1, r"same batch size, got query \(2, 5, 3\), source \(3, 7, 3\)"),
    ],
)
def test_knn_errors(source: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn(torch.zeros(2, 5, 3), source, k=k)


def test_knn_mask_errors() -> None:
    points = torch.zeros(2, 7, 3)
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 7\), got torch.float32"):
        knn(points, points, k=1, mask=torch.ones(2, 7))
    with pytest.raises(ValueError, match="cloud 0 is all padding"):
        knn(points, points, k=1, mask=torch.zeros(2, 7, dtype=torch.bool))


@every_path
@pytest.mark.parametrize("masked", [False, True])
def test_ball_query_equals_brute_force(masked: bool) -> None:
    query, source = torch.rand(2, 11, 3), torch.rand(2, 97, 3)
    mask = torch.rand(2, 97) > 0.5 if masked else None
    index, inside = ball_query(query, source, radius=0.25, k=7, mask=mask)
    assert 0.2 < inside.float().mean() < 0.8  # both full and empty balls occur
    for b in range(2):
        rows = torch.arange(97) if mask is None else mask[b].nonzero().squeeze(1)
        expected = points_in_ball(query[b].numpy(), source[b, rows].numpy(), 0.25, 7)
        for m in range(11):
            found = index[b, m][inside[b, m]].tolist()
            assert found == rows[expected[m]].tolist()
            assert inside[b, m, : len(found)].all()
            nearest = nearest_points(query[b, m : m + 1].numpy(), source[b, rows].numpy(), 1)[0].item()
            assert set(index[b, m, len(found) :].tolist()) <= {int(rows[nearest])}


def test_ball_query_includes_its_border() -> None:
    source = torch.tensor([[[2.0, 0, 0], [0, 1, 0], [0, 0, 2.001]]])
    index, inside = ball_query(torch.zeros(1, 1, 3), source, radius=2, k=3)
    assert index.tolist() == [[[1, 0, 1]]]
    assert inside.tolist() == [[[True, True, False]]]


def test_ball_query_does_not_count_a_filled_place_twice() -> None:
    mask = torch.tensor([[True, False, False]])
    index, inside = ball_query(torch.zeros(1, 1, 3), torch.zeros(1, 3, 3), radius=1, k=3, mask=mask)
    assert index.tolist() == [[[0, 0, 0]]]
    assert inside.tolist() == [[[True, False, False]]]


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_ball_query_radius_error(radius: float) -> None:
    with pytest.raises(ValueError, match="radius must be positive"):
        ball_query(torch.zeros(2, 5, 3), torch.zeros(2, 7, 3), radius=radius, k=1)


@every_path
def test_nan_at_padding_that_is_a_query_too() -> None:
    points, mask = torch.randn(1, 97, 3), torch.arange(97)[None] < 90
    index = knn(points.masked_fill(~mask.unsqueeze(-1), torch.nan), points, k=4, mask=mask).index
    assert torch.equal(index[mask], knn(points, points, k=4, mask=mask).index[mask])
