"""Detectors on a ResNet with external attention: Faster, Mask and Cascade R-CNN, RetinaNet.

All are torchvision's and keep its names in the state, so that its trained detectors fit if there is no external
attention. Called with images, each (3, H, W) in 0..1 and of any size, in evaluation they return a dictionary for each:

- boxes: (K, 4), x1 y1 x2 y2 in the pixels of the image, by falling score;
- labels: (K,) int64, 1..P;
- scores: (K,), 0..1;
- masks: (K, 1, H, W), probabilities; only from detectors with masks;

in training, called with targets too, they return their losses by name. Targets are those of
`pcea.datasets.batches.ObjectBatch`; boxes, labels and masks are used. An image may have no objects.

Source: Guo et al., 2021, who put one external attention before the feature pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from pcea.models.cascade import CascadeHeads
from pcea.models.resnet import ResNet
from pcea.nn.linear import at_least_fp32

_LEVELS = ("0", "1", "2", "3")


class FasterRCNN(detection.FasterRCNN):
    """Faster R-CNN with a feature pyramid: boxes in two stages.

    Args:
        num_classes: Number of classes P, without the background.
        depth: Layers of the `ResNet`: 18, 34, 50 or 101.
        external_attention: See `ResNet`; without it, this is torchvision's detector.
        attention_width: See `ResNet`.
        memory_units: See `ResNet`.
        norm: See `ResNet`.
        pretrained: Start the ResNet from torchvision's ImageNet weights, which are downloaded.
        trainable_stages: See `ResNet`; 3 is usual for a pretrained one.
        image_size: Images are scaled until the shorter side has so many pixels, or the longer side as many as the
            second number. None leaves them as they are.
        channels: Channels of the feature pyramid and of the heads on it.
        anchor_sizes: Side of the anchors of each of the five levels, in pixels of the scaled image; three shapes each.
        hidden: Width of the two layers that judge a box.
        proposals: Boxes that the first stage hands on, in training and in evaluation; also how many of the best it
            takes from each level.
        box_batch: Proposals per image that the second stage is trained on.
        max_objects: Detections per image, those with the highest scores.
        score_threshold: Detections with a lower score are left out.

    Attributes:
        num_classes: Number of classes P.
        has_masks: Whether masks are found too.

    Raises:
        ValueError: If an option is unknown or a number out of range.
        FileNotFoundError: If the ImageNet weights cannot be downloaded.

    Source:
        Ren et al., 2015; Lin et al., "Feature Pyramid Networks", 2017. 41.8M parameters at 90 classes with frozen norms
        and without external attention.
    """

    has_masks = False
    roi_heads: Any
    transform: Any

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        external_attention: bool = True,
        attention_width: int | None = None,
        memory_units: int = 64,
        norm: Literal["batch", "frozen"] = "batch",
        pretrained: bool = False,
        trainable_stages: int = 5,
        image_size: Sequence[int] | None = (800, 1333),
        channels: int = 256,
        anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
        hidden: int = 1024,
        proposals: Sequence[int] = (2000, 1000),
        box_batch: int = 512,
        max_objects: int = 100,
        score_threshold: float = 0.05,
    ):
        _check_options(num_classes, image_size, anchor_sizes)
        if len(proposals) != 2 or min(proposals) < 1:
            raise ValueError(f"proposals must be two positive numbers, training and test, got {list(proposals)}.")
        body = ResNet(
            depth=depth,
            external_attention=external_attention,
            attention_width=attention_width,
            memory_units=memory_units,
            norm=norm,
            pretrained=pretrained,
            trainable_stages=trainable_stages,
        )
        super().__init__(
            _Pyramid(body, channels=channels, levels=_LEVELS, extra=LastLevelMaxPool()),
            **_scaling(image_size),
            rpn_anchor_generator=_anchors(anchor_sizes, scales=(1.0,)),
            rpn_pre_nms_top_n_train=proposals[0],
            rpn_post_nms_top_n_train=proposals[0],
            rpn_pre_nms_top_n_test=proposals[1],
            rpn_post_nms_top_n_test=proposals[1],
            box_head=TwoMLPHead(channels * 7 * 7, hidden),
            box_predictor=FastRCNNPredictor(hidden, num_classes + 1),
            box_score_thresh=score_threshold,
            box_detections_per_img=max_objects,
            box_batch_size_per_image=box_batch,
        )
        if image_size is None:
            self.transform = _AsItIs(self.transform)
        self.num_classes = num_classes
        self.rpn.head.register_forward_hook(_fp32_hook)
        self.roi_heads.box_predictor.register_forward_hook(_fp32_hook)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Detections in evaluation, losses in training; see the module.

        Raises:
            ValueError: If images or targets are not as the module says.
        """
        return super().forward(images, _checked_targets(self, images, targets))


