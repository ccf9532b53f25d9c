"""Load checkpoints of the authors' EAMLP (MenghaoGuo/EANet, folder EAMLP) into `eamlp_7`, `eamlp_14`, `eamlp_19`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pcea.io.checkpoints import check_state_dict, load_safely
from pcea.models.eamlp import ImageTransformer, sinusoid_table

# The authors' name of each of our layers, between two soft splits and in a block.
_TOKEN_LAYER = {
    "norm1": "norm1",
    "embed": "attn.q_linear",
    "project": "attn.proj",
    "norm2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_BLOCK = {
    "norm1": "norm1",
    "attention.expand": "attn.trans_dims",
    "attention.key": "attn.linear_0",
    "attention.value": "attn.linear_1",
    "attention.project": "attn.proj",
    "norm2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def load_eamlp_checkpoint(model: ImageTransformer, path: str | Path) -> ImageTransformer:
    """Load a checkpoint in the authors' layout; the model then gives their network's outputs, at any image size.

    A checkpoint of their training script holds two sets of weights; the authors evaluate the averaged ones, so these
    are loaded. The file is read as weights only: its code is never executed. Nothing is loaded unless everything fits.

    Args:
        model: The result of `eamlp_7(num_classes)`, `eamlp_14` or `eamlp_19`.
        path: The file, such as `model_best.pth.tar`.

    Returns:
        `model`, with the weights of the checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint, or a name or a shape does not fit; the first one is named.
    """
    names, own = _names(len(model.blocks)), model.state_dict()
    if names.keys() != own.keys():
        raise ValueError(
            "A checkpoint of EAMLP fits the models of eamlp_7(), eamlp_14() and eamlp_19(), but another was given."
        )
    weights = {name.removeprefix("module."): weight for name, weight in _read(Path(path)).items()}
    position = weights.pop("pos_embed", None)
    loaded = {}
    for ours, theirs in names.items():
        if theirs not in weights:
            raise ValueError(f"{path} does not fit: the model needs {theirs}. Is it EAMLP, and of this depth?")
        weight = weights.pop(theirs)
        if ours.endswith(".attention.value"):
            weight = weight.T  # a linear map's (C, S)
        elif ours == "tokenizer.project.weight" and weight.numel() == own[ours].numel():
            weight = weight.view_as(own[ours])  # a linear map of patches, (D, C K K), is a convolution
        if weight.shape != own[ours].shape:
            sizes = f"the model needs {tuple(own[ours].shape)}, got {tuple(weight.shape)}"
            raise ValueError(f"{path} does not fit at {theirs}: {sizes}. Are its size and num_classes right?")
        loaded[ours] = weight
    if weights:
        raise ValueError(f"{path} does not fit: the model has no {next(iter(weights))}. Is its depth right?")
    if position is not None and not _is_sinusoid_table(position):
        raise ValueError(f"{path} does not fit at pos_embed: it is not the fixed table of sines that the model adds.")
    model.load_state_dict(loaded)
    return model


def _names(depth: int) -> dict[str, str]:
    """The authors' name of each of our parameters."""
    names = {"class_token": "cls_token"}
    layers = {"tokenizer.project": "tokens_to_token.project", "norm": "norm", "head": "head"}
    for i in range(2):
        ours, theirs = f"tokenizer.layers.{i}", f"tokens_to_token.attention{i + 1}"
        layers |= {f"{ours}.{layer}": f"{theirs}.{name}" for layer, name in _TOKEN_LAYER.items()}
        names[f"{ours}.attention.key"] = f"{theirs}.attn.linear_0.weight"
        names[f"{ours}.attention.value"] = f"{theirs}.attn.linear_1.weight"
        names[f"{ours}.attention.value_bias"] = f"{theirs}.attn.linear_1.bias"
    for i in range(depth):
        layers |= {f"blocks.{i}.{layer}": f"blocks.{i}.{name}" for layer, name in _BLOCK.items()}
    for ours, theirs in layers.items():
        names |= {f"{ours}.{parameter}": f"{theirs}.{parameter}" for parameter in ("weight", "bias")}
    return names


def _is_sinusoid_table(position: Tensor) -> bool:
    if position.ndim != 3 or len(position) != 1:
        return False
    # Averaging in fp32 over a whole training moves even what never changes, by up to 2^-24 / (1 - 0.99996).
    return torch.allclose(position[0].float(), sinusoid_table(*position.shape[1:]), rtol=0, atol=5e-3)


def _read(path: Path) -> Mapping[str, Tensor]:
    # The namespace holds the authors' training options, beside the weights.
    content = load_safely(path, allowed=[argparse.Namespace])
    if isinstance(content, Mapping):
        content = content.get("state_dict_ema") or content.get("state_dict") or content
    return check_state_dict(content, path)
