"""`pcea export`: a trained network as a small file."""

from __future__ import annotations

from pathlib import Path

from pcea.commands.record import commit
from pcea.io.atomic import atomic_file
from pcea.io.checkpoints import read_network
from pcea.io.weights import save_weights
from pcea.models.build import build_network


def export(weights: str, *, output: Path, trust: list[str] | None = None) -> None:
    """Turn a checkpoint into a small weights file, for `--weights` and for `weights=` in Python.

    Args:
        weights: A checkpoint, a configuration's name (its newest run), a weights file, or the name of weights that come
            with pcea.
        output: The file to write: weights in half precision with what is needed to use them (.safetensors).
        trust: A package beside pcea that the weights may import their network from; repeat it for several. Importing
            runs its code.
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"--output must end in .safetensors, got {output}.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"No folder {output.parent} to write {output.name} into.")
    stored = read_network(weights)
    build_network(stored, str(weights), packages=trust or ())  # refuses what could not be loaded
    source = {"commit": commit(), **stored.description.source}
    stored = stored._replace(description=stored.description._replace(source=source))
    with atomic_file(output) as part:
        save_weights(part, stored)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")
