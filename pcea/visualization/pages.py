"""One HTML file that shows attention in any browser: no server, no network, nothing to install.

Points are written once, attention once per token; what each point's colour is follows in the page (web/attention.js).
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcea.io.atomic import atomic_file
from pcea.nn.recording import AttentionMap
from pcea.visualization.camera import FIELD_OF_VIEW, place_camera, point_size
from pcea.visualization.color_basis import color_tokens
from pcea.visualization.colors import color_values, palette
from pcea.visualization.gaps import bridge_gaps, surface_normals
from pcea.visualization.subject import ATTENTION_MODES, SharedColors, Subject, first_mode, subject_of
from pcea.visualization.views import GREY, MAX_COLORED_SLOTS, View

_WEB = Path(__file__).with_name("web")
# Of more points or tokens than these, a random subset is written, and the page says so. The weights of self-attention
# are as many as the square of its tokens.
MAX_POINTS, _MAX_TOKENS, _MAX_OWN_TOKENS = 1 << 20, 4096, 1024
# Positions are written as whole numbers up to this, along the longest side of the cloud.
_STEPS = 65535
_PIXELS = 800


class Page:
    """A page that shows what networks attend to in files; a notebook displays it.

    Args:
        subjects: What is shown; for several networks, which are compared, a sequence for each by the network's name.
        mode: The first mode; None for that of the slot or query that is given, else the first that there is.
        layer: The first layer; None for the last.
        slot: The first slot; None for the one that is strongest at most tokens.
        query: The first query point of the first subject; None for the farthest point.
        title: Heading of the page.

    Raises:
        ValueError: If there is nothing to show, or no such mode, layer, slot or point.
    """

    def __init__(
        self,
        subjects: Sequence[Subject] | Mapping[str, Sequence[Subject]],
        *,
        mode: str | None = None,
        layer: int | None = None,
        slot: int | None = None,
        query: int | None = None,
        title: str = "attention",
    ):
        networks = subjects if isinstance(subjects, Mapping) else {"": subjects}
        if not all(networks.values()) or not networks:
            raise ValueError("There is nothing to show: give at least one subject.")
        first = next(iter(networks.values()))[0]
        layer = len(first.layers) - 1 if layer is None else layer
        mode = mode or first.first_mode(slot, query)
        first.view(mode, layer=layer, slot=slot, query=query)  # refuses what does not exist
        arrays = _Arrays()
        writers = []
        for several in networks.values():
            scale = SharedColors(several)
            writers.append([_Writer(arrays, subject, scale) for subject in several])
        described = [
            {"name": name, "subjects": [writer.describe() for writer in several]}
            for name, several in zip(networks, writers)
        ]
        start = {
            "network": 0, "file": 0, "mode": mode, "layer": layer, "slot": slot,
            "head": -1 if first.head is None else first.head,
            "query": None if query is None else writers[0][0].place_of(query),
        }  # fmt: skip
        about = {
            "networks": described, "start": start, "palette": palette(MAX_COLORED_SLOTS).tolist(), "grey": GREY,
            "viridis": arrays.add(color_values(torch.arange(256), low=0, high=255).numpy()),
        }  # fmt: skip
        parts = {
            "title": html.escape(title),
            "note": html.escape("Click a point to see which others attend alike. Press H for help."),
            "style": _read("page.css"),
            "script": "\n".join(_read(name) for name in ("attention.js", "scene.js", "app.js")),
            # Names may hold "</script>".
            "about": json.dumps(about, ensure_ascii=False).replace("<", "\\u003c"),
            "arrays": arrays.text(),
        }
        # In one pass, so that nothing in a name is taken for one of these.
        text = re.sub(r"\$(\w+)", lambda match: parts[match[1]], _read("page.html"))
        # Names of files need not be UTF-8.
        self.html = text.encode("utf-8", "replace").decode("utf-8")

    def save(self, path: str | Path) -> None:
        """Write the page, completely or not at all.

        Raises:
            OSError: If the folder does not exist or cannot be written to.
        """
        with atomic_file(Path(path)) as part:
            part.write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own, which its styles and keys do not leave."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" style="width: 100%; height: 640px; border: 0" '
            'sandbox="allow-scripts allow-downloads"></iframe>'
        )


def make_page(
    points: Tensor,
    attention: AttentionMap | Mapping[str, AttentionMap],
    *,
    slot: int | None = None,
    query: int | None = None,
    cloud: int | None = None,
) -> Page:
    """Make a page that shows what the points of a cloud attend to: the last line of a notebook's cell, or `save` it.

    Example:
        with record_attention(model) as attention:
            model(points)
        make_page(points[0], attention).save("attention.html")

    Args:
        points: One cloud, (N, 3), y up, in the coordinates that the model was given. They need not be the model's
            tokens.
        attention: The maps of all layers, from `record_attention`, or the map of one layer.
        slot: Show the weights for this slot first.
        query: Show first how each point relates to the point with this index.
        cloud: Index of the cloud in the recorded batch; required if the batch has several.

    Raises:
        ValueError: If the arguments do not match each other or the attention.
    """
    return Page(
        [subject_of(points, attention, cloud=cloud, name="cloud")], mode=first_mode(slot, query), slot=slot, query=query
    )


def open_in_browser(path: Path) -> bool:
    """Open a page in the browser of this machine, if there is one with windows; returns whether it was asked to."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False  # a browser for a terminal could not show it
    return webbrowser.open(path.resolve().as_uri())


