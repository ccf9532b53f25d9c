"""What is looked at: a cloud (or the pixels of a picture) with recorded attention, and the views that it offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from pcea.nn.recording import AttentionMap
from pcea.visualization.color_basis import color_tokens, fit_color_basis
from pcea.visualization.point_weights import TokenWeights, check_cloud, interpolate, select_tokens, weights_at
from pcea.visualization.views import (
    View,
    check_query,
    rank_slots,
    share_scale,
    view_colors,
    view_query,
    view_slot,
    view_slots,
)

ATTENTION_MODES = ("colors", "slots", "slot", "query")


class Subject:
    """A cloud, and what a network attended to in it.

    A subclass adds modes that are the same for all layers, such as a prediction: it extends `modes` and implements
    `_view_result(mode)`.

    Args:
        points: (N, 3), y up, in the coordinates that the network was given. They need not be the points it was given.
        layers: The attention maps that `record_attention` recorded, by layer name.
        name: Title of the views.
        normals: Unit normals for shading, (N, 3), or None.
        picture: If the points are the pixels of a picture: what the colours of the attention are laid over,
            (H, W, 3) uint8.
        cloud: Index of the cloud in the recorded batch; required if the batch has several.
        head: Index of the attention head; None averages over all heads.
        color_bases: For mode "colors": what the colours of some layers mean, (3, S) by layer name, as stored in weights
            files for the mean over all heads. By default they are found from what is shown.

    Raises:
        ValueError: If `points` is not a single cloud, or the positions of a layer's tokens are unknown, or
            attention weights are not finite.
    """

    def __init__(
        self,
        points: Tensor,
        layers: Mapping[str, AttentionMap],
        *,
        name: str = "",
        normals: Tensor | None = None,
        picture: Tensor | None = None,
        cloud: int | None = None,
        head: int | None = None,
        color_bases: Mapping[str, Sequence[Sequence[float]]] = MappingProxyType({}),
    ):
        points = check_cloud(points)
        if not layers:
            raise ValueError("No attention was recorded: run the model inside `with record_attention(model)`.")
        for layer_name, attention in layers.items():
            try:
                if not select_tokens(points, attention, cloud=cloud).weights.isfinite().all():
                    raise ValueError("Some attention weights are not finite: the network has diverged.")
            except ValueError as error:
                raise ValueError(f"Layer {layer_name}: {error}" if layer_name else str(error)) from None
        self.points, self.layers, self.name, self.normals, self.picture = points, layers, name, normals, picture
        self.cloud, self.head = cloud, head
        self._color_bases = dict(color_bases)
        self._weights: tuple[int, Tensor] | None = None

    @property
    def file_name(self) -> str:
        """What is shown, in short."""
        return self.name

    @property
    def note(self) -> str:
        """What else there is to say of it."""
        return ""

    @property
    def numbers(self) -> Tensor:
        """The number in the file of each point, (N,) int64."""
        return torch.arange(len(self.points))

    @property
    def seen(self) -> dict[str, int]:
        """The part of the file's pixels that a picture shows: top, left, height, width."""
        height, width = (0, 0) if self.picture is None else self.picture.shape[:2]
        return {"top": 0, "left": 0, "height": height, "width": width}

    @property
    def frame(self) -> Tensor:
        """From the coordinates of `points` to those of the file: a matrix and an offset, (3, 4) fp64."""
        return torch.eye(3, 4, dtype=torch.float64)

    @property
    def modes(self) -> tuple[str, ...]:
        """What `view` can show. Self-attention has no slots."""
        has_slots = not any(attention.slots_are_tokens for attention in self.layers.values())
        return ATTENTION_MODES if has_slots else ("colors", "query")

    def attention(self, layer: int) -> AttentionMap:
        """The attention map of a layer, given its number.

        Raises:
            ValueError: If there is no such layer.
        """
        if not 0 <= layer < len(self.layers):
            names = ", ".join(f"{i} ({name})" for i, name in enumerate(self.layers))
            raise ValueError(f"layer must be one of {names}, got {layer}.")
        return list(self.layers.values())[layer]

    def weights(self, layer: int) -> Tensor:
        """The attention weights of every point for every slot of a layer, (N, S). The last result is cached."""
        if self._weights is None or self._weights[0] != layer:
            self._weights = layer, weights_at(self.points, self.attention(layer), cloud=self.cloud, head=self.head)
        return self._weights[1]

    def tokens(self, layer: int, head: int | None) -> TokenWeights:
        """The attention weights of the tokens of a layer, of one head or the mean (None), and where they are."""
        return select_tokens(self.points, self.attention(layer), cloud=self.cloud, head=head)

    def stored_basis(self, layer: int) -> Tensor | None:
        """What the colours of a layer's mean over all heads mean, (3, S), if it is stored with the network.

        Raises:
            ValueError: If there is no such layer, or the stored colours are for another number of slots.
        """
        attention, name = self.attention(layer), list(self.layers)[layer]
        if name not in self._color_bases:
            return None
        basis = torch.tensor(self._color_bases[name], dtype=torch.float32)
        if basis.shape[1] != attention.weights.shape[-1]:
            raise ValueError(
                f"The colours of layer {name} are for {basis.shape[1]} slots, it has {attention.weights.shape[-1]}."
            )
        return basis

    def first_mode(self, slot: int | None = None, query: int | None = None) -> str:
        """The mode in which a slot or a query that was asked for is shown, or else the first one."""
        return self.modes[0] if slot is None and query is None else first_mode(slot, query)

    def default_query(self) -> int:
        """The index of the point farthest from the centroid, such as the end of a leg or a wing tip."""
        return int((self.points - self.points.mean(0)).norm(dim=1).argmax())

    def view(
        self,
        mode: str,
        *,
        layer: int,
        slot: int | None = None,
        query: int | None = None,
        colors: SharedColors | None = None,
    ) -> View:
        """Colour the cloud.

        Args:
            mode: One of `modes`.
            layer: Number of the layer. Must exist in every mode, though only those of the attention depend on it.
            slot: For mode "slot"; None takes the slot that is strongest at most tokens.
            query: For mode "query", the index of a point; None takes the farthest point.
            colors: What colours and slots mean in all that is shown; None if this is all.

        Raises:
            ValueError: If there is no such mode, layer, slot or point.
        """
        if query is not None:
            check_query(query, len(self.points))
        if mode not in self.modes:
            raise ValueError(f"This network has the modes {', '.join(self.modes)}, not {mode!r}.")
        if mode in ATTENTION_MODES:
            view = self._view_attention(mode, layer, slot, query, colors or SharedColors([self]))
        else:
            self.attention(layer)
            view = self._view_result(mode)
        return view._replace(title=self.name, normals=self.normals).cpu()

    def _view_result(self, mode: str) -> View:
        """Colour the cloud in a mode that a subclass adds; `view` sets title and normals."""
        raise NotImplementedError

    def _view_attention(self, mode: str, layer: int, slot: int | None, query: int | None, shared: SharedColors) -> View:
        if mode == "colors":
            weights, positions = self.tokens(layer, self.head)
            colors = color_tokens(weights, shared.basis(self, layer, self.head))
            view = view_colors(self.points, interpolate(self.attention(layer), colors, positions, self.points))
        elif mode == "slots":
            ranking = shared.ranking(layer, self.head)
            view = view_slots(self.points, self.weights(layer), ranking=ranking)
        elif mode == "slot":
            slot = shared.ranking(layer, self.head)[0] if slot is None else slot
            view = view_slot(self.points, self.weights(layer), slot)
        else:
            query = self.default_query() if query is None else query
            view = view_query(self.points, self.attention(layer), query, cloud=self.cloud, head=self.head)
        if view.color_bar is not None:
            view = view._replace(color_bar=view.color_bar._replace(label=f"{view.color_bar.label}, layer {layer}"))
        elif view.legend:
            view = view._replace(legend_title=f"{view.legend_title}, layer {layer}")
        return view._replace(picture=self.picture)


