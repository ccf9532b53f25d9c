import numpy as np
import pytest
from PIL import Image

from pcea.datasets.batches import IGNORE
from pcea.datasets.mask_folder import check_mask_classes, has_mask_splits, read_class_names, read_mask_folder


def write(root, *names, mask=(0, 1, 255)):
    """An image and a mask for each name, such as `train/a`."""
    for name in names:
        for kind, suffix, values in (("images", "jpg", (9, 9, 9)), ("masks", "png", mask)):
            path = root / kind / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array([values], dtype=np.uint8)).save(path)
    return root


def names(files):
    return [path.stem for path in files.images]


def test_a_folder_without_splits(tmp_path):
    write(tmp_path, "b", "a")
    assert not has_mask_splits(tmp_path)
    files = read_mask_folder(tmp_path, "train", num_classes=2)
    assert names(files) == ["a", "b"]
    image, mask = files[0]
    assert image.shape == (3, 1, 3)
    assert mask.tolist() == [[0, 1, IGNORE]]
    assert files.class_names == ("class 0", "class 1")


def test_splits_are_folders(tmp_path):
    write(tmp_path, "train/a", "train/b", "val/c")
    assert has_mask_splits(tmp_path)
    assert names(read_mask_folder(tmp_path, "train", num_classes=2)) == ["a", "b"]
    assert names(read_mask_folder(tmp_path, "test", num_classes=2)) == ["c"]
    assert read_mask_folder(tmp_path, "val", num_classes=2) is None
    write(tmp_path, "test/d")
    assert names(read_mask_folder(tmp_path, "val", num_classes=2)) == ["c"]
    assert names(read_mask_folder(tmp_path, "test", num_classes=2)) == ["d"]


def test_splits_are_lists(tmp_path):
    write(tmp_path, "a", "b", "c", "left over")
    (tmp_path / "train.txt").write_text("b\na.jpg\n")
    with pytest.raises(FileNotFoundError, match=r", by its lists, has train, but not a `test` or a `val`"):
        read_mask_folder(tmp_path, "test", num_classes=2)
    (tmp_path / "test.txt").write_text("c\n")
    assert has_mask_splits(tmp_path)
    assert names(read_mask_folder(tmp_path, "train", num_classes=2)) == ["b", "a"]
    assert names(read_mask_folder(tmp_path, "test", num_classes=2)) == ["c"]
    assert read_mask_folder(tmp_path, "val", num_classes=2) is None
    (tmp_path / "test.txt").write_text("c\na\n")
    with pytest.raises(ValueError, match=r"^a is in .*train\.txt and in test\.txt \(1 are in both\)"):
        read_mask_folder(tmp_path, "train", num_classes=2)
    (tmp_path / "test.txt").write_text("c\nd\n")
    with pytest.raises(FileNotFoundError, match=r"test\.txt names d, but there is no such file in .*images"):
        read_mask_folder(tmp_path, "test", num_classes=2)


def test_classes_have_names(tmp_path):
    write(tmp_path, "a")
    (tmp_path / "classes.yaml").write_text("- background\n- on\n- 007\n")
    files = read_mask_folder(tmp_path, "train")
    assert files.class_names == ("background", "on", "007")
    with pytest.raises(ValueError, match=r"classes\.yaml names 3 classes, but num_classes is 2"):
        read_class_names(tmp_path / "classes.yaml", 2)