class _Arrays:
    """Arrays of numbers, one after the other, each written once."""

    def __init__(self) -> None:
        self._bytes, self._known = bytearray(), dict[bytes, list[Any]]()

    def add(self, values: np.ndarray) -> list[Any]:
        """Append an array; returns its type, its place in bytes and its length, for the page."""
        content = values.tobytes()
        kind = f"{values.dtype.kind}{8 * values.dtype.itemsize}"
        key = kind.encode() + content
        if key not in self._known:
            self._bytes += bytes(-len(self._bytes) % 4)
            self._known[key] = [kind, len(self._bytes), values.size]
            self._bytes += content
        return self._known[key]

    def text(self) -> str:
        return base64.b64encode(self._bytes).decode()


class _Writer:
    """Describes one subject for the page.

    Args:
        arrays: Where its numbers go.
        subject: The subject.
        scale: The colours of its network.
    """

    def __init__(self, arrays: _Arrays, subject: Subject, scale: SharedColors):
        self._arrays, self._subject, self._scale = arrays, subject, scale
        count = len(subject.points)
        self._chosen, self._notes = torch.arange(count), list[str]()
        if count > MAX_POINTS and subject.picture is None:
            self._chosen = _subset(count, MAX_POINTS)
            self._notes.append(f"{MAX_POINTS:,} of {count:,} points are shown.")

    def place_of(self, point: int) -> int:
        """The place of a point among those that are written, or of the nearest one that is."""
        points = self._subject.points
        return int((points[self._chosen] - points[point]).norm(dim=1).argmin())

    def describe(self) -> dict[str, Any]:
        """What the page is told of the subject; numbers go into the arrays."""
        subject = self._subject
        about = {"name": subject.file_name, "title": subject.name, "modes": subject.modes, "count": len(self._chosen)}
        if subject.picture is not None:
            height, width = subject.picture.shape[:2]
            about |= {"width": width, "height": height, "picture": _png(subject.picture), "seen": subject.seen}
        else:
            about |= self._cloud()
        about["query"] = self.place_of(subject.default_query())
        about["layers"] = [self._layer(layer) for layer in range(len(subject.layers))]
        results = [mode for mode in subject.modes if mode not in ATTENTION_MODES]
        about["results"] = {mode: self._result(subject.view(mode, layer=0)) for mode in results}
        about["note"] = " ".join(filter(None, [subject.note, *self._notes]))
        return about

    def _cloud(self) -> dict[str, Any]:
        """Where the points are; behind them those that close gaps, which look like the nearest of the others."""
        subject, arrays = self._subject, self._arrays
        points = subject.points[self._chosen].cpu()
        self._low, self._step = _grid(points)
        normals = surface_normals(points) if subject.normals is None else subject.normals[self._chosen].cpu()
        bridges = bridge_gaps(points)
        about = {
            "origin": self._low.tolist(),
            "step": self._step,
            "points": arrays.add(self._pack(torch.cat([points, bridges.points]))),
            "nearest": arrays.add(bridges.nearest.numpy().astype("<u4")),
            "frame": subject.frame.tolist(),
            "size": _size(points),
        }
        if normals is not None:
            normals = torch.cat([normals, normals[bridges.nearest]])
            about["normals"] = arrays.add((127 * normals).round().to(torch.int8).numpy())
        numbers = subject.numbers[self._chosen]
        if not numbers.equal(torch.arange(len(numbers))):
            about["index"] = arrays.add(numbers.numpy().astype("<u4"))
        return about

    def _pack(self, positions: Tensor) -> np.ndarray:
        steps = ((positions.double() - self._low) / self._step).round().clamp(0, _STEPS)
        return steps.numpy().astype("<u2")

    def _layer(self, layer: int) -> dict[str, Any]:
        """A layer's tokens, their weights and their colours, for every head and for the mean over all."""
        subject, arrays = self._subject, self._arrays
        attention = subject.attention(layer)
        own, grid = attention.slots_are_tokens, attention.grid
        weights, positions = subject.tokens(layer, None)
        most = _MAX_OWN_TOKENS if own else _MAX_TOKENS
        chosen = torch.arange(len(weights))
        if own and grid is not None and len(weights) > most:
            raise ValueError(f"Layer {layer} has {len(weights):,} tokens, too many for a page. Draw a picture instead.")
        if grid is None and len(weights) > most:
            chosen = _subset(len(weights), most)
            self._notes.append(f"Layer {layer} has {len(weights):,} tokens, of which {most:,} are used.")
        count = attention.weights.shape[1] if attention.weights.ndim == 4 else 1
        heads = [None, *range(count)] if count > 1 else [None]
        numbers, lows, units = [], [], []
        for head in heads[-count:]:
            of_head = subject.tokens(layer, head).weights[chosen].cpu()
            # Each slot in steps of its own; of self-attention, which is shown row by row, each row.
            packed = _quantize(of_head[:, chosen].T, np.uint8) if own else _quantize(of_head, np.uint16)
            numbers.append(packed[0].T if own else packed[0])
            lows.append(packed[1])
            units.append(packed[2])
        return {
            "name": _short_names(list(subject.layers))[layer],
            "at": list(grid) if grid is not None else arrays.add(self._pack(positions[chosen].cpu())),
            "tokens": len(chosen),
            "slots": numbers[0].shape[1],
            "heads": count,
            "own": own,
            "weights": arrays.add(np.stack(numbers)),
            "low": arrays.add(np.stack(lows)),
            "unit": arrays.add(np.stack(units)),
            "colors": arrays.add(np.stack([self._colors(layer, head, chosen) for head in heads])),
            "ranking": [[] if own else self._scale.ranking(layer, head)[:MAX_COLORED_SLOTS] for head in heads],
        }

    def _colors(self, layer: int, head: int | None, chosen: Tensor) -> np.ndarray:
        """Colours of the tokens, (M, 3) uint8."""
        weights = self._subject.tokens(layer, head).weights
        colors = color_tokens(weights, self._scale.basis(self._subject, layer, head))
        return (255 * colors[chosen]).round().to(torch.uint8).cpu().numpy()

    def _result(self, view: View) -> dict[str, Any]:
        """Colours that do not depend on the attention: values, or labels with their colours."""
        if view.color_bar is not None and view.values is not None:
            label, low, high = view.color_bar
            share = (view.values[self._chosen].double() - low) / max(high - low, 1e-30)
            values = (255 * share.clamp(0, 1)).round().to(torch.uint8)
            return {"bar": [label, low, high], "values": self._arrays.add(values.numpy())}
        if view.picture is not None and view.colors.equal(view.picture.flatten(0, 1)):
            return {"picture": _png(view.picture), "palette": [GREY], "legend": view.legend}
        colors, label = view.colors[self._chosen].unique(dim=0, return_inverse=True)
        names = {color: name for name, color in view.legend}
        content = {
            "palette": colors.tolist(), "legend": view.legend,
            "names": [names.get(tuple(color), "") for color in colors.tolist()],
        }  # fmt: skip
        if len(colors) > 1:
            content["values"] = self._arrays.add(label.numpy().astype("<u1" if len(colors) <= 256 else "<u2"))
        return content


