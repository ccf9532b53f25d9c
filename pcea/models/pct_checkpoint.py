"""Load checkpoints of the PyTorch port of PCT (Strawberry-Eat-Apple/PCT_Pytorch) into `pct_classifier`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pcea.io.checkpoints import check_state_dict, load_safely
from pcea.models.point_transformer import PointTransformerClassifier

# The port's name of each of our layers.
_PORT_LAYERS = {
    "encoder.stem.0.linear": "conv1",
    "encoder.stem.0.norm": "bn1",
    "encoder.stem.1.linear": "conv2",
    "encoder.stem.1.norm": "bn2",
    "encoder.stages.0.linear1": "gather_local_0.conv1",
    "encoder.stages.0.norm1": "gather_local_0.bn1",
    "encoder.stages.0.linear2": "gather_local_0.conv2",
    "encoder.stages.0.norm2": "gather_local_0.bn2",
    "encoder.stages.1.linear1": "gather_local_1.conv1",
    "encoder.stages.1.norm1": "gather_local_1.bn1",
    "encoder.stages.1.linear2": "gather_local_1.conv2",
    "encoder.stages.1.norm2": "gather_local_1.bn2",
    "encoder.input.0.linear": "pt_last.conv1",
    "encoder.input.0.norm": "pt_last.bn1",
    "encoder.input.1.linear": "pt_last.conv2",
    "encoder.input.1.norm": "pt_last.bn2",
    **{
        f"encoder.blocks.{i}.{ours}": f"pt_last.sa{i + 1}.{theirs}"
        for i in range(4)
        for ours, theirs in {
            "attention.query": "q_conv",
            "attention.value": "v_conv",
            "linear": "trans_conv",
            "norm": "after_norm",
        }.items()
    },
    "encoder.fuse.linear": "conv_fuse.0",
    "encoder.fuse.norm": "conv_fuse.1",
    "head.0.linear": "linear1",
    "head.0.norm": "bn6",
    "head.2.linear": "linear2",
    "head.2.norm": "bn7",
    "head.4": "linear3",
}


def load_pct_checkpoint(
    model: PointTransformerClassifier, path_or_state_dict: str | Path | Mapping[str, Tensor]
) -> PointTransformerClassifier:
    """Load a checkpoint of the PyTorch port of PCT; the model then gives the port's outputs.

    The prefix `module.` that `DataParallel` writes is accepted. A file is read as weights only:
    code in it is never executed. Nothing is loaded unless everything fits.

    Args:
        model: The result of `pct_classifier(num_classes)`.
        path_or_state_dict: The checkpoint file, or its content.

    Returns:
        `model`, with the weights of the checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint, or a name or a shape does not fit.
    """
    if isinstance(path_or_state_dict, Mapping):
        source, content = "The state dict", path_or_state_dict
    else:
        source = str(path_or_state_dict)
        content = check_state_dict(load_safely(source), source)
    weights = {name.removeprefix("module."): weight for name, weight in content.items()}

    own = model.state_dict()
    if {name.rpartition(".")[0] for name in own} != set(_PORT_LAYERS):
        raise ValueError("A checkpoint of PCT fits the model of pct_classifier(), but another network was given.")
    names = {name: _port_name(name) for name in own}
    keys = {name: name.replace(".q_conv.", ".k_conv.") for name in names.values() if ".q_conv." in name}
    expected = {*names.values(), *keys.values()}
    if weights.keys() != expected:
        missing, unexpected = _listed(expected - weights.keys()), _listed(weights.keys() - expected)
        raise ValueError(f"{source} is not a checkpoint of PCT; missing: {missing}; unexpected: {unexpected}.")

    loaded = {}
    for name, theirs in names.items():
        weight = weights[theirs]
        if weight.ndim == 3 and weight.shape[2] == 1:
            weight = weight.squeeze(2)  # a 1x1 Conv1d is a Linear
        if weight.shape != own[name].shape:
            sizes = f"the model needs {tuple(own[name].shape)}, got {tuple(weights[theirs].shape)}"
            raise ValueError(f"{source} does not fit at {theirs}: {sizes}. Is num_classes right?")
        loaded[name] = weight
    for query, key in keys.items():
        if not torch.equal(weights[query], weights[key]):
            raise ValueError(f"{source} has {query} and {key} with different values; in PCT they are one weight.")
    model.load_state_dict(loaded)
    return model


def _port_name(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{_PORT_LAYERS[layer]}.{parameter}"


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "none"