@pytest.mark.parametrize("content", ["a: 1", "", "- a\n- a", "- [a]", "- a\n - b: ["])
def test_names_that_are_none(tmp_path, content):
    (tmp_path / "classes.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"classes\.yaml (must be a list of different names|is not YAML)"):
        read_class_names(tmp_path / "classes.yaml", None)


@pytest.mark.parametrize("num_classes", [None, 0])
def test_no_classes(tmp_path, num_classes):
    with pytest.raises(ValueError, match=r"num_classes is not given and there is no .*classes\.yaml"):
        read_class_names(tmp_path / "classes.yaml", num_classes)


def test_the_ignored_value_is_an_option(tmp_path):
    write(tmp_path, "a", mask=(0, 1, 2))
    assert read_mask_folder(tmp_path, "train", num_classes=3, ignore_value=1)[0][1].tolist() == [[0, IGNORE, 2]]
    assert read_mask_folder(tmp_path, "train", num_classes=2, ignore_value=2)[0][1].tolist() == [[0, 1, IGNORE]]
    with pytest.raises(ValueError, match=r"a\.png has the value 2 .* Classes are 0\.\.1, ignored values are none"):
        read_mask_folder(tmp_path, "train", num_classes=2, ignore_value=None)[0]
    with pytest.raises(ValueError, match="ignore_value must be a value of pixels, 0 or more, or null for none, got -1"):
        read_mask_folder(tmp_path, "train", num_classes=2, ignore_value=-1)


@pytest.mark.parametrize("name", ["valid", "site_b"])
def test_folders_that_would_not_be_read(tmp_path, name):
    write(tmp_path, "a", f"{name}/b")
    with pytest.raises(ValueError, match=rf"images has the folder {name}, .* must be called train, val or test"):
        read_mask_folder(tmp_path, "train", num_classes=2)


def test_images_and_masks_that_do_not_match(tmp_path):
    write(tmp_path, "a", "b")
    (tmp_path / "masks" / "b.png").rename(tmp_path / "masks" / "B.png")
    with pytest.raises(ValueError, match=r"images/b\.jpg has no mask of the same name"):
        read_mask_folder(tmp_path, "train", num_classes=2)
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(FileNotFoundError, match=r"No files in .*masks that end in \.png"):
        read_mask_folder(tmp_path, "train", num_classes=2)
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere/images"):
        read_mask_folder(tmp_path / "nowhere", "train", num_classes=2)


def test_classes_may_have_any_values(tmp_path):
    write(tmp_path, "a", mask=(0, 255, 7))
    files = read_mask_folder(tmp_path, "train", num_classes=2, ignore_value=7, class_values=[0, 255])
    assert files[0][1].tolist() == [[0, 1, IGNORE]]
    files = read_mask_folder(tmp_path, "train", num_classes=3, class_values=[255, 7, 0])  # 255 is no longer ignored
    assert files[0][1].tolist() == [[2, 0, 1]]
    for values in ([0], [0, 0], [-1, 1]):
        with pytest.raises(ValueError, match=r"class_values must be a different value, .* each of 2 classes, got \["):
            read_mask_folder(tmp_path, "train", num_classes=2, class_values=values)


def test_masks_of_0_and_255_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "classes.yaml").write_text("- ground\n- thing\n")
    write(tmp_path, "a", "b", mask=(0, 255, 255))
    with pytest.raises(
        ValueError,
        match=r"'thing' has no pixel in the 2 training masks under .*, whose values are 0, 255\. The value 255 is "
        r"ignored \(ignore_value\)\. .*: class_values: \[0, 255\]\.$",
    ):
        check_mask_classes(read_mask_folder(tmp_path, "train"), tmp_path)
    check_mask_classes(read_mask_folder(tmp_path, "train", class_values=[0, 255]), tmp_path)
    write(tmp_path, "a", "b", mask=(255, 255, 255))
    with pytest.raises(ValueError, match=r"'ground', 'thing' have no pixel .*The value 255 is ignored"):
        check_mask_classes(read_mask_folder(tmp_path, "train"), tmp_path)


def test_a_class_that_no_mask_has_is_named(tmp_path):
    write(tmp_path, "a", mask=(0, 1, 255))
    write(tmp_path, "b", mask=(0, 0, 3))
    check_mask_classes(read_mask_folder(tmp_path, "train", num_classes=2), tmp_path)
    with pytest.warns(
        UserWarning, match=r"'class 2', 'class 4' have no pixel in the 2 training masks .* values are 0, 1, 3, 255\. A"
    ):
        check_mask_classes(read_mask_folder(tmp_path, "train", num_classes=5), tmp_path)


def test_looking_for_classes_stops_early(tmp_path):
    write(tmp_path, *map(str, range(9)), mask=(0, 1, 1))
    files = read_mask_folder(tmp_path, "train", num_classes=2)
    assert files.missing_classes() == ([], [0, 1], 1)
    files = read_mask_folder(tmp_path, "train", num_classes=3)
    assert files.missing_classes(num_files=4) == (["class 2"], [0, 1], 4)


def test_a_class_whose_value_is_ignored_has_no_pixel(tmp_path):
    write(tmp_path, "a", mask=(0, 1, 1))
    files = read_mask_folder(tmp_path, "train", num_classes=2, ignore_value=0)
    assert files.missing_classes().names == ["class 0"]
