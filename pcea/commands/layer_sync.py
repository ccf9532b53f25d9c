"""`--trainer.sync_batchnorm true` on a CPU."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcea.nn.synchronized import SynchronizedBatchNorm


class CpuLayerSync(LayerSync):
    """Let every batch norm of a network take its statistics over all processes; torch's way needs a GPU."""

    def __init__(self) -> None:
        self._kinds: dict[nn.Module, type[nn.Module]] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Turn the batch norms of a model into synchronized ones, in place."""
        self._kinds = {norm: type(norm) for norm in model.modules() if isinstance(norm, _BatchNorm)}
        for norm in self._kinds:
            norm.__class__ = SynchronizedBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Turn them back into what they were."""
        for norm, kind in self._kinds.items():
            norm.__class__ = kind
        return model
