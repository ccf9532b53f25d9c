"""What is looked at: a cloud, a mode, a layer, a slot and a query point; stepped by keys. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from pcea.nn.attention import AttentionMap
from pcea.visualization.views import (
    View,
    check_cloud,
    rank_slots,
    share_scale,
    tokens_of,
    view_query,
    view_slot,
    view_slots,
    weights_at,
)

LAYER_MODES = ("slots", "slot", "query")


class Subject:
    """A cloud and what a network attended to in it.

    Args:
        points: (N, 3), y up, in the coordinates that the network was given; any points, not only those it was shown.
        layers: What `record_attention` recorded, by the name of the layer.
        name: Of the file, or "".
        normals: Unit normals for shading, (N, 3), or None.
        cloud: Which cloud of the recorded batch it is; needed if there are several.
        head: Which attention head is shown; None for the mean over all.

    Raises:
        ValueError: If the points are not one cloud, or nobody knows where the tokens of a layer are.
    """

    def __init__(
        self,
        points: Tensor,
        layers: Mapping[str, AttentionMap],
        *,
        name: str = "",
        normals: Tensor | None = None,
        cloud: int | None = None,
        head: int | None = None,
    ):
        points = check_cloud(points)
        if not layers:
            raise ValueError("No attention was recorded: run the model inside `with record_attention(model)`.")
        for key, attention in layers.items():
            try:
                tokens_of(points, attention, cloud=cloud)
            except ValueError as error:
                raise ValueError(f"Layer {key}: {error}" if key else str(error)) from None
        self.points, self.layers, self.name, self.normals = points, layers, name, normals
        self.cloud, self.head = cloud, head
        self._weights: tuple[int, Tensor] | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """What `view` can show. Self-attention has no slots."""
        has_slots = not any(attention.slots_are_tokens for attention in self.layers.values())
        return LAYER_MODES if has_slots else ("query",)

    def attention(self, layer: int) -> AttentionMap:
        """What layer number `layer` attended to.

        Raises:
            ValueError: If there is no such layer.
        """
        if not 0 <= layer < len(self.layers):
            names = ", ".join(f"{i} ({name})" for i, name in enumerate(self.layers))
            raise ValueError(f"layer must be one of {names}, got {layer}.")
        return list(self.layers.values())[layer]

    def weights(self, layer: int) -> Tensor:
        """The weights of every point for every slot of a layer, (N, S); those of the last layer asked for are kept."""
        if self._weights is None or self._weights[0] != layer:
            self._weights = layer, weights_at(self.points, self.attention(layer), cloud=self.cloud, head=self.head)
        return self._weights[1]

    def farthest_point(self) -> int:
        """The number of the point farthest from the middle, such as the end of a leg or of a wing."""
        return int((self.points - self.points.mean(0)).norm(dim=1).argmax())

    def view(
        self,
        mode: str,
        *,
        layer: int,
        slot: int | None = None,
        query: int | None = None,
        ranking: Sequence[int] | None = None,
        high: float | None = None,
    ) -> View:
        """Colour the cloud.

        Args:
            mode: One of `modes`.
            layer: Number of the layer.
            slot: For mode "slot"; None for the one that is the strongest of most points.
            query: For mode "query"; None for the farthest point.
            ranking: For mode "slots", as for `view_slots`.
            high: For mode "slot", as for `view_slot`.

        Raises:
            ValueError: If the cloud has no such mode, layer, slot or point.
        """
        if mode not in self.modes:
            raise ValueError(f"This network has the modes {', '.join(self.modes)}, not {mode!r}.")
        if mode == "slots":
            view = view_slots(self.points, self.weights(layer), ranking=ranking)
        elif mode == "slot":
            weights = self.weights(layer)
            view = view_slot(self.points, weights, rank_slots([weights])[0] if slot is None else slot, high=high)
        else:
            query = self.farthest_point() if query is None else query
            view = view_query(self.points, self.attention(layer), query, cloud=self.cloud, head=self.head)
        if view.color_bar is not None:
            view = view._replace(color_bar=view.color_bar._replace(label=f"{view.color_bar.label}, layer {layer}"))
        else:
            view = view._replace(legend_title=f"{view.legend_title}, layer {layer}")
        return view._replace(title=self.name, normals=self.normals)


class Browser:
    """The state of a window: which view of which cloud.

    Args:
        subjects: The clouds.
        mode: First mode.
        layer: First layer.
        slot: First slot; None for the one that is the strongest of most points.
        query: First query point; None for the farthest point of each cloud.
    """

    # What a key or the mouse does, for the user.
    SHORTCUTS: ClassVar[dict[str, str]] = {
        "M": "next mode",
        "L": "next layer",
        "S": "next slot",
        "F": "next file",
        "shift + key": "back",
        "shift + click": "query that point",
        "drag, wheel": "turn, zoom",
        "R": "reset camera",
        "+ -": "point size",
        "H": "hide this list",
        "Q": "close",
    }

    def __init__(
        self,
        subjects: Sequence[Subject],
        *,
        mode: str = "slots",
        layer: int | None = None,
        slot: int | None = None,
        query: int | None = None,
    ):
        self.subjects, self.mode, self.slot, self.query = list(subjects), mode, slot, query
        self.number = 0
        self.layer = len(self.subject.layers) - 1 if layer is None else layer
        self.view()  # a wrong argument is noticed before a window opens

    @property
    def subject(self) -> Subject:
        """The cloud that is looked at."""
        return self.subjects[self.number]

    def view(self) -> View:
        """The view of the present state."""
        return self.subject.view(self.mode, layer=self.layer, slot=self.slot, query=self.query)

    def press(self, key: str, *, back: bool = False) -> bool:
        """Step by a key, m, l, s or f.

        Args:
            key: The letter.
            back: Step back.

        Returns:
            Whether the view is another one now.
        """
        step = -1 if back else 1
        modes = self.subject.modes
        if key == "m" and len(modes) > 1:
            self.mode = modes[(modes.index(self.mode) + step) % len(modes)]
        elif key == "l" and len(self.subject.layers) > 1:
            self.layer = (self.layer + step) % len(self.subject.layers)
            # The layers of a network of the user's own may differ in their slots.
            if self.slot is not None and self.slot >= self.subject.attention(self.layer).weights.shape[-1]:
                self.slot = None
        elif key == "s" and "slot" in modes:
            weights = self.subject.weights(self.layer)
            slot = rank_slots([weights])[0] if self.slot is None else self.slot
            # From another mode the first press shows what the slot mode shows of its own.
            self.slot = (slot + step) % weights.shape[1] if self.mode == "slot" else slot
            self.mode = "slot"
        elif key == "f" and len(self.subjects) > 1:
            self.number = (self.number + step) % len(self.subjects)
            self.query = None
        else:
            return False
        return True

    def pick(self, position: Tensor) -> None:
        """Make the point nearest to a position, (3,), the query."""
        self.query = int((self.subject.points - position.to(self.subject.points)).norm(dim=1).argmin())
        self.mode = "query"


def shared_views(
    subjects: Sequence[Subject], mode: str, *, layer: int, slot: int | None = None, queries: Sequence[int | None] = ()
) -> list[View]:
    """Views of several clouds in one mode, whose colours mean the same in all of them.

    Args:
        subjects: The clouds, of one network.
        mode: The mode.
        layer: Number of the layer.
        slot: For mode "slot"; None for the one that is the strongest of most points of all clouds.
        queries: For mode "query": a point of each cloud.
    """
    ranking = None
    if mode in ("slots", "slot"):
        ranking = rank_slots([subject.weights(layer) for subject in subjects])
        slot = ranking[0] if slot is None else slot
    queries = queries or [None] * len(subjects)
    return share_scale(
        [
            subject.view(mode, layer=layer, slot=slot, query=query, ranking=ranking)
            for subject, query in zip(subjects, queries)
        ]
    )
