"""The shared core: attention layers that map tokens (B, N, C) to tokens (B, N, C).

Source: "Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks" (Guo et al., 2021) for
external attention, "PCT: Point Cloud Transformer" (Guo et al., 2020) for offset attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.nn.chunks import map_chunks
from pcea.nn.linear import Linear, linear
from pcea.nn.norm import linear_norm

AttentionFactory = Callable[[int], nn.Module]


def double_normalize(
    logits: Tensor, *, mask: Tensor | None = None, slot_mask: Tensor | None = None, batch: Tensor | None = None
) -> Tensor:
    """Normalize attention logits over the tokens of every slot, then over the slots of every token.

    The published form, softmax over tokens and then division by the row sum, equals

        softmax over S of (logits - logsumexp over N of logits),

    which needs no epsilon, cannot divide by zero and is reduced in fp32 at least.

    Args:
        logits: Similarity of every token to every slot, (..., N, S).
        mask: True for real tokens, broadcastable to (..., N). Padded tokens take no part and get zero weights.
        slot_mask: True for slots that exist, broadcastable to (..., S); for self-attention, where slots are tokens.
        batch: For packed clouds, logits (N, S): the cloud of each token, (N,) int64, as in PyTorch Geometric.

    Returns:
        Weights, (..., N, S), same dtype as `logits`; each row of a real token sums to 1.

    Source:
        Guo et al., 2021, section 3.2.
    """
    total = _logsumexp_over_tokens(logits, mask, batch)
    return _double(logits, total, mask, slot_mask=slot_mask)


def _double(logits: Tensor, total: Tensor, mask: Tensor | None, *, slot_mask: Tensor | None = None) -> Tensor:
    balanced = _exact(logits) - total
    if slot_mask is not None:
        balanced = balanced.masked_fill(~slot_mask.unsqueeze(-2), _lowest(balanced))
    return _finish(balanced.softmax(dim=-1), mask, logits.dtype)


def _over_tokens(logits: Tensor, total: Tensor, mask: Tensor | None) -> Tensor:
    balanced = _exact(logits) - total
    if mask is not None:
        # Before exp, which may overflow at padded tokens and then has a gradient of NaN.
        balanced = balanced.masked_fill(~mask.unsqueeze(-1), _lowest(balanced))
    return balanced.exp().to(logits.dtype)


def _over_slots(logits: Tensor, total: Tensor | None, mask: Tensor | None) -> Tensor:  # noqa: ARG001
    return _finish(_exact(logits).softmax(dim=-1), mask, logits.dtype)


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _finish(weights: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (weights if mask is None else weights.masked_fill(~mask.unsqueeze(-1), 0)).to(dtype)


def _lowest(logits: Tensor) -> float:
    """Stand-in for -inf that stays finite, so that a cloud without any real token does not become NaN."""
    return torch.finfo(logits.dtype).min / 2


def _logsumexp_over_tokens(logits: Tensor, mask: Tensor | None, batch: Tensor | None) -> Tensor:
    """Log-sum-exp over the tokens of each cloud, (..., 1, S), or for packed clouds one row per token, (N, S)."""
    logits = _exact(logits)
    if batch is not None:
        clouds = int(batch.max()) + 1 if len(batch) else 0
        index = batch.unsqueeze(-1).expand_as(logits)
        highest = logits.detach().new_zeros(clouds, logits.shape[-1])
        highest.scatter_reduce_(0, index, logits.detach(), "amax", include_self=False)
        total = torch.zeros_like(highest).index_add(0, batch, (logits - highest[batch]).exp())
        return (total.log() + highest)[batch]
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(-1), _lowest(logits))
    return logits.logsumexp(dim=-2, keepdim=True)


# The weights of tokens (..., N, S) by their logits and the log-sum-exp of every slot over all tokens.
_NORMALIZATIONS: dict[str, Callable[..., Tensor]] = {"double": _double, "slots": _over_slots, "tokens": _over_tokens}


class AttentionMap(NamedTuple):
    """What the tokens of one layer attended to.

    Attributes:
        weights: (B, N, S), or (B, H, N, S) with heads; each row of a real token sums to 1. (N, S) for packed clouds.
        mask: True for real tokens, (B, N), or None.
        points: Where the tokens are, (B, N, 3), in the coordinates that the model was given; None if the model does not
            say. Networks of pcea do. Any module does whose output has an attribute `centers`.
        slots_are_tokens: S is N: the layer is self-attention.
        grid: Images: rows and columns (H, W) of the last H W tokens, row by row; those before, such as a class token,
            are at no place. None if the model does not say. Networks of pcea do. Any module does that has a method
            `token_grids`, which maps its input to the grids of the attention layers in it, by their names.
    """

    weights: Tensor
    mask: Tensor | None = None
    points: Tensor | None = None
    slots_are_tokens: bool = False
    grid: tuple[int, int] | None = None


class _Attention(nn.Module):
    """A layer whose attention weights `record_attention` can read."""

    _recorder: Callable[[AttentionMap], None] | None = None
    _slots_are_tokens = False

    def _record(self, weights: Tensor, mask: Tensor | None) -> None:
        if self._recorder is not None:
            self._recorder(AttentionMap(weights.detach(), mask, slots_are_tokens=self._slots_are_tokens))


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, AttentionMap]]:
    """Collect the attention weights of every attention layer that runs inside the `with` block.

    Example:
        with record_attention(model) as maps:
            model(points)
        maps["encoder.blocks.0.attention"].weights  # (B, N, S), or (B, H, N, S) with heads

    Args:
        model: Any module that contains attention layers of this file.

    Yields:
        The maps by module name; a later forward pass replaces an earlier one.

    Raises:
        ValueError: If `model` contains no attention layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _Attention)}
    if not layers:
        raise ValueError(f"{type(model).__name__} contains no attention layer of pcea.nn.attention, nothing to record.")
    maps: dict[str, AttentionMap] = {}

    def locate(prefix: str, module: nn.Module, inputs: tuple, output: object) -> None:
        token_grids: Any = getattr(module, "token_grids", None)
        if token_grids is not None and inputs:
            for part, grid in token_grids(*inputs).items():
                within = ".".join(filter(None, (prefix, part)))
                inside = [name for name in maps if f"{name}.".startswith(f"{within}.")]
                maps.update({name: maps[name]._replace(grid=grid) for name in inside})
        centers = getattr(output, "centers", None)
        if isinstance(centers, Tensor):
            inside = [name for name in maps if name.startswith(prefix)]
            maps.update({name: maps[name]._replace(points=centers.detach()) for name in inside})

    hooks = [
        module.register_forward_hook(partial(locate, name))
        for name, module in model.named_modules()
        if not isinstance(module, _Attention)
    ]
    for name, layer in layers.items():
        layer._recorder = lambda attention, name=name: maps.__setitem__(name, attention)
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer._recorder = None


