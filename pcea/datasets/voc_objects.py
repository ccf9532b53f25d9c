"""Boxes in Pascal VOC format: one XML file per image."""

from __future__ import annotations

import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pcea.datasets.images import IMAGE_SUFFIXES, read_header, read_image
from pcea.datasets.masks import find_by_name, read_list
from pcea.datasets.objects import ObjectDataset, Target, box_area, boxes_without_area, clip_boxes

VocSplit = Literal["train", "val", "trainval", "test"]


class VocObjects(ObjectDataset):
    """Images with the objects that XML files list: `JPEGImages/x.jpg`, `Annotations/x.xml`, `ImageSets/Main/*.txt`.

    Boxes in the files count pixels from 1 and include the last one, so x1 and y1 are lowered by 1. Boxes are clipped to
    the image; those without area in it are dropped, with a warning. A file whose size differs from its picture's causes
    a warning too. Objects marked `difficult` are ignored in VOC's own evaluation: they get `iscrowd` 1 and are not
    trained on.

    Args:
        root: Folder that holds these three folders: `VOCdevkit/VOC2007`, or one of your own.
        split: Name of the list of images.
        class_names: The classes; None takes all names in the list `train`, sorted.

    Raises:
        FileNotFoundError: If a folder, the list or a file that it names is missing.
        ValueError: If a file is not XML, lacks something or names an unknown class.
    """

    has_masks = False

    def __init__(self, root: str | Path, split: VocSplit, *, class_names: Sequence[str] | None = None):
        files = _find_annotations(Path(root), split)
        found = {name: _read_xml(path) for name, path in files.items()}
        if class_names is None:
            known = (
                found
                if split == "train"
                else {n: _read_xml(p) for n, p in _find_annotations(Path(root), "train").items()}
            )
            class_names = sorted({item.name for annotation in known.values() for item in annotation.items})
            if not class_names:
                raise ValueError(
                    f"The files that {_list(Path(root), 'train')} names have no object, so no classes are known."
                )
        self.class_names = tuple(class_names)
        self.category_ids = tuple(range(1, 1 + len(self.class_names)))
        listed_in = str(_list(Path(root), split))
        self.files = [*find_by_name(Path(root) / "JPEGImages", [*files], IMAGE_SUFFIXES, listed_in=listed_in).values()]
        self.image_names = [path.name for path in self.files]
        left_out: list[str] = []
        resized: list[str] = []
        self.targets = [
            self._target(number, annotation, files[name], path, left_out, resized)
            for number, ((name, annotation), path) in enumerate(zip(found.items(), self.files))
        ]
        if resized:
            warnings.warn(
                f"{listed_in}: {len(resized)} of {len(found)} files give another size than their picture has, whose "
                f"boxes are then probably wrong; the first is {resized[0]}. Was the picture scaled, or labelled on its "
                "side? Then save it upright and label it again.",
                stacklevel=2,
            )
        if left_out:
            total = sum(len(annotation.items) for annotation in found.values())
            warnings.warn(boxes_without_area(listed_in, len(left_out), total, left_out[0]), stacklevel=2)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Read one image."""
        return read_image(self.files[index]), dict(self.targets[index])

    @property
    def label(self) -> Tensor:
        """Number of the class, from 0, of every object that is trained on (none that are difficult), int64."""
        return torch.cat([target["labels"][target["iscrowd"] == 0] for target in self.targets]) - 1

    def _target(
        self,
        number: int,
        annotation: _Annotation,
        path: Path,
        picture: Path,
        left_out: list[str],
        resized: list[str],
    ) -> Target:
        """The objects of one image; those without area are added to `left_out`, a file of another size to `resized`."""
        items, size = annotation
        _, height, width, is_turned = read_header(picture)
        # Some tools swap the two.
        is_other = sorted(size) != sorted((height, width)) or (is_turned and size != (width, height))
        if min(size) > 0 and is_other:
            turned = ", turned by its EXIF orientation" if is_turned else ""
            resized.append(f"{path} ({size[0]}x{size[1]}, the picture {width}x{height}{turned})")
        strangers = [item.name for item in items if item.name not in self.class_names]
        if strangers:
            raise ValueError(f"{path} has the class {strangers[0]!r}; known are {', '.join(self.class_names)}.")
        boxes = torch.tensor([item.box for item in items], dtype=torch.float32).view(-1, 4)
        boxes = clip_boxes(boxes - torch.tensor([1.0, 1, 0, 0]), height, width)
        area = box_area(boxes)
        left_out += [f"of {path}" for value in area if not value]
        labels = torch.tensor([1 + self.class_names.index(item.name) for item in items], dtype=torch.int64)
        is_difficult = torch.tensor([item.is_difficult for item in items], dtype=torch.int64)
        return {
            "boxes": boxes[area > 0],
            "labels": labels[area > 0],
            "iscrowd": is_difficult[area > 0],
            "area": area[area > 0],
            "image_id": torch.tensor(number),
        }


class _Item(NamedTuple):
    name: str
    box: list[float]
    is_difficult: bool


class _Annotation(NamedTuple):
    items: list[_Item]
    size: tuple[int, int]  # width and height, 0 if the file does not say


def _find_annotations(root: Path, split: VocSplit) -> dict[str, Path]:
    path = _list(root, split)
    return find_by_name(root / "Annotations", read_list(path), (".xml",), listed_in=str(path))


def listed_names(root: str | Path, split: VocSplit) -> set[str]:
    """The names that the list of a split holds; none if there is no such list."""
    path = _list(Path(root), split)
    return {*read_list(path)} if path.is_file() else set()


def _list(root: Path, split: VocSplit) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _decoded(content: bytes) -> str | bytes:
    """The text of an XML file: expat knows four encodings, Python those that labelling tools write, such as GB2312."""
    declared = re.match(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.-]+)""", content)
    if declared is None:
        return content
    encoding = declared[1].decode().lower()
    # Windows says GB2312 and means what it has grown to.
    return content.decode("gb18030" if encoding in ("gb2312", "gbk") else encoding)


def _read_xml(path: Path) -> _Annotation:
    """The objects of a file; their parts, such as VOC's heads and hands, do not count."""
    try:
        root = ET.fromstring(_decoded(path.read_bytes()))
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is not XML: {error}.") from error
    items = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        texts = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = [float(text or "") for text in texts]
            is_difficult = bool(int(element.findtext("difficult") or 0))
        except ValueError:
            box = []
        if not name or not box or not all(map(math.isfinite, box)):
            raise ValueError(
                f"{path}: object {number} needs a name, a bndbox with the numbers xmin, ymin, xmax and ymax, and 0 or "
                f"1 if it says whether it is difficult; got {name!r} and {texts}."
            )
        items.append(_Item(name, box, is_difficult))
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        width = height = 0
    return _Annotation(items, (width, height))
