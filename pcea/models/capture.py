"""A trained network as one graph that runs without its Python code: torch.export and ONNX.

Batch size and number of points, from `fewest_points` on, stay free, or height and width of images. The network must be
in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.modules.batchnorm import _NormBase

from pcea.io.description import NetworkDescription
from pcea.models.ensemble import ClassifierEnsemble

Result = TypeVar("Result")

# Points of an example for a network that does not say how many it needs.
_EXAMPLE_POINTS = 64

# Names of the axes that stay free, by the argument's name.
_POINTS = {0: "batch", 1: "points"}
_PIXELS = {0: "batch", 2: "height", 3: "width"}
_FREE_AXES = {
    "points": _POINTS,
    "features": _POINTS,
    "mask": _POINTS,
    "tokens": {0: "batch", 1: "tokens"},
    "image": _PIXELS,
    "images": _PIXELS,
}


def example_inputs(network: nn.Module, description: NetworkDescription | None = None) -> dict[str, Tensor]:
    """Inputs that a network takes, by the names of its arguments: points, features and category, or images.

    Args:
        network: The network.
        description: What it is; None for a network of pcea, whose own attributes tell.

    Raises:
        TypeError: If the network is neither for points nor for images.
    """
    members: list[Any] = [*network.members] if isinstance(network, ClassifierEnsemble) else [network]
    encoders = [getattr(member, "encoder", member) for member in members]
    if description is not None:
        task, num_features = description.task, 3 * description.has_normals
    elif hasattr(network, "min_points"):
        task, num_features = "points", encoders[0].in_channels - 3
    else:
        is_for_images = hasattr(network, "in_channels") and hasattr(network, "num_classes")
        task, num_features = "images" if is_for_images else "", 0
    if task in ("points", "parts"):
        usual = max(getattr(network, "min_points", 1), _EXAMPLE_POINTS)
        count = max(int(getattr(encoder, "min_captured_points", usual)) for encoder in encoders)
        # 2 clouds, so that their number is no constant of the graph.
        inputs = {"points": torch.rand(2, count, 3)}
        if num_features:
            inputs["features"] = torch.rand(2, count, num_features)
        if getattr(network, "num_categories", 0):
            inputs["category"] = torch.zeros(2, dtype=torch.int64)
        return inputs
    if task in ("images", "masks"):
        return {"images": torch.rand(2, int(getattr(network, "in_channels", 3)), 64, 96)}
    raise TypeError(f"{type(network).__name__} takes neither points nor images: give its inputs.")


def fewest_points(network: nn.Module) -> int | None:
    """Fewest points per cloud that a captured graph of the network takes; None if it does not say.

    A graph fails where there are fewer: in onnxruntime at an operation `TopK`, in torch.export at a guard.
    """
    fewest: Any = getattr(network, "min_points", None)
    return fewest


def export_program(network: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> ExportedProgram:
    """Capture a network by torch.export; save it with `torch.export.save(program, "network.pt2")`.

    Farthest point sampling and kNN stay single operations, so that `import pcea.ops.neighbors, pcea.ops.sampling` must
    precede `torch.export.load`; `import pcea` is not enough, as it imports nothing yet. `export_onnx` gives a graph
    that needs nothing of pcea.

    Args:
        network: A network in evaluation.
        inputs: Tensors by the names of its arguments, with any batch size above 1; `example_inputs` by default. Every
            axis of the batch is free, and so are points (the second axis of `points`, `features`, `mask`; at least
            `fewest_points`) and height and width of `images`.

    Returns:
        The program; `program.module()(**inputs)` gives the network's output.

    Raises:
        ValueError: If a module cannot be captured, with the module's path.
        TypeError: If there are no inputs and the network is neither for points nor for images.
    """
    inputs = _checked_inputs(network, inputs)
    axes = {name: dict.fromkeys(free, Dim.DYNAMIC) for name, free in _free_axes(inputs).items()}
    return _named(network, lambda: torch.export.export(network, (), kwargs=inputs, dynamic_shapes=axes))


def export_onnx(
    network: nn.Module,
    path: str | Path,
    inputs: Mapping[str, Tensor] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    output_name: str = "logits",
) -> None:
    """Write a network as an ONNX file that onnxruntime runs without pcea and torch.

    Args:
        network: A network in evaluation.
        path: The file to write.
        inputs: See `export_program`.
        metadata: Texts to keep in the file, such as class names and preprocessing as JSON; in onnxruntime they are
            `session.get_modelmeta().custom_metadata_map`.
        output_name: Name of the output.

    Raises:
        ValueError: If a module cannot be captured, with the module's path.
        TypeError: If there are no inputs and the network is neither for points nor for images.
        ImportError: If the packages onnx and onnxscript are missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX files need two more packages. Run `pip install 'pcea[onnx]'`.") from error
    inputs = _checked_inputs(network, inputs)
    program = _named(
        network,
        lambda: torch.onnx.export(
            network,
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[output_name],
            dynamic_shapes=_free_axes(inputs),
            dynamo=True,
            verbose=False,
        ),
    )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    program.save(path)


def _free_axes(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    return {name: _FREE_AXES.get(name, {0: "batch"}) for name in inputs}


def _checked_inputs(network: nn.Module, inputs: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The inputs on the network's device, if all its modules give every item of a batch its own result."""
    for name, module in network.named_modules():
        path = f"{name or 'The network'} ({type(module).__name__})"
        if module.training:
            raise ValueError(f"{path} is in training: call network.eval() before it is captured.")
        if isinstance(module, _NormBase) and module.running_mean is None and "Instance" not in type(module).__name__:
            raise ValueError(
                f"{path} has no running statistics (track_running_stats=False): its result depends on the whole batch, "
                "so it cannot be captured for single inputs."
            )
    parameter = next(network.parameters(), torch.empty(0))
    inputs = example_inputs(network) if inputs is None else inputs
    return {name: tensor.to(parameter.device) for name, tensor in inputs.items()}


def _named(network: nn.Module, capture: Callable[[], Result]) -> Result:
    """Capture; if that fails, say in which module of the network."""
    try:
        return capture()
    except Exception as error:
        names = {id(module): name for name, module in network.named_modules()}
        path = [names[id(module)] for module in _modules_of(error) if id(module) in names]
        cause = error.__cause__ or error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        where = path[-1] if path and path[-1] else type(network).__name__
        raise ValueError(f"{where} cannot be captured: {lines[0]}") from error


def _modules_of(error: BaseException | None) -> Iterator[object]:
    """The modules in whose methods an error or its cause arose, the outermost first."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            if isinstance(module := trace.tb_frame.f_locals.get("self"), nn.Module):
                yield module
            trace = trace.tb_next
        error = error.__cause__
