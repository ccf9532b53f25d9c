import pytest
import torch

from pcea.datasets.points import PointDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric


def make(**changes):
    points = torch.arange(5 * 7 * 3.0).reshape(5, 7, 3)
    arguments = {"points": points, "label": torch.tensor([0, 1, 2, 1, 0]), "class_names": ["a", "b", "c"]}
    return PointDataset(**{**arguments, "normals": -points, **changes})


def test_a_batch_holds_the_clouds_asked_for():
    clouds = make()
    batch = clouds.batch([4, 1])
    assert torch.equal(batch.points, clouds.points[[4, 1]])
    assert torch.equal(batch.normals, -clouds.points[[4, 1]])
    assert batch.label.tolist() == [0, 1]
    assert (batch.category, batch.mask) == (None, None)
    assert make(normals=None).batch([0]).normals is None


def test_a_batch_is_a_copy():
    clouds = make()
    before = clouds.points.clone()
    clouds.batch([0, 1]).points.zero_()
    assert torch.equal(clouds.points, before)


def test_an_item_is_pyg_data():
    clouds = make()
    item = clouds[2]
    assert len(clouds) == 5
    assert torch.equal(item.pos, clouds.points[2])
    assert torch.equal(item.normal, -clouds.points[2])
    assert item.y == 2
    assert "category" not in item


def test_labels_of_any_whole_numbers_are_no_masks():
    """Which torch takes uint8 for where it is an index."""
    clouds = make(label=torch.tensor([0, 1, 2, 1, 0], dtype=torch.uint8))
    assert clouds.label.dtype == torch.int64
    assert clouds.with_classes(["c", "a", "b"]).label.tolist() == [1, 2, 0, 2, 1]


def test_a_split_is_balanced_by_class():
    assert make().strata.tolist() == [0, 1, 2, 1, 0]


def test_subset():
    clouds = make()
    subset = clouds.subset(torch.tensor([3, 0]))
    assert torch.equal(subset.points, clouds.points[[3, 0]])
    assert torch.equal(subset.normals, clouds.normals[[3, 0]])
    assert subset.label.tolist() == [1, 0]
    assert subset.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": torch.zeros(5, 7)}, r"points must be \(clouds, points, 3\), got \(5, 7\)"),
        ({"label": torch.zeros(4, dtype=torch.long)}, r"label must be \(5,\), got \(4,\)"),
        ({"label": torch.zeros(5, 7, dtype=torch.long)}, r"label must be \(5,\), got \(5, 7\).*PartDataset"),
        ({"normals": torch.zeros(5, 6, 3)}, r"shape of points \(5, 7, 3\), got \(5, 6, 3\)"),
        ({"class_names": ["a", "b"]}, r"labels must be in 0..1, got 0..2"),
        ({"label": torch.tensor([0, 1, -1, 1, 0])}, r"labels must be in 0..2, got -1..1"),
        ({"label": torch.full((5,), 0.7)}, "labels must be whole numbers, as int64, got torch.float32"),
        ({"points": torch.zeros(5, 7, 3, dtype=torch.int64)}, "points must be floating-point numbers, got torch.int64"),
        ({"normals": torch.full((5, 7, 3), torch.nan)}, "35 normals are NaN or infinite"),
    ],
)
def test_shapes_and_labels_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_coordinates_are_finite(value):
    points = torch.zeros(5, 7, 3)
    points[3, 2, 1] = value
    with pytest.raises(ValueError, match="1 of 5 clouds have NaN or infinite coordinates, first: cloud 3"):
        make(points=points)
