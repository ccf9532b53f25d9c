"""Objects in images: detect, draw, write."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pcea.inference.base import Predictor, in_evaluation
from pcea.inference.images import ImageSource, load_image
from pcea.io.atomic import atomic_file
from pcea.io.result_table import read_results
from pcea.visualization.colors import palette
from pcea.visualization.fonts import drawable, font_families
from pcea.visualization.images import resize_picture

# Smaller images are drawn larger, so that scores can be read.
_DRAWN_SIDE = 800


class ObjectPrediction(NamedTuple):
    """The K objects found in one image, highest scores first. `print` shows what the command prints.

    Attributes:
        picture: The image, (3, H, W) uint8.
        boxes: Their places, x1 y1 x2 y2 in pixels, (K, 4).
        label: Class of each, (K,) int64; a position in `class_names`.
        scores: How sure the network is, (K,), in 0..1.
        class_names: Names of all classes of the network.
        masks: True where the object is, (K, H, W); None if the network finds only boxes.
    """

    picture: Tensor
    boxes: Tensor
    label: Tensor
    scores: Tensor
    class_names: tuple[str, ...]
    masks: Tensor | None = None

    def __str__(self) -> str:
        H, W = self.picture.shape[1:]
        found = [f"{number} {name}" for name, number in self.numbers.items()]
        return "  ".join([f"{W} x {H} pixels", *(found or ["no objects"])])

    @property
    def numbers(self) -> dict[str, int]:
        """Number of objects of each class, the most frequent first."""
        counts = self.label.bincount(minlength=len(self.class_names))
        return {self.class_names[c]: int(counts[c]) for c in counts.argsort(descending=True, stable=True) if counts[c]}


class _Limits(NamedTuple):
    """The most objects that a network returns for an image, and their lowest score."""

    most: int
    lowest: float


class ObjectPredictor(Predictor):
    """Finds the objects in images."""

    sees_images: ClassVar[bool] = True
    purpose: ClassVar[str] = "finds objects"
    endings: ClassVar[tuple[str, ...]] = ("_objects.jpg",)
    columns: ClassVar[Mapping[str, type]] = MappingProxyType(
        {"result": str, "width": int, "height": int, "objects": str}
    )

    @in_evaluation
    def predict(self, source: ImageSource, *, threshold: float = 0.5) -> ObjectPrediction:
        """Find the objects in an image.

        Args:
            source: A file; or colours, a tensor (3, H, W) or an array (H, W, 3), uint8.
            threshold: Objects with a lower score, in 0..1, are left out. The network itself leaves out those below its
                `score_threshold`, and all but its `max_objects` best ones.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not an image, or the threshold is not in 0..1.
        """
        self.check(threshold=threshold)
        return self.predict_contents([load_image(source)], threshold=threshold)[0]

    def reader(self, **_: Any) -> Callable[[Path], Tensor]:
        """See `Predictor.reader`."""
        return load_image

    @in_evaluation
    def predict_contents(
        self, contents: Sequence[Tensor], *, threshold: float = 0.5, **_: Any
    ) -> list[ObjectPrediction]:
        """The objects in images (3, H, W) uint8, one image after the other."""
        predictions = []
        for image in contents:
            [found] = self.network([image.to(self.device).float() / 255])
            found = {name: value.cpu() for name, value in found.items()}
            if self._limits is not None and (found["scores"] >= threshold).sum() >= self._limits.most:
                warnings.warn(
                    f"There may be more objects than the {self._limits.most} that this network finds in an image at "
                    "most: train it with greater max_objects.",
                    stacklevel=3,
                )
            predictions.append(to_objects(found, image, self.class_names, threshold=threshold))
        return predictions

    def check(self, *, threshold: float = 0.5, **_: Any) -> None:
        """Raise a ValueError for invalid options."""
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in 0..1, got {threshold}.")
        if self._limits is not None and threshold < self._limits.lowest:
            warnings.warn(
                f"threshold={threshold} leaves nothing out, as this network returns no scores below "
                f"{self._limits.lowest}: train it with a lower score_threshold for more.",
                stacklevel=3,
            )

    @property
    def _limits(self) -> _Limits | None:
        """What the network returns at most; None if it is not one of torchvision's kind."""
        heads: Any = getattr(self.network, "roi_heads", self.network)
        if not hasattr(heads, "detections_per_img") or not hasattr(heads, "score_thresh"):
            return None
        return _Limits(int(heads.detections_per_img), float(heads.score_thresh))

    def write(self, folder: Path, stem: str, prediction: ObjectPrediction) -> None:
        """Write the drawn image, `<stem>_objects.jpg`."""
        from PIL import Image

        picture = Image.fromarray(draw_objects(prediction))
        picture.save(folder / f"{stem}{self.endings[0]}", quality=92)

    def rows(self, prediction: ObjectPrediction) -> list[tuple[object, ...]]:
        """One row, with the annotations in JSON."""
        H, W = prediction.picture.shape[1:]
        objects = coco_annotations(prediction, 0, self.description.category_ids)  # `write_coco` numbers the images
        for index, annotation in enumerate(objects):
            width, height = annotation["bbox"][2:]
            area = width * height if prediction.masks is None else int(prediction.masks[index].sum())
            annotation["area"] = round(area, 2)
        return [(str(prediction), W, H, json.dumps(objects))]

    def finish(self, table: Path) -> None:
        """Write all objects in COCO format: `objects.json` for the table `predictions.csv`."""
        path = table.with_name(table.name.replace("predictions", "objects")).with_suffix(".json")
        write_coco(path, table, self.class_names, self.description.category_ids)

    def subject(self, source: ImageSource, *, size: int = 600, head: int | None = None) -> Any:
        """What the network attends to in an image; the arguments are those of `pcea visualize`."""
        from pcea.inference.image_subject import ObjectSubject

        return ObjectSubject(source, self, size=size, head=head)


