"""Images with a mask each: a file whose pixels hold the number of a class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcea.datasets.batches import IGNORE
from pcea.datasets.images import IMAGE_SUFFIXES, ImageDataset, open_picture, read_image
from pcea.datasets.splits import class_order
from pcea.io.text import read_names

_MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


class MissingClasses(NamedTuple):
    """Classes without a pixel in some masks.

    Attributes:
        names: Their names.
        values: All values that occur in these masks, sorted.
        num_masks: How many masks were looked at.
    """

    names: list[str]
    values: list[int]
    num_masks: int


class MaskFiles(ImageDataset):
    """Picture files with a mask each, read when they are needed.

    Args:
        images: The picture files, L.
        masks: The mask of each, L.
        classes: Class of each value that the mask files may hold, `IGNORE` for those that count nowhere.
        class_names: Name of each class.
    """

    def __init__(
        self,
        images: Sequence[str | Path],
        masks: Sequence[str | Path],
        *,
        classes: Mapping[int, int],
        class_names: Sequence[str],
    ):
        if len(class_names) > IGNORE:
            raise ValueError(f"At most {IGNORE} classes are possible, got {len(class_names)}.")
        if len(images) != len(masks):
            raise ValueError(f"Every image needs a mask, got {len(images)} images and {len(masks)} masks.")
        self.images, self.masks, self.classes = images, masks, dict(classes)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read one image, (3, H, W), and its mask, (H, W), both uint8; see `read_image` and `read_mask`."""
        image, mask = read_image(self.images[index]), read_mask(self.masks[index], self.classes)
        if image.shape[1:] != mask.shape:
            raise ValueError(
                f"{self.images[index]} has {_size(image)} pixels, but its mask {self.masks[index]} has {_size(mask)}."
            )
        return image, mask

    def with_classes(self, class_names: Sequence[str], parts: object = None) -> MaskFiles:  # noqa: ARG002
        """The same files with the classes in another order."""
        order = class_order(self.class_names, class_names).tolist()
        classes = {value: number if number == IGNORE else order[number] for value, number in self.classes.items()}
        return MaskFiles(self.images, self.masks, classes=classes, class_names=class_names)

    def missing_classes(self, *, num_files: int = 1000) -> MissingClasses:
        """Look for classes without a pixel, until all are found or enough masks have been looked at.

        Args:
            num_files: The largest number of masks to read, spread evenly over all.
        """
        chosen = np.linspace(0, len(self) - 1, min(num_files, len(self))).round().astype(int)
        values: set[int] = set()
        wanted = {*range(len(self.class_names))}
        count = 0
        for index in chosen:
            if not wanted:
                break
            values |= {*np.unique(read_values(self.masks[index])).tolist()}
            wanted -= {self.classes.get(value, IGNORE) for value in values}
            count += 1
        return MissingClasses([self.class_names[number] for number in sorted(wanted)], sorted(values), count)

    def subset(self, indices: Tensor) -> MaskFiles:
        """The files at `indices`, (L',) int64, as a set of their own."""
        return MaskFiles(
            [self.images[i] for i in indices],
            [self.masks[i] for i in indices],
            classes=self.classes,
            class_names=self.class_names,
        )


def number_classes(num_classes: int, *, ignored: Collection[int] = (IGNORE,), first: int = 0) -> dict[int, int]:
    """The classes of masks that count them from `first`, for `MaskFiles`.

    Args:
        num_classes: Number of classes.
        ignored: Values that count nowhere; one of them may lie among the classes.
        first: The value of class 0.
    """
    return {first + number: number for number in range(num_classes)} | dict.fromkeys(ignored, IGNORE)


def read_mask(path: str | Path, classes: Mapping[int, int]) -> Tensor:
    """Read a mask: a grey (8 or 16 bits), black-and-white or palette picture without loss, such as PNG.

    Args:
        path: The file.
        classes: Class of each value, `IGNORE` for those that count nowhere.

    Returns:
        Class of each pixel, (H, W) uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, in colours, or has a value that stands for nothing.
    """
    values = read_values(path)
    # The last entry is for values that are not known: larger ones come there by clipping, -1 as it counts from behind.
    table = np.full(max(classes) + 2, -1, dtype=np.int16)
    table[[*classes]] = [*classes.values()]
    labels = table[values.clip(-1, max(classes) + 1)]
    unknown = labels < 0
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        raise ValueError(
            f"{path} has the value {values[row, column]} at row {row}, column {column}. Classes are "
            f"{_ranges(v for v, c in classes.items() if c != IGNORE)}, ignored values are "
            f"{_ranges(v for v, c in classes.items() if c == IGNORE) or 'none'}."
        )
    return torch.from_numpy(labels.astype(np.uint8))


