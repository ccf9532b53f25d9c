"""Datasets in COCO format: a folder of images and a JSON file of the objects in them."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.datasets.images import read_image
from pcea.datasets.objects import ObjectDataset, Target, box_area, boxes_without_area, clip_boxes, keep_objects


class CocoObjects(ObjectDataset):
    """Images with the objects that a JSON file in COCO format lists. Images and masks are read when needed.

    Classes are the categories of the file in the order of their ids, which may have gaps. Objects without area inside
    their image are left out, with a warning. `iscrowd` defaults to 0, and `area` to the area of the box.

    Args:
        annotations: The JSON file.
        folder: Folder of the images, to which its `file_name`s are relative.
        masks: Whether to read masks: polygons, or run lengths, compressed or not. They may overlap.
        keep_empty: Whether images without any object, crowds aside, belong to the set.
        skip_unreadable: Leave out damaged annotations, with a warning that counts them and names the first, instead of
            raising.

    Raises:
        FileNotFoundError: If the file, the folder or an image is missing.
        ValueError: If the file is not JSON, lacks something or contradicts itself, has two categories of one name, or
            an annotation is damaged. The message names the annotation by its id.
    """

    def __init__(
        self,
        annotations: str | Path,
        folder: str | Path,
        *,
        masks: bool = False,
        keep_empty: bool = True,
        skip_unreadable: bool = False,
    ):
        path = self.path = Path(annotations)
        content = _read_json(path)
        self.category_ids, self.class_names = _categories(content["categories"], path)
        self.has_masks = masks
        images = _images(content["images"], path)
        found = _objects(
            content["annotations"], images, self.category_ids, path, masks=masks, skip_unreadable=skip_unreadable
        )
        if not keep_empty:
            images = {number: image for number, image in images.items() if (found[number].iscrowd == 0).any()}
            if not images:
                raise ValueError(f"{path} has no image with an object, and keep_empty is false.")
        self.folder, self.images, self.objects = Path(folder), [*images.values()], [found[number] for number in images]
        self.image_names = [image.name for image in self.images]
        self.files = [self.folder / name for name in self.image_names]
        _check_pictures(path, self.folder, self.image_names)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Read one image and decode the masks of its objects."""
        listed, objects = self.images[index], self.objects[index]
        image = read_image(self.folder / listed.name)
        H, W = image.shape[1:]
        if (listed.height, listed.width) != (H, W):
            raise ValueError(
                f"{self.folder / listed.name} has {H}x{W} pixels, but {self.path} says {listed.height}x{listed.width}."
            )
        target = {
            "boxes": objects.boxes,
            "labels": objects.labels,
            "iscrowd": objects.iscrowd,
            "area": objects.area,
            "image_id": torch.tensor(listed.id),
        }
        if self.has_masks:
            masks = [self._mask(text, name, H, W) for text, name in zip(objects.segmentations, objects.names)]
            target["masks"] = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, H, W, dtype=torch.uint8)
            target = self._keep_seen(target, objects.names)
        return image, target

    def _keep_seen(self, target: Target, names: Sequence[str]) -> Target:
        """The objects whose mask has a pixel: others could never be found."""
        seen = target["masks"].flatten(1).any(1).bool()
        if not seen.all():
            first = names[int((~seen).int().argmax())]
            warnings.warn(
                f"{self.path}: the mask of {first} has no pixel, so it is left out ({int((~seen).sum())} of this "
                "image's objects).",
                stacklevel=3,
            )
        return keep_objects(target, seen)

    @property
    def label(self) -> Tensor:
        """Number of the class, from 0, of every object that is trained on (no crowds), int64."""
        return torch.cat([objects.labels[objects.iscrowd == 0] for objects in self.objects]) - 1

    def _mask(self, text: bytes, name: str, height: int, width: int) -> np.ndarray:
        try:
            return _decode(json.loads(text), height, width)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: the mask of {name} is damaged: {error}.") from error


class _Image(NamedTuple):
    id: int
    name: str
    height: int
    width: int


class _Objects(NamedTuple):
    """The objects of an image; segmentations are JSON, of which millions fit in memory."""

    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    area: Tensor
    segmentations: list[bytes]
    names: list[str]


def _read_json(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"No annotations {path}.")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(
                f"{path} must have the lists images, annotations and categories, as COCO's instances_*.json; it has no "
                f"list {name}."
            )
    for name in ("images", "categories"):
        if not content[name]:
            raise ValueError(f"{path} has no {name}.")
    return content


