"""Which view of which subject is shown, and how keys step through them. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pcea.visualization.subject import Subject
from pcea.visualization.views import View, rank_slots


class Navigator:
    """The state of a window: which view of which cloud.

    Args:
        subjects: The clouds.
        mode: First mode.
        layer: First layer.
        slot: First slot; None for the one that is the strongest of most points.
        query: First query point; None for the farthest point of each cloud.
    """

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
