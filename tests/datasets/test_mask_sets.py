import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pcea.datasets.batches import IGNORE
from pcea.datasets.mask_sets import CAMVID_CLASSES, read_ade20k, read_camvid, read_cityscapes, read_voc2012

DATA = Path(os.environ.get("PCEA_DATA", "data"))


def write(path, values, red=0):
    """A mask of one row, or, with `red`, a picture of the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.array([values], dtype=np.uint8)
    if red:
        values = np.stack([np.full_like(values, red)] * 3, axis=-1)
    Image.fromarray(values).save(path)


def reds(files):
    return [int(files[i][0].max()) for i in range(len(files))]


@pytest.fixture
def voc(tmp_path):
    """Two pictures in train, one more in trainaug, one in val."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for number, name in enumerate(("2007_000032", "2007_000039", "2008_000002", "2009_000001"), 1):
        write(folder / "JPEGImages" / f"{name}.jpg", [0] * 4, red=10 * number)
        write(folder / "SegmentationClassAug" / f"{name}.png", [0, 20, 255, number])
        if number != 3:
            write(folder / "SegmentationClass" / f"{name}.png", [0, 20, 255, 0])
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
    assert reds(train) == pytest.approx([20, 10], abs=2)  # in the order of the list
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
    write(voc / "SegmentationClass" / "2009_000001.png", [0, 21, 0, 0])
    with pytest.raises(ValueError, match=r"2009_000001\.png has the value 21 at row 0, column 1\. Classes are 0\.\.20"):
        read_voc2012(voc, "val")[0]


@pytest.fixture
def ade20k(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    for split, count in (("training", 2), ("validation", 1)):
        for number in range(count):
            write(folder / "images" / split / f"ADE_{number}.jpg", [0] * 3, red=50 + number)
            write(folder / "annotations" / split / f"ADE_{number}.png", [0, 1, 150])
    return folder


@pytest.mark.parametrize("above", [0, 1])
def test_ade20k(ade20k, above):
    root = [ade20k, *ade20k.parents][above]
    training, validation = (read_ade20k(root, split) for split in ("training", "validation"))
    assert (len(training), len(validation)) == (2, 1)
    assert training[1][1].tolist() == [[IGNORE, 0, 149]]
    assert (training.class_names[0], training.class_names[149]) == ("class 1", "class 150")


def test_ade20k_names_its_classes(ade20k):
    rows = [f"{i}\t0.1\t5\t6\t0\tthing {i}, stuff {i}" for i in range(1, 151)]
    (ade20k / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")
    assert read_ade20k(ade20k, "training").class_names[::149] == ("thing 1", "thing 150")
    (ade20k / "objectInfo150.txt").write_text("\n".join(["Idx", *rows[:-1]]))
    with pytest.raises(ValueError, match=r"objectInfo150\.txt must have a row for each of 150 classes .* got 149"):
        read_ade20k(ade20k, "training")


def test_ade20k_lacks_an_annotation(ade20k):
    (ade20k / "annotations" / "training" / "ADE_1.png").unlink()
    with pytest.raises(ValueError, match=r"ADE_1\.jpg has no mask of the same name"):
        read_ade20k(ade20k, "training")


@pytest.fixture
def cityscapes(tmp_path):
    folder = tmp_path / "cityscapes"
    for split, city, number in (("train", "ulm", 1), ("train", "aachen", 2), ("val", "bonn", 3)):
        name = f"{city}_000000_000019"
        write(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", [0] * 35, red=number)
        write(folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", [*range(34), 255])
        write(folder / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", [0] * 35)
        (folder / "gtFine" / split / city / f"{name}_gtFine_polygons.json").touch()
    return folder


@pytest.mark.parametrize("above", [0, 1])
def test_cityscapes(cityscapes, above):
    root = [cityscapes, *cityscapes.parents][above]
    train, val = (read_cityscapes(root, split) for split in ("train", "val"))
    assert reds(train) == [2, 1]
    assert reds(val) == [3]
    # The 19 classes of the benchmark, by their ids: road is 7, bicycle 33.
    expected = [IGNORE] * 35
    for number, value in enumerate((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)):
        expected[value] = number
    assert train[0][1].tolist() == [expected]
    assert len(train.class_names) == 19
    assert (train.class_names[0], train.class_names[18]) == ("road", "bicycle")


def test_cityscapes_lacks_something(cityscapes):
    (cityscapes / "gtFine" / "val" / "bonn" / "bonn_000000_000019_gtFine_labelIds.png").unlink()
    write(cityscapes / "gtFine" / "val" / "bonn" / "x_gtFine_labelIds.png", [0])
    with pytest.raises(ValueError, match=r"bonn_000000_000019_leftImg8bit\.png has no mask"):
        read_cityscapes(cityscapes, "val")
    with pytest.raises(FileNotFoundError, match=r"No folder .*leftImg8bit/test"):
        read_cityscapes(cityscapes, "test")
    (cityscapes / "leftImg8bit" / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No city folders under .*leftImg8bit/test"):
        read_cityscapes(cityscapes, "test")


@pytest.fixture
def camvid(tmp_path):
    folder = tmp_path / "CamVid"
    for number, (split, suffix) in enumerate((("train", "png"), ("val", "jpg"), ("test", "png")), 1):
        write(folder / split / f"0001TP_{number}.{suffix}", [0] * 12, red=10 * number)
        write(folder / f"{split}annot" / f"0001TP_{number}.png", range(12))
    return folder


@pytest.mark.parametrize("above", [0, 1])
def test_camvid(camvid, above):
    root = [camvid, *camvid.parents][above]
    assert [reds(read_camvid(root, split)) for split in ("train", "val", "test")] == [[10], [20], [30]]
    both = read_camvid(root, "trainval")
    assert reds(both) == [10, 20]
    assert both[1][1].tolist() == [[*range(11), IGNORE]]
    assert both.class_names == CAMVID_CLASSES
    assert len(both.class_names) == 11


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda root: read_voc2012(root, "val"), r"No VOCdevkit/VOC2012 under .*none of .*ImageSets/Segmentation"),
        (lambda root: read_ade20k(root, "training"), "No ADEChallengeData2016 under "),
        (lambda root: read_cityscapes(root, "val"), "No cityscapes under .*cityscapes/gtFine is there"),
        (lambda root: read_camvid(root, "val"), "No CamVid under "),
    ],
)
def test_a_set_that_is_not_there(tmp_path, read, message):
    with pytest.raises(FileNotFoundError, match=message):
        read(tmp_path)


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "CamVid").is_dir(), reason=f"{DATA / 'CamVid'} is not there; see data/README.md")
def test_the_real_camvid():
    assert [len(read_camvid(DATA, split)) for split in ("train", "val", "test")] == [367, 101, 233]
    kept = read_camvid(DATA, "val").in_memory("reading")
    assert kept.images.shape == (101, 3, 360, 480)
    # What the published annotations hold.
    pixels = kept.label.flatten().long().bincount(minlength=256)
    assert pixels[[0, 1, 3, 10, IGNORE]].tolist() == [1_601_620, 4_531_180, 5_053_176, 387_010, 297_271]
    sky, road = ((kept.images.float().mean(1))[kept.label == number].mean() for number in (0, 3))
    assert sky > road + torch.tensor(20)
