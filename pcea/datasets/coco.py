"""Datasets in COCO format: a folder of images and a JSON file of the objects in them."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcea.datasets.images import read_image
from pcea.datasets.objects import ObjectDataset, Target, box_area, boxes_without_area, clip_boxes


class CocoObjects(ObjectDataset):
    """Images with the objects that a JSON file in COCO format lists. Images and masks are read when needed.

    Classes are the categories of the file in the order of their ids, which may have gaps. Objects without area inside
    their image are left out, with a warning. `iscrowd` defaults to 0, and `area` to the area of the box.

    Args:
        annotations: The JSON file.
        folder: Folder of the images, to which its `file_name`s are relative.
        masks: Whether to read masks: polygons, or run lengths, compressed or not. They may overlap.
        keep_empty: Whether images without any object, crowds aside, belong to the set.

    Raises:
        FileNotFoundError: If the file, the folder or an image is missing.
        ValueError: If the file is not JSON, lacks something or contradicts itself.
    """

    def __init__(self, annotations: str | Path, folder: str | Path, *, masks: bool = False, keep_empty: bool = True):
        path = self.path = Path(annotations)
        content = _read_json(path)
        self.category_ids, self.class_names = _categories(content["categories"], path)
        self.has_masks = masks
        images = _images(content["images"], path)
        found = _objects(content["annotations"], images, self.category_ids, path, masks=masks)
        if not keep_empty:
            images = {number: image for number, image in images.items() if (found[number].iscrowd == 0).any()}
            if not images:
                raise ValueError(f"{path} has no image with an object, and keep_empty is false.")
        self.folder, self.images, self.objects = Path(folder), [*images.values()], [found[number] for number in images]
        self.image_names = [image.name for image in self.images]
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
            try:
                masks = [_decode(json.loads(text), H, W) for text in objects.segmentations]
            except ValueError as error:
                raise ValueError(f"{self.path}: a mask of {listed.name} is damaged: {error}.") from error
            target["masks"] = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, H, W, dtype=torch.uint8)
        return image, target


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
            number, name = _whole(row["id"]), str(row["name"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: a category needs id and name, got {_short(row)}.") from error
        if number in names:
            raise ValueError(f"{path} has two categories with id {number}.")
        names[number] = name
    return tuple(sorted(names)), tuple(names[number] for number in sorted(names))


def _images(rows: list[Any], path: Path) -> dict[int, _Image]:
    images: dict[int, _Image] = {}
    for row in rows:
        try:
            image = _Image(_whole(row["id"]), str(row["file_name"]), _whole(row["height"]), _whole(row["width"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: an image needs id, file_name, height and width, got {_short(row)}.") from error
        if image.id in images:
            raise ValueError(f"{path} has two images with id {image.id}.")
        images[image.id] = image
    return images


def _objects(
    rows: list[Any], images: dict[int, _Image], category_ids: tuple[int, ...], path: Path, *, masks: bool
) -> dict[int, _Objects]:
    """The objects of each image."""
    labels = {number: label for label, number in enumerate(category_ids, start=1)}
    by_image: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        try:
            image_id, category = _whole(row["image_id"]), _whole(row["category_id"])
            x, y, width, height = map(float, row["bbox"])
            area, is_crowd = float(row.get("area", width * height)), bool(row.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: an annotation needs image_id, category_id and bbox, which is [x, y, width, height]; got "
                f"{_short(row)}."
            ) from error
        name = f"annotation {row.get('id', 'without id')}"
        if image_id not in images:
            raise ValueError(f"{path}: {name} is of image {image_id}, which the file does not list.")
        if category not in labels:
            raise ValueError(f"{path}: {name} is of category {category}, which the file does not list.")
        if not np.isfinite([x, y, width, height, area]).all():
            raise ValueError(f"{path}: {name} has a bbox or area that is not a number: {_short(row)}.")
        text = b""
        if masks:
            _check_segmentation(row.get("segmentation"), images[image_id], path, name)
            text = json.dumps(row["segmentation"]).encode()
        by_image[image_id].append(([x, y, x + width, y + height], labels[category], is_crowd, area, text, name))
    left_out: list[str] = []
    found = {number: _collect(by_image[number], image, left_out) for number, image in images.items()}
    if left_out:
        warnings.warn(boxes_without_area(path, len(left_out), len(rows), left_out[0]), stacklevel=2)
    return found


def _collect(rows: list[tuple[Any, ...]], image: _Image, left_out: list[str]) -> _Objects:
    """The objects of one image as tensors; the names of those without area are added to `left_out`."""
    boxes, labels, is_crowd, area, texts, names = zip(*rows) if rows else ([],) * 6
    clipped = clip_boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), image.height, image.width)
    kept = box_area(clipped) > 0
    left_out += [name for name, is_kept in zip(names, kept) if not is_kept]
    return _Objects(
        clipped[kept],
        torch.tensor(labels, dtype=torch.int64)[kept],
        torch.tensor(is_crowd, dtype=torch.int64)[kept],
        torch.tensor(area, dtype=torch.float32)[kept],
        [text for text, is_kept in zip(texts, kept) if is_kept],
    )


def _check_segmentation(segmentation: Any, image: _Image, path: Path, name: str) -> None:
    """Refuse segmentations that pycocotools would misread or crash on."""
    H, W = image.height, image.width
    if isinstance(segmentation, list):
        if segmentation and all(isinstance(polygon, list) and _is_polygon(polygon) for polygon in segmentation):
            return
        rule = "polygons, [[x1, y1, x2, y2, x3, y3, ...], ...]"
        if not segmentation:
            rule += "; set masks to false to read only boxes"
    elif isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        right = isinstance(counts, str) or (isinstance(counts, list) and sum(counts) == H * W)
        if segmentation.get("size") == [H, W] and right:
            return
        rule = f"run lengths of {H} x {W} pixels"
    else:
        rule = "polygons or run lengths; set masks to false to read only boxes"
    raise ValueError(f"{path}: {name} has the segmentation {_short(segmentation)}; it must be {rule}.")


def _is_polygon(numbers: list[Any]) -> bool:
    return len(numbers) >= 6 and len(numbers) % 2 == 0 and all(isinstance(n, (int, float)) for n in numbers)


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
    if not isinstance(number, int):
        raise TypeError
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
