"""The shared core: attention layers that map tokens (B, N, C) to tokens (B, N, C).

Source: "Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks" (Guo et al., 2021) for
external attention, "PCT: Point Cloud Transformer" (Guo et al., 2020) for offset attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.nn.chunks import map_chunks, token_chunks
from pcea.nn.linear import Linear, at_least_fp32, linear
from pcea.nn.norm import linear_norm, zero_padding
from pcea.nn.recording import RecordedLayer
from pcea.nn.shortcuts import can_shortcut, is_capturing, is_plain, is_tokenwise

# From this many tokens evaluation keeps no intermediate result of all of them.
STREAMED = 1 << 14

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
        batch: For packed clouds: the cloud of each of the N tokens, (N,) int64, as in PyTorch Geometric.

    Returns:
        Weights, (..., N, S), same dtype as `logits`; each row of a real token sums to 1.

    Source:
        Guo et al., 2021, section 3.2.
    """
    total = _logsumexp_over_tokens(logits, mask, batch)
    return _double(logits, total, mask, slot_mask=slot_mask)


def _double(logits: Tensor, total: Tensor, mask: Tensor | None, *, slot_mask: Tensor | None = None) -> Tensor:
    balanced = at_least_fp32(logits) - total
    if slot_mask is not None:
        balanced = balanced.masked_fill(~slot_mask.unsqueeze(-2), _lowest(balanced))
    return _finish(balanced.softmax(dim=-1), mask, logits.dtype)


def _over_tokens(logits: Tensor, total: Tensor, mask: Tensor | None) -> Tensor:
    balanced = at_least_fp32(logits) - total
    if mask is not None:
        # Before exp, which may overflow at padded tokens and then has a gradient of NaN.
        balanced = balanced.masked_fill(~mask.unsqueeze(-1), _lowest(balanced))
    return balanced.exp().to(logits.dtype)


def _over_slots(logits: Tensor, total: Tensor | None, mask: Tensor | None) -> Tensor:  # noqa: ARG001
    return _finish(at_least_fp32(logits).softmax(dim=-1), mask, logits.dtype)


def _finish(weights: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (weights if mask is None else weights.masked_fill(~mask.unsqueeze(-1), 0)).to(dtype)


def _lowest(logits: Tensor) -> float:
    """Stand-in for -inf that stays finite, so that a cloud without any real token does not become NaN."""
    return torch.finfo(logits.dtype).min / 2


def _logsumexp_over_tokens(logits: Tensor, mask: Tensor | None, batch: Tensor | None) -> Tensor:
    """Log-sum-exp over the tokens of each cloud, (..., 1, S), or for packed clouds one row per token, (..., N, S)."""
    logits = at_least_fp32(logits)
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(-1), _lowest(logits))
    if batch is None:
        return logits.logsumexp(dim=-2, keepdim=True)
    cloud, count = _numbered_clouds(batch)
    highest = logits.detach().new_zeros(*logits.shape[:-2], count, logits.shape[-1])
    index = cloud.unsqueeze(-1).expand_as(logits)
    highest = highest.scatter_reduce(-2, index, logits.detach(), "amax", include_self=False)
    scaled = (logits - highest.index_select(-2, cloud)).exp()
    total = torch.zeros_like(highest).index_add(-2, cloud, scaled).log() + highest
    return total.index_select(-2, cloud)


def _numbered_clouds(batch: Tensor) -> tuple[Tensor, int]:
    """The cloud of each token, and an upper bound on the number of clouds, at most about that of the tokens."""
    if not is_capturing():
        first, last = (int(number) for number in batch.aminmax()) if len(batch) else (0, -1)
        if first < 0:
            raise ValueError(f"batch must not be negative: clouds are numbered from 0, got {first}.")
        if last < max(1024, 2 * len(batch)):
            return batch, last + 1
    # Numbered anew, there are at most as many clouds as tokens, however large the gaps between their numbers; in a
    # graph, where the number of clouds must not become a constant, always.
    ordered, order = batch.sort()
    is_new = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).to(ordered.dtype)])
    return torch.zeros_like(batch).scatter(0, order, is_new.cumsum(0)), batch.shape[0]


# The weights of tokens, (..., N, S), from their logits and each slot's log-sum-exp over all tokens.
_NORMALIZATIONS: dict[str, Callable[..., Tensor]] = {"double": _double, "slots": _over_slots, "tokens": _over_tokens}


