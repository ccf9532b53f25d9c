"""Slow, obvious oracles, written from the papers' formulas. Tests and benchmarks compare the package with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def two_step_double_normalize(logits: Tensor, *, eps: float = 1e-9) -> Tensor:
    """The published form for logits (..., N, S): softmax over the tokens, then divide each row by its sum."""
    weights = logits.softmax(dim=-2)
    return weights / (eps + weights.sum(dim=-1, keepdim=True))


def pct_offset(tokens: Tensor, query: nn.Linear, value: nn.Linear) -> Tensor:
    """PCT's x - A v for tokens (B, N, C): softmax over one axis of q q^T, division by the sum over the other."""
    query_key = query(tokens)
    weights = (query_key @ query_key.transpose(1, 2)).softmax(dim=-1)  # rows: the tokens that are attended to
    weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
    return tokens - weights.transpose(1, 2) @ value(tokens)


def farthest_points(points: np.ndarray, num_points: int, *, start: int = 0) -> list[int]:
    """Farthest point sampling of one cloud (N, 3)."""
    points = points.astype(np.float64)
    chosen = [start]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < num_points:
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(-1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def nearest_points(query: np.ndarray, source: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and squared distances, (M, k) each, of the nearest source points (N, 3) of query points (M, 3)."""
    distance = ((query.astype(np.float64)[:, None] - source.astype(np.float64)) ** 2).sum(-1)
    index = distance.argsort(axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(distance, index, axis=1)


def points_in_ball(query: np.ndarray, source: np.ndarray, radius: float, k: int) -> list[list[int]]:
    """For each query point the up to k nearest source points within the radius, nearest first."""
    index, squared_distance = nearest_points(query, source, k)
    return [row[inside].tolist() for row, inside in zip(index, squared_distance <= radius**2)]


def interpolate(query: np.ndarray, source: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """Inverse-squared-distance mean of the features (N, C) of the k nearest source points, (M, C)."""
    index, squared_distance = nearest_points(query, source, k)
    out = np.zeros((len(query), features.shape[1]))
    for i in range(len(query)):
        weights = 1 / np.maximum(squared_distance[i], 1e-16)
        out[i] = weights @ features[index[i]] / weights.sum()
    return out


def neighbor_embedding(module: nn.Module, features: Tensor, center_features: Tensor, index: Tensor) -> Tensor:
    """The published neighbour embedding with the layers of a `NeighborEmbedding`, unfactored; (B, M, D)."""
    batch = torch.arange(len(index))[:, None, None]
    neighbors = features[batch, index]  # (B, M, K, C)
    centers = center_features.unsqueeze(2).expand_as(neighbors)
    pairs = torch.cat([neighbors - centers, centers], dim=-1)
    rows = F.relu(module.norm1(module.linear1(pairs).flatten(0, 2)))
    rows = F.relu(module.norm2(module.linear2(rows)))
    return rows.view(*index.shape, -1).amax(2)


class StraightforwardClassifier(nn.Module):
    """PCT's classifier in the formulation that the field's ports share, channels first; (B, N, 3) -> (B, num_classes).

    Its parameters carry the names of the PyTorch port of PCT, so that its state dict is a checkpoint of that port.

    Args:
        num_classes: Number of classes.
        attention: `StraightforwardOffsetAttention` for PCT, `StraightforwardExternalAttention` for EAT.
        dim: Width of the attention layers.
        num_centers: Points kept by the two stages of neighbour embedding.
        num_neighbors: Neighbours of a centre.
    """

    def __init__(
        self,
        num_classes: int = 40,
        *,
        attention: Callable[[int], nn.Module],
        dim: int = 256,
        num_centers: Sequence[int] = (512, 256),
        num_neighbors: int = 32,
    ):
        super().__init__()
        self.num_centers, self.num_neighbors = num_centers, num_neighbors
        self.conv1 = nn.Conv1d(3, dim // 4, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(dim // 4)
        self.conv2 = nn.Conv1d(dim // 4, dim // 4, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(dim // 4)
        self.gather_local_0 = _StraightforwardEmbedding(dim // 2)
        self.gather_local_1 = _StraightforwardEmbedding(dim)
        self.pt_last = _StraightforwardAttentionLayers(dim, attention)
        self.conv_fuse = nn.Sequential(nn.Conv1d(5 * dim, 1024, 1, bias=False), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2))
        self.linear1 = nn.Linear(1024, 512, bias=False)
        self.bn6 = nn.BatchNorm1d(512)
        self.linear2 = nn.Linear(512, 256)
        self.bn7 = nn.BatchNorm1d(256)
        self.linear3 = nn.Linear(256, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, points: Tensor) -> Tensor:
        x = points.permute(0, 2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        for count, embed in zip(self.num_centers, (self.gather_local_0, self.gather_local_1)):
            points, pairs = _sample_and_group(points, x.permute(0, 2, 1), count, self.num_neighbors)
            x = embed(pairs)
        x = self.conv_fuse(torch.cat([self.pt_last(x), x], dim=1))
        x = x.max(dim=2)[0]
        x = self.dropout(F.leaky_relu(self.bn6(self.linear1(x)), 0.2))
        x = self.dropout(F.leaky_relu(self.bn7(self.linear2(x)), 0.2))
        return self.linear3(x)


class _StraightforwardEmbedding(nn.Module):
    """Pairs (B, M, K, C) -> (B, C, M)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(channels)

    def forward(self, pairs: Tensor) -> Tensor:
        b, m, k, c = pairs.shape
        x = pairs.permute(0, 1, 3, 2).reshape(b * m, c, k)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return x.max(dim=2)[0].view(b, m, c).permute(0, 2, 1)


class _StraightforwardAttentionLayers(nn.Module):
    """(B, C, M) -> (B, 4C, M)."""

    def __init__(self, dim: int, attention: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(dim)
        self.conv2 = nn.Conv1d(dim, dim, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(dim)
        self.sa1, self.sa2, self.sa3, self.sa4 = (attention(dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        outputs = []
        for layer in (self.sa1, self.sa2, self.sa3, self.sa4):
            x = layer(x)
            outputs.append(x)
        return torch.cat(outputs, dim=1)


class StraightforwardOffsetAttention(nn.Module):
    """PCT's offset attention with its N x N matrix, (B, C, N) -> (B, C, N)."""

    def __init__(self, dim: int):
        super().__init__()
        self.q_conv = nn.Conv1d(dim, dim // 4, 1, bias=False)
        self.k_conv = nn.Conv1d(dim, dim // 4, 1, bias=False)
        self.k_conv.weight = self.q_conv.weight
        self.v_conv = nn.Conv1d(dim, dim, 1)
        self.trans_conv = nn.Conv1d(dim, dim, 1)
        self.after_norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        energy = torch.bmm(self.q_conv(x).permute(0, 2, 1), self.k_conv(x))
        weights = energy.softmax(dim=-1)
        weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
        attended = torch.bmm(self.v_conv(x), weights)
        return x + F.relu(self.after_norm(self.trans_conv(x - attended)))


class StraightforwardExternalAttention(nn.Module):
    """External attention by two 1x1 convolutions that share a memory of 64 slots, two-step; (B, C, N) -> (B, C, N)."""

    def __init__(self, dim: int):
        super().__init__()
        self.memory = nn.Parameter(torch.randn(64, dim) * (2 / dim) ** 0.5)
        self.trans_conv = nn.Conv1d(dim, dim, 1)
        self.after_norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        weights = F.conv1d(x, self.memory[:, :, None]).softmax(dim=-1)  # (B, S, N)
        weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
        attended = F.conv1d(weights, self.memory.t()[:, :, None])
        return x + F.relu(self.after_norm(self.trans_conv(x - attended)))


def _sample_and_group(points: Tensor, features: Tensor, count: int, k: int) -> tuple[Tensor, Tensor]:
    """Centres (B, M, 3) and concat(f_j - f_i, f_i), (B, M, K, 2C)."""
    center_index = straightforward_sample(points, count)
    centers = _pick(points, center_index)
    center_features = _pick(features, center_index)
    neighbors = _pick(features, _square_distance(centers, points).topk(k, dim=-1, largest=False)[1])
    center_features = center_features.unsqueeze(2).repeat(1, 1, k, 1)
    return centers, torch.cat([neighbors - center_features, center_features], dim=-1)


@torch.no_grad()
def straightforward_sample(points: Tensor, count: int) -> Tensor:
    """Farthest point sampling over (B, N, 3) as it stands in memory, from point 0; (B, M) int64."""
    b, n, _ = points.shape
    chosen = torch.zeros(b, count, dtype=torch.int64, device=points.device)
    distance = torch.full((b, n), 1e10, device=points.device)
    farthest = torch.zeros(b, dtype=torch.int64, device=points.device)
    batch = torch.arange(b, device=points.device)
    for i in range(count):
        chosen[:, i] = farthest
        center = points[batch, farthest].unsqueeze(1)
        distance = torch.minimum(distance, ((points - center) ** 2).sum(-1))
        farthest = distance.argmax(-1)
    return chosen


def _square_distance(query: Tensor, source: Tensor) -> Tensor:
    """The M x N matrix by expanded squares: what peers use, and wrong for near points far from the origin."""
    product = query @ source.transpose(1, 2)
    return (query**2).sum(-1, keepdim=True) - 2 * product + (source**2).sum(-1).unsqueeze(1)


def _pick(rows: Tensor, index: Tensor) -> Tensor:
    """rows (B, N, C) and index (B, ...) -> (B, ..., C)."""
    batch = torch.arange(len(rows), device=rows.device).view(-1, *[1] * (index.ndim - 1))
    return rows[batch, index]


def part_iou(
    scores: np.ndarray,
    label: np.ndarray,
    category: Sequence[int],
    mask: np.ndarray,
    parts: Sequence[Sequence[int]],
    *,
    own_parts_only: bool,
) -> tuple[float, float, dict[int, float]]:
    """Mean IoU over shapes, over categories, and of each category that has shapes.

    Scores (B, N, P), true classes (B, N), category (B,), real points (B, N), and the parts of each category.
    """
    ious: dict[int, list[float]] = {}
    for b, number in enumerate(category):
        candidates = list(parts[number]) if own_parts_only else list(range(scores.shape[2]))
        points = [n for n in range(scores.shape[1]) if mask[b, n]]
        predicted = {n: max(candidates, key=lambda p: scores[b, n, p]) for n in points}
        of_parts = []
        for part in parts[number]:
            both = sum(1 for n in points if predicted[n] == part and label[b, n] == part)
            either = sum(1 for n in points if predicted[n] == part or label[b, n] == part)
            of_parts.append(both / either if either else 1.0)
        ious.setdefault(number, []).append(sum(of_parts) / len(of_parts))
    means = {number: sum(own) / len(own) for number, own in ious.items()}
    shapes = [iou for own in ious.values() for iou in own]
    return sum(shapes) / len(shapes), sum(means.values()) / len(means), means


class StraightforwardSegmenter(nn.Module):
    """PCT's published part segmenter, channels first; points (B, N, 3), category (B,) -> logits (B, N, num_classes).

    All points, no neighbour embedding. What belongs to the cloud is repeated for every point.

    Args:
        num_classes: Number of classes of a point.
        num_categories: Number of object categories.
        attention: `StraightforwardOffsetAttention` for PCT, `StraightforwardExternalAttention` for EAT.
        dim: Width of the attention layers.
        dropout: Dropout after the first layer of the head.
    """

    def __init__(
        self,
        num_classes: int = 50,
        num_categories: int = 16,
        *,
        attention: Callable[[int], nn.Module],
        dim: int = 128,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.num_categories = num_categories
        self.embed = nn.Sequential(
            nn.Conv1d(3, dim, 1, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
            nn.Conv1d(dim, dim, 1, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
        )
        self.attend = nn.ModuleList(attention(dim) for _ in range(4))
        self.fuse = nn.Sequential(nn.Conv1d(4 * dim, 1024, 1, bias=False), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2))
        self.embed_category = nn.Sequential(
            nn.Conv1d(num_categories, 64, 1, bias=False), nn.BatchNorm1d(64), nn.LeakyReLU(0.2)
        )
        self.classify = nn.Sequential(
            nn.Conv1d(3 * 1024 + 64, 512, 1),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv1d(512, 256, 1),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Conv1d(256, num_classes, 1),
        )

    def forward(self, points: Tensor, *, category: Tensor) -> Tensor:
        n = points.shape[1]
        x = self.embed(points.permute(0, 2, 1))
        outputs = []
        for layer in self.attend:
            x = layer(x)
            outputs.append(x)
        x = self.fuse(torch.cat(outputs, dim=1))  # (B, 1024, N)
        highest = x.max(dim=2, keepdim=True)[0].repeat(1, 1, n)
        mean = x.mean(dim=2, keepdim=True).repeat(1, 1, n)
        one_hot = F.one_hot(category, self.num_categories).to(points.dtype).unsqueeze(2)
        own = self.embed_category(one_hot).repeat(1, 1, n)
        return self.classify(torch.cat([x, highest, mean, own], dim=1)).permute(0, 2, 1)


def sinusoid_positions(count: int, dim: int) -> Tensor:
    """The fixed position table, (count, dim): channel c of position p, in one formula each."""
    rows = []
    for p in range(count):
        angles = [p / 10_000 ** ((c - c % 2) / dim) for c in range(dim)]
        rows.append([math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)])
    return torch.tensor(rows)


def image_patches(image: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """Square patches of an image (B, C, H, W), one after another: (B, H', W', C K K)."""
    b, c, h, w = image.shape
    padded = image.new_zeros(b, c, h + 2 * padding, w + 2 * padding)
    padded[:, :, padding : padding + h, padding : padding + w] = image
    rows = []
    for y in range(0, h + 2 * padding - kernel_size + 1, stride):
        columns = range(0, w + 2 * padding - kernel_size + 1, stride)
        rows.append([padded[:, :, y : y + kernel_size, x : x + kernel_size].flatten(1) for x in columns])
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


class StraightforwardEamlp(nn.Module):
    """EAMLP for images (B, C, H, W) -> (B, num_classes), patch by patch and head by head, without dropout.

    Its parameters carry the names of the authors' code, so that its state dict is a checkpoint in their layout.

    Args:
        num_classes: Number of classes.
        dim: Width of the blocks.
        depth: Number of blocks.
        num_heads: Heads before widening.
        hidden: Width of the MLPs in the blocks.
        splits: Kernel size, stride and padding of the three soft splits.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        hidden: int = 512,
        splits: Sequence[tuple[int, int, int]] = ((7, 4, 2), (3, 2, 1), (3, 2, 1)),
    ):
        super().__init__()
        self.splits = splits
        sides = [split[0] for split in splits]
        self.tokens_to_token = nn.Module()
        self.tokens_to_token.attention1 = _StraightforwardLayer(3 * sides[0] ** 2, _ExternalTokens(3 * sides[0] ** 2))
        self.tokens_to_token.attention2 = _StraightforwardLayer(64 * sides[1] ** 2, _ExternalTokens(64 * sides[1] ** 2))
        self.tokens_to_token.project = nn.Linear(64 * sides[2] ** 2, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(
            _StraightforwardLayer(dim, _ExternalHeads(dim, num_heads), hidden) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        module = self.tokens_to_token
        for split, layer in zip(self.splits, (module.attention1, module.attention2)):
            patches = image_patches(images, *split)
            b, h, w, _ = patches.shape
            tokens = layer.attn(layer.norm1(patches.flatten(1, 2)))  # its own residual: the width changes
            tokens = tokens + layer.mlp(layer.norm2(tokens))
            images = tokens.reshape(b, h, w, 64).permute(0, 3, 1, 2)
        tokens = module.project(image_patches(images, *self.splits[2]).flatten(1, 2))
        tokens = torch.cat([self.cls_token.repeat(len(tokens), 1, 1), tokens], dim=1)
        tokens = tokens + sinusoid_positions(*tokens.shape[1:])
        for block in self.blocks:
            tokens = tokens + block.attn(block.norm1(tokens))
            tokens = tokens + block.mlp(block.norm2(tokens))
        return self.head(self.norm(tokens)[:, 0])


class _StraightforwardLayer(nn.Module):
    """The parts of a layer: two norms, an attention, an MLP."""

    def __init__(self, dim: int, attention: nn.Module, hidden: int = 64):
        super().__init__()
        width = 64 if isinstance(attention, _ExternalTokens) else dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.attn = attention
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, hidden))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(hidden, width))


class _ExternalTokens(nn.Module):
    """Patches (B, N, C) -> (B, N, 64): external attention to 128 slots."""

    def __init__(self, dim: int):
        super().__init__()
        self.q_linear = nn.Linear(dim, 64)
        self.linear_0 = nn.Linear(64, 128, bias=False)
        self.linear_1 = nn.Linear(128, 64)
        self.proj = nn.Linear(64, 64)

    def forward(self, patches: Tensor) -> Tensor:
        tokens = self.q_linear(patches)
        weights = two_step_double_normalize(self.linear_0(tokens))
        return tokens + self.proj(self.linear_1(weights))


class _ExternalHeads(nn.Module):
    """Multi-head external attention to 64 slots, one head after another; (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.trans_dims = nn.Linear(dim, 4 * dim)
        self.linear_0 = nn.Linear(dim // num_heads, 64)
        self.linear_1 = nn.Linear(64, dim // num_heads)
        self.proj = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.trans_dims(tokens).split(self.linear_0.in_features, dim=-1)
        attended = [self.linear_1(two_step_double_normalize(self.linear_0(head))) for head in heads]
        return self.proj(torch.cat(attended, dim=-1))


class NonLocalAttention2d(nn.Module):
    """The non-local block, embedded Gaussian, with its N x N map: self-attention among the pixels of (B, C, H, W).

    x + W_z softmax(theta(x) phi(x)^T) g(x), not scaled. All maps keep C channels and have no bias, where the paper
    halves them: with this the block has the parameters and operations that external attention is compared with.

    Args:
        channels: Channels C.

    Source:
        Wang et al., 2018, section 3.2 and figure 2.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(4))

    def forward(self, image: Tensor) -> Tensor:
        query, key, value = (conv(image).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value))
        attended = self.attend(query, key, value)  # (B, N, C)
        return image + self.out(attended.transpose(1, 2).unflatten(2, image.shape[2:]))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(1, 2)).softmax(dim=-1) @ value


class FusedNonLocalAttention2d(NonLocalAttention2d):
    """The same numbers by torch's fused kernel, which never holds the whole map."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # One head; contiguous, as otherwise torch silently takes the path with the map.
        query, key, value = (tokens.unsqueeze(1).contiguous() for tokens in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)


class DoubleAttention2d(nn.Module):
    """The double attention block: gather C descriptors from all pixels, then distribute them; on (B, C, H, W).

    x + W ([phi(x) softmax(theta(x))^T] softmax(rho(x))): the first softmax runs over the pixels, the second over the
    descriptors. All maps keep C channels and have no bias.

    Args:
        channels: Channels C.

    Source:
        "A^2-Nets: Double Attention Networks" (Chen et al., 2018), section 3.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.feature, self.gather, self.distribute, self.out = (
            nn.Conv2d(channels, channels, 1, bias=False) for _ in range(4)
        )

    def forward(self, image: Tensor) -> Tensor:
        feature = self.feature(image).flatten(2)  # (B, C, N)
        gather = self.gather(image).flatten(2).softmax(dim=2)
        distribute = self.distribute(image).flatten(2).softmax(dim=1)
        descriptors = feature @ gather.transpose(1, 2)  # (B, C, C)
        return image + self.out((descriptors @ distribute).unflatten(2, image.shape[2:]))


class Hamburger2d(nn.Module):
    """Hamburger with non-negative matrix factorization: a low-rank rebuilding of (B, C, H, W) between two 1x1 convs.

    x + BN(W_u (D H)) with relu(W_l x) = D H approximately: D (C, R) and H (R, N) by multiplicative updates from random
    D. Gradients flow through the last update of H alone ("one-step gradient").

    Args:
        channels: Channels C, of the factorized matrix too.
        rank: Columns R of D.
        iterations: Updates of both factors.

    Source:
        "Is Attention Better Than Matrix Decomposition?" (Geng et al., 2021), section 2; the updates are those of Lee
        and Seung, 2001.
    """

    def __init__(self, channels: int, *, rank: int = 64, iterations: int = 6):
        super().__init__()
        self.rank, self.iterations = rank, iterations
        self.lower = nn.Conv2d(channels, channels, 1, bias=False)
        self.upper = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, image: Tensor) -> Tensor:
        bases, coefficients = self.factorize(F.relu(self.lower(image)).flatten(2))
        return image + self.norm(self.upper((bases @ coefficients).unflatten(2, image.shape[2:])))

    def factorize(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Non-negative factors (B, C, R) and (B, R, N) of a non-negative matrix (B, C, N)."""
        with torch.no_grad():
            bases = torch.rand(len(matrix), matrix.shape[1], self.rank, device=matrix.device)
            coefficients = (bases.transpose(1, 2) @ matrix).softmax(dim=1)
            for _ in range(self.iterations):
                coefficients = self._update_coefficients(matrix, bases, coefficients)
                gram = coefficients @ coefficients.transpose(1, 2)
                bases = bases * (matrix @ coefficients.transpose(1, 2)) / (bases @ gram + 1e-6)
        return bases, self._update_coefficients(matrix, bases, coefficients)

    @staticmethod
    def _update_coefficients(matrix: Tensor, bases: Tensor, coefficients: Tensor) -> Tensor:
        gram = bases.transpose(1, 2) @ bases
        return coefficients * (bases.transpose(1, 2) @ matrix) / (gram @ coefficients + 1e-6)


def neighbor_maxima(
    values: np.ndarray, index: np.ndarray, own: np.ndarray | None, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """max_j v_j (- v_i) over neighbours j (B, M, K) of values (B, N, C), and the gradient of its product with grad."""
    out, to_values = np.zeros_like(grad), np.zeros_like(values)
    for b, m, c in np.ndindex(grad.shape):
        winner = index[b, m][values[b, index[b, m], c].argmax()]
        out[b, m, c] = values[b, winner, c]
        to_values[b, winner, c] += grad[b, m, c]
        if own is not None:
            out[b, m, c] -= values[b, own[b, m], c]
            to_values[b, own[b, m], c] -= grad[b, m, c]
    return out, to_values


def quadratic_maxima(
    points: np.ndarray, centers: np.ndarray, index: np.ndarray, weight: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum over neighbours of weight[c] . (1, x, y, z, xx, yy, zz, xy, xz, yz), and its gradient in the weight."""
    out, to_weight = np.zeros_like(grad), np.zeros_like(weight)
    for b, m, c in np.ndindex(grad.shape):
        rows = []
        for j in index[b, m]:
            x, y, z = points[b, j] - centers[b, m]
            rows.append([1, x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])
        values = np.array(rows, weight.dtype) @ weight[c]
        out[b, m, c] = values.max()
        to_weight[c] += grad[b, m, c] * np.array(rows, weight.dtype)[values.argmax()]
    return out, to_weight
