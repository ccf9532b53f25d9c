"""Functions of single tokens, a block of tokens at a time where nothing is kept for a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from pcea.nn.shortcuts import can_shortcut, is_tokenwise

Block = tuple[slice, slice]

# Tokens in a block: on a CPU few enough that 1,024 channels of them stay near the processor.
_CPU_BLOCK = 1 << 13
_BLOCK = 1 << 18


def token_chunks(tokens: Tensor) -> Iterator[Block]:
    """Cut (B, N, ...) into blocks of limited size: several whole clouds, or a stretch of one."""
    B, N = tokens.shape[:2]
    size = _CPU_BLOCK if tokens.device.type == "cpu" else _BLOCK
    clouds, length = max(1, size // max(1, N)), min(max(1, N), size)
    for b in range(0, B, clouds):
        for n in range(0, N, length):
            yield slice(b, b + clouds), slice(n, n + length)


def map_chunks(
    function: Callable[..., Tensor], *tokens: Tensor | None, modules: Iterable[nn.Module] = (), whole: bool = False
) -> Tensor:
    """Apply a function of single tokens, so that its intermediate results exist for one block of tokens at a time.

    It is called once with everything while gradients are recorded, while a graph is captured, and where one of
    `modules` needs all tokens (batch statistics) or may have been changed or watched by the user.

    Args:
        function: Maps tensors (B', N', ...) to one (B', N', D); each token's result depends on that token alone.
        *tokens: Its arguments, (B, N, ...) each; None stays None.
        modules: What the function calls.
        whole: Call the function once with everything.

    Returns:
        (B, N, D).
    """
    if whole or torch.is_grad_enabled() or not can_shortcut():
        return function(*tokens)
    first = next(t for t in tokens if t is not None)
    blocks = list(token_chunks(first))
    if len(blocks) < 2 or not is_tokenwise(modules):
        return function(*tokens)
    out: Tensor | None = None
    for block in blocks:
        part = function(*(None if t is None else t[block] for t in tokens))
        if out is None:
            out = part.new_empty(*first.shape[:2], part.shape[-1])
        out[block] = part
    assert out is not None
    return out
