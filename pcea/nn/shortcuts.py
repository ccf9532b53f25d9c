"""When a layer may compute its result without calling its submodules one by one.

The shortcuts (folding a batch norm into a linear map, cutting tokens into chunks, custom gradients) are exact only for
modules that are just what they assume, and only outside of a graph that is being captured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook


def is_capturing() -> bool:
    """Whether torch.compile, torch.export, torch.jit.trace or an ONNX exporter is recording a graph.

    The size of a tensor, or a choice that follows from it, must not become a constant of that graph.
    """
    return torch.compiler.is_compiling() or torch._C._is_tracing()  # ONNX exporters do one of these


def is_exporting() -> bool:
    """Whether torch.export or torch.onnx.export(..., dynamo=True) is recording, whose graph must suit all sizes."""
    return is_capturing() and getattr(torch.compiler, "is_exporting", lambda: False)()  # since torch 2.7


def is_onnx_export() -> bool:
    """Whether an ONNX exporter is recording. Does not import it where nothing is recorded, which takes long."""
    return is_capturing() and torch.onnx.is_in_onnx_export()


def is_transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp) or forward-mode differentiation is active, which needs plain torch."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for many, as gradients do under `torch.autograd.grad(..., is_grads_batched=True)`."""
    return torch._C._functorch.is_batchedtensor(tensor) or torch._C._functorch.is_legacy_batchedtensor(tensor)


def can_shortcut() -> bool:
    """Whether results may be computed in any exact way, because nothing else follows the operations."""
    return not is_capturing() and not is_transformed()


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd follows what is computed from the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_plain(module: nn.Module, *types: type[nn.Module]) -> bool:
    """Whether the module does what one of `types` does, and nothing else.

    A subclass (LoRA, parametrizations, quantization), a replaced `forward`, and hooks on this module or on all modules
    (weight_norm, pruning, FLOP counters) may do something else.
    """
    return (
        type(module) in types
        and "forward" not in module.__dict__
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and not module._backward_pre_hooks
        and not module._backward_hooks
        and not _has_any_global_hook()
        and all(parameter is None or type(parameter) in (nn.Parameter, Tensor) for parameter in _parameters(module))
    )


def _parameters(module: nn.Module) -> Iterable[object]:
    return module._parameters.values()


def has_running_statistics(norm: nn.Module) -> bool:
    """Whether a norm is in evaluation and has running statistics, so that it treats every token by itself."""
    return not norm.training and getattr(norm, "running_mean", None) is not None


_TOKENWISE = {nn.Linear, nn.LayerNorm, nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.ModuleList}


Layer = TypeVar("Layer", bound=type[nn.Module])


def tokenwise(layer: Layer) -> Layer:
    """Declare that a layer of pcea maps every token by itself in evaluation, if the modules in it do."""
    _TOKENWISE.add(layer)
    return layer


def is_tokenwise(modules: Iterable[nn.Module]) -> bool:
    """Whether modules, and those in them, are plain and map every token by itself, so that they may be given chunks."""
    return all(_is_tokenwise(module) for parent in modules for module in parent.modules())


def _is_tokenwise(module: nn.Module) -> bool:
    if is_plain(module, nn.BatchNorm1d):
        return has_running_statistics(module)
    return not module.training and is_plain(module, *_TOKENWISE)
