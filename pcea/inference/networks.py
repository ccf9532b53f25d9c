"""A trained network with what is needed to use it, from a checkpoint or a weights file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from pcea.io.checkpoints import load_checkpoint
from pcea.io.weights import load_weights
from pcea.models.build import build_network
from pcea.models.point_segmenter import PointTransformerSegmenter
from pcea.models.point_transformer import PointTransformerClassifier


class TrainedNetwork(NamedTuple):
    """A network for clouds in evaluation mode.

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


class TrainedImageNetwork(NamedTuple):
    """A network for images in evaluation mode.

    Attributes:
        network: Maps normalized images (B, 3, H, W) to logits, (B, P) or (B, P, H, W).
        class_names: Name of each of P classes.
        mean: Mean of red, green and blue, in 0..1, that is subtracted from images.
        std: Their standard deviation, by which they are divided then.
        image_size: Height and width of the images that it was trained on; () if nobody noted it.
        labels_pixels: Whether it names the class of every pixel, or of the image.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, ...]
    labels_pixels: bool


class TrainedDetector(NamedTuple):
    """A detector of objects in evaluation mode.

    Attributes:
        network: Maps a list of images (3, H, W) in 0..1 to detections, as torchvision's detectors do.
        class_names: Name of each class, without the background.
        category_ids: Number of each class in the files that it learned from; () if nobody noted it.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def load_network(
    weights: str, *, packages: Sequence[str] = ()
) -> TrainedNetwork | TrainedImageNetwork | TrainedDetector:
    """Build the network of a checkpoint of `pcea fit` (.ckpt), a weights file, or weights that come with pcea.

    Args:
        weights: The file or name.
        packages: Top-level packages beside pcea that the file may import its network from.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    stored = load_checkpoint(weights) if str(weights).endswith(".ckpt") else load_weights(weights)
    network = build_network(stored, str(weights), packages=packages)
    about = stored.description
    names = about.class_names or tuple(f"class {n}" for n in range(getattr(network, "num_classes", 0)))
    if about.task in ("points", "parts"):
        return TrainedNetwork(network, names, about.num_points, about.parts)  # type: ignore[arg-type]
    if about.task == "objects":
        return TrainedDetector(network, names, about.category_ids)
    if about.task == "generation" or not about.mean:
        raise ValueError(
            f"{weights} holds a {type(network).__name__}, which is neither a network for clouds nor one for images "
            "that were normalized by a data module's mean and std."
        )
    labels_pixels = about.task == "masks"
    return TrainedImageNetwork(network, names, about.mean, about.std, about.image_size, labels_pixels)
