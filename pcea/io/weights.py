"""Weights files: a network's parameters in half precision and its description (safetensors)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcea.io.description import StoredNetwork, parse_description

SHIPPED = Path(__file__).parents[1] / "models" / "weights"
_FORMAT, _OLD_FORMAT = "pcea weights 2", "pcea weights 1"


def save_weights(path: str | Path, stored: StoredNetwork) -> None:
    """Write a weights file: parameters in fp16 where they are in its range, batch-norm statistics in fp32."""
    from safetensors.torch import save_file

    def stored_as(name: str, value: Tensor) -> Tensor:
        value = value.contiguous()
        is_exact = "running_" in name or not value.is_floating_point()
        return value if is_exact or not value.half().isfinite().all() else value.half()

    save_file(
        {name: stored_as(name, value) for name, value in stored.state.items()},
        str(path),
        metadata={"format": _FORMAT, "about": json.dumps(stored.description.as_plain())},
    )


def shipped_weights() -> list[str]:
    """Names of the weights that come with pcea."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def load_weights(name_or_path: str | Path) -> StoredNetwork:
    """Read a weights file, or, by name, one that comes with pcea, such as `modelnet40_eat_cpu`.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If the file is not a weights file of pcea, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(name_or_path) if Path(name_or_path).is_file() else SHIPPED / f"{name_or_path}.safetensors"
    if not path.is_file():
        names = ", ".join(shipped_weights())
        raise FileNotFoundError(f"No weights {str(name_or_path)!r}: neither a file nor one of those shipped: {names}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a weights file (safetensors): {error}.") from error
    if metadata.get("format") not in (_FORMAT, _OLD_FORMAT):
        raise ValueError(
            f"{path} is not a weights file of pcea. Make one with `pcea export CHECKPOINT --output {path.name}`."
        )
    try:
        content = json.loads(metadata["about"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its description is not JSON.") from error
    if metadata["format"] == _OLD_FORMAT and isinstance(content, dict):
        content = _of_first_format(content)
    description = parse_description(content, str(path))
    return StoredNetwork(
        description, {name: value.float() if value.dtype == torch.float16 else value for name, value in state.items()}
    )


def _of_first_format(content: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a file from before files named their task, from its builder and its other fields."""
    builder = content.get("builder")
    if builder in ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "RetinaNet"):
        task = "objects"
    elif builder in ("EANet", "eanet_50", "eanet_101"):
        task = "masks"
    else:
        task = {"eat_part_segmenter": "parts", "eat_classifier": "points"}.get(str(builder), "images")
    arguments = content.get("arguments")
    has_normals = isinstance(arguments, Mapping) and arguments.get("in_channels") == 6
    path = f"pcea.models.{builder}" if isinstance(builder, str) else builder
    return {**content, "task": task, "builder": path, "has_normals": has_normals}