class MaskRCNN(FasterRCNN):
    """Mask R-CNN: Faster R-CNN with a mask in each box. Arguments as for `FasterRCNN`.

    Source:
        He et al., 2017. 44.4M parameters at 90 classes with frozen norms and without external attention.
    """

    has_masks = True

    def __init__(self, **options: Any):
        super().__init__(**options)
        _add_masks(self.roi_heads, self.backbone.out_channels, self.num_classes)


class CascadeRCNN(FasterRCNN):
    """Cascade R-CNN: Faster R-CNN with three second stages, each with better boxes and a stricter IoU threshold.

    Args:
        mask: Whether to find a mask in each box of the last stage too.
        options: Arguments as for `FasterRCNN`.

    Source:
        Cai and Vasconcelos, 2018. 69.4M parameters at 90 classes with frozen norms and without external attention.
    """

    def __init__(self, *, mask: bool = False, **options: Any):
        super().__init__(**options)
        self.has_masks = mask
        self.roi_heads = CascadeHeads(self.roi_heads)
        for stage in self.roi_heads.stages[1:]:
            stage.box_predictor.register_forward_hook(_fp32_hook)
        if mask:
            _add_masks(self.roi_heads.stages[-1], self.backbone.out_channels, self.num_classes)


class RetinaNet(detection.RetinaNet):
    """RetinaNet: boxes in one stage, trained with the focal loss.

    Args:
        num_classes: Number of classes P, without the background.
        depth: Layers of the `ResNet`: 18, 34, 50 or 101.
        external_attention: See `ResNet`; without it, this is torchvision's detector.
        attention_width: See `ResNet`.
        memory_units: See `ResNet`.
        norm: See `ResNet`.
        pretrained: Start the ResNet from torchvision's ImageNet weights, which are downloaded.
        trainable_stages: See `ResNet`; 3 is usual for a pretrained one.
        image_size: Images are scaled until the shorter side has so many pixels, or the longer side as many as the
            second number. None leaves them as they are.
        channels: Channels of the feature pyramid and of the heads on it.
        anchor_sizes: Side of the smallest anchors of each of the five levels, in pixels of the scaled image; three
            sizes, a third of an octave apart, and three shapes each.
        max_objects: Detections per image, those with the highest scores.
        score_threshold: Detections with a lower score are left out.

    Attributes:
        num_classes: Number of classes P.
        has_masks: False.

    Raises:
        ValueError: If an option is unknown or a number out of range.
        FileNotFoundError: If the ImageNet weights cannot be downloaded.

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", 2017. 34.0M parameters at 90 classes with frozen norms and
        without external attention.
    """

    has_masks = False
    transform: Any

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        external_attention: bool = True,
        attention_width: int | None = None,
        memory_units: int = 64,
        norm: Literal["batch", "frozen"] = "batch",
        pretrained: bool = False,
        trainable_stages: int = 5,
        image_size: Sequence[int] | None = (800, 1333),
        channels: int = 256,
        anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
        max_objects: int = 100,
        score_threshold: float = 0.05,
    ):
        _check_options(num_classes, image_size, anchor_sizes)
        body = ResNet(
            depth=depth,
            external_attention=external_attention,
            attention_width=attention_width,
            memory_units=memory_units,
            norm=norm,
            pretrained=pretrained,
            trainable_stages=trainable_stages,
        )
        super().__init__(
            _Pyramid(body, channels=channels, levels=_LEVELS[1:], extra=LastLevelP6P7(channels, channels)),
            num_classes + 1,  # torchvision's has an output for the background, which it never trains
            **_scaling(image_size),
            anchor_generator=_anchors(anchor_sizes, scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3))),
            score_thresh=score_threshold,
            detections_per_img=max_objects,
        )
        if image_size is None:
            self.transform = _AsItIs(self.transform)
        self.num_classes = num_classes
        self.head.register_forward_hook(_fp32_hook)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Detections in evaluation, losses in training; see the module.

        Raises:
            ValueError: If images or targets are not as the module says.
        """
        return super().forward(images, _checked_targets(self, images, targets))

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels from torchvision, without the background."""
        logits = [F.pad(level[..., 1:], (1, 0), value=-torch.inf) for level in head_outputs["cls_logits"]]
        return super().postprocess_detections({**head_outputs, "cls_logits": logits}, anchors, image_shapes)