class ExternalAttention(RecordedLayer):
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
        self.key = nn.Parameter(torch.empty(memory_units, dim))
        nn.init.normal_(self.key, std=(2 / dim) ** 0.5)
        self.value = None if tied else nn.Parameter(self.key.detach().clone())
        self.value_bias = nn.Parameter(torch.zeros(dim)) if value_bias else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, batch: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            tokens: (B, N, C), or packed clouds (N, C) with `batch`.
            mask: True for real tokens, (B, N).
            batch: The cloud of each packed token, (N,) int64, not negative; in any order, with any gaps.

        Returns:
            (B, N, C) or (N, C); zero at padded tokens.
        """
        _check_tokens(tokens, self.dim, mask, batch)
        logits = linear(zero_padding(tokens, mask), self.key)
        total = None
        if self.normalization != "slots":
            # With this sum over all tokens, every token's weights follow from its own logits.
            total = _logsumexp_over_tokens(logits, mask, batch).expand(logits.shape)
        whole = batch is not None or bool(self._recordings())
        return map_chunks(self._attend, logits, total, mask, modules=[self.dropout], whole=whole)

    def slot_logsumexp(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor | None:
        """Log-sum-exp of each slot's logits over all tokens (B, N, C), which `attend` needs, (B, 1, S).

        Computed a chunk at a time, in the precision of the memory. None if weights are normalized over slots alone.
        """
        if self.normalization == "slots":
            return None
        parts: dict[int, list[Tensor]] = {}
        for clouds, stretch in token_chunks(tokens):
            part = None if mask is None else mask[clouds, stretch]
            logits = linear(zero_padding(tokens[clouds, stretch], part).to(self.key.dtype), self.key)
            parts.setdefault(clouds.start, []).append(_logsumexp_over_tokens(logits, part, None))
        return torch.cat([torch.cat(of_clouds, 1).logsumexp(1, keepdim=True) for of_clouds in parts.values()])

    def attend(self, tokens: Tensor, total: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """What `forward` gives for some of the tokens, (B, N', C); `total` is the `slot_logsumexp` of all of them."""
        return self._attend(linear(zero_padding(tokens, mask), self.key), total, mask)

    def _attend(self, logits: Tensor, total: Tensor | None, mask: Tensor | None) -> Tensor:
        weights = _NORMALIZATIONS[self.normalization](logits, total, mask)
        self._record(weights, mask)
        value = self.key if self.value is None else self.value
        out = linear(self.dropout(weights), value.to(weights.dtype).mT)
        if self.value_bias is not None:
            out = out + self.value_bias.to(out.dtype)
            out = out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)
        return out

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"{self.dim}, memory_units={self.memory_units}, tied={self.tied}, normalization={self.normalization!r}"


class MultiHeadExternalAttention(RecordedLayer):
    """Multi-head external attention (MEA): widened heads that share one pair of memories.

    Args:
        dim: Channels C.
        num_heads: Heads before widening; C must be divisible by it.
        memory_units: Slots S of each head.
        expansion: Tokens are widened from C to `expansion` * C, so that `expansion` * num_heads heads of width
            C / num_heads attend ("coef" in the authors' code).
        dropout: Dropout on the weights in training.

    Raises:
        ValueError: If a size is not positive or `dim` is not divisible by `num_heads`.

    Source:
        Guo et al., 2021, section 3.3.
    """

    def __init__(
        self, dim: int, *, num_heads: int = 8, memory_units: int = 64, expansion: int = 4, dropout: float = 0.0
    ):
        super().__init__()
        if min(dim, num_heads, memory_units, expansion) < 1 or dim % num_heads:
            raise ValueError(
                "dim, num_heads, memory_units and expansion must be positive and dim divisible by num_heads, got "
                f"dim={dim}, num_heads={num_heads}, memory_units={memory_units}, expansion={expansion}."
            )
        self.dim, self.num_heads = dim, num_heads * expansion
        self.expand = Linear(dim, dim * expansion)
        self.key = Linear(dim // num_heads, memory_units)
        self.value = Linear(memory_units, dim // num_heads)
        self.project = Linear(dim * expansion, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, batch: Tensor | None = None) -> Tensor:
        """Attend; arguments and result are those of `ExternalAttention.forward`."""
        _check_tokens(tokens, self.dim, mask, batch)
        heads = self.expand(zero_padding(tokens, mask))
        heads = heads.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # (B, H, N, C / num_heads)
        weights = double_normalize(self.key(heads), mask=None if mask is None else mask[:, None], batch=batch)
        self._record(weights, mask)
        out = self.project(self.value(self.dropout(weights)).transpose(-3, -2).flatten(-2))
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)


class SelfAttention(RecordedLayer):
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
        if key_dim < 1 or num_heads < 1 or dim % num_heads or key_dim % num_heads:
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
        tokens = zero_padding(tokens, mask)  # 0 * NaN is NaN: no weight keeps such a value out
        value = self._heads(self.value(tokens))
        if self.normalization == "softmax":
            query, key = self._query_and_key(tokens)
            heads = F.scaled_dot_product_attention(query, key, value, None if mask is None else mask[:, None, None])
            if self._recordings():  # beside it: what backward passes must not depend on who looks
                with torch.no_grad():
                    self._keep(self._softmax_weights(query, key, mask), mask)
        else:
            weights = self._double_weights(tokens, mask)
            self._keep(weights, mask)
            heads = weights.to(value.dtype) @ value
        out = heads.transpose(1, 2).flatten(2)
        out = out if self.project is None else self.project(out)
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, C / H)

    def _query_and_key(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        query = self._heads(_map(self.query, tokens))
        return query, query if self.key is None else self._heads(_map(self.key, tokens))

    def _double_weights(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Weights (B, H, N, N), rows are queries."""
        mask = None if mask is None else mask[:, None]
        # Unscaled logits reach hundreds, where bf16 values are 1 apart, and training diverges.
        with torch.autocast(tokens.device.type, enabled=False):
            query, key = self._query_and_key(at_least_fp32(tokens))
            logits = query @ key.transpose(-1, -2)
        # With every token as a slot this is PCT's rule: with q = k the energy is symmetric.
        return double_normalize(logits, mask=mask, slot_mask=mask)

    def _softmax_weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Weights (B, H, N, N), rows are queries."""
        mask = None if mask is None else mask[:, None]
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-2), _lowest(logits))
        return _over_slots(logits, None, mask)

    def _keep(self, weights: Tensor, mask: Tensor | None) -> None:
        self._record(weights.squeeze(1) if self.num_heads == 1 else weights, mask)