# Of PGM files: the highest value stands after the size, and comments end with the line.
_PGM_HEADER = re.compile(rb"P[25](?:(?:\s|#[^\n]*\n)+\d+){2}(?:\s|#[^\n]*\n)+(\d+)")


def read_values(path: str | Path) -> npt.NDArray[np.int32]:
    """Read the numbers that the pixels of a mask hold, (H, W).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or in colours.
    """
    picture = open_picture(path)
    if picture.mode not in _MASK_MODES:
        raise ValueError(
            f"{path} is a picture of mode {picture.mode}; a mask has one number per pixel: 8- or 16-bit grey, or a "
            "palette."
        )
    values = np.asarray(picture)
    header = _PGM_HEADER.match(Path(path).read_bytes()) if picture.format == "PPM" else None
    if header:  # Pillow stretches the values to 0..255 or 0..65535
        highest = int(header[1])
        top = 255 if highest < 256 else 65535
        values = (values.astype(np.int64) * highest + top // 2) // top
    return values.astype(np.int32)


def find_dataset(root: str | Path, marker: str, *names: str) -> Path:
    """The folder of a dataset, recognized by a folder in it.

    Args:
        root: The dataset's folder, or one above it.
        marker: The folder that must be in it.
        *names: Where it may be below `root`; the last one names the dataset in the message.

    Raises:
        FileNotFoundError: If it is in none of these places.
    """
    candidates = [Path(root), *(Path(root, name) for name in names)]
    for folder in candidates:
        if (folder / marker).is_dir():
            return folder
    raise FileNotFoundError(
        f"No {names[-1]} under {root}: none of {', '.join(f'{c / marker}' for c in candidates)} is there."
    )


def find_by_name(
    folder: Path, names: Sequence[str] | None, suffixes: Collection[str], *, listed_in: str = ""
) -> dict[str, Path]:
    """The files of a folder by their names without suffix.

    Args:
        folder: The folder; those in it are not looked into.
        names: The files that are wanted, in this order; None takes all, by name.
        suffixes: Those that count, in lower case.
        listed_in: What names them, for the message.

    Raises:
        FileNotFoundError: If the folder or a file that is wanted is missing, or there are none.
        ValueError: If two files have one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(f"{found[path.stem]} and {path.name} have one name; remove or rename one of them.")
            found[path.stem] = path
    if not found:
        raise FileNotFoundError(f"No files in {folder} that end in {', '.join(suffixes)}.")
    missing = [name for name in names or () if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{listed_in} names {missing[0]}, but there is no such file in {folder} ({len(missing)} of "
            f"{len(names or ())} are missing; files end in {', '.join(suffixes)})."
        )
    return found if names is None else {name: found[name] for name in names}


def pair_files(images: Mapping[str, Path], masks: Mapping[str, Path]) -> tuple[list[Path], list[Path]]:
    """Images and their masks, which have the same names.

    Raises:
        ValueError: If one has no partner; the first is named.
    """
    for ours, theirs, kind in ((images, masks, "mask"), (masks, images, "image")):
        alone = [path for name, path in ours.items() if name not in theirs]
        if alone:
            example = next(iter(theirs.values()))
            raise ValueError(
                f"{alone[0]} has no {kind} of the same name in {example.parent}, where the first is {example.name} "
                f"({len(alone)} of {len(ours)} files have no {kind})."
            )
    return [*images.values()], [masks[name] for name in images]


def read_list(path: Path) -> list[str]:
    """Names of files without suffix, a line each; a folder before the name and a suffix of pictures do not count.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names nothing, or a name twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No list {path}.")
    lines = [Path(name) for name in read_names(path)]
    names = [line.stem if line.suffix.lower() in IMAGE_SUFFIXES else line.name for line in lines]
    if not names:
        raise ValueError(f"{path} is empty.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} names {twice[0]} more than once.")
    return names


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"


def _ranges(numbers: Iterable[int]) -> str:
    """1, 2, 3, 7 as `1..3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
