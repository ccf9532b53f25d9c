import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pcea.datasets.batches import IGNORE
from pcea.datasets.camvid import CAMVID_CLASSES, read_camvid

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
