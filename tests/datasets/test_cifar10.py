import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcea.datasets.cifar10 import read_cifar10

DATA = Path(os.environ.get("PCEA_DATA", "data"))


def write(root, *names):
    """Pictures of 2 x 3 pixels, whose red is their number."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 3, 3), (number, 0, 0), dtype=np.uint8)).save(root / name)
    return root


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """CIFAR-10's official files with one picture a batch, whose red is its number; and their checksums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write_pickle(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(number):
        data = np.zeros((1, 3, 32, 32), dtype=np.uint8)
        data[:, 0, 1, 2] = number
        return {"data": data.reshape(1, -1), "labels": [number]}

    lists = [write_pickle(f"data_batch_{number}", batch(number)) for number in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", lists)
    monkeypatch.setattr(CIFAR10, "test_list", [write_pickle("test_batch", batch(9))])
    name, digest = write_pickle("batches.meta", {"label_names": [f"class {number}" for number in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return tmp_path


def test_official_files_of_cifar10(batches):
    train, test = (read_cifar10(batches, split) for split in ("train", "test"))
    assert train.images.shape == (5, 3, 32, 32)
    assert train.images[:, 0, 1, 2].tolist() == train.label.tolist() == [1, 2, 3, 4, 5]
    assert int(train.images.long().sum()) == 15
    assert test.label.tolist() == [9]
    assert test.class_names[9] == "class 9"


def test_damaged_files_of_cifar10(batches):
    (batches / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Files under .*cifar-10-batches-py are missing or damaged"):
        read_cifar10(batches, "train")


def test_pictures_of_cifar10(tmp_path):
    write(tmp_path, "cifar10/train/cat/0.png", "cifar10/train/dog/0.png", "cifar10/test/dog/0.png")
    train, test = (read_cifar10(tmp_path, split) for split in ("train", "test"))
    assert train.images[:, 0, 0, 0].tolist() == [0, 1]
    assert test.label.tolist() == [1]


def test_no_cifar10(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"No CIFAR-10 under .*cifar-10-batches-py .* or .*cifar10/test/<class>"
    ):
        read_cifar10(tmp_path, "test")


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar10").is_dir(), reason=f"{DATA / 'cifar10'} is not there; see data/README.md")
def test_the_real_cifar10():
    train, test = (read_cifar10(DATA, split) for split in ("train", "test"))
    assert train.label.bincount().tolist() == [5000] * 10
    assert test.label.bincount().tolist() == [1000] * 10
    assert train.images.shape == (50_000, 3, 32, 32)
    assert train.class_names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    colours = train.images.float().mean((0, 2, 3)) / 255
    assert colours.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.002)
