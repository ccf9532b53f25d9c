"""Recording attention in order to draw it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pcea.inference.base import evaluating
from pcea.nn.recording import AttentionMap, record_attention


@contextmanager
def record_on_cpu(network: nn.Module) -> Iterator[dict[str, AttentionMap]]:
    """`record_attention` in evaluation mode; the maps lie on the CPU after the `with` block, where they are drawn."""

    def to_cpu(value: Any) -> Any:
        return value.cpu() if isinstance(value, torch.Tensor) else value

    with torch.no_grad(), evaluating(network), record_attention(network) as maps:
        yield maps
    for name, attention in list(maps.items()):
        maps[name] = AttentionMap(*map(to_cpu, attention))
