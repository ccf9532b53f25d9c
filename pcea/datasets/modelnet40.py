"""ModelNet40 and ModelNet10 in their three official forms: h5, text with normals, and OFF meshes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from pcea.datasets.cache import CLOUD_ARRAYS, Clouds, cache_path, cached, parse_files, read_h5_clouds, to_tensors
from pcea.datasets.memory import InMemory, check_h5_in_memory
from pcea.datasets.points import PointDataset
from pcea.datasets.splits import TrainOrTest
from pcea.io.points import Points, as_points, load_points, normalize_points
from pcea.io.tables import read_table
from pcea.io.text import read_names

Layout = Literal["h5", "normals", "off"]

MODELNET10_CLASSES = (
    "bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"
)  # fmt: skip

# Layout, folder, and a pattern of files that exist if the split is there. The first match is used.
_MODELNET40_PLACES = (
    ("h5", "modelnet40_ply_hdf5_2048", "{split}_files.txt"),
    ("normals", "modelnet40_normal_resampled", "modelnet40_{split}.txt"),
    ("off", "ModelNet40", "*/{split}/*.off"),
)
_MODELNET10_PLACES = (
    ("h5", "modelnet40_ply_hdf5_2048", "{split}_files.txt"),
    ("normals", "modelnet40_normal_resampled", "modelnet10_{split}.txt"),
    ("normals", "modelnet40_normal_resampled", "modelnet40_{split}.txt"),
    ("off", "ModelNet10", "*/{split}/*.off"),
    ("off", "ModelNet40", "*/{split}/*.off"),
)


class ModelNet40(PointDataset):
    """ModelNet40: 9,843 clouds to train on and 2,468 to test on, 40 classes; zero mean, unit sphere, y up.

    The text and mesh layouts are parsed once, with a progress bar, and cached in `.pcea` next to the data.

    Args:
        root: The folder of a layout, or the one above it.
        split: train or test. ModelNet40 has no validation split.
        num_points: Points per cloud: the first ones of an official cloud, as is usual; meshes are sampled by area.
        with_normals: Also read unit normals (the layouts `normals` and `off` have them).
        layout: `h5` is modelnet40_ply_hdf5_2048, `normals` is modelnet40_normal_resampled, `off` is ModelNet40 (meshes,
            z up, rotated to y up). None takes the first of these that is found.
        cache: Keep the parsed text or meshes.
        seed: Seed of the sampling of meshes.
        in_memory: True holds the clouds in memory, False reads each batch from the cache, which needs `cache`; `auto`
            holds them if they take at most a third of the free memory, shared among the processes on the machine.
            The layout `h5` is always held in memory.

    Raises:
        FileNotFoundError: If the split is not under `root`.
        ValueError: If a file does not hold what its layout promises.
    """

    _name: ClassVar[str] = "ModelNet40"
    _places: ClassVar[tuple[tuple[str, str, str], ...]] = _MODELNET40_PLACES
    _classes: ClassVar[tuple[str, ...] | None] = None
    """The classes to keep; None for all."""

    def __init__(
        self,
        root: str | Path,
        split: TrainOrTest,
        *,
        num_points: int = 1024,
        with_normals: bool = False,
        layout: Layout | None = None,
        cache: bool = True,
        seed: int = 0,
        in_memory: InMemory = "auto",
    ):
        found, folder, marker = _find(self._name, self._places, Path(root), split, layout)
        clouds, names = _read(
            found, folder, marker, split, self._classes, num_points, with_normals, cache, seed, in_memory
        )
        super().__init__(**clouds, class_names=names)


class ModelNet10(ModelNet40):
    """ModelNet10: 3,991 clouds to train on and 908 to test on, 10 classes; arguments as for `ModelNet40`.

    Its shapes are also in ModelNet40, so every layout of ModelNet40 can be used, besides the OFF meshes of ModelNet10.
    """

    _name = "ModelNet10"
    _places = _MODELNET10_PLACES
    _classes = MODELNET10_CLASSES


def _find(
    name: str, places: Sequence[tuple[str, str, str]], root: Path, split: str, layout: str | None
) -> tuple[str, Path, str]:
    """Layout, folder and file pattern of the first place that has the split."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}.")
    places = [place for place in places if layout in (None, place[0])]
    if not places:
        raise ValueError(f"layout must be h5, normals, off or None, got {layout!r}.")
    for kind, folder, marker in places:
        marker = marker.format(split=split)
        for candidate in (root / folder, root):
            if next(candidate.glob(marker), None):
                return kind, candidate, marker
    wanted = ", ".join(f"{folder}/{marker.format(split=split)}" for _, folder, marker in places)
    raise FileNotFoundError(
        f"No {name} {split} split under {root}: looked for {wanted}. "
        f"Run `pcea download {name.lower()} --root {root}`, or see data/README.md."
    )


