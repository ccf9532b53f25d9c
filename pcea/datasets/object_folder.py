"""The user's own pictures with a map each whose pixels number the objects."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcea.datasets.images import read_header, read_image
from pcea.datasets.mask_folder import find_pairs
from pcea.datasets.masks import read_values
from pcea.datasets.objects import ObjectDataset, Target
from pcea.datasets.splits import Split

# Bytes of all masks of an image: 4 GiB hold 1000 objects on 2000 x 2000 pixels.
_LARGEST = 1 << 32
# Label maps that are looked at to see whether there are any objects.
_LOOKED_AT = 20
# Of fewer pictures of a kind no share can be held out.
_RARE = 10


class ObjectFiles(ObjectDataset):
    """Pictures with label maps of 8 or 16 bits: 0 is the background, each other value an object, all of one class.

    Args:
        images: The picture files, L.
        labels: The label map of each, L.
        class_name: Name of the class.
    """

    has_masks = True

    def __init__(self, images: Sequence[Path], labels: Sequence[Path], *, class_name: str = "object"):
        self.files, self.labels = images, labels
        self.class_names, self.category_ids = (class_name,), (1,)
        self.image_names = [path.name for path in images]
        self._has_warned = False

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Read one image and its objects, by their values; a box ends behind the last pixel of its object."""
        image, values = read_image(self.files[index]), read_values(self.labels[index])
        H, W = image.shape[1:]
        if values.shape != (H, W):
            raise ValueError(
                f"{self.files[index]} has {H}x{W} pixels, but its label map {self.labels[index]} has "
                f"{values.shape[0]}x{values.shape[1]}."
            )
        target = _objects(values, self.labels[index])
        if not self._has_warned:
            self._has_warned = _warn_of_binary(values, len(target["labels"]), self.labels[index])
        return image, target | {"image_id": torch.tensor(index)}

    def warn_if_empty(self) -> None:
        """Warn if none of some label maps has an object: a network cannot learn any then."""
        some = self.labels[:: max(1, len(self.labels) // _LOOKED_AT)]
        if not any(map(_has_objects, some)):
            warnings.warn(
                f"None of {len(some)} label maps that were looked at has an object, first {some[0]}: all values are 0, "
                "the background.",
                stacklevel=2,
            )

    @property
    def strata(self) -> Tensor:
        """Pictures of one size and kind of colours (grey, RGB, ...) are a stratum, all rare ones one, (L,) int64."""
        kinds = [read_header(path)[:3] for path in self.files]
        count = Counter(kinds)
        number = {kind: number for number, kind in enumerate(sorted(kind for kind in count if count[kind] >= _RARE))}
        return torch.tensor([number.get(kind, len(number)) for kind in kinds])


def read_object_folder(root: str | Path, split: Split, *, class_name: str = "object") -> ObjectFiles | None:
    """Pictures with label maps of the same names, `images/x.jpg` and `labels/x.png` (or `masks/x.png`).

    Splits are stored as in `read_mask_folder`, or not, which `has_mask_splits` tells.

    Args:
        root: The folder.
        split: train, val or test; of a folder without splits, any of them is all.
        class_name: Name of the one class.

    Returns:
        The split, or None for `val` if there is none.

    Raises:
        FileNotFoundError: If a folder, the split or a file that a list names is missing.
        ValueError: If images and label maps do not match.
    """
    is_masks = not (Path(root) / "labels").is_dir() and (Path(root) / "masks").is_dir()
    pairs = find_pairs(root, split, masks="masks" if is_masks else "labels")
    return pairs and ObjectFiles(*pairs, class_name=class_name)


def _warn_of_binary(values: np.ndarray, num_objects: int, path: Path) -> bool:
    """Warn if a label map looks like the mask of a class, where all objects have one value: 1, or 255."""
    from scipy import ndimage

    if num_objects != 1 or values.max() not in (1, 255):
        return False
    pieces = ndimage.label(values)[1]
    if pieces > 1:
        warnings.warn(
            f"{path} has no values but 0 and {values.max()}, so its {pieces} pieces are one object. If they are "
            "several, as in a mask, give each a value of its own, for example by scipy.ndimage.label(mask)[0].",
            stacklevel=3,
        )
    return pieces > 1


def _has_objects(path: Path) -> bool:
    try:
        return bool(read_values(path).any())
    except ValueError:  # it is named when it is read for training
        return True


def _objects(values: np.ndarray, path: Path) -> Target:
    """The objects of a label map (H, W), read from `path`: boxes, labels, masks, iscrowd and area."""
    from scipy import ndimage

    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"{path}: values of a label map must be 0..65535, got {values.min()}..{values.max()}.")
    counts = np.bincount(values.ravel(), minlength=1)
    counts[0] = 0
    found = counts.nonzero()[0]
    if len(found) * values.size > _LARGEST:
        gigabytes = len(found) * values.size / 2**30
        raise ValueError(
            f"{path} has {len(found)} objects on {values.shape[0]}x{values.shape[1]} pixels, whose masks take "
            f"{gigabytes:.0f} GiB. A label map has one value per object, 0 being the background; cut large images into "
            "tiles."
        )
    slices = ndimage.find_objects(values)
    sides = [slices[value - 1] for value in found]
    boxes = [[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in sides]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.ones(len(found), dtype=torch.int64),
        "masks": torch.from_numpy((values == found[:, None, None]).view(np.uint8)),
        "iscrowd": torch.zeros(len(found), dtype=torch.int64),
        "area": torch.from_numpy(counts[found]).float(),
    }
