from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcea.datasets.image_folder import has_splits, read_image_folder


def write(root, *names):
    """Pictures of 2 x 3 pixels, whose red is their number."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 3, 3), (number, 0, 0), dtype=np.uint8)).save(root / name)
    return root


def contents(files):
    """Names and classes."""
    return [
        (Path(path).relative_to(Path(path).parents[1]).as_posix(), files.class_names[label])
        for path, label in zip(files.files, files.label)
    ]


def test_classes_are_folders(tmp_path):
    write(tmp_path, "dog/1.png", "cat/b.JPG", "cat/old/a.png", "cat/.hidden.png")
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / ".git").mkdir()
    assert not has_splits(tmp_path)
    files = read_image_folder(tmp_path)
    assert files.class_names == ("cat", "dog")
    assert contents(files) == [("cat/b.JPG", "cat"), ("old/a.png", "cat"), ("dog/1.png", "dog")]
    assert int(files[2][0][0, 0, 0]) == 0
    assert int(files[1][0][0, 0, 0]) == 2


def test_splits_are_folders_of_classes(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/dog/3.png")
    assert has_splits(tmp_path)
    assert contents(read_image_folder(tmp_path, "train")) == [("cat/1.png", "cat"), ("dog/2.png", "dog")]
    assert contents(read_image_folder(tmp_path, "test")) == [("dog/3.png", "dog")]  # numbered like train's
    assert read_image_folder(tmp_path, "val") is None
    write(tmp_path, "test/cat/4.png")
    assert contents(read_image_folder(tmp_path, "val")) == [("dog/3.png", "dog")]
    assert contents(read_image_folder(tmp_path, "test")) == [("cat/4.png", "cat")]


def test_a_class_may_be_called_train(tmp_path):
    assert not has_splits(write(tmp_path, "train/1.png", "bus/1.png"))


@pytest.mark.parametrize("names", [("train", "test", "unlabeled"), ("Training", "Testing")])
def test_splits_beside_other_folders_or_of_other_names_are_refused(tmp_path, names):
    write(tmp_path, *(f"{name}/cat/1.png" for name in names))
    with pytest.raises(ValueError, match=r"holds folders, as a split does, but .* Expected .*train/<class>/\* and"):
        has_splits(tmp_path)


def test_a_class_without_pictures(tmp_path):
    write(tmp_path, "cat/1.png", "dog/notes.bmp")
    (tmp_path / "dog" / "notes.bmp").rename(tmp_path / "dog" / "notes.pdf")
    with pytest.raises(
        ValueError, match=r"Class 'dog' has no pictures under .* \(files end in \.jpg.*remove its folder"
    ):
        read_image_folder(tmp_path)
    write(tmp_path, "a/train/x/1.png", "a/train/y/1.png", "a/test/x/1.png")
    (tmp_path / "a" / "test" / "y").mkdir()
    assert len(read_image_folder(tmp_path / "a", "test")) == 1  # a class may have no test pictures
    (tmp_path / "a" / "test" / "x" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"Class 'x' has no pictures under .*a/test"):
        read_image_folder(tmp_path / "a", "test")


def test_a_class_that_is_only_in_the_test(tmp_path):
    write(tmp_path, "train/cat/1.png", "test/cow/1.png")
    with pytest.raises(ValueError, match=r"test has the class 'cow', which .*train has not"):
        read_image_folder(tmp_path, "test")


def test_folders_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere"):
        has_splits(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"No class folders under .*: expected .*/<class>/\*"):
        has_splits(tmp_path)


def test_links_that_form_loops_are_walked_once(tmp_path):
    write(tmp_path / "elsewhere", "3.png")
    root = write(tmp_path / "root", "cat/z.png", "cat/old/a.png", "dog/1.png")
    for name in ("cat/old/up", "cat/old/up_too", "dog/self"):
        (root / name).symlink_to((root / name).parent.parent if "up" in name else (root / name).parent)
    (root / "dog/linked").symlink_to(tmp_path / "elsewhere")
    (root / "dog/broken.png").symlink_to(root / "dog/broken.png")
    (root / "dog/broken.png").unlink()
    found = [Path(path).relative_to(root).as_posix() for path in read_image_folder(root).files]
    assert [name for name in found if name.startswith("cat/") and "up" not in name] == ["cat/z.png", "cat/old/a.png"]
    assert [name for name in found if name.startswith("dog/")] == ["dog/1.png", "dog/linked/3.png"]
    assert len(found) == len({*map(str, found)}) < 10


def test_classes_that_are_divided_are_refused(tmp_path):
    for name in ("a", "b"):
        for split in ("train", "test"):
            (tmp_path / name / split).mkdir(parents=True)
    with pytest.raises(ValueError, match="is divided into train and test; of pictures only all classes"):
        has_splits(tmp_path)


def test_folders_named_like_splits_are_no_classes(tmp_path):
    for split in ("training_set", "test_set"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="holds test_set, training_set, which look like splits"):
        has_splits(tmp_path)
    for name in ("test_tube", "train_car"):  # but these may be
        (tmp_path / "things" / name).mkdir(parents=True)
    assert not has_splits(tmp_path / "things")
