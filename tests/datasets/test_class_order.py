"""Classes are matched by name, whatever their numbers: every kind of dataset can be renumbered."""

import numpy as np
import pytest
import torch
from PIL import Image

from pcea.datasets.images import ImageFiles, ImageTensors
from pcea.datasets.masks import MaskFiles
from pcea.datasets.objects import ObjectDataset
from pcea.datasets.parts import PartDataset
from pcea.datasets.points import PointDataset
from pcea.datasets.splits import class_order

OURS, THEIRS = ("a", "b", "c"), ("c", "a", "b")


def test_the_order_by_hand():
    assert class_order(OURS, THEIRS).tolist() == [1, 2, 0]
    assert class_order(OURS, OURS).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (("a", "b", "z"), r"the data has class 'z', which the network does not know and the network knows class 'c'"),
        (("a", "b"), r"other classes: the network knows class 'c', which the data does not have\. Rename"),
        (tuple("defgh"), r"'d', 'e', 'f' and 2 more"),
    ],
)
def test_other_names_are_refused(ours, message):
    with pytest.raises(ValueError, match=message):
        class_order(ours, THEIRS)


def names(dataset, labels):
    return [dataset.class_names[int(label)] for label in labels]


def test_points():
    given = PointDataset(torch.rand(4, 5, 3), torch.tensor([0, 2, 1, 0]), class_names=OURS)
    other = given.with_classes(THEIRS)
    assert names(other, other.label) == names(given, given.label) == ["a", "c", "b", "a"]
    assert other.class_names == THEIRS
    assert other.points is given.points


def test_parts_and_their_categories():
    parts = {"x": (0, 2), "y": (1,)}
    given = PartDataset(
        torch.rand(5, 3), torch.tensor([0, 2, 0, 1, 1]), torch.tensor([3, 2]), class_names=OURS,
        category=torch.tensor([0, 1]), parts=parts,
    )  # fmt: skip
    other = given.with_classes(THEIRS, {"y": (2,), "x": (1, 0)})
    assert names(other, other.label) == ["a", "c", "a", "b", "b"]
    assert [list(other.parts)[c] for c in other.category.tolist()] == ["x", "y"]
    with pytest.raises(ValueError, match="the data has category 'x'"):
        given.with_classes(THEIRS, {"y": (2,), "z": (1, 0)})


def test_images():
    label = torch.tensor([0, 2, 1])
    for given in (
        ImageTensors(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), label, class_names=OURS),
        ImageFiles(["1", "2", "3"], label, class_names=OURS),
    ):
        other = given.with_classes(THEIRS)
        assert names(other, other.label) == ["a", "c", "b"]


def test_masks_keep_what_is_ignored(tmp_path):
    mask = torch.tensor([[0, 1, 2], [255, 2, 0]], dtype=torch.uint8)
    Image.fromarray(mask.numpy()).save(tmp_path / "m.png")
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "i.png")
    expected = torch.tensor([[1, 2, 0], [255, 0, 1]], dtype=torch.uint8)
    files = MaskFiles(
        [tmp_path / "i.png"], [tmp_path / "m.png"], classes={0: 0, 1: 1, 2: 2, 255: 255}, class_names=OURS
    )
    held = ImageTensors(torch.zeros(1, 3, 2, 3, dtype=torch.uint8), mask[None], class_names=OURS)
    for given in (files, held):
        assert torch.equal(given.with_classes(THEIRS)[0][1], expected)


class Objects(ObjectDataset):
    class_names, category_ids, image_names, has_masks = OURS, (10, 20, 30), ["one"], False

    def __getitem__(self, index):
        return torch.zeros(3, 4, 4, dtype=torch.uint8), {"labels": torch.tensor([1, 3, 2])}


def test_objects_and_their_numbers_in_the_files():
    other = Objects().with_classes(THEIRS)
    _, target = other[0]
    assert names(other, target["labels"] - 1) == ["a", "c", "b"]
    assert other.category_ids == (30, 10, 20)
    assert len(other) == 1
