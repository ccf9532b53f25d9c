from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pcea.models.edge_pooling import EdgePooling, EllipsoidEncoding, Residual
from pcea.ops import knn


def test_an_edge_pooling_starts_as_the_identity() -> None:
    tokens, index = torch.randn(2, 7, 8), torch.randint(7, (2, 7, 3))
    assert torch.equal(EdgePooling(8)(tokens, index), tokens)


def test_edge_pooling_by_hand() -> None:
    pooling = EdgePooling(1).eval()
    nn.init.constant_(pooling.linear.weight, 2.0)
    nn.init.ones_(pooling.norm.weight)
    tokens = torch.tensor([[[1.0], [4.0], [-2.0]]])
    index = torch.tensor([[[0, 1], [1, 2], [2, 0]]])
    out = pooling(tokens, index)
    # Point 0 sees 1 and 4: 2 * 4 - 2 * 1 = 6 more. Point 1 sees itself and less: 0. Point 2 sees 1: 2 + 4 = 6.
    torch.testing.assert_close(out, torch.tensor([[[7.0], [4.0], [4.0]]]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("radius", [1.0, 0.2])
def test_the_encoding_is_the_nearness_to_ellipsoids(radius: float) -> None:
    encoding = EllipsoidEncoding(6, radius=radius).eval()
    nn.init.eye_(encoding.linear.weight)
    points = torch.randn(2, 31, 3)
    centers, index = points[:, :9], knn(points[:, :9], points, k=5).index
    out = encoding(points, centers, index)
    for b in range(2):
        for m in range(9):
            offsets = (points[b, index[b, m]] - centers[b, m]) / radius  # (5, 3)
            transformed = torch.einsum("cij,kcj->kci", encoding.axes, offsets[:, None] - encoding.center)
            expected = -transformed.square().sum(-1).amin(0)
            torch.testing.assert_close(out[b, m], expected, atol=2e-4, rtol=2e-4)


def test_drop_path_skips_whole_clouds_and_scales_the_others() -> None:
    class Branch(Residual):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self._add(tokens, tokens, None)

    branch = Branch(4, drop_path=0.25)
    nn.init.ones_(branch.norm.weight)
    tokens = torch.randn(400, 6, 4)
    added = branch(tokens) - tokens
    normed = F.batch_norm(tokens.flatten(0, 1), None, None, training=True).view(tokens.shape)
    is_skipped = (added == 0).all(-1).all(-1)
    assert 0.18 < is_skipped.float().mean() < 0.32  # three standard deviations
    torch.testing.assert_close(added[~is_skipped], normed[~is_skipped] / 0.75, atol=1e-4, rtol=1e-4)
    branch.eval()
    assert not torch.equal(branch(tokens)[is_skipped], tokens[is_skipped])
