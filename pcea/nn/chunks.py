"""Apply functions of single tokens to one chunk of tokens at a time, where no backward pass needs the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from pcea.nn.shortcuts import can_shortcut, is_tokenwise

Chunk = tuple[slice, slice]

# Tokens in a chunk: on a CPU few enough that 1,024 channels of them stay in its cache.
_CPU_CHUNK = 1 << 13
_CHUNK = 1 << 18


def token_chunks(tokens: Tensor) -> Iterator[Chunk]:
    """Cut (B, N, ...) into chunks of limited size: several whole clouds, or a stretch of one."""
    B, N = tokens.shape[:2]
    size = _CPU_CHUNK if tokens.device.type == "cpu" else _CHUNK
    clouds, length = max(1, size // max(1, N)), min(max(1, N), size)
    for b in range(0, B, clouds):
        for n in range(0, N, length):
            yield slice(b, b + clouds), slice(n, n + length)


def map_chunks(
    function: Callable[..., Tensor], *tokens: Tensor | None, modules: Iterable[nn.Module] = (), whole: bool = False
) -> Tensor:
    """Apply a function of single tokens, so that its intermediate results exist for one chunk of tokens at a time.

    It is called once with all tokens while gradients are recorded or a graph is captured, and if one of `modules`
    needs all tokens (batch statistics) or is not plain (see `is_plain`).

    Args:
        function: Maps tensors (B', N', ...) to one (B', N', D); each token's result depends on that token alone.
        *tokens: Its arguments, (B, N, ...) each; None stays None.
        modules: What the function calls.
        whole: Call the function once with all tokens.

    Returns:
        (B, N, D).
    """
    if whole or torch.is_grad_enabled() or not can_shortcut():
        return function(*tokens)
    first = next(t for t in tokens if t is not None)
    chunks = list(token_chunks(first))
    if len(chunks) < 2 or not is_tokenwise(modules):
        return function(*tokens)
    out: Tensor | None = None
    for chunk in chunks:
        part = function(*(None if t is None else t[chunk] for t in tokens))
        if out is None:
            out = part.new_empty(*first.shape[:2], part.shape[-1])
        out[chunk] = part
    assert out is not None
    return out
