"""What a trained network is, in plain values: the same in a checkpoint and in a weights file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

TaskKind = Literal["points", "parts", "images", "masks", "objects", "generation"]
"""What a network does: one label per cloud, per point, per image, per pixel; boxes; or new images."""
TASKS: tuple[str, ...] = get_args(TaskKind)

# Far above any real network: ImageNet-21k has 21,841 class names.
_DEEPEST, _MOST_VALUES = 64, 1_000_000
# What a file may make `predict` sample on each mesh and scale each image to.
_MOST_POINTS, _LARGEST_SIDE = 2**20, 2**13


class NetworkDescription(NamedTuple):
    """How a trained network is built and used, in plain values only: nothing here is code or can become code.

    Attributes:
        task: What it does; this alone decides how files are shown to it.
        builder: Import path of the function or class that builds it, such as `pcea.models.eat_classifier`.
        arguments: Keyword arguments of the builder: numbers, text, lists and dictionaries. A part that the builder
            takes, such as an attention, is `{"class_path": ..., "init_args": {...}}`.
        class_names: Name of each class, without the background.
        num_points: Number of points per cloud in training; 0 if unknown, or for images.
        has_normals: Whether the network takes normals.
        parts: Classes of each object category, by its name, in the order of the category numbers; empty if there are
            no categories.
        mean: Mean of red, green and blue, in 0..1, that is subtracted from images; () for none.
        std: Standard deviation by which images are then divided; () for none.
        image_size: Height and width of the training images; () if unknown.
        category_ids: Number of each class in the annotation files that a detector learned from; () if unknown.
        source: Where the weights come from: commit, epoch, seed.
        background: Whether a classifier has one class more than names, the last: nothing that it knows, or not upright.
        temperature: Logits are divided by it, so that probabilities are true frequencies on held-out data.
        known_above: Score that 95 % of held-out samples exceed; below it a sample is none of the classes. None if
            unknown.
        color_bases: What the colours of attention mean, by layer name: three rows of a number for each slot, by which
            every file is coloured alike; see `pcea.visualization.color_basis`. Empty if unknown.
        up: Upward axis of the files that it was trained on; it saw them turned so that y is up. None if unknown.
    """

    task: str
    builder: str
    arguments: Mapping[str, Any] = {}
    class_names: tuple[str, ...] = ()
    num_points: int = 0
    has_normals: bool = False
    parts: Mapping[str, tuple[int, ...]] = {}
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: tuple[int, ...] = ()
    category_ids: tuple[int, ...] = ()
    source: Mapping[str, Any] = {}
    background: bool = False
    temperature: float = 1.0
    known_above: float | None = None
    color_bases: Mapping[str, Sequence[Sequence[float]]] = {}
    up: str | None = None

    def as_plain(self) -> dict[str, Any]:
        """The fields as dictionaries, lists, text and numbers, for JSON or a checkpoint."""
        return _plain(self._asdict())


class StoredNetwork(NamedTuple):
    """The network stored in a checkpoint or a weights file.

    Attributes:
        description: What the network is.
        state: Its parameters and buffers, by name.
    """

    description: NetworkDescription
    state: dict[str, Tensor]


def parse_description(content: object, where: str) -> NetworkDescription:
    """Check the description that a file holds. Nothing is imported or built.

    Args:
        content: The description as stored; unknown fields are ignored, so that newer files can be read.
        where: The file, for the message.

    Raises:
        ValueError: If a field is missing, has the wrong type or contradicts another one.
    """
    _check_extent(content, where)
    if not isinstance(content, Mapping):
        raise _malformed(where, "description", "a mapping", content)
    missing = [name for name in ("task", "builder") if name not in content]
    if missing:
        raise ValueError(f"{where} does not say which network it holds: its description has no {missing[0]!r}.")
    fields = {name: _at_present(content[name]) for name in NetworkDescription._fields if name in content}
    for name, value in fields.items():
        expected, is_valid = _SCHEMA[name]
        if not is_valid(value):
            raise _malformed(where, name, expected, value)
    for name in ("class_names", "mean", "std", "image_size", "category_ids"):
        fields[name] = tuple(fields.get(name, ()))
    fields["parts"] = {name: tuple(classes) for name, classes in fields.get("parts", {}).items()}
    fields["arguments"] = without_weights(fields.get("arguments", {}))
    description = NetworkDescription(**fields)
    num_classes = len(description.class_names)
    for category, classes in description.parts.items():
        if not classes or not all(0 <= c < num_classes for c in classes):
            raise ValueError(f"{where}: the parts of {category} must be classes 0..{num_classes - 1}, got {classes}.")
    if len(description.mean) != len(description.std):
        raise ValueError(f"{where}: mean and std belong together, got {description.mean} and {description.std}.")
    if description.category_ids and len(description.category_ids) != num_classes:
        raise ValueError(f"{where} has {num_classes} classes, but {len(description.category_ids)} category_ids.")
    return description


def _check_extent(content: object, where: str) -> None:
    """Refuse a description whose walk would not end: too deep, or a list that a small pickle repeats within itself."""
    level, count = [content], 0
    for _ in range(_DEEPEST):
        nested = [v.values() if isinstance(v, Mapping) else v for v in level if isinstance(v, Mapping | list | tuple)]
        count += sum(map(len, nested))
        if not nested:
            return
        if count > _MOST_VALUES:
            raise ValueError(f"{where}: the description of the network holds more than {_MOST_VALUES:,} values.")
        level = [inner for values in nested for inner in values]
    raise ValueError(f"{where}: the description of the network is nested more than {_DEEPEST} levels deep.")


def _at_present(value: Any) -> Any:
    """Plain values with the import paths of parts updated: files name where the parts used to be."""
    if isinstance(value, Mapping):
        new = {name: _at_present(inner) for name, inner in value.items()}
        if isinstance(value.get("class_path"), str):
            new["class_path"] = re.sub(r"^pcea\.(attention|layers)\.", "pcea.nn.", value["class_path"])
        return new
    return [_at_present(inner) for inner in value] if isinstance(value, list | tuple) else value


def without_weights(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A builder's arguments without those that name weights to start from, at every depth: the file's replace them."""
    return {name: _without_weights(value) for name, value in arguments.items() if name not in ("weights", "pretrained")}


