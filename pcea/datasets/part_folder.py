"""The user's own point clouds with per-point labels, one folder per category, and a file that names the parts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from pcea.datasets.cache import cache_path, cached, to_tensors, warn_of_skipped
from pcea.datasets.folders import list_split
from pcea.datasets.memory import InMemory
from pcea.datasets.part_files import LARGE_ARRAYS, PART_ARRAYS, PartCloud, read_part_file, read_part_files
from pcea.datasets.parts import PartDataset, number_parts
from pcea.datasets.splits import TrainOrTest, warn_of_missing_classes
from pcea.io.points import Points, orient
from pcea.io.surroundings import shape_of


class PartFolder(PartDataset):
    """Clouds with per-point labels in folders named after their category; zero mean, unit sphere, y up.

    The layouts are those of `PointFolder`, the files those of `read_part_file`; clouds keep all their points. A YAML
    file names the parts of each category, `chair: [seat, back, legs]`; the labels in the files of a category number its
    parts from 0 in that order. With a single category, the list of its parts is enough. Categories, and so the
    classes, are numbered in the order of the YAML.

    Args:
        root: The folder.
        split: train or test. A category may have no shapes in one of them.
        parts: The YAML file; None takes `root/parts.yaml`.
        with_normals: Also read unit normals; every file must then have them.
        up: The files' upward axis: x, y, z, -x, -y or -z.
        test_fraction: Share of each category held out if the folder has no splits of its own; at least one file of two
            or more.
        seed: Decides the split.
        skip_unreadable: Skip unreadable files, with a warning that counts and names them, instead of raising.
        cache: Keep the parsed files in `root/.pcea`. Files that change are parsed again.
        in_memory: True holds the clouds in memory, False reads each batch from the cache, which needs `cache`; `auto`
            holds them if they take at most a third of the free memory, shared among the processes on the machine.

    Raises:
        FileNotFoundError: If `root` or the YAML file is missing, or there are no category folders.
        ValueError: If files cannot be read, labels are not parts of their category, the YAML and the folders disagree,
            or a category or the split is empty.
    """

    def __init__(
        self,
        root: str | Path,
        split: TrainOrTest,
        *,
        parts: str | Path | None = None,
        with_normals: bool = False,
        up: str = "y",
        test_fraction: float = 0.2,
        seed: int = 0,
        skip_unreadable: bool = False,
        cache: bool = True,
        in_memory: InMemory = "auto",
    ):
        root = Path(root)
        by_category = list_split(root, split, up=up, test_fraction=test_fraction, seed=seed)
        names = read_part_names(root / "parts.yaml" if parts is None else Path(parts), list(by_category))
        classes, class_names = number_parts(names)
        files = [file for name in names for file in by_category[name]]
        category = [number for number, name in enumerate(names) for _ in by_category[name]]

        def read(path: Path) -> PartCloud:
            cloud = _leave_out_strays(read_part_file(path, with_normals=with_normals), path)
            normals = None if cloud.normals is None else orient(cloud.normals, up)
            return cloud._replace(points=orient(cloud.points, up), normals=normals)

        path = cache_path(root, f"parts_{split}", files, list(classes.items()), with_normals, up, skip_unreadable)
        arrays = cached(
            path if cache else None,
            lambda: read_part_files(
                files,
                category,
                classes,
                read,
                description=f"Reading {root}",
                first_label=0,
                skip_unreadable=skip_unreadable,
            ),
            names=(*PART_ARRAYS, "normal") if with_normals else PART_ARRAYS,
            large=LARGE_ARRAYS,
            in_memory=in_memory,
        )
        warn_of_skipped(arrays, len(files))
        super().__init__(**to_tensors(arrays, with_normals=with_normals), class_names=class_names, parts=classes)
        if split == "train":
            found = torch.from_numpy(arrays["classes"])
            warn_of_missing_classes(found, class_names, what="point", where=root)


def _leave_out_strays(cloud: PartCloud, path: Path) -> PartCloud:
    included = shape_of(Points(cloud.points), seed=0).includes(cloud.points)
    if included.all():
        return cloud
    count = f"{int((~included).sum())} of {len(included)} points"
    warnings.warn(f"{path}: {count} lie far from all others and are left out.", stacklevel=2)
    return cloud.choose(included)


def read_part_names(path: Path, categories: Sequence[str]) -> dict[str, list[str]]:
    """Read the names of each category's parts from YAML, in its order; see `PartFolder`.

    Args:
        path: The YAML file.
        categories: The categories; the file must name the parts of these and no others.

    Raises:
        FileNotFoundError: If there is no such file; the message says what to write.
        ValueError: If it holds anything else.
    """
    import yaml

    example = f"{categories[0]}: [name of part 0, name of part 1, ...]"
    if not path.is_file():
        raise FileNotFoundError(
            f"No file {path}. Write it, with one line per category that names its parts: `{example}`."
        )
    try:
        # Every scalar is text for this loader: a part may be called `on`, a category `007`.
        content = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)
        root = yaml.compose(path.read_bytes(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if isinstance(root, yaml.MappingNode):
        keys = [str(key.value) for key, _ in root.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:  # of which YAML takes the last
            raise ValueError(f"{path} names the parts of {twice} more than once.")
    if isinstance(content, list) and len(categories) == 1:
        content = {categories[0]: content}
    if not isinstance(content, dict) or not all(_is_list_of_names(names) for names in content.values()):
        raise ValueError(f"{path} must hold one line per category that names its parts, such as `{example}`.")
    missing = [name for name in categories if name not in content]
    if missing:
        raise ValueError(f"{path} does not name the parts of {', '.join(missing)}: add `{missing[0]}: [...]`.")
    strangers = [name for name in content if name not in categories]
    if strangers:
        raise ValueError(f"{path} names {', '.join(strangers)}, but the only folders are {', '.join(categories)}.")
    for category, names in content.items():
        if len({*names}) < len(names):
            raise ValueError(f"{path}: the parts of {category} must have different names, got {', '.join(names)}.")
    return content


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)
