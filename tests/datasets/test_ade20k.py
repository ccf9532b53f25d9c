import pytest
from examples import write_image

from pcea.datasets.ade20k import read_ade20k
from pcea.datasets.batches import IGNORE


@pytest.fixture
def ade20k(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    for split, count in (("training", 2), ("validation", 1)):
        for number in range(count):
            write_image(folder / "images" / split / f"ADE_{number}.jpg", [0] * 3, red=50 + number)
            write_image(folder / "annotations" / split / f"ADE_{number}.png", [0, 1, 150])
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


def test_ade20k_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="No ADEChallengeData2016 under "):
        read_ade20k(tmp_path, "training")
