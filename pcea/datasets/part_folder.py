"""The user's own labelled clouds: a folder of files a category, and the names of its parts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from pcea.datasets.cache import cache_path, cached, summarize
from pcea.datasets.part_files import ARRAYS, PartCloud, read_part_file, read_part_files, to_tensors
from pcea.datasets.point_folder import list_files
from pcea.datasets.points import PartDataset, number_parts
from pcea.io.points import orient


class PartFolder(PartDataset):
    """Clouds with a label a point, the folder's name being the category; zero mean, unit sphere, y up.

    The layouts are those of `PointFolder`, the files those of `read_part_file`; clouds keep all their points. A YAML
    file names the parts of each category, `chair: [seat, back, legs]`; the labels in the files of a category count its
    parts from 0 in that order. If there is but one category, the list of its parts alone will do. Categories, and
    through them the classes, are numbered in the order of the YAML.

    Args:
        root: The folder.
        split: train or test. A category may have no shapes of one of them.
        parts: The YAML file; None takes `root/parts.yaml`.
        with_normals: Also give unit normals; every file must then hold them.
        up: The files' upward axis: x, y, z, -x, -y or -z.
        test_fraction: Part of each category that is held out where the folder has no splits of its own; at least one
            file of two or more.
        seed: Decides the split.
        skip_unreadable: Leave unreadable files out, with a warning that counts and names them, instead of stopping.
        cache: Keep what was parsed in `root/.pcea`. A file that changes is noticed.

    Raises:
        FileNotFoundError: If `root` or the YAML file is missing, or there is no category folder with files.
        ValueError: If files cannot be read, labels are not parts of their category, the YAML and the folders disagree,
            or a category or the split is empty.
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "test"],
        *,
        parts: str | Path | None = None,
        with_normals: bool = False,
        up: str = "y",
        test_fraction: float = 0.2,
        seed: int = 0,
        skip_unreadable: bool = False,
        cache: bool = True,
    ):
        root = Path(root)
        if split not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {split!r}.")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}.")
        orient(torch.zeros(3), up)  # a wrong axis is not the files' fault
        by_category = list_files(root, split, test_fraction=test_fraction, seed=seed)
        names = read_part_names(root / "parts.yaml" if parts is None else Path(parts), list(by_category))
        classes, class_names = number_parts(names)
        files = [file for name in names for file in by_category[name]]
        category = [number for number, name in enumerate(names) for _ in by_category[name]]
        if not files:
            raise ValueError(
                f"The {split} split of {root} is empty. Add files or change test_fraction={test_fraction}."
            )

        def read(path: Path) -> PartCloud:
            cloud = read_part_file(path, with_normals=with_normals)
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
            required=ARRAYS,
        )
        if len(arrays["skipped"]):
            skipped = [line.decode() for line in arrays["skipped"].tolist()]
            warnings.warn(f"{summarize(skipped, len(files))} They are skipped.", stacklevel=2)
        super().__init__(**to_tensors(arrays, with_normals=with_normals), class_names=class_names, parts=classes)


def read_part_names(path: Path, categories: Sequence[str]) -> dict[str, list[str]]:
    """The names of the parts of each category from YAML, in its order; see `PartFolder`.

    Args:
        path: The YAML file.
        categories: The categories that there are; the file must name the parts of these and no others.

    Raises:
        FileNotFoundError: If there is no such file; the message says what to write.
        ValueError: If it holds anything else.
    """
    import yaml

    example = f"{categories[0]}: [name of part 0, name of part 1, ...]"
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. Write it, with a line a category that names its parts: `{example}`.")
    try:
        # Every scalar is text for this loader: a part may be called `on`, a category `007`.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if isinstance(content, list) and len(categories) == 1:
        content = {categories[0]: content}
    if not isinstance(content, dict) or not all(_is_list_of_names(names) for names in content.values()):
        raise ValueError(f"{path} must hold a line a category that names its parts, such as `{example}`.")
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
