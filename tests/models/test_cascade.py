import math

import pytest
import torch
from torch import Tensor, nn

from pcea.models.cascade import CascadeHeads
from pcea.models.rcnn import CascadeRCNN

SHAPE = (64, 128)  # of the image


def heads(**options: object) -> CascadeHeads:
    """Untrained heads for three classes, on feature maps of four channels."""
    network = CascadeRCNN(num_classes=3, depth=18, channels=4, hidden=7, box_batch=16, **options)
    return network.roi_heads


def features() -> dict[str, Tensor]:
    return {
        str(i): torch.randn(1, 4, SHAPE[0] // stride, SHAPE[1] // stride) for i, stride in enumerate((4, 8, 16, 32))
    }


def answer_always(cascade: CascadeHeads, logits: list[list[float]], regression: list[float]) -> None:
    """Let every stage give its logits and the same regression, whatever it sees."""
    for stage, of_stage in zip(cascade.stages, logits):
        nn.init.zeros_(stage.box_predictor.cls_score.weight)
        nn.init.zeros_(stage.box_predictor.bbox_pred.weight)
        stage.box_predictor.cls_score.bias.data = torch.tensor(of_stage)
        stage.box_predictor.bbox_pred.bias.data = torch.tensor(regression)


def target(*boxes: list[float], masks: Tensor | None = None) -> list[dict[str, Tensor]]:
    objects = {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.full((len(boxes),), 2)}
    return [objects if masks is None else objects | {"masks": masks}]


@torch.no_grad()
def test_boxes_move_thrice_and_scores_are_the_mean() -> None:
    cascade = heads().eval()
    logits = [[0.0, 0, 3, 0], [0.0, 0, 2, 0], [0.0, 0, 1, 0]]
    answer_always(cascade, logits, [1.0, 0, 0, -1.0])
    [found], losses = cascade(features(), [torch.tensor([[20.0, 10, 60, 42]])], [SHAPE])
    assert losses == {}
    # To the right by width / 10, / 20, / 30; lower by exp(-1 / 5), exp(-1 / 10), exp(-1 / 15) about the center.
    shift, half = 40 * (1 / 10 + 1 / 20 + 1 / 30), 16 * math.exp(-(1 / 5 + 1 / 10 + 1 / 15))
    expected = torch.tensor([20 + shift, 26 - half, 60 + shift, 26 + half])
    best = found["labels"].tolist().index(2)
    torch.testing.assert_close(found["boxes"][best], expected)
    score = sum(math.exp(x) / (3 + math.exp(x)) for x in (3, 2, 1)) / 3
    assert found["scores"][best].item() == pytest.approx(score)
    assert sorted(found["labels"].tolist()) == [1, 2, 3]
    assert 0 not in found["labels"]


@torch.no_grad()
def test_all_classifiers_judge_the_last_proposals() -> None:
    cascade, seen = heads().eval(), {}
    answer_always(cascade, [[0.0] * 4] * 3, [1.0, 0, 0, 0])
    for i, stage in enumerate(cascade.stages):
        stage.box_head.register_forward_hook(lambda _, inputs, __, i=i: seen.setdefault(i, []).append(inputs[0]))
    cascade(features(), [torch.tensor([[20.0, 10, 60, 42]])], [SHAPE])
    assert torch.equal(seen[0][-1], seen[2][0])
    assert torch.equal(seen[1][-1], seen[2][0])
    assert not torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[1][0], seen[2][0])


def test_stages_are_ever_stricter() -> None:
    # Of the object's height, so that this is the IoU.
    proposals = [torch.tensor([[0.0, 0, 100, 100 * iou] for iou in (0.45, 0.55, 0.65, 0.75)])]
    objects = target([0.0, 0, 100, 100])
    first, second, third = (stage.select_training_samples(list(proposals), objects) for stage in heads().stages)
    assert first[2][0].tolist() == [0, 2, 2, 2, 2]  # the object itself is the last
    assert second[2][0].tolist() == [0, 0, 2, 2]
    assert third[2][0].tolist() == [0, 0, 0, 2]
    # log(1 / 0.75) in height, times the stage's weight.
    assert [s[3][0][3, 3].item() for s in (first, second, third)] == pytest.approx(
        [w * math.log(1 / 0.75) for w in (5, 10, 15)], rel=1e-5
    )