def _read(name: str) -> str:
    return (_WEB / name).read_text(encoding="utf-8")


def _short_names(names: Sequence[str]) -> list[str]:
    """Names of layers without the parts that all begin and end with."""
    parts = [name.split(".") for name in names]
    if len(parts) == 1:
        return list(names)
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({own[i] for own in parts}) > 1), shortest - 1)
    end = next((i for i in range(shortest - start) if len({own[-1 - i] for own in parts}) > 1), shortest - start - 1)
    return [".".join(own[start : len(own) - end]) for own in parts]


def _subset(count: int, most: int) -> Tensor:
    """Which of so many are used, in their order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def _grid(points: Tensor) -> tuple[Tensor, float]:
    """The lowest corner of a cloud, (3,), and the step of the whole numbers that positions are written as."""
    low, high = points.double().amin(0), points.double().amax(0)
    return low, float((high - low).max()) / _STEPS or 1.0


def _size(points: Tensor) -> float:
    """Diameter of a point at which a surface has no gaps, in the unit of the coordinates."""
    camera = place_camera(points)
    focal = 1 / np.tan(np.radians(FIELD_OF_VIEW / 2))
    return point_size(points, camera, _PIXELS) * 2 * camera.distance / focal / _PIXELS


def _quantize(values: Tensor, kind: type[np.unsignedinteger]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write each column of (M, S) as whole numbers; returns these, and what 0 and one step of a column stand for."""
    low, high = values.amin(0), values.amax(0)
    step = (high - low) / np.iinfo(kind).max
    numbers = ((values - low) / step.clamp_min(1e-38)).round().numpy().astype(kind)
    return numbers, low.numpy(), step.numpy()


def _png(picture: Tensor) -> str:
    """A picture (H, W, 3) uint8 as an address that holds it."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture.cpu().numpy()).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
