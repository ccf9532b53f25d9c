"""`pcea export`: a trained network as a weights file or a graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcea.commands.input_files import find_files
from pcea.commands.record import commit
from pcea.datasets.images import IMAGE_SUFFIXES
from pcea.inference.base import Predictor
from pcea.inference.masks import LONGEST_SIDE
from pcea.inference.networks import load
from pcea.io.atomic import atomic_file
from pcea.io.checkpoints import read_network
from pcea.io.description import NetworkDescription
from pcea.io.readers import ENDINGS
from pcea.io.weights import save_weights
from pcea.models.build import build_network
from pcea.visualization.color_basis import fit_color_basis


def export(weights: str, *, output: Path, trust: list[str] | None = None, examples: list[Path] | None = None) -> None:
    """Turn a trained network into a small weights file, or into a graph of ONNX or torch.export.

    Args:
        weights: A checkpoint, the name of a configuration (its newest run), a weights file, or the name of weights that
            come with pcea.
        output: The file to write. .safetensors: weights in half precision with what is needed to use them, for
            `--weights` and for `weights=` in Python. .onnx: a graph for onnxruntime, with free batch size and number of
            points, or height and width; it needs neither pcea nor torch. .pt2: the same for torch.export.load, before
            which `import pcea.ops.neighbors, pcea.ops.sampling` must run; inputs are named:
            `program.module()(points=points)`, or `images=`. Class names and preprocessing are in the metadata of both;
            so is min_points, the fewest points of a cloud. A graph refuses clouds of fewer. Detectors and generators
            can only become .safetensors.
        trust: A package besides pcea that the weights may import their network from; repeat for several. Importing it
            runs its code.
        examples: Training files of all classes, upright, or their folders. By them the colours of `pcea visualize` are
            chosen once, and mean the same in every picture. For part networks with categories, each file is in a folder
            named by its category, or in folders within it.
    """
    if output.suffix not in (".safetensors", ".onnx", ".pt2"):
        raise ValueError(f"--output must end in .safetensors, .onnx or .pt2, got {output}.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"No folder {output.parent} to write {output.name} into.")
    stored = read_network(weights)
    if stored.description.task in ("objects", "generation") and output.suffix != ".safetensors":
        kind = "detector" if stored.description.task == "objects" else "generator"
        raise ValueError(f"A {kind} can only be exported as .safetensors, got {output}: it is no graph of tensors.")
    network = build_network(stored, str(weights), packages=trust or ())  # refuses what could not be loaded
    source = {"commit": commit(), **stored.description.source}
    description = stored.description._replace(source=source)
    if examples:
        files = find_files(examples, endings=(*ENDINGS, *IMAGE_SUFFIXES))
        bases = _color_bases(load(weights, trust=trust or ()), files)
        description = description._replace(color_bases=bases)
    fewest = 1
    with atomic_file(output) as part:
        if output.suffix == ".safetensors":
            save_weights(part, stored._replace(description=description))
        else:
            fewest = _write_graph(part, output.suffix, network, description)
    limit = "" if fewest <= 1 else f", for clouds of at least {fewest:,} points"
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB{limit}")


def _color_bases(predictor: Predictor, files: list[Path]) -> dict[str, list[list[float]]]:
    """What colours of attention mean, found from files, for every layer whose slots are the same in all of them."""
    weights: dict[str, list[Tensor]] = {}
    for file in files:
        options: dict[str, Any] = {} if predictor.sees_images else {"up": "y"}
        if predictor.description.parts:
            folders = [folder.name for folder in file.parents]
            options["category"] = next((name for name in folders if name in predictor.description.parts), folders[0])
        subject = predictor.subject(file, **options)
        for layer, (name, attention) in enumerate(subject.layers.items()):
            if not attention.slots_are_tokens:
                weights.setdefault(name, []).append(subject.tokens(layer, None).weights)
    return {
        name: [[float(f"{number:.5g}") for number in row] for row in fit_color_basis(clouds).tolist()]
        for name, clouds in weights.items()
    }


def _write_graph(path: Path, suffix: str, network: nn.Module, description: NetworkDescription) -> int:
    """Write the graph; returns the fewest points per cloud that it takes, 0 for images."""
    from pcea.models.capture import example_inputs, export_onnx, export_program, fewest_points

    fewest = fewest_points(network) or 0
    metadata = _metadata(description, min_points=fewest)
    try:
        inputs = example_inputs(network, description)
        if suffix == ".onnx":
            export_onnx(network, path, inputs, metadata=metadata)
        else:
            with path.open("wb") as file:
                torch.export.save(
                    export_program(network, inputs), file, extra_files={"metadata.json": json.dumps(metadata)}
                )
    except TypeError as error:
        raise ValueError(f"A network for {description.task} cannot be captured as a graph: {error}") from error
    return fewest


def _metadata(description: NetworkDescription, *, min_points: int) -> dict[str, str]:
    """What whoever runs the graph must know, as text: JSON in each value but the task's."""
    if description.task in ("points", "parts"):
        preprocessing: dict[str, Any] = {
            "up": "y",
            "center": "subtract the mean of the points",
            "scale": "divide by the distance of the farthest point",
            "num_points": description.num_points,
            "min_points": min_points,
            "features": "unit normals" if description.has_normals else "none",
            "temperature": description.temperature,
            "background": description.background,
            "known_above": description.known_above,
        }
    else:
        # A segmenter is trained on crops, and shown whole images.
        shown = (
            {"longest_side": LONGEST_SIDE} if description.task == "masks" else {"image_size": description.image_size}
        )
        preprocessing = {
            "channels": "red, green, blue in 0..1",
            "mean": description.mean,
            "std": description.std,
            **shown,
            "temperature": description.temperature,
            "known_above": description.known_above,
        }
    return {
        "task": description.task,
        "class_names": json.dumps(description.class_names),
        "parts": json.dumps({name: list(classes) for name, classes in description.parts.items()}),
        "preprocessing": json.dumps(preprocessing),
        "source": json.dumps(dict(description.source)),
    }
