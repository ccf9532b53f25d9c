"""The user's own files: a folder of meshes or clouds a class."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pcea.datasets.cache import as_clouds, cache_path, cached, read_files, summarize
from pcea.datasets.points import PointDataset
from pcea.io.points import load_points, orient

_SPLITS = ("train", "test")
# What lies beside meshes without being one. Any other unknown file is reported as unreadable.
_COMPANIONS = {"", ".mtl", ".bin", ".png", ".jpg", ".jpeg", ".tga", ".bmp", ".json", ".md"}


class PointFolder(PointDataset):
    """Mesh and cloud files, the folder's name being the class; zero mean, unit sphere, y up.

    Three layouts, told apart by what is there: `root/train/<class>/*` with `root/test/<class>/*`;
    `root/<class>/train/*` with `root/<class>/test/*`; or `root/<class>/*`, of which a stratified, seeded part becomes
    the test split. A folder `root/val` beside train and test is left alone.
    Classes are in alphabetical order. Files may lie in deeper folders; hidden ones are ignored.

    Args:
        root: The folder.
        split: train or test.
        num_points: Points a cloud: meshes are sampled by area, clouds give a random subset.
        with_normals: Also give normals; every cloud file must then hold them.
        up: The files' upward axis: x, y, z, -x, -y or -z.
        test_fraction: Part of each class that is held out where the folder has no splits of its own; at least one file.
        seed: Decides the split and the samples.
        skip_unreadable: Leave unreadable files out, with a warning that counts and names them, instead of stopping.
        cache: Keep what was parsed in `root/.pcea`. A file that changes is noticed.

    Raises:
        FileNotFoundError: If `root` is missing, or holds no class folder with files.
        ValueError: If files cannot be read, or a class or the split is empty.
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "test"],
        *,
        num_points: int = 1024,
        with_normals: bool = False,
        up: str = "y",
        test_fraction: float = 0.2,
        seed: int = 0,
        skip_unreadable: bool = False,
        cache: bool = True,
    ):
        root = Path(root)
        if split not in _SPLITS:
            raise ValueError(f"split must be train or test, got {split!r}.")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}.")
        orient(torch.zeros(3), up)  # a wrong axis is not the files' fault
        files_by_class = list_files(root, split, test_fraction=test_fraction, seed=seed)
        names = list(files_by_class)
        files = [file for name in names for file in files_by_class[name]]
        label = [number for number, name in enumerate(names) for _ in files_by_class[name]]
        if not files:
            raise ValueError(
                f"The {split} split of {root} is empty. Add files or change test_fraction={test_fraction}."
            )
        normals: Literal["none", "required"] = "required" if with_normals else "none"
        read = partial(load_points, num_points=num_points, seed=seed, up=up, normals=normals)
        path = cache_path(root, split, files, names, num_points, with_normals, up, seed, skip_unreadable)
        arrays = cached(
            path if cache else None,
            lambda: read_files(files, label, read, description=f"Reading {root}", skip_unreadable=skip_unreadable),
        )
        if len(arrays["skipped"]):
            skipped = [line.decode() for line in arrays["skipped"].tolist()]
            warnings.warn(f"{summarize(skipped, len(files))} They are skipped.", stacklevel=2)
        clouds = as_clouds(arrays, path, num_classes=len(names), with_normals=with_normals)
        super().__init__(clouds.points, clouds.label, class_names=names, normals=clouds.normals)


def list_files(root: Path, split: str, *, test_fraction: float, seed: int) -> dict[str, list[Path]]:
    """The files of one split by class, in alphabetical order; see `PointFolder` for the layouts.

    Raises:
        FileNotFoundError: If `root` is missing, or holds no class folder.
        ValueError: If a class has no files.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"No folder {root}.")
    folders = _folders(root)
    by_class: dict[str, dict[str, list[Path]]] = {}
    if {folder.name for folder in folders} <= {*_SPLITS, "val"}:  # else `train` is a class, as in car, bus, train
        for name in sorted({folder.name for part in _SPLITS for folder in _folders(root / part)}):
            by_class[name] = {part: _files(root / part / name) for part in _SPLITS}
    else:
        for folder in folders:
            by_class[folder.name] = {part: _files(folder / part) for part in _SPLITS}
            if not any(by_class[folder.name].values()):
                by_class[folder.name] = _divide(_files(folder), test_fraction, seed)
    if not by_class:
        raise FileNotFoundError(
            f"No class folders under {root}: expected {root}/<class>/* or {root}/{split}/<class>/*."
        )
    for name, parts in by_class.items():
        if not any(parts.values()):
            raise ValueError(f"Class {name!r} under {root} has no mesh or cloud files. Add some or remove its folder.")
    return {name: parts[split] for name, parts in by_class.items()}


def _divide(files: list[Path], test_fraction: float, seed: int) -> dict[str, list[Path]]:
    num_test = min(max(1, round(test_fraction * len(files))), len(files) - 1)
    order = np.random.default_rng(seed).permutation(len(files))
    test = {files[index] for index in order[:num_test]} if files else set()
    return {"train": [file for file in files if file not in test], "test": [file for file in files if file in test]}


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() not in _COMPANIONS)
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