class ExternalAttention(_Attention):
    """External attention: tokens attend to S learned slots that all samples share. Linear in N.

    Weights = normalize(tokens @ key^T), output = weights @ value. Nothing is scaled by 1/sqrt(C), as published.

    Args:
        dim: Channels C.
        memory_units: Slots S.
        tied: One parameter serves as key and value memory. The authors tie by sharing storage, which `.to()` and
            `deepcopy` undo silently; here it is one parameter, and stays one. Untied memories start equal.
        value_bias: Whether a learned vector is added to the output, as in EAMLP's T2T module.
        dropout: Dropout on the weights in training.
        normalization: "double" as published; "slots" or "tokens" is softmax over that axis alone, for ablation.

    Raises:
        ValueError: If a size is not positive or the normalization is unknown.

    Source:
        Guo et al., 2021, section 3.2.
    """

    def __init__(
        self,
        dim: int,
        *,
        memory_units: int = 64,
        tied: bool = True,
        value_bias: bool = False,
        dropout: float = 0.0,
        normalization: Literal["double", "slots", "tokens"] = "double",
    ):
        super().__init__()
        if dim < 1 or memory_units < 1:
            raise ValueError(f"dim and memory_units must be positive, got dim={dim}, memory_units={memory_units}.")
        if normalization not in _NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(_NORMALIZATIONS)}, got {normalization!r}.")
        self.dim, self.memory_units, self.tied, self.normalization = dim, memory_units, tied, normalization
        self.key = nn.Parameter(torch.randn(memory_units, dim) * (2 / dim) ** 0.5)
        self.value = None if tied else nn.Parameter(self.key.detach().clone())
        self.value_bias = nn.Parameter(torch.zeros(dim)) if value_bias else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, batch: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            tokens: (B, N, C), or packed clouds (N, C) with `batch`.
            mask: True for real tokens, (B, N).
            batch: The cloud of each packed token, (N,) int64.

        Returns:
            (B, N, C) or (N, C); zero at padded tokens.
        """
        _check_tokens(tokens, self.dim, mask, batch)
        logits = linear(tokens, self.key)
        total = None
        if self.normalization != "slots":
            # With this sum over all tokens, every token's weights follow from its own logits.
            total = _logsumexp_over_tokens(logits, mask, batch).expand(logits.shape)
        whole = self.training or self._recorder is not None or batch is not None
        return map_chunks(self._attend, logits, total, mask, whole=whole)

    def _attend(self, logits: Tensor, total: Tensor | None, mask: Tensor | None) -> Tensor:
        weights = _NORMALIZATIONS[self.normalization](logits, total, mask)
        self._record(weights, mask)
        out = self.dropout(weights) @ (self.key if self.value is None else self.value).to(weights.dtype)
        if self.value_bias is not None:
            out = out + self.value_bias.to(out.dtype)
            out = out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)
        return out

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"{self.dim}, memory_units={self.memory_units}, tied={self.tied}, normalization={self.normalization!r}"


class MultiHeadExternalAttention(_Attention):
    """Multi-head external attention (MEA): widened heads that share one pair of memories.

    Args:
        dim: Channels C.
        num_heads: Heads before widening; C must be divisible by it.
        memory_units: Slots S of each head.
        expansion: Tokens are widened from C to `expansion` * C, so that `expansion` * num_heads heads of width
            C / num_heads attend ("coef" in the authors' code).
        dropout: Dropout on the weights in training.

    Raises:
        ValueError: If `dim` is not divisible by `num_heads`.

    Source:
        Guo et al., 2021, section 3.3.
    """

    def __init__(
        self, dim: int, *, num_heads: int = 8, memory_units: int = 64, expansion: int = 4, dropout: float = 0.0
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be divisible by num_heads, got dim={dim}, num_heads={num_heads}.")
        self.dim, self.num_heads = dim, num_heads * expansion
        self.expand = Linear(dim, dim * expansion)
        self.key = Linear(dim // num_heads, memory_units)
        self.value = Linear(memory_units, dim // num_heads)
        self.project = Linear(dim * expansion, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend: tokens (B, N, C), mask (B, N) True for real tokens -> (B, N, C), zero at padded tokens."""
        _check_tokens(tokens, self.dim, mask)
        heads = self.expand(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, C / num_heads)
        weights = double_normalize(self.key(heads), mask=None if mask is None else mask[:, None])
        self._record(weights, mask)
        out = self.project(self.value(self.dropout(weights)).transpose(1, 2).flatten(2))
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)


