"""A trained network with what is needed to use it, from a checkpoint or a weights file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pcea.models.point_segmenter import PointTransformerSegmenter, eat_part_segmenter
from pcea.models.point_transformer import PointTransformerClassifier, eat_classifier
from pcea.weights import load_weights

_BUILDERS: dict[str, Callable[..., PointTransformerClassifier | PointTransformerSegmenter]] = {
    "eat_classifier": eat_classifier,
    "eat_part_segmenter": eat_part_segmenter,
}


class TrainedNetwork(NamedTuple):
    """A network in evaluation mode.

    Attributes:
        network: A classifier, or a segmenter.
        class_names: Name of each class.
        num_points: Points of a cloud that it was trained for; 0 if nobody noted it.
        parts: The classes of each category, by its name, in the order of the categories' numbers; empty for
            classifiers and scenes.
    """

    network: PointTransformerClassifier | PointTransformerSegmenter
    class_names: tuple[str, ...]
    num_points: int
    parts: Mapping[str, Sequence[int]]

    @property
    def has_normals(self) -> bool:
        """The network is given the normals of the points."""
        return self.network.encoder.in_channels == 6


def load_network(weights: str) -> TrainedNetwork:
    """Build the network of a checkpoint of `pcea fit` (.ckpt), a weights file, or weights that come with pcea.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    if str(weights).endswith(".ckpt"):
        # Lightning takes seconds to import: only a checkpoint needs it.
        from pcea.training import load_task

        task = load_task(weights)
        network = task.network
        if not isinstance(network, PointTransformerClassifier | PointTransformerSegmenter):
            raise ValueError(f"{weights} holds a {type(network).__name__}, not a network for point clouds.")
        parts = getattr(task, "parts", {})
        return TrainedNetwork(network.eval(), task.class_names, task.num_points, parts)
    about = load_weights(weights)
    if about.builder not in _BUILDERS:
        raise ValueError(f"{weights} holds the weights of {about.builder}, not of {' or '.join(_BUILDERS)}.")
    network = _BUILDERS[about.builder](**about.arguments)
    network.load_state_dict(about.state)
    return TrainedNetwork(network.eval(), about.class_names, about.num_points, about.parts)
