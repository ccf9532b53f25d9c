"""The user's own meshes and point clouds, one folder per class."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch

from pcea.datasets.cache import CLOUD_ARRAYS, cache_path, cached, parse_files, to_tensors, warn_of_skipped
from pcea.datasets.folders import list_split
from pcea.datasets.memory import InMemory
from pcea.datasets.points import PointDataset
from pcea.datasets.splits import TrainOrTest, warn_of_missing_classes
from pcea.io.points import Points, load_points
from pcea.io.surroundings import choose_points, leave_out_strays


class PointFolder(PointDataset):
    """Mesh and cloud files in folders named after their class; zero mean, unit sphere, y up.

    Three layouts are recognized: `root/train/<class>/*` with `root/test/<class>/*`; `root/<class>/train/*` with
    `root/<class>/test/*`; or `root/<class>/*`, from which a stratified, seeded share is held out as the test split. A
    folder `val` beside train and test is ignored; without test it is the test split. Classes are in alphabetical
    order. Files may lie in deeper folders; hidden ones are ignored.

    Args:
        root: The folder.
        split: train or test.
        num_points: Points per cloud: meshes are sampled by area, clouds give a random subset.
        with_normals: Also read normals; every cloud file must then have them.
        up: The files' upward axis: x, y, z, -x, -y or -z.
        test_fraction: Share of each class held out if the folder has no splits of its own; at least one file of
            two or more.
        seed: Decides the split and the samples.
        skip_unreadable: Skip unreadable files, and those of fewer points, with a warning that counts and names them,
            instead of raising.
        cache: Keep the parsed files in `root/.pcea`. Files that change are parsed again.
        in_memory: True holds the clouds in memory, False reads each batch from the cache, which needs `cache`; `auto`
            holds them if they take at most a third of the free memory, shared among the processes on the machine.

    Raises:
        FileNotFoundError: If `root` is missing, or has no class folders.
        ValueError: If files cannot be read, or a class or the split is empty.
    """

    def __init__(
        self,
        root: str | Path,
        split: TrainOrTest,
        *,
        num_points: int = 1024,
        with_normals: bool = False,
        up: str = "y",
        test_fraction: float = 0.2,
        seed: int = 0,
        skip_unreadable: bool = False,
        cache: bool = True,
        in_memory: InMemory = "auto",
    ):
        root = Path(root)
        files_by_class = list_split(root, split, up=up, test_fraction=test_fraction, seed=seed)
        names = list(files_by_class)
        files = [file for name in names for file in files_by_class[name]]
        label = [number for number, name in enumerate(names) for _ in files_by_class[name]]
        normals: Literal["none", "required"] = "required" if with_normals else "none"
        load = partial(load_points, num_points=num_points, seed=seed, up=up, normals=normals)

        def read(file: Path) -> Points:
            shape = leave_out_strays(load(file), str(file))
            # Others stand in for the few that are left out: all clouds have as many points.
            again = torch.arange(num_points) % len(shape.points)
            return Points(*shape) if len(shape.points) == num_points else choose_points(shape, again)

        path = cache_path(root, split, files, names, num_points, with_normals, up, seed, skip_unreadable)
        arrays = cached(
            path if cache else None,
            lambda: parse_files(files, label, read, description=f"Reading {root}", skip_unreadable=skip_unreadable),
            names=(*CLOUD_ARRAYS, "normal") if with_normals else CLOUD_ARRAYS,
            in_memory=in_memory,
        )
        warn_of_skipped(arrays, len(files))
        super().__init__(**to_tensors(arrays, with_normals=with_normals), class_names=names)
        if split == "train":
            warn_of_missing_classes(self.label, names, what="readable file", where=root)