def _categories(rows: list[Any], path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names: dict[int, str] = {}
    for row in rows:
        try:
            number, name = _whole(row["id"]), _text(row["name"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: a category needs id and name, got {_short(row)}.") from error
        if number in names:
            raise ValueError(f"{path} has two categories with id {number}.")
        if name in names.values():
            twin = next(other for other, known in names.items() if known == name)
            raise ValueError(
                f"{path} has two categories with the name {name!r}, ids {twin} and {number}. Classes are told apart by "
                "name: rename one, or remove it."
            )
        names[number] = name
    return tuple(sorted(names)), tuple(names[number] for number in sorted(names))


def _images(rows: list[Any], path: Path) -> dict[int, _Image]:
    images: dict[int, _Image] = {}
    ids: dict[str, int] = {}
    for row in rows:
        try:
            image = _Image(_whole(row["id"]), _text(row["file_name"]), _whole(row["height"]), _whole(row["width"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: an image needs id, file_name, height and width, got {_short(row)}.") from error
        if min(image.height, image.width) < 1:
            raise ValueError(f"{path}: the height and width of an image must be positive, got {_short(row)}.")
        if image.id in images:
            raise ValueError(f"{path} has two images with id {image.id}.")
        if image.name in ids:
            raise ValueError(f"{path} lists {image.name} twice, with the ids {ids[image.name]} and {image.id}.")
        ids[image.name] = image.id
        images[image.id] = image
    return images


def _objects(
    rows: list[Any],
    images: dict[int, _Image],
    category_ids: tuple[int, ...],
    path: Path,
    *,
    masks: bool,
    skip_unreadable: bool,
) -> dict[int, _Objects]:
    """The objects of each image."""
    labels = {number: label for label, number in enumerate(category_ids, start=1)}
    by_image: dict[int, list[_Row]] = defaultdict(list)
    damaged: list[str] = []
    twice: list[str] = []
    seen: set[tuple[Any, ...]] = set()
    for place, row in enumerate(rows):
        name = f"annotation {row['id']}" if isinstance(row, dict) and "id" in row else f"annotation at place {place}"
        try:
            found = _read_annotation(row, name, images, labels, masks=masks)
        except ValueError as error:
            if not skip_unreadable:
                raise ValueError(f"{path}: {name} {error}.") from error
            damaged.append(f"{name}, which {error}")
            continue
        content = (found.image_id, *found.box, found.label, found.is_crowd, hash(repr(row.get("segmentation"))))
        if content in seen:
            twice.append(name)
            continue
        seen.add(content)
        by_image[found.image_id].append(found)
    if twice:
        warnings.warn(
            f"{path}: {len(twice)} of {len(rows)} annotations are exact duplicates and are dropped; the first is "
            f"{twice[0]}.",
            stacklevel=2,
        )
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} of {len(rows)} annotations are damaged and left out; the first is {damaged[0]}.",
            stacklevel=2,
        )
    _check_unit([(row.box, images[number]) for number, found in by_image.items() for row in found], path)
    left_out: list[str] = []
    collected = {number: _collect(by_image[number], image, left_out) for number, image in images.items()}
    if left_out:
        warnings.warn(boxes_without_area(path, len(left_out), len(rows), left_out[0]), stacklevel=2)
    return collected


class _Row(NamedTuple):
    """One annotation; `box` is x1 y1 x2 y2."""

    image_id: int
    box: list[float]
    label: int
    is_crowd: bool
    area: float
    segmentation: bytes
    name: str


def _read_annotation(row: Any, name: str, images: dict[int, _Image], labels: dict[int, int], *, masks: bool) -> _Row:
    """Check one annotation and convert it.

    Raises:
        ValueError: What is wrong with it, to follow its name.
    """
    try:
        image_id, category = _whole(row["image_id"]), _whole(row["category_id"])
        if not isinstance(row["bbox"], list):
            raise TypeError
        x, y, width, height = map(float, row["bbox"])
        area = width * height if row.get("area") is None else float(row["area"])
        is_crowd = _flag(row.get("iscrowd"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            "needs image_id, category_id and bbox, and numbers for area and iscrowd if it has them; bbox is "
            f"[x, y, width, height]; got {_short(row)}"
        ) from error
    if image_id not in images:
        raise ValueError(f"is of image {image_id}, which the file does not list")
    if category not in labels:
        raise ValueError(f"is of category {category}, which the file does not list")
    if not np.isfinite([x, y, width, height, area]).all():
        raise ValueError(f"has a bbox or area that is not a number: {_short(row)}")
    if area < 0:
        raise ValueError(f"has the area {area:g}, which is negative")
    text = b""
    if masks:
        _check_segmentation(row.get("segmentation"), images[image_id])
        text = json.dumps(row["segmentation"]).encode()
    return _Row(image_id, [x, y, x + width, y + height], labels[category], is_crowd, area, text, name)


def _check_unit(boxes: list[tuple[list[float], _Image]], path: Path) -> None:
    """Refuse boxes that are fractions of their images, and warn of corners taken for widths and heights.

    Raises:
        ValueError: If all boxes lie within the first pixel.
    """
    if not boxes:
        return
    if all(max(box) <= 1 for box, _ in boxes):
        raise ValueError(
            f"{path}: all boxes lie within the first pixel of their images. bbox is [x, y, width, height] in pixels, "
            "not in fractions of the image."
        )
    beyond = sum(box[2] > image.width + 1 or box[3] > image.height + 1 for box, image in boxes)
    if beyond > max(2, len(boxes) / 10):  # a few are sloppy
        warnings.warn(
            f"{path}: {beyond} of {len(boxes)} boxes reach beyond their images and are cut off there. bbox is "
            "[x, y, width, height], not the corners x1, y1, x2, y2.",
            stacklevel=2,
        )


def _collect(rows: list[_Row], image: _Image, left_out: list[str]) -> _Objects:
    """The objects of one image as tensors; the names of those without area are added to `left_out`."""
    _, boxes, labels, is_crowd, area, texts, names = zip(*rows) if rows else ([],) * 7
    clipped = clip_boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), image.height, image.width)
    kept = box_area(clipped) > 0
    left_out += [name for name, is_kept in zip(names, kept) if not is_kept]
    return _Objects(
        clipped[kept],
        torch.tensor(labels, dtype=torch.int64)[kept],
        torch.tensor(is_crowd, dtype=torch.int64)[kept],
        torch.tensor(area, dtype=torch.float32)[kept],
        [text for text, is_kept in zip(texts, kept) if is_kept],
        [name for name, is_kept in zip(names, kept) if is_kept],
    )


def _check_segmentation(segmentation: Any, image: _Image) -> None:
    """Refuse segmentations that pycocotools would misread or crash on."""
    H, W = image.height, image.width
    if isinstance(segmentation, list):
        # Its memory grows with the length of the outline.
        farthest = 10 * max(H, W) + 1000
        if segmentation and all(isinstance(p, list) and _is_polygon(p, farthest) for p in segmentation):
            return
        rule = f"polygons, [[x1, y1, x2, y2, x3, y3, ...], ...], near its image of {H} x {W} pixels"
        if not segmentation:
            rule += "; set masks to false to read only boxes"
    elif isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        runs = _uncompressed(counts) if isinstance(counts, str) else counts
        if (
            segmentation.get("size") == [H, W]
            and isinstance(runs, list)
            and all(type(run) is int and run >= 0 for run in runs)
            and sum(runs) == H * W
        ):
            return
        rule = f"run lengths of {H} x {W} pixels"
        if segmentation.get("size") != [H, W]:
            rule += f", with the size [{H}, {W}]"
        elif isinstance(runs, list) and all(type(run) is int for run in runs):
            rule += f", which have {H * W} together, not {sum(runs)}, and are not negative"
    else:
        rule = "polygons or run lengths; set masks to false to read only boxes"
    raise ValueError(f"has the segmentation {_short(segmentation)}; it must be {rule}")


def _is_polygon(numbers: list[Any], farthest: float) -> bool:
    return (
        len(numbers) >= 6
        and len(numbers) % 2 == 0
        and all(type(n) in (int, float) and -farthest <= n <= farthest for n in numbers)
    )


def _uncompressed(text: str) -> list[int] | None:
    """The run lengths of COCO's compressed text; None if it is not such text.

    Each character has six bits, counted from "0": five of a number, the lowest first, and one that says whether more
    follow. Numbers are signed; from the fourth on they are differences to the last but one.
    """
    bits = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        return None
    ends = np.flatnonzero(bits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        return None
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((bits & 31) << shifts, starts)
    numbers -= np.where(bits[ends] & 16, 1 << 5 * lengths, 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    runs: list[int] = numbers.tolist()
    return runs


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask (H, W) uint8 of polygons or run lengths."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        runs = mask.merge(mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = mask.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    decoded: np.ndarray = mask.decode(runs)
    return decoded


def _check_pictures(path: Path, folder: Path, names: list[str]) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder} of the images that {path} lists.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} lists {missing[0]}, but there is no {folder / missing[0]} ({len(missing)} of {len(names)} "
            "images are missing)."
        )


def _whole(number: Any) -> int:
    """A whole number of 64 bits, even if a tool wrote it as text or with a decimal point."""
    if isinstance(number, bool) or not isinstance(number, (int, float, str)):
        raise TypeError
    try:
        whole = int(number)
    except (ValueError, OverflowError) as error:
        raise TypeError from error
    if (isinstance(number, float) and whole != number) or not -(2**63) <= whole < 2**63:
        raise TypeError
    return whole


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _flag(value: Any) -> bool:
    """0 or 1, also as text; None is 0."""
    number = 0 if value is None else int(value)
    if number not in (0, 1):
        raise ValueError
    return bool(number)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
