"""Reading the attention weights of any model without changing it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pcea.nn.shortcuts import can_shortcut


class AttentionMap(NamedTuple):
    """What the tokens of one layer attended to.

    Attributes:
        weights: (B, N, S), or (B, H, N, S) with heads; each row of a real token sums to 1, or with
            `normalization="tokens"` each column over the real tokens. For packed clouds (N, S), or (H, N, S) with
            heads.
        mask: True for real tokens, (B, N), or None.
        points: Positions of the tokens, (B, N, 3), in the coordinates that the model was given; None if the model does
            not provide them. Networks of pcea do, as does any module whose output has an attribute `centers`.
        slots_are_tokens: S is N: the layer is self-attention.
        grid: For images, rows and columns (H, W) of the last H W tokens, row by row; tokens before these, such as a
            class token, have no position. None if the model does not provide it. Networks of pcea do, as does any
            module with a method `token_grids`, which maps its input to the grids of the attention layers in it, by
            their names.
    """

    weights: Tensor
    mask: Tensor | None = None
    points: Tensor | None = None
    slots_are_tokens: bool = False
    grid: tuple[int, int] | None = None


class RecordedLayer(nn.Module):
    """A layer whose attention weights `record_attention` can read."""

    _slots_are_tokens = False

    def _recordings(self) -> list[_Recording]:
        if not can_shortcut():  # nothing is recorded in a graph
            return []
        return [recording for recording in _RECORDINGS if recording.takes(self)]

    def is_recorded(self) -> bool:
        """Whether this layer runs inside a `record_attention` of this thread."""
        return bool(self._recordings())

    def _record(self, weights: Tensor, mask: Tensor | None) -> None:
        for recording in self._recordings():
            attention = AttentionMap(weights.detach(), mask, slots_are_tokens=self._slots_are_tokens)
            recording.maps[recording.names[self.__dict__["_identity"]]] = attention


class _Recording:
    """The maps of one `with` block, and the names of its layers by an identity that their copies do not share."""

    def __init__(self, layers: dict[str, RecordedLayer]):
        self.maps: dict[str, AttentionMap] = {}
        self.names = {layer.__dict__.setdefault("_identity", object()): name for name, layer in layers.items()}
        self.thread = threading.get_ident()

    def takes(self, layer: RecordedLayer) -> bool:
        if layer.__dict__.get("_identity") not in self.names:
            return False
        if layer.__dict__.get("_is_replica"):
            raise RuntimeError("record_attention cannot join the replicas of DataParallel: call its `.module` instead.")
        return self.is_here()

    def is_here(self) -> bool:
        return self.thread == threading.get_ident()


# The recordings of all open blocks. Not a stack: blocks of several threads may overlap.
_RECORDINGS: list[_Recording] = []


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, AttentionMap]]:
    """Collect the attention weights of every attention layer that runs inside the `with` block.

    Blocks may be nested and may overlap, also on one model: each collects the forward passes of its own thread. Deep
    copies of the model are not recorded. Compiled models (torch.compile) run eagerly meanwhile. Nothing is recorded
    under torch.func transforms or from an exported program, which has no layers.

    Example:
        with record_attention(model) as maps:
            model(points)
        maps["encoder.blocks.0.attention"].weights  # (B, N, S), or (B, H, N, S) with heads

    Args:
        model: Any module that contains attention layers of pcea.

    Yields:
        The maps by module name; a later forward pass replaces an earlier one.

    Raises:
        ValueError: If `model` contains no attention layer.
        RuntimeError: Inside the block, if `model` runs in the replicas of torch.nn.DataParallel.
    """
    # A compiled module wraps the original under this name.
    modules = {
        ".".join(part for part in name.split(".") if part != "_orig_mod"): module
        for name, module in model.named_modules()
    }
    layers = {name: module for name, module in modules.items() if isinstance(module, RecordedLayer)}
    if not layers:
        raise ValueError(f"{type(model).__name__} contains no attention layer of pcea.nn.attention, nothing to record.")
    recording = _Recording(layers)
    hooks = []
    try:
        for name, module in modules.items():
            # Only where there are layers inside: a hook keeps a module from taking shortcuts.
            if name not in layers and _within(name, layers):
                hooks.append(module.register_forward_hook(partial(_locate, recording, name), with_kwargs=True))
        _RECORDINGS.append(recording)
        with _eager:
            yield recording.maps
    finally:
        if recording in _RECORDINGS:
            _RECORDINGS.remove(recording)
        for hook in hooks:
            hook.remove()


def _within(name: str, layers: dict[str, Any]) -> list[str]:
    """The layers whose name is `name` or begins with all its parts."""
    return [layer for layer in layers if not name or f"{layer}.".startswith(f"{name}.")]


def _locate(
    recording: _Recording, name: str, module: nn.Module, inputs: tuple, options: dict[str, Any], output: object
) -> None:
    """Add positions to the maps of the layers in a module that has just run."""
    if not recording.is_here():
        return
    maps = recording.maps
    token_grids: Any = getattr(module, "token_grids", None)
    if token_grids is not None and (inputs or options):
        for part, grid in token_grids(*inputs, **options).items():
            inside = _within(".".join(filter(None, (name, part))), maps)
            maps.update({layer: maps[layer]._replace(grid=grid) for layer in inside})
    centers = getattr(output, "centers", None)
    if isinstance(centers, Tensor):
        maps.update({layer: maps[layer]._replace(points=centers.detach()) for layer in _within(name, maps)})


class _Eager:
    """Run compiled modules eagerly while any block is open; blocks may end in another order than they began."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            # Importing dynamo takes a second, and before that nothing is compiled.
            if self._count == 0 and "torch._dynamo" in sys.modules:
                self._stance = torch.compiler.set_stance("force_eager")
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


_eager = _Eager()
