"""A trained network with what is needed to use it, from a checkpoint or a weights file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from pcea.attention import AttentionFactory, ExternalAttention, MultiHeadExternalAttention, SelfAttention
from pcea.models.eamlp import ImageTransformer, eamlp_7, eamlp_14, eamlp_19, t2t_vit_7, t2t_vit_14, t2t_vit_19
from pcea.models.eanet import EANet, eanet_50, eanet_101
from pcea.models.point_segmenter import PointTransformerSegmenter, eat_part_segmenter
from pcea.models.point_transformer import PointTransformerClassifier, eat_classifier
from pcea.weights import Weights, load_weights

# What a weights file may name, and nothing else: networks, and the attentions that are arguments of a network.
_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (
        eat_classifier, eat_part_segmenter, eamlp_7, eamlp_14, eamlp_19, t2t_vit_7, t2t_vit_14, t2t_vit_19,
        ImageTransformer, eanet_50, eanet_101, EANet,
    )
}  # fmt: skip
_DETECTORS = ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "RetinaNet")
_ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    attention.__name__: attention for attention in (ExternalAttention, MultiHeadExternalAttention, SelfAttention)
}


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


def load_network(weights: str) -> TrainedNetwork | TrainedImageNetwork | TrainedDetector:
    """Build the network of a checkpoint of `pcea fit` (.ckpt), a weights file, or weights that come with pcea.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    if str(weights).endswith(".ckpt"):
        # Lightning takes seconds to import: only a checkpoint needs it.
        from pcea.training import load_task

        task: Any = load_task(weights)
        network = task.network.eval()
        if isinstance(network, PointTransformerClassifier | PointTransformerSegmenter):
            return TrainedNetwork(network, task.class_names, task.num_points, getattr(task, "parts", {}))
        names = task.class_names or tuple(f"class {n}" for n in range(getattr(network, "num_classes", 0)))
        if hasattr(network, "has_masks"):
            return TrainedDetector(network, names, task.category_ids)
        if not getattr(task, "mean", ()):
            raise ValueError(
                f"{weights} holds a {type(network).__name__}, which is neither a network of pcea for point clouds nor "
                "one for images that were normalized by a data module's mean and std."
            )
        return TrainedImageNetwork(
            network, names, task.mean, task.std, task.image_size, labels_pixels=task.labels_pixels
        )
    about = load_weights(weights)
    network = build_network(about, str(weights)).eval()
    if isinstance(network, PointTransformerClassifier | PointTransformerSegmenter):
        return TrainedNetwork(network, about.class_names, about.num_points, about.parts)
    if about.builder in _DETECTORS:
        return TrainedDetector(network, about.class_names, tuple(about.category_ids))
    mean, std, image_size = tuple(about.mean), tuple(about.std), tuple(about.image_size)
    return TrainedImageNetwork(
        network, about.class_names, mean, std, image_size, labels_pixels=isinstance(network, EANet)
    )


def build_network(weights: Weights, where: str) -> nn.Module:
    """The network of weights.

    Args:
        weights: The weights.
        where: What holds them, for the message.

    Raises:
        ValueError: If it is none of those of pcea that can be built, or the weights are not its own.
    """
    if weights.builder in _DETECTORS:
        # They import torchvision, for which nobody else should wait.
        from pcea.models import rcnn

        builder = getattr(rcnn, weights.builder)
    elif weights.builder in _BUILDERS:
        builder = _BUILDERS[weights.builder]
    else:
        known = ", ".join((*_BUILDERS, *_DETECTORS))
        raise ValueError(f"{where} has the weights of {weights.builder}, not of one of the networks {known}.")
    arguments = dict(weights.arguments)
    if "attention" in arguments:
        arguments["attention"] = _attention(arguments["attention"], where)
    network = builder(**arguments)
    network.load_state_dict(weights.state)
    return network


def _attention(written: Any, where: str) -> AttentionFactory:
    """The factory that YAML writes as class_path and init_args; the width is filled in by the network."""
    path = written["class_path"] if isinstance(written, dict) else str(written)
    package, _, name = path.rpartition(".")
    if package not in ("pcea", "pcea.attention") or name not in _ATTENTIONS:
        raise ValueError(f"{where} has the attention {path}, not one of {', '.join(_ATTENTIONS)} of pcea.")
    return partial(_ATTENTIONS[name], **(written.get("init_args") or {}))
