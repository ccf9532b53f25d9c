"""Images with objects: boxes, classes and optional masks, read when needed or held in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pcea.datasets.batches import ObjectBatch
from pcea.datasets.splits import class_order
from pcea.datasets.transformed import TransformedDataset

Target = dict[str, Tensor]


class ObjectDataset(Dataset, ABC):
    """Images with the objects in each.

    Attributes:
        class_names: Name of each of the P classes, without the background.
        category_ids: Number of each class in the files, P; 1..P if they have none.
        has_masks: Whether objects have masks.
        image_names: Name of each image, L.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    has_masks: bool
    image_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.image_names)

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """One image (3, H, W) uint8 and its objects, as `ObjectBatch.targets`."""

    @property
    def strata(self) -> Tensor:
        """Class by which a held-out share is balanced, (L,) int64."""
        return torch.zeros(len(self), dtype=torch.int64)

    def with_classes(self, class_names: Sequence[str], parts: object = None) -> ObjectDataset:  # noqa: ARG002
        """The same images with the classes in another order, that of `class_names`; matched by name.

        Raises:
            ValueError: If the names are not the same.
        """
        return _Renumbered(self, class_names)

    def subset(self, indices: Tensor) -> ObjectDataset:
        """The images at `indices`, (L',) int64, as a set of their own; they keep their `image_id`."""
        return _Subset(self, indices)

    def in_memory(self, description: str) -> ObjectDataset:
        """The same images, held in memory; `description` labels the progress bar."""
        return _InMemory(self, description)


class TransformedObjects(TransformedDataset):
    """Images with objects that go through transforms one by one, in batches of `ObjectBatch`; see `TransformedDataset`.

    After the transforms boxes are clipped to the image, and objects whose box has no area or whose mask has no pixel
    are left out. The area of an object changes as its box does. Without transforms, targets stay as they were read.

    Args:
        images: The set.
        transforms: Each is called with an image, `tv_tensors.Image`, and a dictionary of `boxes`,
            `tv_tensors.BoundingBoxes`, `masks`, `tv_tensors.Mask`, if there are any, and `labels`, here the numbers
            0..K-1 of the objects, which tell those that are left. `torchvision.transforms.v2` fits.
        seed: Seed of the run.
        with_crowds: Keep regions of many objects (`iscrowd`), as evaluation needs them. A detector would learn each as
            one object.
    """

    def __init__(
        self, images: ObjectDataset, transforms: Sequence[nn.Module] = (), *, seed: int = 0, with_crowds: bool = True
    ):
        super().__init__(images, transforms, seed=seed)
        self.with_crowds = with_crowds

    def _transform(self, sample: tuple[Tensor, Target]) -> tuple[Tensor, Target]:
        image, target = sample
        if not self.with_crowds:
            target = keep_objects(target, target["iscrowd"] == 0)
        return self._transform_objects(image, target) if self.transforms else (image, target)

    def _transform_objects(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        from torchvision import tv_tensors

        canvas = (image.shape[1], image.shape[2])
        objects: Target = {
            "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=canvas),
            "labels": torch.arange(len(target["boxes"])),
        }
        if "masks" in target:
            objects["masks"] = tv_tensors.Mask(target["masks"])
        image = tv_tensors.Image(image)
        for transform in self.transforms:
            image, objects = transform(image, objects)
        image = image.as_subclass(Tensor)
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise ValueError(
                f"Transforms must leave an image (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}: the task "
                "itself brings colours to 0..1."
            )
        boxes = clip_boxes(objects["boxes"].as_subclass(Tensor).float(), image.shape[1], image.shape[2])
        left = {name: target[name][objects["labels"]] for name in ("boxes", "labels", "iscrowd", "area")}
        left["area"] *= box_area(boxes) / box_area(left["boxes"])
        left["boxes"], left["image_id"] = boxes, target["image_id"]
        has_area = box_area(boxes) > 0
        if "masks" in target:
            left["masks"] = objects["masks"].as_subclass(Tensor)
            has_area &= left["masks"].flatten(1).any(1).bool()
        return image, keep_objects(left, has_area)

    def _collate(self, samples: list[tuple[Tensor, Target]]) -> ObjectBatch:
        images, targets = zip(*samples)
        return ObjectBatch([*images], [*targets])


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip boxes (K, 4), x1 y1 x2 y2, to an image; those outside get no area."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def box_area(boxes: Tensor) -> Tensor:
    """Area of boxes (K, 4), x1 y1 x2 y2: (K,); 0 if an end lies before its start."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


class _Subset(ObjectDataset):
    def __init__(self, images: ObjectDataset, indices: Tensor):
        self.images, self.indices = images, indices.tolist()
        self.class_names, self.category_ids = images.class_names, images.category_ids
        self.has_masks = images.has_masks
        self.image_names = [images.image_names[i] for i in self.indices]

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.images[self.indices[index]]

    @property
    def strata(self) -> Tensor:
        return self.images.strata[self.indices]


class _Renumbered(ObjectDataset):
    """Objects whose classes have another order."""

    def __init__(self, images: ObjectDataset, class_names: Sequence[str]):
        self.images, self.order = images, class_order(images.class_names, class_names)
        self.class_names = tuple(class_names)
        old = self.order.argsort().tolist()
        self.category_ids = tuple(images.category_ids[number] for number in old)
        self.has_masks, self.image_names = images.has_masks, images.image_names

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.images[index]
        return image, {**target, "labels": 1 + self.order[target["labels"] - 1]}

    @property
    def strata(self) -> Tensor:
        return self.images.strata


class _InMemory(ObjectDataset):
    """Masks are kept as bits: eight pixels in the byte that one took."""

    def __init__(self, images: ObjectDataset, description: str):
        from rich.progress import track

        self.class_names, self.category_ids = images.class_names, images.category_ids
        self.has_masks, self.image_names = images.has_masks, images.image_names
        self._strata = images.strata
        self.images: list[Tensor] = []
        self.targets: list[Target] = []
        self.masks: list[np.ndarray] = []
        for i in track(range(len(images)), description=description, transient=True):
            image, target = images[i]
            self.images.append(image)
            self.targets.append({name: values for name, values in target.items() if name != "masks"})
            if self.has_masks:
                self.masks.append(np.packbits(target["masks"].numpy(), axis=-1))

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.images[index], dict(self.targets[index])
        if self.has_masks:
            target["masks"] = torch.from_numpy(np.unpackbits(self.masks[index], axis=-1, count=image.shape[2]))
        return image, target

    @property
    def strata(self) -> Tensor:
        return self._strata

    def in_memory(self, description: str) -> ObjectDataset:  # noqa: ARG002
        return self


def boxes_without_area(path: str | Path, count: int, total: int, first: str) -> str:
    """The warning that objects of a set are left out because no part of their box lies in the image."""
    return f"{path}: {count} of {total} boxes have no area inside their image and are left out; the first is {first}."


def keep_objects(target: Target, kept: Tensor) -> Target:
    """Keep the objects that are True in `kept`, (K,); often all are, and masks are large to copy."""
    if kept.all():
        return target
    return {name: values if name == "image_id" else values[kept] for name, values in target.items()}
