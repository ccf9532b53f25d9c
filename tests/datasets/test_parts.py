import pytest
import torch

from pcea.datasets.parts import PartDataset, number_parts

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric

PARTS = {"mug": (0, 1), "lamp": (2, 3, 4)}
SIZES = [3, 1, 4, 2]
STARTS = [0, 3, 4, 8]


def make_labelled(**changes):
    """A mug of 3 points, a lamp of 1, a mug of 4 and a lamp of 2."""
    points = torch.arange(10 * 3.0).reshape(10, 3)
    arguments = {
        "points": points,
        "label": torch.tensor([0, 1, 0, 2, 1, 1, 0, 0, 3, 4]),
        "sizes": torch.tensor(SIZES),
        "class_names": ["a", "b", "c", "d", "e"],
        "normals": -points,
        "category": torch.tensor([0, 1, 0, 1]),
        "parts": PARTS,
    }
    return PartDataset(**{**arguments, **changes})


def test_labelled_points_are_padded_with_their_first_point():
    clouds = make_labelled()
    batch = clouds.batch([3, 0, 1])
    assert batch.points[:, :, 0].tolist() == [[24, 27, 24], [0, 3, 6], [9, 9, 9]]
    assert torch.equal(batch.normals, -batch.points)
    assert batch.label.tolist() == [[3, 4, 3], [0, 1, 0], [2, 2, 2]]
    assert batch.mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert batch.category.tolist() == [1, 0, 1]
    assert clouds.batch([2, 2]).mask is None
    bare = make_labelled(normals=None, category=None, parts=None).batch([3, 0])
    assert bare.normals is None
    assert bare.category is None


def test_a_labelled_item_is_pyg_data():
    clouds = make_labelled()
    assert len(clouds) == 4
    for index in range(4):
        rows = slice(STARTS[index], STARTS[index] + SIZES[index])
        item = clouds[index]
        assert torch.equal(item.pos, clouds.points[rows])
        assert torch.equal(item.normal, -item.pos)
        assert torch.equal(item.y, clouds.label[rows])
        assert item.category == index % 2
    bare = make_labelled(normals=None, category=None, parts=None)[-1]
    assert torch.equal(bare.pos, clouds.points[8:])
    assert "normal" not in bare
    assert "category" not in bare


def test_subset_of_labelled_points():
    clouds = make_labelled()
    subset = clouds.subset(torch.tensor([2, 3, 0]))
    assert subset.sizes.tolist() == [4, 2, 3]
    assert subset.points[:, 0].tolist() == [12, 15, 18, 21, 24, 27, 0, 3, 6]
    assert torch.equal(subset.normals, -subset.points)
    assert subset.label.tolist() == [1, 1, 0, 0, 3, 4, 0, 1, 0]
    assert subset.category.tolist() == [0, 1, 0]
    assert (subset.class_names, subset.parts) == (clouds.class_names, PARTS)
    assert len(clouds.subset(torch.tensor([], dtype=torch.int64))) == 0
    assert make_labelled(normals=None, category=None, parts=None).subset(torch.tensor([1])).parts == {}


def test_strata_are_the_categories():
    assert make_labelled().strata.tolist() == [0, 1, 0, 1]
    assert make_labelled(category=None, parts=None).strata.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": torch.zeros(10, 4)}, r"points must be \(points of all clouds, 3\), got \(10, 4\)"),
        ({"points": torch.zeros(2, 5, 3)}, r"points must be .* got \(2, 5, 3\)"),
        ({"label": torch.zeros(9, dtype=torch.long)}, r"label must be \(10,\), got \(9,\)"),
        ({"label": torch.zeros(10, 1, dtype=torch.long)}, r"label must be \(10,\), got \(10, 1\)"),
        ({"normals": torch.zeros(10, 2)}, r"normals must have the shape of points \(10, 3\), got \(10, 2\)"),
        ({"sizes": torch.tensor([3, 1, 4, 1])}, "sizes must be positive and sum to 10 points, got a sum of 9"),
        ({"sizes": torch.tensor([3, 0, 4, 3])}, "sizes must be positive"),
        ({"points": torch.full((10, 3), torch.nan)}, "10 points have NaN or infinite coordinates"),
        ({"class_names": ["a", "b", "c", "d"]}, r"labels must be in 0..3, got 0..4"),
        ({"category": None}, "category and parts belong together"),
        ({"parts": None}, "category and parts belong together"),
        ({"category": torch.tensor([0, 1, 0])}, r"category must be \(4,\) like sizes, got \(3,\)"),
        ({"category": torch.tensor([0, 1, 0, 2])}, r"categories must be in 0..1, got 0..2"),
        ({"category": torch.tensor([0, 1, 0, -1])}, r"categories must be in 0..1, got -1..1"),
        (
            {"category": torch.tensor([0, 1, 1, 1])},
            "Points of category lamp have label 0; its parts are 2 c, 3 d, 4 e",
        ),
    ],
)
def test_labelled_points_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        make_labelled(**changes)


def test_parts_are_numbered_through_all_categories():
    parts, names = number_parts({"mug": ["body", "handle"], "lamp": ["foot", "shade", "body"]})
    assert parts == PARTS
    assert names == ("mug/body", "mug/handle", "lamp/foot", "lamp/shade", "lamp/body")
