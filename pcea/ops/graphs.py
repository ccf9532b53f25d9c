"""What the ops need inside captured graphs and under torch.func."""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_tracing(name: str) -> None:
    """Stop torch.jit.trace and the old ONNX exporter, which would make sizes of this call constants of the graph.

    Raises:
        RuntimeError: With what to use instead.
    """
    if torch.jit.is_tracing():
        raise RuntimeError(
            f"{name} cannot be traced by torch.jit: the trace would be right for one size of input only. "
            "Use torch.export.export, or torch.onnx.export(..., dynamo=True)."
        )


def fold_batch(size: int, tensor: Tensor | None, dim: int | None) -> Tensor | None:
    """Join the axis that vmap maps over, of length `size` and at `dim` if the tensor has it, with the batch axis."""
    if tensor is None:
        return None
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)
