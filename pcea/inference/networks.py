"""Load a trained network, ready to be shown files."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch

from pcea.inference.base import Predictor
from pcea.io.checkpoints import read_network
from pcea.models.build import build_network

DEFAULT_WEIGHTS = "modelnet40_pointea_files"
# Imported when they are needed: point-cloud networks do not wait for image code.
_PREDICTORS = {
    "points": ("pcea.inference.points", "PointPredictor"),
    "parts": ("pcea.inference.parts", "PartPredictor"),
    "images": ("pcea.inference.images", "ImagePredictor"),
    "masks": ("pcea.inference.masks", "MaskPredictor"),
    "objects": ("pcea.inference.objects", "ObjectPredictor"),
}


def load(weights: str | Path = DEFAULT_WEIGHTS, *, device: str = "auto", trust: Sequence[str] = ()) -> Predictor:
    """Load a trained network, ready to be shown files.

    Example:
        network = pcea.load("modelnet40_pointea_files")
        print(network.predict("chair.obj"))

    Args:
        weights: A weights file (.safetensors), a checkpoint of `pcea fit` (.ckpt), the name of weights that come with
            pcea, or the name of a configuration: the last checkpoint of its newest run.
        device: `auto` takes a CUDA GPU if there is one; or `cpu`, `cuda`, `cuda:1`, `mps`.
        trust: Packages besides pcea that the file may import its network from. Importing runs their code.

    Returns:
        A `Predictor` for the network's task.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If the file is damaged, names something that is not trusted, or holds a generator of images, which
            `pcea.tasks.load_generator` loads; or if there is no such device.
    """
    stored = read_network(weights)
    task = stored.description.task
    if task not in _PREDICTORS:
        raise ValueError(f"{weights} makes images and takes none: load it with pcea.tasks.load_generator.")
    chosen = find_device(device)
    network = build_network(stored, str(weights), packages=trust)
    names = stored.description.class_names
    num_classes = getattr(network, "num_classes", len(names))
    expected = len(names) + stored.description.background
    if names and expected != num_classes and stored.description.builder.startswith("pcea."):
        raise ValueError(f"{weights} names {expected} classes, but its network has {num_classes}.")
    module, name = _PREDICTORS[task]
    predictor: Predictor = getattr(importlib.import_module(module), name)(network, stored.description)
    return predictor.to(chosen)


def find_device(name: str) -> torch.device:
    """Resolve the name of a device.

    Raises:
        ValueError: If there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"No device {name!r} on this machine ({reason}). Use auto or cpu.") from error
    return device