def subject_of(
    points: Tensor, attention: AttentionMap | Mapping[str, AttentionMap], *, cloud: int | None = None, name: str = ""
) -> Subject:
    """A subject of the maps of all layers, or of the map of one."""
    layers = {"": attention} if isinstance(attention, AttentionMap) else attention
    return Subject(points, layers, cloud=cloud, name=name)


def first_mode(slot: int | None, query: object) -> str:
    """The mode in which a slot or a query that was asked for is shown."""
    return "query" if query is not None else "slot" if slot is not None else "colors"


class SharedColors:
    """What colours mean in all subjects of one network: found once, as all have a part in it.

    Args:
        subjects: All that is shown, by the same network.
    """

    def __init__(self, subjects: Sequence[Subject]):
        self.subjects = subjects
        self._bases, self._rankings = dict[tuple[int, int | None], Tensor](), dict[tuple[int, int | None], list[int]]()

    def basis(self, subject: Subject, layer: int, head: int | None) -> Tensor:
        """For mode "colors", (3, S): as stored with the network, or found from what is shown.

        Self-attention has no slots that subjects could share, so that its colours mean the same within one only.
        """
        if subject.attention(layer).slots_are_tokens:
            return fit_color_basis([subject.tokens(layer, head).weights])
        if (layer, head) not in self._bases:
            stored = subject.stored_basis(layer) if head is None else None
            if stored is None:
                stored = fit_color_basis([each.tokens(layer, head).weights for each in self.subjects])
            self._bases[layer, head] = stored
        return self._bases[layer, head]

    def ranking(self, layer: int, head: int | None) -> list[int]:
        """The slots of a layer by the number of tokens of all subjects at which they are the strongest."""
        if (layer, head) not in self._rankings:
            weights = [each.tokens(layer, head).weights for each in self.subjects]
            self._rankings[layer, head] = rank_slots(weights)
        return self._rankings[layer, head]


def shared_views(
    subjects: Sequence[Subject], mode: str, *, layer: int, slot: int | None = None, queries: Sequence[int | None] = ()
) -> list[View]:
    """View several subjects in one mode, with colours that mean the same in all of them.

    Args:
        subjects: The clouds, all seen by the same network.
        mode: The mode.
        layer: Number of the layer.
        slot: For mode "slot"; None takes the slot that is strongest at most tokens of all clouds.
        queries: For mode "query": the index of a point in each cloud.
    """
    colors, queries = SharedColors(subjects), queries or [None] * len(subjects)
    return share_scale(
        [
            subject.view(mode, layer=layer, slot=slot, query=query, colors=colors)
            for subject, query in zip(subjects, queries)
        ]
    )