class SelfAttention(_Attention):
    """Self-attention over all N tokens, quadratic in N: the layer that external attention replaces.

    Args:
        dim: Channels C, of the values too.
        key_dim: Channels of queries and keys together, dim / 4 by default as in PCT.
        num_heads: Heads; must divide `dim` and `key_dim`.
        shared_query_key: Queries and keys come from one weight, as in PCT's published code.
        normalization: "softmax" over keys, scaled by 1/sqrt(key_dim / num_heads); or "double", PCT's softmax over one
            axis and division by the sum over the other, not scaled.
        value_bias: Whether the linear map to values has a bias, as in PCT.
        project: Whether a linear map follows, as in vision transformers.

    Raises:
        ValueError: If the heads do not divide the channels.

    Source:
        PCT (Guo et al., 2020), section 3.2.
    """

    _slots_are_tokens = True

    def __init__(
        self,
        dim: int,
        *,
        key_dim: int | None = None,
        num_heads: int = 1,
        shared_query_key: bool = False,
        normalization: Literal["softmax", "double"] = "softmax",
        value_bias: bool = True,
        project: bool = False,
    ):
        super().__init__()
        key_dim = dim // 4 if key_dim is None else key_dim
        if key_dim < 1 or dim % num_heads or key_dim % num_heads:
            raise ValueError(f"num_heads must divide dim and key_dim, got {num_heads} for dim={dim}, {key_dim=}.")
        if normalization not in ("softmax", "double"):
            raise ValueError(f"normalization must be softmax or double, got {normalization!r}.")
        self.dim, self.num_heads, self.normalization = dim, num_heads, normalization
        self.query = Linear(dim, key_dim, bias=False)
        self.key = None if shared_query_key else Linear(dim, key_dim, bias=False)
        self.value = Linear(dim, dim, bias=value_bias)
        self.project = Linear(dim, dim) if project else None

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend: tokens (B, N, C), mask (B, N) True for real tokens -> (B, N, C), zero at padded tokens."""
        _check_tokens(tokens, self.dim, mask)
        value = self._heads(self.value(tokens))
        if self.normalization == "softmax" and self._recorder is None:
            query, key = self._query_and_key(tokens)
            heads = F.scaled_dot_product_attention(query, key, value, None if mask is None else mask[:, None, None])
        else:
            heads = self._weights(tokens, mask).to(value.dtype) @ value
        out = heads.transpose(1, 2).flatten(2)
        out = out if self.project is None else self.project(out)
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, C / H)

    def _query_and_key(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        query = self._heads(linear(tokens, self.query.weight.to(tokens.dtype)))
        key = query if self.key is None else self._heads(linear(tokens, self.key.weight.to(tokens.dtype)))
        return query, key

    def _weights(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Weights (B, H, N, N), rows are queries."""
        token_mask, mask = mask, None if mask is None else mask[:, None]
        if self.normalization == "double":
            # Without scaling logits grow to hundreds, where numbers of bf16 lie 1 apart, and training diverges.
            with torch.autocast(tokens.device.type, enabled=False):
                query, key = self._query_and_key(_exact(tokens))
                logits = query @ key.transpose(-1, -2)
            # With every token as a slot this is PCT's rule: with q = k the energy is symmetric.
            weights = double_normalize(logits, mask=mask, slot_mask=mask)
        else:
            query, key = self._query_and_key(tokens)
            logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            if mask is not None:
                logits = logits.masked_fill(~mask.unsqueeze(-2), _lowest(logits))
            weights = _over_slots(logits, None, mask)
        self._record(weights.squeeze(1) if self.num_heads == 1 else weights, token_mask)
        return weights


