"""Heads of Cascade R-CNN: three detectors in a row, each on the boxes of the one before.

Source: Cai and Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection", 2018.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

# Of each stage: IoU from which a box counts as an object, weights of the regression, weight of the losses.
_OVERLAPS = (0.5, 0.6, 0.7)
_REGRESSION_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
_LOSS_WEIGHTS = (1.0, 0.5, 0.25)


class CascadeHeads(nn.Module):
    """Three RoI heads in a row, in place of torchvision's `RoIHeads`.

    Every stage moves its boxes by one regression for all classes, and the moved boxes are the proposals of the next.
    The first stage samples proposals as Faster R-CNN does, true boxes included; the others train on all boxes that they
    get. In evaluation the classifiers of all stages judge the proposals of the last, and their mean is the score. Masks
    are made for the boxes of the last stage, if it has a mask head.

    Args:
        first: Heads of a Faster R-CNN, which become the first stage; the others copy its sizes.
    """

    def __init__(self, first: RoIHeads):
        super().__init__()
        self.score_thresh, self.detections_per_img = first.score_thresh, first.detections_per_img
        in_channels, hidden = first.box_head.fc6.in_features, first.box_head.fc6.out_features
        num_classes = first.box_predictor.cls_score.out_features
        later = (
            _LaterStage(
                first.box_roi_pool,
                TwoMLPHead(in_channels, hidden),
                FastRCNNPredictor(hidden, num_classes),
                fg_iou_thresh=overlap,
                bg_iou_thresh=overlap,
                batch_size_per_image=first.fg_bg_sampler.batch_size_per_image,
                positive_fraction=first.fg_bg_sampler.positive_fraction,
                bbox_reg_weights=weights,
                score_thresh=first.score_thresh,
                nms_thresh=first.nms_thresh,
                detections_per_img=first.detections_per_img,
            )
            for overlap, weights in zip(_OVERLAPS[1:], _REGRESSION_WEIGHTS[1:])
        )
        stages = [first, *later]
        for stage in stages:
            stage.box_predictor.bbox_pred = nn.Linear(hidden, 4)
        self.stages: Any = nn.ModuleList(stages)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation, losses in training; arguments and results as for torchvision's `RoIHeads`.

        Args:
            features: Feature maps by name, (B, C, H, W).
            proposals: Boxes of each image, (N, 4).
            image_shapes: Rows and columns of each image, without padding.
            targets: Objects of each image; only in training.
        """
        losses: dict[str, Tensor] = {}
        for i, stage in enumerate(self.stages):
            if self.training:
                proposals, matched, labels, regression_targets = stage.select_training_samples(proposals, targets)
            pooled = stage.box_roi_pool(features, proposals, image_shapes)  # (all N, C, 7, 7)
            logits, regression = stage.box_predictor(stage.box_head(pooled))  # (all N, P + 1), (all N, 4)
            if self.training:
                by_class = regression.repeat(1, logits.shape[1])  # as torchvision's loss wants it
                classifier, box = fastrcnn_loss(logits, by_class, labels, regression_targets)
                losses[f"loss_classifier_{i}"] = _LOSS_WEIGHTS[i] * classifier
                losses[f"loss_box_reg_{i}"] = _LOSS_WEIGHTS[i] * box
            if stage is not self.stages[-1]:
                proposals = self._moved(stage, regression.detach(), proposals, image_shapes)
        if self.training:
            assert targets is not None
            if stage.has_mask():
                losses["loss_mask"] = _mask_loss(stage, features, proposals, image_shapes, matched, labels, targets)
            return [], losses
        return self._detections(features, pooled, regression, proposals, image_shapes), losses

    def _moved(
        self, stage: RoIHeads, regression: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """Boxes (N, 4) of each image after a stage's regression; in training without those that have no area."""
        boxes = stage.box_coder.decode(regression, proposals).view(-1, 4).split([len(boxes) for boxes in proposals])
        moved = [clip_boxes_to_image(found, shape) for found, shape in zip(boxes, image_shapes)]
        return [found[remove_small_boxes(found, 1e-2)] for found in moved] if self.training else moved

    def _detections(
        self,
        features: dict[str, Tensor],
        pooled: Tensor,
        regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        last = self.stages[-1]
        scores = torch.stack([stage.box_predictor(stage.box_head(pooled))[0].softmax(-1) for stage in self.stages])
        mean = scores.mean(0)  # (all N, P + 1)
        # torchvision takes logits: the softmax of the log is the mean itself.
        found = last.postprocess_detections(mean.log(), regression.repeat(1, mean.shape[1]), proposals, image_shapes)
        detections = [{"boxes": b, "scores": s, "labels": labels} for b, s, labels in zip(*found)]
        if last.has_mask():
            logits = _mask_logits(last, features, [image["boxes"] for image in detections], image_shapes)
            for image, masks in zip(detections, maskrcnn_inference(logits, [image["labels"] for image in detections])):
                image["masks"] = masks
        return detections


class _LaterStage(RoIHeads):
    """Trains on the boxes that the stage before moved, all of them, and nothing else."""

    def add_gt_proposals(self, proposals: list[Tensor], gt_boxes: list[Tensor]) -> list[Tensor]:  # noqa: ARG002
        return list(proposals)

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        return [torch.arange(len(image), device=image.device) for image in labels]


def _mask_logits(
    stage: RoIHeads, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
) -> Tensor:
    return stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, image_shapes)))


def _mask_loss(
    stage: RoIHeads,
    features: dict[str, Tensor],
    proposals: list[Tensor],
    image_shapes: list[tuple[int, int]],
    matched: list[Tensor],
    labels: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> Tensor:
    """Mask loss of the proposals that are objects."""
    objects = [label > 0 for label in labels]
    boxes = [image[real] for image, real in zip(proposals, objects)]
    matched = [image[real] for image, real in zip(matched, objects)]
    logits = _mask_logits(stage, features, boxes, image_shapes)
    masks, classes = ([target[name] for target in targets] for name in ("masks", "labels"))
    return maskrcnn_loss(logits, boxes, masks, classes, matched)
