"""Weights files: a network's parameters in half precision with what is needed to build and use it (safetensors)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

SHIPPED = Path(__file__).parent / "models" / "weights"
_FORMAT = "pcea weights 1"


class Weights(NamedTuple):
    """The content of a weights file.

    Attributes:
        builder: Name of the function or class that builds the network, such as `eat_classifier`.
        arguments: Keyword arguments of the builder.
        state: Parameters and buffers by name, float32.
        class_names: Name of each class.
        num_points: Points of a cloud that the network was trained for; 0 for images.
        source: Which configuration, commit and accuracy it came from.
        parts: The classes of each category, by its name, in the order of the categories' numbers; empty for networks
            without categories.
        mean: Images: the mean of red, green and blue, in 0..1, that is subtracted.
        std: Images: their standard deviation, by which is divided then.
        image_size: Images: height and width of those that the network was trained on.
        category_ids: Detectors: number of each class in the files that it learned from.
    """

    builder: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    class_names: tuple[str, ...]
    num_points: int
    source: dict[str, Any]
    parts: Mapping[str, Sequence[int]] = MappingProxyType({})
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    image_size: Sequence[int] = ()
    category_ids: Sequence[int] = ()


def save_weights(path: str | Path, weights: Weights) -> None:
    """Write a weights file: parameters in fp16, statistics of batch norm in fp32."""
    from safetensors.torch import save_file

    state = {
        name: value.half() if value.is_floating_point() and "running_" not in name else value
        for name, value in weights.state.items()
    }
    about = {
        "builder": weights.builder,
        "arguments": weights.arguments,
        "class_names": list(weights.class_names),
        "num_points": weights.num_points,
        "source": weights.source,
        "parts": {name: list(classes) for name, classes in weights.parts.items()},
        "mean": list(weights.mean),
        "std": list(weights.std),
        "image_size": list(weights.image_size),
        "category_ids": list(weights.category_ids),
    }
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        str(path),
        metadata={"format": _FORMAT, "about": json.dumps(about)},
    )


def load_weights(name_or_path: str | Path, *, builder: str | None = None) -> Weights:
    """Read a weights file, or one that comes with pcea by its name, such as `modelnet40_eat_cpu`.

    Args:
        name_or_path: The file, or the name.
        builder: Refuse the weights of any other builder.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If the file is not a weights file of pcea, or of another builder.
    """
    from safetensors import SafetensorError, safe_open

    shipped = SHIPPED / f"{name_or_path}.safetensors"
    path = Path(name_or_path) if Path(name_or_path).is_file() else shipped
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors")))
        raise FileNotFoundError(f"No weights {str(name_or_path)!r}: neither a file nor one of those shipped: {names}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a weights file (safetensors): {error}.") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a weights file of pcea. Make one with `pcea export CHECKPOINT {path.name}`.")
    about = json.loads(metadata["about"])
    if builder not in (None, about["builder"]):
        raise ValueError(f"{name_or_path} holds the weights of {about['builder']}, not of {builder}.")
    return Weights(
        about["builder"],
        about["arguments"],
        {name: value.float() if value.dtype == torch.float16 else value for name, value in state.items()},
        tuple(about["class_names"]),
        about["num_points"],
        about["source"],
        # These are absent from older files, of networks that do not have them.
        {name: tuple(classes) for name, classes in about.get("parts", {}).items()},
        *(tuple(about.get(name, ())) for name in ("mean", "std", "image_size", "category_ids")),
    )
