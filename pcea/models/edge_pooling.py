"""What PointEA is built of: the encoding of a neighbourhood, and residual branches of edge pooling, attention and MLP.

The neighbours of a centre are numbers of points, (B, M, K), as `pcea.ops.knn` gives them.

Source: the edge pooling and the encoding by ellipsoids are those of DeLA ("Decoupled Local Aggregation for Point Cloud
Learning", Chen et al., 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.nn.attention import AttentionFactory
from pcea.nn.linear import Linear
from pcea.nn.norm import add_normed, linear_norm
from pcea.ops import max_neighbors, max_quadratic


class Residual(nn.Module):
    """x + BN(branch), where the norm's weight starts at 0, and a training cloud may skip the branch.

    Args:
        dim: Channels C.
        drop_path: Probability that a training cloud skips the branch.
    """

    def __init__(self, dim: int, *, drop_path: float = 0.0):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.drop_path = drop_path
        nn.init.zeros_(self.norm.weight)

    def _add(self, tokens: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
        keep = None
        if self.training and self.drop_path:
            kept = torch.rand(len(tokens), device=tokens.device) >= self.drop_path
            keep = kept.to(tokens.dtype) / (1 - self.drop_path)
        return add_normed(tokens, self.norm, branch, mask=mask, keep=keep)


class EdgePooling(Residual):
    """x_i + BN(max_j W x_j - W x_i) over the neighbours j of each centre i.

    Args:
        dim: Channels C.
        drop_path: See `Residual`.
    """

    def __init__(self, dim: int, *, drop_path: float = 0.0):
        super().__init__(dim, drop_path=drop_path)
        self.linear = Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor, index: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, M, C) with neighbours (B, M, K) and mask (B, M) to (B, M, C)."""
        return self._add(tokens, max_neighbors(self.linear(tokens), index, own=first_points(index)), mask)


class Attention(Residual):
    """x + BN(attention(x)).

    Args:
        dim: Channels C.
        attention: Builds the attention from its width.
        drop_path: See `Residual`.
    """

    def __init__(self, dim: int, *, attention: AttentionFactory, drop_path: float = 0.0):
        super().__init__(dim, drop_path=drop_path)
        self.attention = attention(dim)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, M, C) with mask (B, M) to (B, M, C)."""
        return self._add(tokens, self.attention(tokens, mask=mask), mask)


class MLP(Residual):
    """x + BN(W2 ReLU(W1 x)).

    Args:
        dim: Channels C.
        ratio: Width of the hidden layer as a multiple of C.
        drop_path: See `Residual`.
    """

    def __init__(self, dim: int, *, ratio: float = 2, drop_path: float = 0.0):
        super().__init__(dim, drop_path=drop_path)
        self.linear1 = Linear(dim, round(ratio * dim))
        self.linear2 = Linear(round(ratio * dim), dim, bias=False)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, M, C) with mask (B, M) to (B, M, C)."""
        return self._add(tokens, self.linear2(F.relu(self.linear1(tokens))), mask)


class EllipsoidEncoding(nn.Module):
    """BN(W max_j -|A (o_j - p)|^2): how near the offsets o_j of the neighbours come to the centre p of an ellipsoid.

    Every channel has an ellipsoid of its own.

    Args:
        dim: Channels C.
        radius: Usual distance of the furthest neighbour, which the ellipsoids are as large as at first.

    Source:
        The second version of DeLA's published code.
    """

    def __init__(self, dim: int, *, radius: float):
        super().__init__()
        self.radius = radius
        self.axes, self.center = nn.Parameter(torch.empty(dim, 3, 3)), nn.Parameter(torch.empty(dim, 3))
        nn.init.normal_(self.axes, std=0.3)
        nn.init.normal_(self.center, std=0.6)
        with torch.no_grad():
            self.axes.diagonal(dim1=1, dim2=2).add_(1)
        self.linear = Linear(dim, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, points: Tensor, centers: Tensor, index: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Encode the neighbours (B, M, K), among points (B, N, 3), of centres (B, M, 3) with mask (B, M): (B, M, C)."""
        with torch.autocast(points.device.type, enabled=False):
            exact = torch.promote_types(points.dtype, torch.float32)
            nearness = max_quadratic(points.to(exact), centers.to(exact), index, self._coefficients())
        return linear_norm(self.linear, self.norm, nearness, mask=mask)

    def _coefficients(self) -> Tensor:
        """The coefficients of 1, x, y, z, xx, yy, zz, xy, xz, yz in the quadratic form, (C, 10)."""
        form = self.axes.mT @ self.axes  # (C, 3, 3)
        slope = (form @ self.center.unsqueeze(-1)).squeeze(-1)
        constant = (slope * self.center).sum(-1, keepdim=True)
        squares = form.diagonal(dim1=1, dim2=2)
        products = torch.stack([form[:, 0, 1], form[:, 0, 2], form[:, 1, 2]], dim=-1)
        r = self.radius
        return torch.cat([-constant, 2 * slope / r, -squares / r**2, -2 * products / r**2], dim=-1)


class Block(nn.Module):
    """Two edge poolings, attention, MLP.

    Args:
        dim: Channels C.
        attention: Builds the attention from its width; None leaves it out.
        ratio: Width of the MLP's hidden layer as a multiple of C.
        drop_path: See `Residual`.
    """

    def __init__(self, dim: int, *, attention: AttentionFactory | None, ratio: float, drop_path: float):
        super().__init__()
        self.pool1 = EdgePooling(dim, drop_path=drop_path)
        self.pool2 = EdgePooling(dim, drop_path=drop_path)
        self.attention = None if attention is None else Attention(dim, attention=attention, drop_path=drop_path)
        self.mlp = MLP(dim, ratio=ratio, drop_path=drop_path)

    def forward(self, tokens: Tensor, index: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, M, C) with neighbours (B, M, K) and mask (B, M) to (B, M, C)."""
        tokens = self.pool2(self.pool1(tokens, index, mask=mask), index, mask=mask)
        if self.attention is not None:
            tokens = self.attention(tokens, mask=mask)
        return self.mlp(tokens, mask=mask)


def first_points(index: Tensor) -> Tensor:
    """The point that each centre is if the centres are the first points: 0..M-1 (B, M), beside neighbours (B, M, K)."""
    return torch.arange(index.shape[1], device=index.device).expand(index.shape[:2])
