"""Reading of checkpoints, none of which can make us execute anything."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_safely(path: str | Path, *, allowed: Sequence[Callable[..., Any] | type] = ()) -> Any:
    """The content of a file of `torch.save`, on the CPU.

    Args:
        path: The file.
        allowed: Classes that it may hold beside tensors and Python's own.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, damaged, or holds code.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No checkpoint file {path}.")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # remarks on the file's format; one line of ours follows
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # bytes of any other format end in any exception
        raise ValueError(
            f"{path} is not a checkpoint: it is damaged, of another format, or holds pickled code, which is never "
            "executed."
        ) from error


def check_state_dict(content: Any, path: str | Path) -> Mapping[str, Tensor]:
    """The content of a file as a state dict.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in content.items()
    ):
        raise ValueError(f"{path} does not hold a state dict, names to tensors, but {type(content).__name__}.")
    return content