def _without_weights(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_weights(value)
    return [_without_weights(inner) for inner in value] if isinstance(value, list | tuple) else value


def is_part(value: object) -> bool:
    """Whether a value stands for a part of a network: a class or function to be called with arguments."""
    return isinstance(value, Mapping) and "class_path" in value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def _is_plain(value: object) -> bool:
    """None, text, finite numbers, lists and dictionaries of them; a part has only a path and arguments."""
    if isinstance(value, Mapping):
        if is_part(value) and not (
            _is_path(value["class_path"])
            and {*value} <= {"class_path", "init_args"}
            and isinstance(value.get("init_args") or {}, Mapping)
        ):
            return False
        return all(isinstance(name, str) for name in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _is_path(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", value) is not None


def _is_name(text: str) -> bool:
    """Whether text fits on a line: names are printed, and control characters could rewrite what a terminal shows."""
    return re.search(r"[\x00-\x1f\x7f-\x9f]", text) is None


def _is_list(value: object, kind: type | tuple[type, ...], lengths: tuple[int, ...] = ()) -> bool:
    return (
        isinstance(value, list | tuple)
        and all(isinstance(inner, kind) and not isinstance(inner, bool) for inner in value)
        and (not lengths or len(value) in lengths)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_basis(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(row, list | tuple) and all(map(_is_number, row)) for row in value)
        and len({len(row) for row in value}) == 1
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_POINTS


_SCHEMA: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "task": (f"one of {', '.join(TASKS)}", lambda v: isinstance(v, str) and v in TASKS),
    "builder": ("an import path", _is_path),
    "arguments": ("plain keyword arguments", lambda v: isinstance(v, Mapping) and not is_part(v) and _is_plain(v)),
    "class_names": ("a list of names", lambda v: _is_list(v, str) and all(map(_is_name, v))),
    "num_points": ("a number of points", _is_count),
    "has_normals": ("true or false", lambda v: isinstance(v, bool)),
    "parts": (
        "a list of classes for each category",
        lambda v: (
            isinstance(v, Mapping)
            and all(isinstance(k, str) and _is_name(k) and _is_list(c, int) for k, c in v.items())
        ),
    ),
    "mean": ("three numbers", lambda v: _is_list(v, (int, float), (0, 3)) and all(abs(x) < 1e9 for x in v)),
    "std": ("three positive numbers", lambda v: _is_list(v, (int, float), (0, 3)) and all(0 < x < 1e9 for x in v)),
    "image_size": ("height and width", lambda v: _is_list(v, int, (0, 2)) and all(0 < x <= _LARGEST_SIDE for x in v)),
    "category_ids": ("a list of whole numbers", lambda v: _is_list(v, int)),
    "background": ("true or false", lambda v: isinstance(v, bool)),
    "temperature": ("a positive number", lambda v: _is_number(v) and 1e-3 < v < 1e3),
    "known_above": ("a number or nothing", lambda v: v is None or _is_number(v)),
    "color_bases": (
        "three lists of numbers, of one length, for each layer",
        lambda v: isinstance(v, Mapping) and all(isinstance(k, str) and _is_basis(b) for k, b in v.items()),
    ),
    "up": (
        "x, y, z, -x, -y or -z",
        lambda v: v is None or (isinstance(v, str) and re.fullmatch("-?[xyz]", v) is not None),
    ),
    "source": ("plain values", lambda v: isinstance(v, Mapping) and _is_plain(v)),
}


def _malformed(where: str, name: str, expected: str, got: object) -> ValueError:
    shown = repr(got)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ValueError(f"{where}: {name} of the network must be {expected}, got {shown}.")