class ResidualAttention(nn.Module):
    """An attention inside PCT's residual layer: y = x + ReLU(BN(Linear(attention(x)))).

    Args:
        dim: Channels C.
        attention: Builds the attention from its width.

    Source:
        PCT (Guo et al., 2020), section 3.2, equation 6.
    """

    def __init__(self, dim: int, *, attention: AttentionFactory):
        super().__init__()
        self.attention = attention(dim)
        self.linear = Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, C) with mask (B, N) to tokens (B, N, C); what stood at padded tokens stays."""
        return map_chunks(self._update, tokens, self.attention(tokens, mask=mask), mask, whole=self.training)

    def _update(self, tokens: Tensor, attended: Tensor, mask: Tensor | None) -> Tensor:
        update = F.relu(linear_norm(self.linear, self.norm, attended, mask=mask))
        return tokens + (update if mask is None else update.masked_fill(~mask.unsqueeze(-1), 0))


class OffsetAttention(ResidualAttention):
    """PCT's offset attention: y = x + ReLU(BN(Linear(x - attention(x)))).

    Args:
        dim: Channels C.
        attention: Builds the attention from its width. None gives PCT's own: self-attention with double normalization
            and one weight for queries and keys. EAT puts `ExternalAttention` here.

    Source:
        PCT (Guo et al., 2020), section 3.3.
    """

    def __init__(self, dim: int, *, attention: AttentionFactory | None = None):
        super().__init__(dim, attention=attention or _pct_self_attention)

    def _update(self, tokens: Tensor, attended: Tensor, mask: Tensor | None) -> Tensor:
        return super()._update(tokens, tokens - attended, mask)


def _pct_self_attention(dim: int) -> SelfAttention:
    return SelfAttention(dim, shared_query_key=True, normalization="double")


def _check_tokens(tokens: Tensor, dim: int, mask: Tensor | None, batch: Tensor | None = None) -> None:
    expected = "(N, C)" if batch is not None else "(B, N, C)"
    if tokens.ndim != expected.count(",") + 1 or tokens.shape[-1] != dim:
        raise ValueError(f"tokens must be {expected} with C={dim}, got {tuple(tokens.shape)}.")
    if mask is not None and batch is not None:
        raise ValueError("mask is for padded tokens (B, N, C), batch for packed tokens (N, C): give one of them.")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:-1]):
        raise ValueError(f"mask must be bool {tuple(tokens.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}.")
    if batch is not None and batch.shape != tokens.shape[:1]:
        raise ValueError(f"batch must be {tuple(tokens.shape[:1])}, got {tuple(batch.shape)}.")