class _Pyramid(nn.Module):
    """Some levels of a ResNet and the feature pyramid on them, in fp32 even under autocast.

    torchvision makes its anchors in the dtype of these maps, and bf16 has no odd numbers above 256.
    """

    def __init__(self, body: ResNet, *, channels: int, levels: Sequence[str], extra: ExtraFPNBlock):
        super().__init__()
        self.body, self.levels, self.out_channels = body, levels, channels
        in_channels = [body.channels[int(level)] for level in levels]
        self.fpn = FeaturePyramidNetwork(in_channels, channels, extra_blocks=extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to five maps (B, channels, H', W')."""
        features = self.body(images.contiguous(memory_format=torch.channels_last))  # a tenth faster on a CPU
        return _all_at_least_fp32(self.fpn({level: features[level] for level in self.levels}))


def _all_at_least_fp32(output: Any) -> Any:
    """Tensors in lists and dictionaries, converted to at least fp32."""
    if isinstance(output, Tensor):
        return at_least_fp32(output)
    if isinstance(output, dict):
        return {name: _all_at_least_fp32(value) for name, value in output.items()}
    return type(output)(_all_at_least_fp32(value) for value in output)


def _fp32_hook(module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ARG001
    """Hook of the last layers: boxes are made from their output, in its dtype."""
    return _all_at_least_fp32(output)


def _anchors(sizes: Sequence[int], *, scales: Sequence[float]) -> AnchorGenerator:
    by_level = tuple(tuple(int(size * scale) for scale in scales) for size in sizes)
    return AnchorGenerator(by_level, ((0.5, 1.0, 2.0),) * len(sizes))


def _add_masks(heads: RoIHeads, channels: int, num_classes: int) -> None:
    heads.mask_roi_pool = MultiScaleRoIAlign(_LEVELS, output_size=14, sampling_ratio=2)
    heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, 1)
    heads.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)
    heads.mask_predictor.register_forward_hook(_fp32_hook)


class _AsItIs(GeneralizedRCNNTransform):
    """Normalizes images and batches them, without scaling."""

    def __init__(self, like: GeneralizedRCNNTransform):
        super().__init__(like.min_size, like.max_size, like.image_mean, like.image_std)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return image and target unchanged."""
        return image, target


def _scaling(image_size: Sequence[int] | None) -> dict[str, int]:
    """Arguments of torchvision's detectors."""
    return {} if image_size is None else {"min_size": image_size[0], "max_size": image_size[1]}


def _check_options(num_classes: int, image_size: Sequence[int] | None, anchor_sizes: Sequence[int]) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be positive (the background does not count), got {num_classes}.")
    if image_size is not None and (len(image_size) != 2 or not 1 <= image_size[0] <= image_size[1]):
        raise ValueError(f"image_size must be two numbers, the shorter side first, got {list(image_size)}.")
    if len(anchor_sizes) != 5 or min(anchor_sizes) < 1:
        raise ValueError(f"anchor_sizes must be 5 positive numbers, got {list(anchor_sizes)}.")


def _checked_targets(
    network: FasterRCNN | RetinaNet, images: list[Tensor], targets: list[dict[str, Tensor]] | None
) -> list[dict[str, Tensor]] | None:
    """Check images and targets; returns the targets if they are needed."""
    for image in images:
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(f"images must each be float (3, H, W), got {image.dtype} {tuple(image.shape)}.")
    if not network.training:
        return None
    name = type(network).__name__
    if targets is None:
        raise ValueError(f"{name} in training needs targets beside images; call eval() first to detect.")
    if len(targets) != len(images):
        raise ValueError(f"targets must be one for each of {len(images)} images, got {len(targets)}.")
    for i, target in enumerate(targets):
        missing = {"boxes", "labels", *(("masks",) if network.has_masks else ())} - target.keys()
        if missing:
            raise ValueError(f"targets of {name} need {', '.join(sorted(missing))}, but image {i} has none.")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            shapes = f"{tuple(boxes.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"boxes must be (K, 4) and labels (K,), got {shapes} for image {i}.")
        if (boxes[:, 2:] <= boxes[:, :2]).any():
            raise ValueError(f"boxes must be x1 y1 x2 y2 with x1 < x2 and y1 < y2, got others for image {i}.")
        if len(labels) and not 1 <= labels.min() <= labels.max() <= network.num_classes:
            found = f"{int(labels.min())}..{int(labels.max())}"
            raise ValueError(f"labels must be in 1..{network.num_classes}, got {found} for image {i}.")
    return targets