def _map(layer: nn.Linear, tokens: Tensor) -> Tensor:
    """Apply a linear layer and return the dtype of the tokens, even if the weight has a lower precision."""
    if is_plain(layer, nn.Linear, Linear):
        return linear(
            tokens, layer.weight.to(tokens.dtype), None if layer.bias is None else layer.bias.to(tokens.dtype)
        )
    dtype = next((p.dtype for p in layer.parameters() if p.is_floating_point()), tokens.dtype)
    return layer(tokens.to(dtype)).to(tokens.dtype)


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
        """Map tokens (B, N, C) with mask (B, N) to tokens (B, N, C), zero at padded tokens.

        If `is_streamed`, tokens in half precision are computed in that of the parameters, and stored in theirs.
        """
        _check_mask(tokens, mask)
        if self.is_streamed(tokens):
            return self._stream(tokens, mask)
        tokens = zero_padding(tokens, mask)
        attended = self.attention(tokens, mask=mask)
        return map_chunks(self._update, tokens, attended, mask, modules=[self.linear, self.norm])

    def is_streamed(self, tokens: Tensor) -> bool:
        """Whether nothing but the result is kept of all tokens, in evaluation of many with external attention."""
        attention: Any = self.attention
        return (
            can_shortcut()  # asked first: a graph must not depend on the number of tokens
            and tokens.shape[1] > STREAMED
            and not torch.is_grad_enabled()
            and is_plain(attention, ExternalAttention)
            and not attention._recordings()
            and is_tokenwise([attention.dropout, self.linear, self.norm])
        )

    def _stream(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        attention: Any = self.attention
        total = attention.slot_logsumexp(tokens, mask=mask)
        dtype = self.linear.weight.dtype

        def update(stretch: Tensor, total: Tensor | None, mask: Tensor | None) -> Tensor:
            exact = zero_padding(stretch, mask).to(dtype)
            return self._update(exact, attention.attend(exact, total, mask), mask).to(stretch.dtype)

        total = None if total is None else total.expand(-1, tokens.shape[1], -1)
        return map_chunks(update, tokens, total, mask, modules=[attention.dropout, self.linear, self.norm])

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
    _check_mask(tokens, mask)
    if batch is not None and batch.shape != tokens.shape[:1]:
        raise ValueError(f"batch must be {tuple(tokens.shape[:1])}, got {tuple(batch.shape)}.")
    if batch is not None and batch.dtype != torch.int64:
        raise ValueError(f"batch must be int64, the number of each token's cloud, got {batch.dtype}.")


def _check_mask(tokens: Tensor, mask: Tensor | None) -> None:
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:-1]):
        raise ValueError(f"mask must be bool {tuple(tokens.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}.")
