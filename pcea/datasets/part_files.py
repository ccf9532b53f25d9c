"""Files of point clouds with per-point labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.datasets.cache import Arrays
from pcea.io.arrays import NORMAL_NAMES, POINT_NAMES, as_table, describe_arrays, read_numpy
from pcea.io.failures import summarize
from pcea.io.hdf5 import read_h5
from pcea.io.ply import read_ply
from pcea.io.points import as_points, empty_points, normalize_points
from pcea.io.tables import TABLES, read_columns

# Names of a label's column or array, in lower case; the first that is there counts.
LABEL_NAMES = (
    "label", "part_label", "part", "pid", "seg", "labels", "segment", "segmentation", "class", "classification",
    "scalar_label", "semantic_label", "semantic",
)  # fmt: skip
# What `read_part_files` gives, besides `normal`, and what of it has a row for each point.
PART_ARRAYS = ("data", "label", "sizes", "category", "skipped", "classes")
LARGE_ARRAYS = ("data", "label", "normal")


class PartCloud(NamedTuple):
    """One cloud with per-point labels.

    Attributes:
        points: Coordinates, (N, 3), float32 or float64 as in `Points`.
        normals: Unit normals, (N, 3), or None.
        label: The labels in the file, (N,) int64.
    """

    points: Tensor
    normals: Tensor | None
    label: Tensor

    def choose(self, kept: Tensor) -> PartCloud:
        """The points that a mask (N,) chooses."""
        return PartCloud(self.points[kept], None if self.normals is None else self.normals[kept], self.label[kept])


def read_part_file(path: Path, *, with_normals: bool = False) -> PartCloud:
    """Read a file of labelled points, in its own units and order.

    Text (.txt .csv .xyz .pts ...) and .npy have rows x y z label or x y z nx ny nz label, in any order and with other
    columns if a header names x, y, z and one of `LABEL_NAMES`; .npz and .h5 an array `points` or `data` (N, 3), one of
    `LABEL_NAMES` (N,), and perhaps `normals` or `normal`; .ply vertices with one of `LABEL_NAMES` as a property, and
    perhaps nx ny nz.

    Args:
        path: The file.
        with_normals: Also return normals, which the file must then have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has no labelled points.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    extension = path.suffix.lower()
    if extension not in _READERS:
        raise ValueError(
            f"{path} has an unknown extension {extension!r}; labelled points are in {' '.join(_READERS)} files."
        )
    table = _READERS[extension](path)
    return as_part_cloud(table, path=path, with_normals=with_normals)


def as_part_cloud(table: np.ndarray, *, path: Path, with_normals: bool = False) -> PartCloud:
    """Check the rows x y z label or x y z nx ny nz label of one cloud, (N, 4 | 7); `path` is for the message.

    Raises:
        ValueError: If they are something else, or a label is not a whole number.
    """
    if table.size == 0:
        raise ValueError(f"{path} is empty: it holds no points.")
    if table.ndim != 2 or table.shape[1] not in (4, 7):
        columns = table.shape[1] if table.ndim == 2 else f"shape {table.shape}"
        raise ValueError(f"{path} must have rows x y z label or x y z nx ny nz label, 4 or 7 columns, got {columns}.")
    if with_normals and table.shape[1] == 4:
        raise ValueError(f"{path} has no normals: it has 4 columns, but x y z nx ny nz label, 7 columns, are needed.")
    cloud = as_points(table[:, :-1], path=path, normals="required" if with_normals else "none")
    labelled = PartCloud(cloud.points, cloud.normals, as_labels(table[:, -1], path=path))
    is_empty = empty_points(cloud.points, str(path))
    return labelled if is_empty is None else labelled.choose(~is_empty)


def as_labels(numbers: np.ndarray, *, path: Path) -> Tensor:
    """Convert numbers of any type, (N,), to labels, (N,) int64; `path` is for the message.

    Raises:
        ValueError: If one is not a whole number.
    """
    if numbers.dtype == np.float16:  # 2**31 is none of its numbers
        numbers = numbers.astype(np.float32)
    wrong = numbers[(numbers != np.round(numbers)) | ~(np.abs(numbers) < 2**31)]
    if len(wrong):
        raise ValueError(f"{path}: {len(wrong)} of {len(numbers)} labels are not whole numbers, first {wrong[0]:g}.")
    return torch.from_numpy(numbers.astype(np.int64))


