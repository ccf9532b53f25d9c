import pytest
import torch
from torch import Tensor

from pcea.datasets.batches import IGNORE, ImageBatch
from pcea.transforms.images import RandomErase, RandomFlip, RandomScaledCrop, RandomShift

BATCHED = [RandomShift(extent=2), RandomFlip(), RandomErase(probability=0.5)]


def numbered(B=7, H=11, W=13) -> Tensor:
    """Images of different positive numbers, so that each says where it came from."""
    return torch.arange(1.0, B * 3 * H * W + 1).view(B, 3, H, W)


def batch(**sizes) -> ImageBatch:
    images = numbered(**sizes)
    return ImageBatch(images, torch.arange(len(images)))


@pytest.mark.parametrize("transform", BATCHED, ids=lambda t: type(t).__name__)
def test_it_is_seeded_and_leaves_its_input_alone(transform):
    given = batch()
    outputs = [transform(given, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(outputs[0].images, outputs[1].images)
    assert not torch.equal(outputs[0].images, outputs[2].images)
    assert torch.equal(given.images, numbered())
    assert torch.equal(outputs[0].label, given.label)


@pytest.mark.parametrize("transform", BATCHED, ids=lambda t: type(t).__name__)
def test_images_draw_numbers_of_their_own(transform, generator):
    same = ImageBatch(numbered(B=1).repeat(40, 1, 1, 1), torch.zeros(40, dtype=torch.int64))
    assert len(transform(same, generator=generator).images.flatten(1).unique(dim=0)) > 1


def test_a_shift_by_hand(generator):
    image = torch.arange(1.0, 7).view(1, 1, 2, 3).repeat(500, 3, 1, 1)
    shifted = RandomShift(extent=1)(ImageBatch(image, torch.zeros(500, dtype=torch.int64)), generator=generator).images
    found = {tuple(own[0].flatten().int().tolist()) for own in shifted}
    rows = {-1: [[0, 0, 0], [1, 2, 3]], 0: [[1, 2, 3], [4, 5, 6]], 1: [[4, 5, 6], [0, 0, 0]]}
    expected = set()
    for own in rows.values():
        expected.add(tuple(value for row in own for value in row))
        expected.add(tuple(value for row in own for value in [0, *row[:2]]))
        expected.add(tuple(value for row in own for value in [*row[1:], 0]))
    assert found == expected  # all nine, and no other
    assert all(torch.equal(own[0], own[2]) for own in shifted)


def test_no_shift_changes_nothing(generator):
    assert torch.equal(RandomShift(extent=0)(batch(), generator=generator).images, numbered())


def test_a_flip_takes_the_labels_of_pixels_along(generator):
    images = numbered(B=200)
    flipped, label = RandomFlip(probability=0.25)(ImageBatch(images, images[:, 0].long()), generator=generator)
    mirrored = (flipped != images).flatten(1).any(1)
    assert torch.equal(flipped[mirrored], images[mirrored].flip(-1))
    assert torch.equal(label, flipped[:, 0].long())
    assert 30 < int(mirrored.sum()) < 70
    for probability, expected in ((0.0, images), (1.0, images.flip(-1))):
        flipped, _ = RandomFlip(probability=probability)(ImageBatch(images, images[:, 0].long()))
        assert torch.equal(flipped, expected)


def test_what_is_erased_is_one_rectangle_of_the_right_area(generator):
    H, W = 40, 50
    images = torch.full((400, 3, H, W), 100.0)
    erase = RandomErase(probability=0.75, low=0.1, high=0.2, ratio=0.5)
    erased = erase(ImageBatch(images, torch.zeros(400, dtype=torch.int64)), generator=generator).images
    changed = (erased != 100).all(1)
    assert torch.equal(changed, (erased != 100).any(1))
    chosen = changed.flatten(1).any(1)
    assert 260 < int(chosen.sum()) < 340
    rows, columns = changed.any(2)[chosen], changed.any(1)[chosen]
    height, width = rows.sum(1), columns.sum(1)
    assert torch.equal(changed[chosen].sum((1, 2)), height * width)
    for line in (rows, columns):  # one run: it starts once
        assert int((line[:, 1:] & ~line[:, :-1]).sum(1).max()) <= 1
    area, ratio = height * width / (H * W), height / width
    assert 0.09 < float(area.min()) < 0.11
    assert 0.19 < float(area.max()) < 0.21
    assert 0.45 < float(ratio.min()) < 0.6
    assert 1.7 < float(ratio.max()) < 2.2
    assert rows[:, 0].any()  # they reach every border
    assert rows[:, -1].any()
    assert columns[:, -1].any()
    noise = erased[erased != 100]
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_a_rectangle_longer_than_the_image_is_cut_off(generator):
    wide = batch(B=50, H=3, W=1000)
    erased = RandomErase(probability=1, low=0.9, high=0.9, ratio=1)(wide, generator=generator)
    assert (erased.images != wide.images).sum((1, 2, 3)).unique().tolist() == [3 * 3 * 52]  # sqrt(0.9 * 3 * 1000)


@pytest.mark.parametrize("transform", [RandomShift(), RandomErase()], ids=lambda t: type(t).__name__)
def test_some_are_for_classes_of_images_alone(transform):
    with pytest.raises(ValueError, match=rf"{type(transform).__name__} is for images with one class each"):
        transform(ImageBatch(numbered(), numbered()[:, 0].long()))


def scene(H, W) -> tuple[Tensor, Tensor]:
    """An image whose red says the row and green the column, and a mask that equals red."""
    row, column = torch.arange(H).view(H, 1).expand(H, W), torch.arange(W).expand(H, W)
    image = torch.stack([row, column, torch.full((H, W), 7)]).to(torch.uint8)
    return image, row.to(torch.uint8)


def test_a_crop_without_scaling_is_a_window():
    image, mask = scene(50, 70)
    corners = set()
    for _ in range(400):
        part, labels = RandomScaledCrop((17, 23), low=1, high=1)(image, mask)
        top, left = int(part[0, 0, 0]), int(part[1, 0, 0])
        assert torch.equal(part, image[:, top : top + 17, left : left + 23])
        assert torch.equal(labels, mask[top : top + 17, left : left + 23])
        corners.add((top, left))
    tops, lefts = zip(*corners)
    assert (min(tops), max(tops)) == (0, 33)
    assert (min(lefts), max(lefts)) == (0, 47)


@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_a_crop_with_scaling_magnifies_image_and_mask_alike(scale):
    image, mask = scene(120, 200)
    part, labels = RandomScaledCrop((24, 36), low=scale, high=scale)(image, mask)
    assert part.shape == (3, 24, 36)
    assert part.dtype == labels.dtype == torch.uint8
    # Away from the borders, red and green rise by 1 / scale a pixel; they are whole numbers.
    inner = part[:2, 2:-2, 2:-2].float()
    assert inner[0].diff(dim=0).mean() == pytest.approx(1 / scale, abs=1 / 19)
    assert inner[1].diff(dim=1).mean() == pytest.approx(1 / scale, abs=1 / 19)
    assert (inner[0] - labels[2:-2, 2:-2].float()).abs().max() <= 1
    assert (part[2] == 7).all()


def test_scales_are_uniform_between_the_bounds():
    image, mask = scene(200, 200)
    crop = RandomScaledCrop((40, 40), low=0.5, high=2.0)
    steps = torch.stack([crop(image, mask)[0][0, 2:-2].float().diff(dim=0).mean() for _ in range(300)])
    scales = 1 / steps
    assert 0.48 < float(scales.min()) < 0.55
    assert 1.9 < float(scales.max()) < 2.1
    assert scales.mean() == pytest.approx(1.25, abs=0.08)


def test_an_image_smaller_than_the_crop_is_padded():
    image, mask = scene(5, 90)
    places = set()
    for _ in range(100):
        part, labels = RandomScaledCrop((11, 13), low=1, high=1, fill=(1, 2, 3))(image, mask)
        padded = labels == IGNORE
        assert int((~padded).sum()) == 5 * 13
        assert (part[:, padded] == torch.tensor([[1], [2], [3]])).all()
        assert torch.equal(part[0][~padded], labels[~padded])
        places.add(int((~padded[:, 0]).int().argmax()))
    assert places == set(range(7))


def test_a_tiny_image_and_a_huge_factor():
    part, labels = RandomScaledCrop((6, 4), low=0.01, high=0.01)(*scene(3, 5))
    assert int((labels != IGNORE).sum()) == 1
    part, labels = RandomScaledCrop((6, 4), low=100, high=100)(*scene(3, 5))
    assert len(labels.unique()) == 1
    assert labels.max() < 3
    assert part.shape == (3, 6, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomShift(extent=-1), "extent must not be negative, got -1"),
        (lambda: RandomFlip(probability=1.5), r"probability must be in 0\.\.1, got 1\.5"),
        (lambda: RandomErase(probability=-0.5), r"probability must be in 0\.\.1, got -0\.5"),
        (lambda: RandomErase(low=0.5, high=0.25), r"0 < low <= high <= 1 .* got low=0\.5, high=0\.25"),
        (lambda: RandomErase(ratio=2), r"0 < ratio <= 1 expected, .* ratio=2"),
        (lambda: RandomScaledCrop((5,)), r"size must be a positive height and width, got \[5\]"),
        (lambda: RandomScaledCrop((5, 5), low=0), r"0 < low <= high expected, got low=0"),
        (
            lambda: RandomScaledCrop((5, 5), fill=(0, 0, 256)),
            r"fill must be three numbers in 0\.\.255, got \[0, 0, 256\]",
        ),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
