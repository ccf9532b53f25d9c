import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from pcea.datasets.objects import ObjectDataset, TransformedObjects, box_area, clip_boxes

H, W = 11, 17
BOXES = [[1, 2, 5, 4], [10, 0, 17, 11], [6, 7, 9, 8]]


def rectangle(box):
    """The mask of a box with whole corners, (H, W) uint8."""
    x1, y1, x2, y2 = box
    mask = torch.zeros(H, W, dtype=torch.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


class Rectangles(ObjectDataset):
    """Images of one size; the masks are rectangles, so that they tell the boxes. Object k of image i is in class k."""

    category_ids = (3, 5, 8)
    class_names = ("a", "b", "c")

    def __init__(self, boxes=(BOXES,), *, masks=True, crowds=()):
        self.boxes, self.has_masks, self.crowds = boxes, masks, crowds
        self.image_names = [f"{number}.png" for number in range(len(boxes))]

    def __getitem__(self, index):
        own = self.boxes[index]
        image = torch.full((3, H, W), index, dtype=torch.uint8)
        target = {
            "boxes": torch.tensor(own, dtype=torch.float32).view(-1, 4),
            "labels": torch.arange(1, 1 + len(own)),
            "iscrowd": torch.tensor([int(k in self.crowds) for k in range(len(own))], dtype=torch.int64),
            "area": torch.tensor([10.0 * (k + 1) for k in range(len(own))]),
            "image_id": torch.tensor(100 + index),
        }
        if self.has_masks:
            target["masks"] = torch.stack([rectangle(b) for b in own]) if own else torch.zeros(0, H, W).byte()
        return image, target

    @property
    def strata(self):
        return torch.arange(len(self))


def transformed(*transforms, seed=0, number=0, **options):
    batch = TransformedObjects(Rectangles(**options), transforms, seed=seed).batch([number])
    return batch.images[0], batch.targets[0]


def test_boxes_are_clipped_by_hand():
    boxes = torch.tensor([[-2.0, -1, 3, 4], [15, 9, 30, 40], [18, 2, 20, 5], [4, 4, 6, 6]])
    expected = torch.tensor([[0.0, 0, 3, 4], [15, 9, 17, 11], [17, 2, 17, 5], [4, 4, 6, 6]])
    assert torch.equal(clip_boxes(boxes, H, W), expected)
    assert box_area(expected).tolist() == [12, 4, 0, 4]
    assert box_area(torch.tensor([[5.0, 5, 3, 3]])).tolist() == [0]  # not (-2) * (-2)
    assert clip_boxes(torch.zeros(0, 4), H, W).shape == (0, 4)


def test_without_transforms_targets_stay_as_they_were_read():
    source = Rectangles()
    [image], [target] = TransformedObjects(source).batch([0])
    assert torch.equal(image, source[0][0])
    assert all(torch.equal(target[name], values) for name, values in source[0][1].items())


def test_flips_by_hand():
    source = Rectangles()[0][1]
    _, target = transformed(v2.RandomHorizontalFlip(p=1.0))
    assert target["boxes"].tolist() == [[12, 2, 16, 4], [0, 0, 7, 11], [8, 7, 11, 8]]
    assert torch.equal(target["masks"], source["masks"].flip(2))
    _, target = transformed(v2.RandomVerticalFlip(p=1.0))
    assert target["boxes"].tolist() == [[1, 7, 5, 9], [10, 0, 17, 11], [6, 3, 9, 4]]
    assert torch.equal(target["masks"], source["masks"].flip(1))
    for name in ("labels", "iscrowd", "area", "image_id"):
        assert torch.equal(target[name], source[name])
    assert type(target["boxes"]) is type(target["masks"]) is torch.Tensor
    assert (target["boxes"].dtype, target["masks"].dtype) == (torch.float32, torch.uint8)


def test_resizing_scales_boxes_masks_and_area():
    image, target = transformed(v2.Resize((22, 51)))
    assert image.shape == (3, 22, 51)
    assert target["boxes"].tolist() == [[3, 4, 15, 8], [30, 0, 51, 22], [18, 14, 27, 16]]
    assert target["area"].tolist() == [60, 120, 180]
    assert masks_to_boxes(target["masks"])[0].tolist() == [3, 4, 14, 7]  # it counts the last pixel in


def test_what_a_crop_leaves():
    """Columns 8 to 17 and rows 0 to 11 stay: the first box is outside, the last is cut."""
    types = (tv_tensors.Image, tv_tensors.BoundingBoxes, tv_tensors.Mask)
    image, target = transformed(v2.Lambda(lambda values: v2.functional.crop(values, 0, 8, 11, 9), *types))
    assert image.shape == (3, 11, 9)
    assert target["boxes"].tolist() == [[2, 0, 9, 11], [0, 7, 1, 8]]
    assert target["labels"].tolist() == [2, 3]
    assert target["area"].tolist() == [20, 10]  # a third of the last box is left
    assert torch.equal(target["masks"], torch.stack([rectangle(b)[:, 8:] for b in BOXES[1:]]))


def test_masks_that_a_transform_empties_are_left_out():
    class Erase(nn.Module):
        def forward(self, image, objects):
            return image, objects | {"masks": objects["masks"] * torch.tensor([1, 0, 1]).byte().view(3, 1, 1)}

    _, target = transformed(Erase())
    assert target["labels"].tolist() == [1, 3]
    assert target["boxes"].tolist() == [BOXES[0], BOXES[2]]
    assert len(target["masks"]) == 2


def test_small_boxes_may_be_left_out():
    _, target = transformed(v2.SanitizeBoundingBoxes(min_size=3), crowds=(1,))
    assert target["labels"].tolist() == [2]
    assert target["boxes"].tolist() == [BOXES[1]]
    assert target["area"].tolist() == [20]
    assert target["iscrowd"].tolist() == [1]
    assert torch.equal(target["masks"], rectangle(BOXES[1])[None])


RANDOM = {
    "iou crop": v2.RandomIoUCrop(min_scale=0.5),
    "zoom out": v2.RandomZoomOut(p=1.0, side_range=(1.5, 2)),
    "resized crop": v2.RandomResizedCrop((13, 19), antialias=False),
    "scale jitter": v2.ScaleJitter((H, W), (0.5, 2), antialias=False),
    "crop": v2.RandomCrop((7, 13)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_boxes_and_masks_stay_together(name):
    """The mask of every object fills its box, up to the rounding of a scaled one."""
    tolerance = 1.01 if name in ("resized crop", "scale jitter") else 0
    counts, areas = set(), set()
    for number in range(40):
        image, target = transformed(RANDOM[name], number=number)
        counts.add(len(target["boxes"]))
        areas.add(round(float(target["area"].sum()), 3))
        assert len(target["masks"]) == len(target["labels"]) == len(target["iscrowd"]) == len(target["boxes"])
        assert target["masks"].shape[1:] == image.shape[1:]
        assert (box_area(target["boxes"]) > 0).all()
        if len(target["boxes"]):
            found = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
            assert (found - target["boxes"]).abs().max() <= tolerance
    assert counts == {3} or name != "zoom out"
    assert len(areas) > 1 or name == "zoom out"


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("masks", [False, True])
def test_an_image_without_objects(name, masks):
    image, target = transformed(RANDOM[name], boxes=([],), masks=masks)
    assert (target["boxes"].shape, target["labels"].shape, target["area"].shape) == ((0, 4), (0,), (0,))
    assert ("masks" in target) == masks
    if masks:
        assert target["masks"].shape == (0, *image.shape[1:])


def test_crowds_are_for_evaluation_alone():
    source = Rectangles(crowds=(0,))
    [_], [target] = TransformedObjects(source).batch([0])
    assert target["iscrowd"].tolist() == [1, 0, 0]
    for transforms in ((), (v2.RandomHorizontalFlip(p=0.0),)):
        [_], [target] = TransformedObjects(source, transforms, with_crowds=False).batch([0])
        assert target["labels"].tolist() == [2, 3]
        assert target["boxes"].tolist() == BOXES[1:]
        assert len(target["masks"]) == 2
        assert int(target["image_id"]) == 100


def test_transforms_must_leave_bytes():
    with pytest.raises(ValueError, match=r"must leave an image \(3, H, W\) uint8, got \(3, 11, 17\) torch.float32"):
        transformed(v2.ToDtype(torch.float32, scale=True))


def test_colours_change_and_objects_do_not():
    image, target = transformed(v2.ColorJitter(brightness=(3, 3)), boxes=(BOXES, BOXES), number=1)
    assert image.unique().tolist() == [3]
    assert target["boxes"].tolist() == BOXES


def test_a_subset_keeps_numbers_and_strata():
    chosen = Rectangles([BOXES, [], BOXES[:1]]).subset(torch.tensor([2, 0]))
    assert len(chosen) == 2
    assert chosen.image_names == ["2.png", "0.png"]
    assert chosen.strata.tolist() == [2, 0]
    assert (chosen.class_names, chosen.category_ids, chosen.has_masks) == (("a", "b", "c"), (3, 5, 8), True)
    image, target = chosen[0]
    assert (int(image[0, 0, 0]), int(target["image_id"]), len(target["boxes"])) == (2, 102, 1)
    [again] = chosen.subset(torch.tensor([1]))
    assert int(again[1]["image_id"]) == 100


@pytest.mark.parametrize("masks", [False, True])
def test_images_in_memory_are_the_same(masks):
    source = Rectangles([BOXES, [], BOXES[:1]], masks=masks)
    kept = source.in_memory("reading")
    source.boxes = None  # it is not asked again
    assert kept.in_memory("again") is kept
    assert (kept.class_names, kept.category_ids, kept.has_masks) == (("a", "b", "c"), (3, 5, 8), masks)
    assert kept.image_names == ["0.png", "1.png", "2.png"]
    assert kept.strata.tolist() == [0, 1, 2]
    fresh = Rectangles([BOXES, [], BOXES[:1]], masks=masks)
    for (image, target), (expected, theirs) in zip([kept[i] for i in range(3)], [fresh[i] for i in range(3)]):
        assert torch.equal(image, expected)
        assert target.keys() == theirs.keys()
        assert all(torch.equal(target[name], theirs[name]) for name in target)
