"""Read checkpoints without executing anything they contain."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcea.io.configs import config_names, runs_folder
from pcea.io.description import StoredNetwork, parse_description
from pcea.io.weights import SHIPPED, load_weights, shipped_weights

# Weights under several names are stored once; no network has each under more names than this.
_LARGEST_CLAIM = 16


def load_safely(path: str | Path, *, allowed: Sequence[Callable[..., Any] | type] = ()) -> Any:
    """Read a file written by `torch.save`, onto the CPU.

    Args:
        path: The file.
        allowed: Classes that it may hold besides tensors and Python's own.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, damaged, or holds code.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No checkpoint file {path}.")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # about the file's format; our own message follows
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # other formats can raise any exception
        raise ValueError(
            f"{path} is not a checkpoint: it is damaged, of another format, or holds pickled code, which is never "
            "executed."
        ) from error


def check_state_dict(content: Any, path: str | Path) -> Mapping[str, Tensor]:
    """Check that the content of a file is a state dict.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in content.items()
    ):
        raise ValueError(f"{path} does not hold a state dict, names to tensors, but {type(content).__name__}.")
    if any(
        w.layout != torch.strided or w.device.type != "cpu" or w.is_quantized or w.is_nested for w in content.values()
    ):
        raise ValueError(f"{path} holds tensors that are sparse, quantized, nested or without values.")
    # A view can repeat one number 10 ** 9 times: the network would take the memory that the file only claims.
    stored = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in content.values()}
    claimed = sum(w.nbytes for w in content.values())
    if claimed > _LARGEST_CLAIM * sum(stored.values()) + 2**20:
        raise ValueError(f"{path} stores {sum(stored.values()):,} bytes of weights, but claims {claimed:,}.")
    return content


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `pcea fit` without executing anything that it may contain.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a checkpoint.
    """
    try:
        checkpoint = load_safely(path)
    except ValueError as error:
        others = sorted(p.name for p in Path(path).parent.glob("*.ckpt") if p.name != Path(path).name)
        if not others:
            raise
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(f"{error} Beside it there is {', '.join(others[:3])}{more}.") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "epoch"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint of `pcea fit`: it has no state_dict and epoch.")
    check_state_dict(checkpoint["state_dict"], path)
    if not isinstance(checkpoint["epoch"], int):
        raise ValueError(f"{path}: epoch must be a whole number, got {type(checkpoint['epoch']).__name__}.")
    return checkpoint


def newest_checkpoint(root: Path) -> Path:
    """Find the last checkpoint of the newest run under a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    # By number: a copy of a folder may have other times.
    found = sorted(root.glob("version_*/checkpoints/last.ckpt"), key=_version)
    if not found:
        raise FileNotFoundError(f"No checkpoint under {root}. Train first with `pcea fit`, or name a checkpoint.")
    return found[-1]


def _version(checkpoint: Path) -> tuple[int, float]:
    number = checkpoint.parts[-3].removeprefix("version_")
    return int(number) if number.isdecimal() else -1, checkpoint.stat().st_mtime


def read_network(name_or_path: str | Path) -> StoredNetwork:
    """Read a trained network from any file that holds one.

    Args:
        name_or_path: A weights file (.safetensors), a checkpoint of `pcea fit` (.ckpt), the name of weights that come
            with pcea, or the name or file (.yaml) of a configuration: the last checkpoint of its newest run.

    Raises:
        FileNotFoundError: If no such network is found.
        ValueError: If the file is damaged or holds something else.
    """
    path = find_network(name_or_path)
    return load_checkpoint(path) if path.suffix == ".ckpt" else load_weights(path)


def find_network(name_or_path: str | Path) -> Path:
    """Find the file of a trained network; see `read_network`.

    Raises:
        FileNotFoundError: If there is none.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        return path
    if name in shipped_weights():
        return SHIPPED / f"{name}.safetensors"
    if name in config_names() or path.is_file():
        return newest_checkpoint(runs_folder(name))
    raise FileNotFoundError(
        f"No trained network {name!r}: it is neither a weights file (.safetensors), a checkpoint (.ckpt), one of the "
        f"weights that come with pcea ({', '.join(shipped_weights())}), nor a configuration (see `pcea configs`)."
    )


def load_checkpoint(path: str | Path) -> StoredNetwork:
    """The network in a checkpoint of `pcea fit`: the moving average of its weights if the task keeps one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a checkpoint, or does not say which network it holds.
    """
    checkpoint = read_checkpoint(path)
    content = checkpoint.get("network")
    if content is None:
        content = _of_hyper_parameters(checkpoint, path)
    description = parse_description(content, str(path))
    weights: Mapping[str, Tensor] = checkpoint["state_dict"]
    prefix = "average." if any(name.startswith("average.") for name in weights) else "network."
    state = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    seed = checkpoint.get("seed")
    source = {"epoch": checkpoint["epoch"] + 1, "seed": seed if isinstance(seed, int) else None, **description.source}
    return StoredNetwork(description._replace(source=source), state)


# The tasks of checkpoints from before they held a description.
_TASK_CLASSES = {
    "ClassificationTask": "points",
    "SegmentationTask": "parts",
    "ImageClassificationTask": "images",
    "SemanticSegmentationTask": "masks",
    "DetectionTask": "objects",
    "GenerationTask": "generation",
}


def _of_hyper_parameters(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Describe a checkpoint from before they held a description, from the configuration that Lightning stored."""
    noted = checkpoint.get("hyper_parameters")
    noted = noted if isinstance(noted, Mapping) else {}
    network = noted.get("generator", noted.get("network"))
    class_path = noted.get("_class_path")
    package, _, task = class_path.rpartition(".") if isinstance(class_path, str) else ("", "", "")
    if not isinstance(network, Mapping) or package.partition(".")[0] != "pcea" or task not in _TASK_CLASSES:
        raise ValueError(f"{path} was not made by `pcea fit`, so it does not say which network it holds.")
    arguments = network.get("init_args") or {}
    kept = ("class_names", "num_points", "parts", "mean", "std", "image_size", "category_ids")
    return {
        "task": _TASK_CLASSES[task],
        "builder": network.get("class_path"),
        "arguments": arguments,
        "has_normals": isinstance(arguments, Mapping) and arguments.get("in_channels") == 6,
        **{name: checkpoint[name] for name in kept if name in checkpoint},
    }