def to_objects(
    found: dict[str, Tensor], picture: Tensor, class_names: Sequence[str], *, threshold: float = 0.0
) -> ObjectPrediction:
    """The objects that a torchvision-style detector found in an image."""
    kept = found["scores"] >= threshold
    masks = found["masks"][kept, 0] > 0.5 if "masks" in found else None
    boxes, label, scores = found["boxes"][kept].float(), found["labels"][kept] - 1, found["scores"][kept].float()
    return ObjectPrediction(picture, boxes, label, scores, tuple(class_names), masks)


def coco_annotations(prediction: ObjectPrediction, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert objects to COCO results: boxes as x, y, width, height; masks in run-length encoding.

    Args:
        prediction: The objects.
        image_id: Number of the image.
        category_ids: Number of each class; () counts from 1.
    """
    from torchvision.ops import box_convert

    ids = tuple(category_ids) or range(1, 1 + len(prediction.class_names))
    boxes = box_convert(prediction.boxes.cpu().double(), "xyxy", "xywh")
    annotations: list[dict[str, Any]] = [
        {
            "image_id": image_id,
            "category_id": int(ids[label]),
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        for box, label, score in zip(boxes.tolist(), prediction.label.tolist(), prediction.scores.tolist())
    ]
    if prediction.masks is not None:
        from pycocotools import mask as rle

        for annotation, mask in zip(annotations, prediction.masks.cpu().numpy().astype(np.uint8)):
            encoded = rle.encode(np.asfortranarray(mask))
            annotation["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return annotations


def write_coco(path: Path, table: Path, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
    """Write the objects of a table of results as a dataset in COCO format, whole or not at all.

    Args:
        path: The JSON file.
        table: The table. It is read one row at a time: the objects of all images may not fit into memory.
        class_names: Names of all classes.
        category_ids: Number of each class; () counts from 1.
    """
    ids = tuple(category_ids) or range(1, 1 + len(class_names))
    categories = [{"id": int(number), "name": name} for number, name in zip(ids, class_names)]

    def images() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(read_results(table), start=1):
            width, height = int(row["width"]), int(row["height"])
            yield {"id": number, "file_name": Path(row["file"]).name, "width": width, "height": height}

    def annotations() -> Iterator[dict[str, Any]]:
        counter = count(1)
        for number, row in enumerate(read_results(table), start=1):
            for annotation in json.loads(row["objects"]):
                yield {"id": next(counter), **annotation, "image_id": number, "iscrowd": 0}

    with atomic_file(path) as part, part.open("w", encoding="utf-8") as stream:
        stream.write(f'{{"categories": {json.dumps(categories)}')
        for name, items in (("images", images()), ("annotations", annotations())):
            stream.write(f', "{name}": [')
            for index, item in enumerate(items):
                stream.write(f"{', ' if index else ''}{json.dumps(item)}")
            stream.write("]")
        stream.write("}")


def draw_objects(prediction: ObjectPrediction, *, size: int | None = None) -> np.ndarray:
    """Draw boxes, masks, names and scores on the image; (H', W', 3) uint8.

    Objects are coloured by class, or one by one if the network knows only one class.

    Args:
        prediction: The image and its objects.
        size: Longest side of the result in pixels; None for the image's own, or 800 if that is smaller.
    """
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    several = len(prediction.class_names) > 1
    H, W = prediction.picture.shape[1:]
    size = size or max(H, W, _DRAWN_SIDE)
    picture = prediction.picture if size == max(H, W) else resize_picture(prediction.picture, size)
    if not len(prediction.boxes):
        return picture.permute(1, 2, 0).numpy()
    hues = palette(len(prediction.class_names) if several else len(prediction.boxes)).tolist()
    colors = [tuple(hues[i]) for i in (prediction.label.tolist() if several else range(len(prediction.boxes)))]
    scale = picture.shape[2] / W
    if prediction.masks is not None:
        shown = tuple(picture.shape[1:])
        masks = F.interpolate(prediction.masks[None].float(), shown, mode="nearest-exact")[0] > 0
        picture = draw_segmentation_masks(picture, masks, alpha=0.5, colors=colors)
    names = [prediction.class_names[i] for i in prediction.label.tolist()]
    scores = [f"{100 * score:.0f}" for score in prediction.scores.tolist()]
    texts = [f"{name} {score}" for name, score in zip(names, scores)] if several else scores
    drawn = draw_bounding_boxes(picture, prediction.boxes * scale, colors=colors, width=2)
    return _write_texts(drawn.permute(1, 2, 0).numpy(), prediction.boxes[:, :2] * scale, texts, colors)


def _write_texts(
    drawn: np.ndarray, places: Tensor, texts: Sequence[str], colors: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Write texts into an image (H, W, 3), each on a background of its colour with a corner at x, y."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(drawn)
    # A list, as Matplotlib takes a family alone for a pattern. PIL draws by one font: that of the rarest characters.
    properties = font_manager.FontProperties(family=font_families(*texts)[-1:])
    font = ImageFont.truetype(font_manager.findfont(properties), 13)
    texts, brush = [drawable(text) for text in texts], ImageDraw.Draw(image)
    # The best last, on top.
    for (x, y), text, color in reversed([*zip(places.round().int().tolist(), texts, colors)]):
        left, top, right, bottom = brush.textbbox((x + 3, y + 1), text, font=font)
        brush.rectangle((left - 3, top - 3, right + 3, bottom + 3), fill=color)
        is_bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        brush.text((x + 3, y + 1), text, font=font, fill=(0, 0, 0) if is_bright else (255, 255, 255))
    return np.asarray(image)
