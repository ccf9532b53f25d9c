"""The base class of all predictors: a trained network that is applied to files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from pcea.io.description import NetworkDescription

if TYPE_CHECKING:
    from pcea.visualization.pages import Page
    from pcea.visualization.subject import Subject

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, then every module back into its own: frozen ones stay as they were."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def in_evaluation(method: Method) -> Method:
    """A method of what has a `network`, that runs in evaluation mode and without gradients.

    Not in inference mode: its tensors cannot be changed, or go into what is trained.
    """

    @wraps(method)
    def evaluate(self: Any, *arguments: Any, **options: Any) -> Any:
        with torch.no_grad(), evaluating(self.network):
            return method(self, *arguments, **options)

    return cast(Method, evaluate)


class Predictor:
    """A trained network in evaluation mode, ready to be shown files. `pcea.load` makes one.

    There is one subclass per task. The task alone decides how a network is used, never the network's class: your own
    networks are used like those of pcea.

    Args:
        network: The network.
        description: How it was built, and what is needed to use it.

    Attributes:
        class_names: Name of each class, without the background.
    """

    purpose: ClassVar[str]
    """What the network does, for messages: "This network ..."."""
    sees_images: ClassVar[bool] = False
    """True if it takes images, False if it takes meshes and clouds."""
    endings: ClassVar[tuple[str, ...]] = ()
    """What `write` adds to the name of each input; () if the results of all files go into one table."""
    columns: ClassVar[Mapping[str, type]] = MappingProxyType({"result": str})
    """Columns of the table of results, with their types, besides the file."""
    batch_size: ClassVar[int] = 1
    """How many files `predict_contents` should be given at a time; more than 1 if that is faster."""

    def __init__(self, network: nn.Module, description: NetworkDescription):
        self.network, self.description = network.eval(), description
        num_classes = int(getattr(network, "num_classes", 0)) - description.background
        self.class_names = description.class_names or tuple(f"class {n}" for n in range(num_classes))

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def digest(self) -> str:
        """A short text that changes with the weights and with how they are used."""
        return digest_of(json.dumps(self.description.as_plain(), sort_keys=True), self.network.state_dict())

    def to(self, device: str | torch.device) -> Predictor:
        """Move the network; returns itself."""
        self.network.to(device)
        return self

    predict: Callable[..., Any]
    """Apply the network to a file or to data in memory. Each task has its own arguments.

    Raises FileNotFoundError if there is no such file, ValueError if it cannot be read or the network cannot take it."""
    check: Callable[..., None]
    """Raise a ValueError for arguments of `predict` that are invalid whatever the file, before any is read."""
    subject: Callable[..., Subject]
    """What the network attends to and predicts in a file, ready to be drawn."""

    def reader(self, **options: Any) -> Callable[[Path], Any]:
        """What reads a file for `predict_contents`. It can be pickled and has no network: other processes may run it.

        Args:
            **options: Those of `predict`.
        """
        raise NotImplementedError

    def predict_contents(self, contents: Sequence[Any], **options: Any) -> list[Any]:
        """The predictions for what `reader` read from several files: those of `predict`, up to rounding.

        Args:
            contents: What it read.
            **options: Those of `predict`.
        """
        raise NotImplementedError

    def check_output(self, output: Path, files: Sequence[Path]) -> None:
        """Refuse an output of the wrong kind, or in which results would overwrite one another or an input.

        Raises:
            ValueError: If it is one.
        """
        check_output_folder(output, files, endings=self.endings)

    def rows(self, prediction: Any) -> list[tuple[object, ...]]:
        """A prediction in the table of results: values for `columns`, in one or more rows."""
        return [(str(prediction),)]

    def num_rows(self, **_: Any) -> int:
        """How many rows a prediction has in the table of results, by the options of `predict`."""
        return 1

    def write(self, folder: Path, stem: str, prediction: Any) -> None:
        """Write the result of one input into a folder, as `stem` + each of `endings`."""
        raise NotImplementedError

    def finish(self, table: Path) -> None:
        """Write what is made from the table of all results, beside it."""

    def visualize(
        self,
        *sources: Any,
        mode: str | None = None,
        layer: int | None = None,
        slot: int | None = None,
        query: int | None = None,
        **options: Any,
    ) -> Page:
        """Show what the network attends to and predicts, in a page that a notebook displays and that can be saved.

        Args:
            *sources: Each as for `predict`.
            mode: What to show first: `colors`, `slots`, `slot`, `query`, `critical`, `prediction` or `parts`, if the
                network has it; see pcea/visualization/README.md. None for the slot or query that is given, else the
                first of `subject(source).modes`.
            layer: Attention layer to show first, counted from 0; None for the last.
            slot: For mode "slot"; None for the one that is strongest at most tokens.
            query: For mode "query", the index of a point; None for the point farthest from the middle.
            **options: Further arguments of `subject`.
        """
        from pcea.visualization.pages import Page

        subjects = [self.subject(source, **options) for source in sources]
        return Page(subjects, mode=mode, layer=layer, slot=slot, query=query)

    def draw(
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
        """Draw what the network attends to or predicts, as a picture.

        Args:
            source: As for `predict`.
            mode: As for `visualize`, as are `layer`, `slot` and `query`.
            layer: Attention layer, counted from 0; None for the last.
            slot: For mode "slot".
            query: For mode "query".
            size: Side of the picture in pixels, without the legend.
            azimuth: Degrees around the upward axis from which a cloud is seen; None for 35.
            elevation: Degrees above the horizon; None for 20.
            **options: Further arguments of `subject`.

        Returns:
            RGB colours, (H, W, 3) uint8.
        """
        from pcea.visualization.camera import AZIMUTH, ELEVATION
        from pcea.visualization.sheets import draw_sheet

        if self.sees_images:
            options["size"] = size
        subject = self.subject(source, **options)
        layer = len(subject.layers) - 1 if layer is None else layer
        mode = mode or subject.first_mode(slot, query)
        view = subject.view(mode, layer=layer, slot=slot, query=query)
        azimuth = AZIMUTH if azimuth is None else azimuth
        elevation = ELEVATION if elevation is None else elevation
        return next(draw_sheet([view], size=size, angles=[azimuth], elevation=elevation))


def check_not_read(output: Path, files: Sequence[Path]) -> None:
    """Refuse to write to a file that is also read.

    Raises:
        ValueError: If `output` is one of `files`.
    """
    written = output.resolve()
    for file in files:
        if file.resolve() == written:
            raise ValueError(f"The result would overwrite {file}, which is to be read. Give another output.")


def digest_of(*contents: Tensor | str | Mapping[str, Tensor]) -> str:
    """A short text that changes with the contents."""
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, str):
            digest.update(content.encode())
            continue
        for name, tensor in content.items() if isinstance(content, Mapping) else [("", content)]:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def check_output_folder(folder: Path, files: Sequence[Path], *, endings: Sequence[str]) -> None:
    """Refuse an output folder in which results would overwrite one another or an input.

    Raises:
        ValueError: If they would, or `folder` is a file or is named like a table.
    """
    if folder.is_file() or folder.suffix.lower() in (".csv", ".parquet"):
        raise ValueError(
            f"--output {folder}: this network writes a folder of results, not a table: give the name of a folder."
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
