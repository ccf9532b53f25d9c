"""The user's own images with masks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from pcea.datasets.batches import IGNORE
from pcea.datasets.images import IMAGE_SUFFIXES
from pcea.datasets.masks import MaskFiles, find_by_name, number_classes, pair_files, read_list
from pcea.datasets.splits import SPLITS, Split, stored_split

# No .gif, whose writers number the values anew.
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".pgm")


def read_mask_folder(
    root: str | Path,
    split: Split,
    *,
    num_classes: int | None = None,
    ignore_value: int | None = 255,
    class_values: Sequence[int] | None = None,
) -> MaskFiles | None:
    """Images with masks of the same names, `images/x.jpg` and `masks/x.png`, whose pixels hold the number of a class.

    Three layouts, told apart by what is there: folders `images/train` and `masks/train`, `images/val` ... and
    `images/test` ...; or lists of names `train.txt`, `val.txt` and `test.txt` in `root`, one name per line; or neither,
    which `has_mask_splits` tells. See `stored_split` for which split is which.

    Args:
        root: The folder.
        split: train, val or test; of a folder without splits, any of them is all.
        num_classes: Number of classes; None counts the names in `root/classes.yaml`, a list.
        ignore_value: Value of pixels that count nowhere, unless `class_values` has it; None if there are none.
        class_values: Value of each class in the masks, such as 0 and 255; None for 0, 1, 2 ...

    Returns:
        The split, or None for `val` if there is none.

    Raises:
        FileNotFoundError: If a folder, the split or a file that a list names is missing.
        ValueError: If images and masks do not match, the classes are not known, or `images` has folders that are no
            splits.
    """
    if ignore_value is not None and ignore_value < 0:
        raise ValueError(f"ignore_value must be a value of pixels, 0 or more, or null for none, got {ignore_value}.")
    names = read_class_names(Path(root) / "classes.yaml", num_classes)
    files = find_pairs(root, split)
    ignored = () if ignore_value is None else (ignore_value,)
    if class_values is None:
        classes = number_classes(len(names), ignored=ignored)
    elif len({*class_values}) != len(names) or len(class_values) != len(names) or min(class_values) < 0:
        raise ValueError(
            f"class_values must be a different value, 0 or more, for each of {len(names)} classes, got "
            f"{list(class_values)}."
        )
    else:
        classes = dict.fromkeys(ignored, IGNORE) | {value: number for number, value in enumerate(class_values)}
    return files and MaskFiles(*files, classes=classes, class_names=names)


def check_mask_classes(files: MaskFiles, root: str | Path) -> None:
    """Refuse training masks in which no pixel has a class, or warn of it, and say the likely cause.

    Args:
        files: The training split.
        root: Its folder, for the message.

    Raises:
        ValueError: If one class at most occurs, and other pixels are ignored: the network would learn nothing.
    """
    missing, values, num_masks = files.missing_classes()
    if not missing:
        return
    ignored = [value for value in values if files.classes.get(value) == IGNORE]
    looked_at = f"{len(files)}" if num_masks == len(files) else f"{num_masks} of the {len(files)}"
    shown = ", ".join(map(str, values[:20])) + (" ..." if len(values) > 20 else "")
    lacking = f"{', '.join(map(repr, missing))} {'has' if len(missing) == 1 else 'have'} no pixel"
    text = f"{lacking} in the {looked_at} training masks under {root}, whose values are {shown}"
    if ignored and len(missing) >= len(files.class_names) - 1:
        raise ValueError(
            f"{text}. The value {ignored[0]} is ignored (ignore_value). If it stands for a class, give the value of "
            f"each class: class_values: {values}."
        )
    advice = "A network cannot learn that: check classes.yaml, num_classes and class_values."
    warnings.warn(f"{text}. {advice}", stacklevel=2)


def find_pairs(root: str | Path, split: Split, *, masks: str = "masks") -> tuple[list[Path], list[Path]] | None:
    """The images of a split and their masks; see `read_mask_folder`.

    Args:
        root: The folder.
        split: train, val or test.
        masks: Name of the folder of the masks.

    Returns:
        Images and masks in the same order, or None for `val` if there is none.

    Raises:
        FileNotFoundError: If a folder, the split or a file that a list names is missing.
        ValueError: If images and masks do not match.
    """
    root = Path(root)
    ours, theirs, listed, listed_in = root / "images", root / masks, None, ""
    folders, lists = _splits(root)
    if folders or lists:
        where = f"{ours}" if folders else f"{root}, by its lists,"
        stored = stored_split(split, folders or lists, where)
        if stored is None:
            return None
        if folders:
            ours, theirs = ours / stored, theirs / stored
        else:
            listed_in = str(root / f"{stored}.txt")
            listed = read_list(Path(listed_in))
            _check_disjoint(root, [name for name in lists if name != "train"])
    return pair_files(
        find_by_name(ours, listed, IMAGE_SUFFIXES, listed_in=listed_in),
        find_by_name(theirs, listed, MASK_SUFFIXES, listed_in=listed_in),
    )


def _check_disjoint(root: Path, measured: Sequence[str]) -> None:
    """Refuse lists that name what train.txt names too: it would be learned and then measured."""
    learned = {*read_list(root / "train.txt")} if (root / "train.txt").is_file() else set()
    for name in measured:
        both = sorted(learned & {*read_list(root / f"{name}.txt")})
        if both:
            raise ValueError(f"{both[0]} is in {root / 'train.txt'} and in {name}.txt ({len(both)} are in both).")


def has_mask_splits(root: str | Path) -> bool:
    """Whether a folder of images and masks is divided, by folders or by lists."""
    return any(_splits(Path(root)))


def read_class_names(path: Path, num_classes: int | None) -> Sequence[str]:
    """Names of the classes from a YAML list, or made up.

    Raises:
        ValueError: If the file is not a list of different names, their number is not `num_classes`, or neither is
            there.
    """
    import yaml

    if not path.is_file():
        if num_classes is None or num_classes < 1:
            raise ValueError(
                f"num_classes is not given and there is no {path}. Give it, or write that file: `- name of class 0` on "
                "the first line, `- name of class 1` on the next."
            )
        return [f"class {number}" for number in range(num_classes)]
    try:
        # Every scalar is text for this loader: a class may be called `on` or `007`.
        names = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(n, str) for n in names)
        or len({*names}) < len(names)
    ):
        raise ValueError(f"{path} must be a list of different names, `- name of class 0` on the first line, and so on.")
    if num_classes not in (None, len(names)):
        raise ValueError(f"{path} names {len(names)} classes, but num_classes is {num_classes}.")
    return names


def _splits(root: Path) -> tuple[list[str], list[str]]:
    """The splits that are folders in `images`, and those that are lists.

    Raises:
        ValueError: If there are other folders, whose pictures nobody would miss.
    """
    images = root / "images"
    inside = sorted(path.name for path in images.iterdir() if path.is_dir()) if images.is_dir() else []
    folders = [name for name in SPLITS if name in inside]
    others = [name for name in inside if name not in SPLITS and not name.startswith(".")]
    if others:
        raise ValueError(
            f"{images} has the folder {others[0]}, which would not be read: folders there must be called "
            f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}. Rename it, or move its pictures."
        )
    return folders, [name for name in SPLITS if (root / f"{name}.txt").is_file()]
