"""What all trained networks share, whatever they do: one object that is shown files and says something of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from pcea.io.atomic import atomic_folder
from pcea.io.description import NetworkDescription

if TYPE_CHECKING:
    from pcea.visualization.subject import Subject


class Predictor:
    """A trained network in evaluation mode, ready to be shown files. `pcea.load` makes one.

    There is one subclass for each task. What it does is decided by the task alone, never by the network's class: a
    network of your own is used like those of pcea.

    Args:
        network: The network.
        description: How it was built, and what is to be known to use it.

    Attributes:
        class_names: Name of each class, without the background.
    """

    purpose: ClassVar[str]
    """What the network does, for messages: "This network ..."."""
    sees_images: ClassVar[bool] = False
    """Whether it is shown images, or meshes and clouds."""
    endings: ClassVar[tuple[str, ...]] = ()
    """What `write` adds to the name of each input; () where the results of all files are one table."""

    def __init__(self, network: nn.Module, description: NetworkDescription):
        self.network, self.description = network.eval(), description
        num_classes = int(getattr(network, "num_classes", 0))
        self.class_names = description.class_names or tuple(f"class {n}" for n in range(num_classes))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Predictor:
        """Move the network; returns itself."""
        self.network.to(device)
        return self

    predict: Callable[..., Any]
    """What the network says of a file, or of what is in memory. Each task has arguments of its own.

    Raises FileNotFoundError if there is no such file, ValueError if it cannot be read or the network cannot take it."""
    check: Callable[..., None]
    """Refuse arguments of `predict` that fit no file, before any is read, with a ValueError."""
    subject: Callable[..., Subject]
    """The file with what the network attends to and predicts in it, to be drawn."""

    def write(self, folder: Path, stem: str, prediction: Any) -> None:
        """Write the result of one input into a folder, as `stem` + each of `endings`."""
        raise NotImplementedError

    @contextmanager
    def writing(self, output: Path, files: Sequence[Path]) -> Iterator[Callable[[Path, Any], None]]:
        """Where the results of many files go, each as soon as it is there, whole or not at all.

        Args:
            output: A folder, which is made; or where results are a table, a CSV file.
            files: All inputs.

        Yields:
            A function that takes a file and its prediction.

        Raises:
            ValueError: If results would overwrite one another or an input, or the output is of the wrong kind.
        """
        check_output_folder(output, files, endings=self.endings)

        def write(file: Path, prediction: Any) -> None:
            with atomic_folder(output) as folder:
                self.write(folder, file.stem, prediction)

        yield write

    def visualize(
        self,
        source: Any,
        *,
        mode: str | None = None,
        layer: int | None = None,
        slot: int | None = None,
        query: int | None = None,
        size: int = 600,
        azimuth: float | None = None,
        elevation: float | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Draw what the network attends to or predicts, as a picture for a notebook.

        Args:
            source: As for `predict`.
            mode: What is shown: `slots`, `slot`, `query`, `critical`, `prediction` or `parts`, as far as the network
                has them; see pcea/visualization/README.md. None for the first of `subject(source).modes`.
            layer: Attention layer, counted from 0; None for the last.
            slot: For mode "slot"; None for the one that is strongest at most points.
            query: For mode "query", the index of a point; None for the point farthest from the middle.
            size: Side of the picture in pixels, without the legend.
            azimuth: Degrees around the upward axis from which a cloud is seen; None for 35.
            elevation: Degrees above the horizon; None for 20.
            **options: Those of `subject`.

        Returns:
            Red, green and blue, (H, W, 3) uint8.
        """
        from pcea.visualization.camera import AZIMUTH, ELEVATION
        from pcea.visualization.sheets import draw_sheet

        if self.sees_images:
            options["size"] = size
        subject = self.subject(source, **options)
        layer = len(subject.layers) - 1 if layer is None else layer
        view = subject.view(mode or subject.modes[0], layer=layer, slot=slot, query=query)
        azimuth = AZIMUTH if azimuth is None else azimuth
        elevation = ELEVATION if elevation is None else elevation
        return next(draw_sheet([view], size=size, angles=[azimuth], elevation=elevation))


def check_output_folder(folder: Path, files: Sequence[Path], *, endings: Sequence[str]) -> None:
    """Refuse an output folder in which results would overwrite one another or an input.

    Raises:
        ValueError: If they would, or `folder` is a file or has the name of a CSV file.
    """
    if folder.is_file() or folder.suffix.lower() == ".csv":
        raise ValueError(
            f"--output {folder}: a network that labels points or pixels writes a folder, with {len(endings)} files per "
            "input."
        )
    sources: dict[str, Path] = {}
    for file in files:
        for name in (file.stem + ending for ending in endings):
            if name in sources:
                raise ValueError(
                    f"{sources[name]} and {file} would both be written to {folder / name}. "
                    "Rename one, or predict them into two folders."
                )
            sources[name] = file
    for file in files:
        if file.name in sources and (folder / file.name).resolve() == file.resolve():
            raise ValueError(f"The result would overwrite {file}. Give another --output folder.")