def _read(
    layout: str,
    folder: Path,
    marker: str,
    split: str,
    classes: Sequence[str] | None,
    num_points: int,
    with_normals: bool,
    cache: bool,
    seed: int,
    in_memory: InMemory,
) -> tuple[dict[str, Any], Sequence[str]]:
    """Arguments of `PointDataset`, and class names; only those of `classes` unless it is None."""
    if layout == "h5":
        check_h5_in_memory(in_memory)
        clouds, names = _read_h5_layout(folder, marker, classes, num_points, with_normals)
        return clouds._asdict(), names
    if layout == "normals":
        names = classes or _lines(folder / "modelnet40_shape_names.txt")
        shapes = [(shape.rsplit("_", 1)[0], shape) for shape in _lines(folder / marker)]
        strangers = {category for category, _ in shapes} - set(_lines(folder / "modelnet40_shape_names.txt"))
        if strangers:
            raise ValueError(f"{folder / marker} names {sorted(strangers)[0]!r}, not in modelnet40_shape_names.txt.")
        files = [folder / category / f"{shape}.txt" for category, shape in shapes if category in names]
        read = partial(_read_text_cloud, num_points=num_points)
    else:
        names = classes or sorted(path.name for path in folder.iterdir() if (path / split).is_dir())
        files = [file for category in names for file in sorted((folder / category / split).glob("*.off"))]
        read = partial(load_points, num_points=num_points, seed=seed, up="z", normals="file")
    label = [names.index(file.relative_to(folder).parts[0]) for file in files]
    path = cache_path(folder, f"{layout}_{split}", files, num_points, seed, names)
    arrays = cached(
        path if cache else None,
        lambda: parse_files(files, label, read, description=f"Reading {folder}"),
        names=(*CLOUD_ARRAYS, "normal") if with_normals else CLOUD_ARRAYS,
        in_memory=in_memory,
    )
    return to_tensors(arrays, with_normals=with_normals), names


def _read_h5_layout(
    folder: Path, marker: str, classes: Sequence[str] | None, num_points: int, with_normals: bool
) -> tuple[Clouds, Sequence[str]]:
    names = _lines(folder / "shape_names.txt")
    # The list has the paths of its author's machine: only the file names matter.
    files = [folder / Path(line).name for line in _lines(folder / marker)]
    parts = [
        read_h5_clouds(file, num_classes=len(names), num_points=num_points, with_normals=with_normals) for file in files
    ]
    points, label = torch.cat([part.points for part in parts]), torch.cat([part.label for part in parts])
    if len(points) and float(points.norm(dim=-1).max()) > 1.01:  # others than the official files, which are normalized
        points = normalize_points(points)
    normals = torch.cat([part.normals for part in parts if part.normals is not None]) if with_normals else None
    if classes is None:
        return Clouds(points, label, normals), names
    new_label = torch.tensor([classes.index(name) if name in classes else -1 for name in names])[label]
    keep = new_label >= 0
    return Clouds(points[keep], new_label[keep], None if normals is None else normals[keep]), classes


def _read_text_cloud(path: Path, *, num_points: int) -> Points:
    cloud = as_points(read_table(path, max_rows=num_points), path=path, normals="required")
    if len(cloud.points) < num_points:
        raise ValueError(f"{path} holds {len(cloud.points)} points, fewer than num_points={num_points}.")
    return cloud


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}, which the layout needs. Obtain the dataset again.")
    lines = read_names(path)
    if not lines:
        raise ValueError(f"{path} is empty. Obtain the dataset again.")
    return lines
