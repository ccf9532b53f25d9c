import os
from pathlib import Path

import pytest
import torch
from examples import strongest_reds, write_image

from pcea.datasets.batches import IGNORE
from pcea.datasets.camvid import CAMVID_CLASSES, read_camvid

DATA = Path(os.environ.get("PCEA_DATA", "data"))


@pytest.fixture
def camvid(tmp_path):
    folder = tmp_path / "CamVid"
    for number, (split, suffix) in enumerate((("train", "png"), ("val", "jpg"), ("test", "png")), 1):
        write_image(folder / split / f"0001TP_{number}.{suffix}", [0] * 12, red=10 * number)
        write_image(folder / f"{split}annot" / f"0001TP_{number}.png", range(12))
    return folder


@pytest.mark.parametrize("above", [0, 1])
def test_camvid(camvid, above):
    root = [camvid, *camvid.parents][above]
    assert [strongest_reds(read_camvid(root, split)) for split in ("train", "val", "test")] == [[10], [20], [30]]
    both = read_camvid(root, "trainval")
    assert strongest_reds(both) == [10, 20]
    assert both[1][1].tolist() == [[*range(11), IGNORE]]
    assert both.class_names == CAMVID_CLASSES
    assert len(both.class_names) == 11


def test_camvid_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="No CamVid under "):
        read_camvid(tmp_path, "val")


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
