"""Labeled PSB, and other datasets in ShapeNetPart's text layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcea.datasets.cache import to_tensors
from pcea.datasets.memory import InMemory
from pcea.datasets.parts import PartClasses, PartDataset
from pcea.datasets.shapenet_layout import ShapeNetSplit, category_folders, read_json, read_text_layout


class LabeledPSB(PartDataset):
    """Labeled Princeton Segmentation Benchmark, or another dataset in ShapeNetPart's text layout with a `parts.json`.

    380 shapes of 19 categories with 94 parts; zero mean, unit sphere. Shapes are neither aligned nor scaled alike.

    Args:
        root: The folder of the dataset (with `parts.json`, {category: {part: number}}), or the one above `labeled_psb`.
        split: train, test or all; another dataset may have val and trainval.
        with_normals: Also read unit normals.
        categories: Keep only these; None keeps all. Categories and parts keep the numbers of the whole dataset.
        cache: Keep the parsed files.
        in_memory: True holds the clouds in memory, False reads each batch from the cache, which needs `cache`; `auto`
            holds them if they take at most a third of the free memory, shared among the processes on the machine.

    Raises:
        FileNotFoundError: If the dataset, its lists or listed files are not under `root`.
        ValueError: If a file does not hold what its layout promises, or a category is unknown or absent.
    """

    def __init__(
        self,
        root: str | Path,
        split: ShapeNetSplit,
        *,
        with_normals: bool = False,
        categories: Sequence[str] | None = None,
        cache: bool = True,
        in_memory: InMemory = "auto",
    ):
        places = [place for place in (Path(root) / "labeled_psb", Path(root)) if (place / "parts.json").is_file()]
        if not places:
            raise FileNotFoundError(
                f"No Labeled PSB under {root}: looked for labeled_psb/parts.json. See data/README.md."
            )
        parts, names = _read_parts(places[0] / "parts.json")
        offsets = category_folders(places[0] / "synsetoffset2category.txt")
        arrays = read_text_layout(
            places[0],
            split,
            "normals",
            offsets,
            parts,
            categories,
            with_normals=with_normals,
            cache=cache,
            in_memory=in_memory,
        )
        super().__init__(**to_tensors(arrays, with_normals=with_normals), class_names=names, parts=parts)


def _read_parts(path: Path) -> tuple[PartClasses, tuple[str, ...]]:
    """Read the classes of each category and the names of the classes from {category: {part: number}}."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(own, dict) and own for own in content.values()):
        raise ValueError(f"{path} must hold {{category: {{part: number}}}}.")
    names = {number: f"{category}/{part}" for category, own in content.items() for part, number in own.items()}
    numbers = [number for own in content.values() for number in own.values()]
    if not numbers or any(type(n) is not int for n in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise ValueError(
            f"{path}: the numbers of the parts must be 0, 1, 2, ... through all categories, got {numbers}."
        )
    parts = {category: tuple(own.values()) for category, own in content.items()}
    return parts, tuple(names[number] for number in range(len(numbers)))
