from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from pcea.models.rcnn import CascadeRCNN, FasterRCNN, MaskRCNN, RetinaNet
from pcea.nn.recording import record_attention

SMALL = {"num_classes": 3, "depth": 18, "channels": 16, "image_size": (64, 96), "anchor_sizes": (8, 16, 32, 64, 128)}
TWO_STAGES = {"hidden": 32, "proposals": (60, 30), "box_batch": 16}
DETECTORS = {
    "faster": partial(FasterRCNN, **SMALL, **TWO_STAGES),
    "mask": partial(MaskRCNN, **SMALL, **TWO_STAGES),
    "cascade": partial(CascadeRCNN, **SMALL, **TWO_STAGES),
    "cascade_mask": partial(CascadeRCNN, mask=True, **SMALL, **TWO_STAGES),
    "retina": partial(RetinaNet, **SMALL),
}
EACH = pytest.mark.parametrize("build", DETECTORS.values(), ids=DETECTORS)


def bright_square() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A dark image with one bright square."""
    image, masks = torch.rand(3, 64, 96) * 0.2, torch.zeros(1, 64, 96, dtype=torch.uint8)
    image[:, 16:48, 40:72] += 0.8
    masks[:, 16:48, 40:72] = 1
    boxes = torch.tensor([[40.0, 16, 72, 48]])
    return [image], [{"boxes": boxes, "labels": torch.tensor([2]), "masks": masks}]


def no_objects(H: int, W: int) -> dict[str, Tensor]:
    masks = torch.zeros(0, H, W, dtype=torch.uint8)
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": masks}


# Against torchvision


@pytest.mark.parametrize(
    ("build", "theirs", "count"),
    [
        (FasterRCNN, detection.fasterrcnn_resnet50_fpn, 41_755_286),
        (MaskRCNN, detection.maskrcnn_resnet50_fpn, 44_401_393),
        (RetinaNet, detection.retinanet_resnet50_fpn, 34_014_999),
    ],
)
def test_parameters_of_torchvision(build: Callable, theirs: Callable, count: int) -> None:
    with torch.device("meta"):
        frozen = build(num_classes=90, norm="frozen", external_attention=False)
        ours = build(num_classes=90, external_attention=False)
        published = theirs(weights=None, weights_backbone=None, num_classes=91)
    assert sum(weight.numel() for weight in frozen.parameters()) == count
    shapes = [{name: weight.shape for name, weight in m.state_dict().items()} for m in (ours, published)]
    assert shapes[0] == shapes[1]
    assert ours.transform.min_size == published.transform.min_size
    assert ours.transform.max_size == published.transform.max_size


def test_parameters_of_cascade_rcnn() -> None:
    with torch.device("meta"):
        cascade, mask = (CascadeRCNN(num_classes=80, external_attention=False, mask=m) for m in (False, True))
        faster, with_mask = (b(num_classes=80, external_attention=False) for b in (FasterRCNN, MaskRCNN))
    sizes = [sum(weight.numel() for weight in m.parameters()) for m in (cascade, mask, faster, with_mask)]
    # Three heads for one, each with one regression for all classes.
    head = (256 * 49 + 1) * 1024 + 1025 * 1024 + 1025 * (81 + 4)
    assert sizes[0] - sizes[2] == 3 * head - (head + 1025 * 4 * 80)
    assert sizes[1] - sizes[0] == sizes[3] - sizes[2]


@pytest.mark.parametrize(
    ("build", "theirs"), [(FasterRCNN, detection.FasterRCNN), (MaskRCNN, detection.MaskRCNN), (RetinaNet, None)]
)
@torch.no_grad()
def test_detections_of_torchvision(build: Callable, theirs: Callable | None) -> None:
    options = {"weights": None, "norm_layer": nn.BatchNorm2d, "trainable_layers": 5}
    if theirs is None:
        extra = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
        backbone = resnet_fpn_backbone(backbone_name="resnet18", **options, **extra)
        published = detection.RetinaNet(backbone, 4, min_size=64, max_size=96, detections_per_img=20)
        published.head.classification_head.cls_logits.bias[::4] = -100  # torchvision's may answer background
        published.score_thresh, threshold = 0.005, 0.005
    else:
        backbone = resnet_fpn_backbone(backbone_name="resnet18", **options)
        published = theirs(backbone, 4, min_size=64, max_size=96, box_detections_per_img=20)
        threshold = 0.05
    ours = build(
        num_classes=3,
        depth=18,
        external_attention=False,
        image_size=(64, 96),
        max_objects=20,
        score_threshold=threshold,
    )
    ours.load_state_dict(published.state_dict())
    images = [torch.rand(3, 70, 50), torch.rand(3, 40, 90)]
    for found, expected in zip(ours.eval()(images), published.eval()(images)):
        assert len(expected["boxes"]) == 20
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


# With and without external attention


@EACH
def test_same_seed_same_weights_with_and_without_external_attention(build: Callable) -> None:
    states = []
    for external_attention in (True, False):
        torch.manual_seed(2)
        states.append(build(external_attention=external_attention, memory_units=5).state_dict())
    names = {name for name in states[0] if not name.startswith("backbone.body.attention.")}
    assert names == states[1].keys() != states[0].keys()
    for name in names:
        assert torch.equal(states[0][name], states[1][name]), name


@EACH
def test_attention_has_rows_and_columns(build: Callable) -> None:
    network = build(memory_units=5, attention_width=7).eval()
    with torch.no_grad(), record_attention(network) as maps:
        network([torch.rand(3, 64, 96)])
    found = maps["backbone.body.attention.attention"]
    assert found.grid == (2, 3)
    assert found.weights.shape == (1, 6, 5)


# Training


@EACH
@pytest.mark.parametrize("autocast", [False, True])
def test_images_with_and_without_objects_train(build: Callable, autocast: bool) -> None:
    network, (images, targets) = build(), bright_square()
    images, targets = [*images, torch.rand(3, 50, 70)], [*targets, no_objects(50, 70)]
    before = deepcopy(targets)
    for batch in (slice(0, 2), slice(1, 2)):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = network(images[batch], targets[batch])
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert not [name for name, weight in network.named_parameters() if weight.grad is None]
        assert all(weight.grad.isfinite().all() for weight in network.parameters())
    for target, unchanged in zip(targets, before):
        assert all(torch.equal(target[name], unchanged[name]) for name in unchanged)


@EACH
def test_one_image_can_be_overfitted(build: Callable) -> None:
    network, (images, targets) = build(), bright_square()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    totals = []
    for _ in range(40):
        loss = sum(network(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert sum(totals[-3:]) < 0.7 * sum(totals[:3])  # the sampled proposals make noise
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of what follows
            module.reset_running_stats()
    with torch.no_grad():
        for _ in range(3):
            network(images, targets)
        [found] = network.eval()(images)
    assert found["labels"][0] == 2
    assert box_iou(found["boxes"][:1], targets[0]["boxes"]).item() > 0.5
    if network.has_masks:
        drawn = found["masks"][0, 0] > 0.5
        real = targets[0]["masks"][0] > 0
        assert (drawn & real).sum() > 0.5 * (drawn | real).sum()


# Detections


@EACH
@torch.no_grad()
def test_form_of_detections(build: Callable) -> None:
    network = build(score_threshold=0.0, max_objects=7).eval()
    sizes = [(50, 70), (128, 100)]
    for (H, W), found in zip(sizes, network([torch.rand(3, *size) for size in sizes])):
        assert found.keys() == {"boxes", "labels", "scores", *(["masks"] if network.has_masks else [])}
        assert len(found["boxes"]) == len(found["labels"]) == len(found["scores"]) == 7
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, 2].max() <= W + 1e-3
        assert found["boxes"][:, 3].max() <= H + 1e-3
        assert set(found["labels"].tolist()) <= {1, 2, 3}
        assert torch.equal(found["scores"], found["scores"].sort(descending=True)[0])
        if network.has_masks:
            assert found["masks"].shape == (7, 1, H, W)
            assert 0 <= found["masks"].min() <= found["masks"].max() <= 1


@EACH
@torch.no_grad()
def test_score_threshold(build: Callable) -> None:
    network = build(score_threshold=0.0).eval()
    images, state = [torch.rand(3, 64, 96)], network.state_dict()
    scores = network(images)[0]["scores"]
    threshold = scores[len(scores) // 2].item()
    strict = build(score_threshold=threshold).eval()
    strict.load_state_dict(state)
    assert torch.equal(strict(images)[0]["scores"], scores[scores > threshold])


@torch.no_grad()
def test_retinanet_never_answers_background() -> None:
    network = DETECTORS["retina"](max_objects=50).eval()
    network.head.classification_head.cls_logits.bias.view(-1, 4)[:] = torch.tensor([9.0, -2, -9, -2])
    [found] = network([torch.rand(3, 64, 96)])
    assert set(found["labels"].tolist()) == {1, 3}


@EACH
@torch.no_grad()
def test_autocast_leaves_boxes_exact(build: Callable) -> None:
    network, proposals, anchors = build(score_threshold=0.0, image_size=(300, 500)).eval(), [], []
    images, one_stage = [torch.rand(3, 300, 500)], isinstance(network, RetinaNet)
    generator = network.anchor_generator if one_stage else network.rpn.anchor_generator
    generator.register_forward_hook(lambda _, __, output: anchors.append(output[0]))
    if not one_stage:
        network.rpn.register_forward_hook(lambda _, __, output: proposals.append(output[0][0]))
    with torch.autocast("cpu", torch.bfloat16):
        [found] = network(images)
    network(images)
    assert anchors[0].dtype == torch.float32
    assert torch.equal(*anchors)
    assert {found["boxes"].dtype, found["scores"].dtype} == {torch.float32}
    for boxes in (found["boxes"], *proposals[:1]):
        inside = boxes[(boxes > 0).all(1) & (boxes[:, 2] < 500) & (boxes[:, 3] < 300)]
        assert len(inside) > 5
        assert (inside != inside.bfloat16()).float().mean() > 0.8


def test_detections_with_gradients_on() -> None:
    network = DETECTORS["retina"](score_threshold=0.0).eval()
    [found] = network([torch.rand(3, 64, 96)])
    found["scores"].sum().backward()
    assert network.head.classification_head.cls_logits.weight.grad.any()


# Options


@pytest.mark.parametrize("build", [FasterRCNN, MaskRCNN, CascadeRCNN])
def test_options_of_two_stages(build: Callable) -> None:
    options = {**SMALL, "norm": "frozen", "trainable_stages": 3, "attention_width": 7, "memory_units": 5}
    network = build(**options, hidden=32, proposals=(40, 20), box_batch=16)
    proposals, judged = [], []
    network.rpn.register_forward_hook(lambda _, __, output: proposals.append(len(output[0][0])))
    stage = network.roi_heads.stages[0] if build is CascadeRCNN else network.roi_heads
    stage.box_predictor.register_forward_hook(lambda _, inputs, __: judged.append(inputs[0].shape))
    images, targets = bright_square()
    network(images, targets)
    network.eval()(images)
    assert proposals == [40, 20]
    assert judged[0] == (16, 32)
    assert network.rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    check_resnet(network)


def test_options_of_retinanet() -> None:
    network = RetinaNet(**SMALL, norm="frozen", trainable_stages=3, attention_width=7, memory_units=5)
    assert network.anchor_generator.sizes[:2] == ((8, 10, 12), (16, 20, 25))
    check_resnet(network)


def check_resnet(network: nn.Module) -> None:
    body = network.backbone.body
    assert body.attention.attention.key.shape == (5, 7)
    assert type(body.bn1).__name__ == "FrozenBatchNorm2d"
    trained = {name.split(".")[0] for name, weight in body.named_parameters() if weight.requires_grad}
    assert trained == {"layer2", "layer3", "layer4", "attention"}


@EACH
def test_image_size(build: Callable) -> None:
    network, sizes = build().eval(), []
    network.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape[2:])))
    network([torch.rand(3, 32, 32)])  # to 64
    network([torch.rand(3, 20, 96)])  # as it is, padded to 32
    assert sizes == [(64, 64), (32, 96)]


@EACH
@torch.no_grad()
def test_images_as_they_are(build: Callable) -> None:
    network, images = (
        build(image_size=None, score_threshold=0.0).eval(),
        [torch.rand(3, 40, 130), torch.rand(3, 70, 50)],
    )
    seen, _ = network.transform(images)
    assert seen.image_sizes == [(40, 130), (70, 50)]
    for image, found in zip(images, network(images)):
        assert len(found["boxes"])
        assert (found["boxes"] <= torch.tensor([*image.shape[:0:-1]] * 2)).all()
        if network.has_masks:
            assert found["masks"].shape[2:] == image.shape[1:]


def test_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    chosen = {"num_classes": 2, "depth": 18, "image_size": [64, 96], "channels": 8, "norm": "frozen"}
    for build, own in ((FasterRCNN, {"hidden": 5}), (MaskRCNN, {"hidden": 5}), (CascadeRCNN, {"mask": True})):
        path = f"pcea.models.rcnn.{build.__name__}"
        parsed = parser.parse_object({"network": {"class_path": path, "init_args": chosen | own}})
        network = parser.instantiate(parsed).network
        assert type(network) is build
        assert (network.num_classes, network.has_masks) == (2, build is not FasterRCNN)
        with pytest.raises(Exception, match="widht"):
            parser.parse_object({"network": {"class_path": path, "init_args": {**chosen, "widht": 1}}})
    parsed = parser.parse_object({"network": {"class_path": "pcea.models.RetinaNet", "init_args": chosen}})
    assert not parser.instantiate(parsed).network.has_masks


# Errors


@EACH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, r"num_classes must be positive .*got 0"),
        ({"depth": 20}, "depth must be 18, 34, 50 or 101, got 20"),
        ({"norm": "group"}, "norm must be batch or frozen, got 'group'"),
        ({"image_size": (800,)}, r"image_size must be two numbers, .* got \[800\]"),
        ({"image_size": (800, 600)}, r"shorter side first, got \[800, 600\]"),
        ({"anchor_sizes": (8, 16)}, r"anchor_sizes must be 5 positive numbers, got \[8, 16\]"),
    ],
)
def test_constructor_errors(build: Callable, options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build(**options)


def test_numbers_of_proposals() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"proposals must be two positive numbers, .*\[100, 0\]"):
        DETECTORS["faster"](proposals=(100, 0))


SQUARE = {"boxes": torch.tensor([[1.0, 2, 3, 4]]), "labels": torch.tensor([1])}


@pytest.mark.parametrize("name", ["mask", "cascade_mask"])
def test_detectors_of_masks_need_masks(name: str) -> None:
    with pytest.raises(ValueError, match=r"targets of .*RCNN need masks, but image 0 has none"):
        DETECTORS[name]()([torch.rand(3, 64, 64)], [SQUARE])


@pytest.mark.parametrize("name", ["faster", "retina"])
@pytest.mark.parametrize(
    ("image", "targets", "message"),
    [
        (torch.rand(1, 64, 64), [SQUARE], r"images must each be float \(3, H, W\), got torch.float32 \(1, 64, 64\)"),
        (torch.rand(2, 3, 64, 64), [SQUARE], r"got torch.float32 \(2, 3, 64, 64\)"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), [SQUARE], r"must each be float .* got torch.uint8"),
        (torch.rand(3, 64, 64), None, "in training needs targets beside images"),
        (torch.rand(3, 64, 64), [SQUARE, SQUARE], "one for each of 1 images, got 2"),
        (torch.rand(3, 64, 64), [{"boxes": SQUARE["boxes"]}], "need labels, but image 0 has none"),
        (torch.rand(3, 64, 64), [SQUARE | {"boxes": torch.ones(4)}], r"boxes must be \(K, 4\) .*got \(4,\) and \(1,\)"),
        (torch.rand(3, 64, 64), [SQUARE | {"labels": torch.tensor([1, 1])}], r"got \(1, 4\) and \(2,\) for image 0"),
        (torch.rand(3, 64, 64), [SQUARE | {"boxes": torch.tensor([[1.0, 2, 1, 4]])}], "x1 < x2 and y1 < y2"),
        (torch.rand(3, 64, 64), [SQUARE | {"labels": torch.tensor([4])}], r"labels must be in 1\.\.3, got 4\.\.4"),
        (torch.rand(3, 64, 64), [SQUARE | {"labels": torch.tensor([0])}], r"labels must be in 1\.\.3, got 0\.\.0"),
    ],
)
def test_forward_errors(name: str, image: Tensor, targets: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DETECTORS[name]()([image], targets)