def test_later_stages_train_on_all_boxes() -> None:
    stage = heads().stages[1]
    boxes = torch.tensor([[0.0, 0, 100, 100]]).repeat(40, 1)  # box_batch is 16, a quarter of them objects
    _, _, [labels], _ = stage.select_training_samples([boxes], target([0.0, 0, 100, 100]))
    assert labels.tolist() == [2] * 40


def test_losses_by_hand() -> None:
    cascade = heads()
    answer_always(cascade, [[0.0] * 4] * 3, [0.0] * 4)
    _, losses = cascade(features(), [torch.tensor([[0.0, 0, 100, 52]])], [SHAPE], target([0.0, 0, 100, 60]))
    for i, weight in enumerate((1, 0.5, 0.25)):
        assert losses[f"loss_classifier_{i}"].item() == pytest.approx(weight * math.log(4))
        # Proposal and object; the object's own box needs no regression.
        y, h = (10, 5) if i == 0 else (20, 10) if i == 1 else (30, 15)
        errors = [y * 4 / 52, h * math.log(60 / 52)]
        smooth = sum(e - 1 / 18 if e > 1 / 9 else 4.5 * e * e for e in errors)
        assert losses[f"loss_box_reg_{i}"].item() == pytest.approx(weight * smooth / 2, rel=1e-5)
    assert set(losses) == {f"loss_{kind}_{i}" for kind in ("classifier", "box_reg") for i in range(3)}


def test_moved_boxes_carry_no_gradient() -> None:
    cascade = heads()
    _, losses = cascade(features(), [torch.tensor([[0.0, 0, 100, 50]])], [SHAPE], target([0.0, 0, 100, 60]))
    (losses["loss_box_reg_1"] + losses["loss_box_reg_2"]).backward()
    assert cascade.stages[0].box_predictor.bbox_pred.weight.grad is None
    assert cascade.stages[1].box_predictor.bbox_pred.weight.grad.any()


@pytest.mark.parametrize("training", [True, False])
def test_boxes_are_clipped_and_those_of_no_area_are_not_trained_on(training: bool) -> None:
    cascade, seen = heads().train(training), []
    answer_always(cascade, [[0.0] * 4] * 3, [10.0, 0, 0, 0])  # by one width to the right
    cascade.stages[1].box_roi_pool.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1][0]))
    proposals = [torch.tensor([[90.0, 0, 128, 20], [70.0, 0, 110, 20]])]
    cascade(features(), proposals, [SHAPE], target() if training else None)
    moved = [[128.0, 0, 128, 20], [110.0, 0, 128, 20]]
    torch.testing.assert_close(seen[1], torch.tensor(moved[1:] if training else moved))


def test_masks_are_of_the_last_stage() -> None:
    cascade, seen = heads(mask=True), []
    answer_always(cascade, [[0.0] * 4] * 3, [0.0] * 4)
    last = cascade.stages[-1]
    last.mask_roi_pool.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1][0]))
    proposals = [torch.tensor([[0.0, 0, 100, 50 * iou] for iou in (0.65, 0.75)])]  # to the last, one of them is one
    masks = torch.ones(1, *SHAPE, dtype=torch.uint8)
    nn.init.zeros_(last.mask_predictor.mask_fcn_logits.weight)
    nn.init.zeros_(last.mask_predictor.mask_fcn_logits.bias)
    _, losses = cascade(features(), proposals, [SHAPE], target([0.0, 0, 100, 50], masks=masks))
    assert losses["loss_mask"].item() == pytest.approx(math.log(2))
    torch.testing.assert_close(seen[0], torch.tensor([[0.0, 0, 100, 37.5], [0, 0, 100, 50]]))
    _, losses = cascade(features(), proposals, [SHAPE], target(masks=masks[:0]))
    assert losses["loss_mask"].item() == 0

    cascade.eval()
    with torch.no_grad():
        answer_always(cascade, [[0.0] * 4] * 3, [1.0, 0, 0, 0])
        last.mask_predictor.mask_fcn_logits.bias.data = torch.tensor([0.0, 1, 2, 3])
        [found], _ = cascade(features(), [torch.tensor([[20.0, 10, 60, 42]])], [SHAPE])
    assert torch.equal(seen[-1], found["boxes"])
    assert found["masks"].shape == (3, 1, 28, 28)
    for label, mask in zip(found["labels"].tolist(), found["masks"]):
        torch.testing.assert_close(mask, torch.tensor(float(label)).sigmoid().expand(1, 28, 28))
