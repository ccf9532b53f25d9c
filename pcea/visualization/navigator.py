"""Which view of which subject is shown, and how keys step through them. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pcea.visualization.subject import SharedColors, Subject, shared_views
from pcea.visualization.views import View


class Navigator:
    """Selects which view of which subject is shown, and steps from one to the next.

    Colours mean the same in all subjects.

    Args:
        subjects: What can be looked at, seen by the same network.
        mode: First mode.
        layer: First layer; None for the last layer of the network.
        slot: First slot; None for the one that is strongest at most points.
        query: First query point; None for the farthest point of each cloud.

    Raises:
        ValueError: If the first subject has no such mode, layer, slot or point.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        *,
        mode: str = "colors",
        layer: int | None = None,
        slot: int | None = None,
        query: int | None = None,
    ):
        self.subjects, self.mode, self.slot, self.query = list(subjects), mode, slot, query
        self.subject_index = 0
        self._views: tuple[object, list[View]] | None = None
        self.layer = len(self.subject.layers) - 1 if layer is None else layer
        self.view()  # so that a wrong argument is noticed before a window opens

    @property
    def subject(self) -> Subject:
        """What is looked at now."""
        return self.subjects[self.subject_index]

    def view(self) -> View:
        """The selected view."""
        queries: list[int | None] = [None] * len(self.subjects)
        queries[self.subject_index] = self.query
        selected = self.mode, self.layer, self.slot, tuple(queries)
        if self._views is None or self._views[0] != selected:  # the views of all, so that the next file needs no wait
            views = shared_views(self.subjects, self.mode, layer=self.layer, slot=self.slot, queries=queries)
            self._views = selected, views
        return self._views[1][self.subject_index]

    def press(self, key: str, *, back: bool = False) -> bool:
        """Step to the next mode, layer, slot or file.

        Args:
            key: m, l, s or f; other keys have no effect.
            back: Step back instead.

        Returns:
            Whether another view is selected now.
        """
        step = -1 if back else 1
        modes = self.subject.modes
        if key == "m" and len(modes) > 1:
            self.mode = modes[(modes.index(self.mode) + step) % len(modes)]
        elif key == "l" and len(self.subject.layers) > 1:
            self.layer = (self.layer + step) % len(self.subject.layers)
            # Layers may differ in the number of their slots.
            if self.slot is not None and self.slot >= self.subject.attention(self.layer).weights.shape[-1]:
                self.slot = None
        elif key == "s" and "slot" in modes:
            slot = self.slot
            if slot is None:
                slot = SharedColors(self.subjects).ranking(self.layer, self.subject.head)[0]
            # In another mode, the first press goes to the mode "slot", and shows the slot that this mode begins with.
            self.slot = (
                (slot + step) % self.subject.attention(self.layer).weights.shape[-1] if self.mode == "slot" else slot
            )
            self.mode = "slot"
        elif key == "f" and len(self.subjects) > 1:
            self.subject_index = (self.subject_index + step) % len(self.subjects)
            self.query = None
        else:
            return False
        return True

    def pick(self, position: Tensor) -> None:
        """Make the point nearest to a position, (3,), the query."""
        self.query = int((self.subject.points - position.to(self.subject.points)).norm(dim=1).argmin())
        self.mode = "query"
