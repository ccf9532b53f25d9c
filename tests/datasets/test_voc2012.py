import pytest
from examples import strongest_reds, write_image

from pcea.datasets.batches import IGNORE
from pcea.datasets.voc2012 import read_voc2012


@pytest.fixture
def voc(tmp_path):
    """Two pictures in train, one more in trainaug, one in val."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for number, name in enumerate(("2007_000032", "2007_000039", "2008_000002", "2009_000001"), 1):
        write_image(folder / "JPEGImages" / f"{name}.jpg", [0] * 4, red=10 * number)
        write_image(folder / "SegmentationClassAug" / f"{name}.png", [0, 20, 255, number])
        if number != 3:
            write_image(folder / "SegmentationClass" / f"{name}.png", [0, 20, 255, 0])
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000039\n2007_000032\n")
    (lists / "trainaug.txt").write_text("2007_000032\n2007_000039\n2008_000002\n")
    (lists / "val.txt").write_text("2009_000001\n")
    return folder


@pytest.mark.parametrize("above", [0, 1, 2])
def test_voc2012(voc, above):
    root = [voc, *voc.parents][above]
    train, more, val = (read_voc2012(root, split) for split in ("train", "trainaug", "val"))
    assert [len(files) for files in (train, more, val)] == [2, 3, 1]
    assert strongest_reds(train) == pytest.approx([20, 10], abs=2)  # in the order of the list
    assert train[0][1].tolist() == [[0, 20, IGNORE, 0]]
    assert more[2][1].tolist() == [[0, 20, IGNORE, 3]]
    assert len(val.class_names) == 21
    assert (val.class_names[0], val.class_names[15], val.class_names[20]) == ("background", "person", "tvmonitor")


def test_voc2012_lacks_what_a_list_names(voc):
    (voc / "SegmentationClass" / "2007_000032.png").unlink()
    message = r"Segmentation/train\.txt names 2007_000032, but .* in .*SegmentationClass \(1 of 2"
    with pytest.raises(FileNotFoundError, match=message):
        read_voc2012(voc, "train")
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"No list .*trainaug\.txt"):
        read_voc2012(voc, "trainaug")


def test_voc2012_has_no_other_classes(voc):
    write_image(voc / "SegmentationClass" / "2009_000001.png", [0, 21, 0, 0])
    with pytest.raises(ValueError, match=r"2009_000001\.png has the value 21 at row 0, column 1\. Classes are 0\.\.20"):
        read_voc2012(voc, "val")[0]


def test_voc2012_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No VOCdevkit/VOC2012 under .*none of .*ImageSets/Segmentation"):
        read_voc2012(tmp_path, "val")
