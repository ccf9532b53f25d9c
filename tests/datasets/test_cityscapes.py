import pytest
from examples import strongest_reds, write_image

from pcea.datasets.batches import IGNORE
from pcea.datasets.cityscapes import read_cityscapes


@pytest.fixture
def cityscapes(tmp_path):
    folder = tmp_path / "cityscapes"
    for split, city, number in (("train", "ulm", 1), ("train", "aachen", 2), ("val", "bonn", 3)):
        name = f"{city}_000000_000019"
        write_image(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", [0] * 35, red=number)
        write_image(folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", [*range(34), 255])
        write_image(folder / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", [0] * 35)
        (folder / "gtFine" / split / city / f"{name}_gtFine_polygons.json").touch()
    return folder


@pytest.mark.parametrize("above", [0, 1])
def test_cityscapes(cityscapes, above):
    root = [cityscapes, *cityscapes.parents][above]
    train, val = (read_cityscapes(root, split) for split in ("train", "val"))
    assert strongest_reds(train) == [2, 1]
    assert strongest_reds(val) == [3]
    # The 19 classes of the benchmark, by their ids: road is 7, bicycle 33.
    expected = [IGNORE] * 35
    for number, value in enumerate((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)):
        expected[value] = number
    assert train[0][1].tolist() == [expected]
    assert len(train.class_names) == 19
    assert (train.class_names[0], train.class_names[18]) == ("road", "bicycle")


def test_cityscapes_lacks_something(cityscapes):
    (cityscapes / "gtFine" / "val" / "bonn" / "bonn_000000_000019_gtFine_labelIds.png").unlink()
    write_image(cityscapes / "gtFine" / "val" / "bonn" / "x_gtFine_labelIds.png", [0])
    with pytest.raises(ValueError, match=r"bonn_000000_000019_leftImg8bit\.png has no mask"):
        read_cityscapes(cityscapes, "val")
    with pytest.raises(FileNotFoundError, match=r"No folder .*leftImg8bit/test"):
        read_cityscapes(cityscapes, "test")
    (cityscapes / "leftImg8bit" / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No city folders under .*leftImg8bit/test"):
        read_cityscapes(cityscapes, "test")


def test_cityscapes_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No cityscapes under .*cityscapes/gtFine is there"):
        read_cityscapes(tmp_path, "val")