def read_part_files(
    files: Sequence[Path],
    category: Sequence[int],
    parts: Mapping[str, Sequence[int]],
    read: Callable[[Path], PartCloud],
    *,
    description: str,
    first_label: int | None = None,
    skip_unreadable: bool = False,
    advice: str = "Repair or remove them, or set skip_unreadable.",
) -> Iterator[Arrays]:
    """Read labelled files and normalize them, with a progress bar.

    Args:
        files: The files, L.
        category: Category number of each file, L.
        parts: The classes of each category, by its name, in the order of those numbers.
        read: Returns a file's points and labels.
        description: Text before the progress bar.
        first_label: Labels in the files number a category's parts from this one; None if they are the classes.
        skip_unreadable: Skip unreadable files instead of raising.
        advice: What to do about unreadable files, at the end of the message.

    Yields:
        Of each file of N points, data (N, 3) with zero mean in the unit sphere, label (N,), sizes (1,), category (1,),
        and normal (N, 3) if there are normals; at the end, skipped: one error message per unreadable file, and
        classes: those that some point has, in order.

    Raises:
        ValueError: If there are no files, or some cannot be read; the message counts them and names ten.
    """
    from rich.progress import track

    if not files:
        raise ValueError(f"{description}: this split has no files.")
    names, classes = list(parts), list(parts.values())
    skipped: list[str] = []
    found: set[int] = set()
    for file, number in track(list(zip(files, category)), description=description, transient=True):
        try:
            cloud = read(file)
            label = _to_classes(cloud.label, classes[number], first_label, file, names[number])
            points = normalize_points(cloud.points)
        except (ValueError, OSError) as error:
            skipped.append(str(error))
            continue
        found.update(label.unique().tolist())
        chunk = {
            "data": points.numpy(),
            "label": label.numpy(),
            "sizes": np.array([len(points)], dtype=np.int64),
            "category": np.array([number], dtype=np.int64),
        }
        if cloud.normals is not None:
            chunk["normal"] = cloud.normals.numpy()
        yield chunk
    if skipped and not (skip_unreadable and len(skipped) < len(files)):
        raise ValueError(f"{summarize(skipped, len(files))} {advice}")
    yield {
        "skipped": np.array([line.encode() for line in skipped], dtype=bytes),
        "classes": np.array(sorted(found), dtype=np.int64),
    }


def _to_classes(label: Tensor, classes: Sequence[int], first: int | None, path: Path, category: str) -> Tensor:
    allowed = list(classes) if first is None else list(range(first, first + len(classes)))
    strangers = sorted(set(label.unique().tolist()) - set(allowed))
    if strangers:
        raise ValueError(
            f"{path}: label {strangers[0]} is not a part of category {category}, whose labels are "
            f"{', '.join(map(str, allowed))}."
        )
    return label if first is None else torch.tensor(classes)[label - first]


def _read_numpy(path: Path) -> np.ndarray:
    content = read_numpy(path, names=(*POINT_NAMES, *NORMAL_NAMES, *LABEL_NAMES))
    if not isinstance(content, np.ndarray):
        return _join(content, path)
    if content.dtype.names:
        records = content.reshape(-1)
        return _join_columns({name: records[name] for name in content.dtype.names}, path)
    return content[0] if content.ndim == 3 and len(content) == 1 else content


def _read_h5(path: Path) -> np.ndarray:
    return _join(read_h5(path, required=(), optional=(*POINT_NAMES, *NORMAL_NAMES, *LABEL_NAMES)), path)


def _read_ply(path: Path) -> np.ndarray:
    return _join_columns(read_ply(path).columns, path)


def _read_text(path: Path) -> np.ndarray:
    table = read_columns(path, labels=LABEL_NAMES)
    if table.names and "label" not in table.names:
        raise ValueError(f"{path} has no labels: its header names none of {', '.join(LABEL_NAMES)}.")
    if path.suffix.lower() == ".xyzrgb" and not table.names and table.rows.shape[1] == 7:
        return table.rows[:, [0, 1, 2, 6]]  # columns 4 to 6 are colours
    return table.rows


def _join_columns(columns: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    """Join x y z, perhaps nx ny nz or normal_x ..., and a label, in columns of any case, to rows."""
    arrays = {name.lower(): column for name, column in columns.items()}
    for name, axes in (
        ("points", ("x", "y", "z")),
        ("normals", ("normal_x", "normal_y", "normal_z")),
        ("normals", ("nx", "ny", "nz")),
    ):
        if {*axes} <= {*arrays}:
            arrays[name] = np.stack([arrays[axis] for axis in axes], axis=1)
    return _join(arrays, path)


def _join(arrays: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    """Join named arrays to rows x y z [nx ny nz] label."""
    rows = as_table(arrays, path=path)
    label = next((arrays[name].reshape(-1) for name in LABEL_NAMES if name in arrays), None)
    if label is None:
        names = [name for name in arrays if name not in POINT_NAMES + NORMAL_NAMES]
        held = describe_arrays(path) or f"It has {', '.join(names)}."
        raise ValueError(f"{path} has no labels: it has none of {', '.join(LABEL_NAMES)}. {held}")
    if label.dtype.kind not in "fiub":
        raise ValueError(
            f"{path}: labels must be numbers, the places of the parts in parts.yaml from 0, got {label.dtype}, first "
            f"{label[0]!s:.40}."
        )
    if rows.ndim != 2 or rows.shape[1] not in (3, 6) or len(label) != len(rows):
        raise ValueError(f"{path}: points must be (N, 3) with N labels, got {rows.shape} and {label.shape}.")
    return np.hstack([rows, label[:, None]])


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    **dict.fromkeys(TABLES, _read_text),
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".ply": _read_ply,
}
