import numpy as np
import pytest
import torch
from PIL import Image

from pcea.datasets.batches import IGNORE
from pcea.datasets.masks import MaskFiles, find_by_name, number_classes, pair_files, read_list, read_mask, read_values


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(values))
    (picture.convert(mode) if mode else picture).save(path)
    return path


@pytest.mark.parametrize("highest", [2, 255, 300, 65535])
def test_a_pgm_holds_the_values_that_are_in_it(tmp_path, highest):
    values = np.array([[0, 1, 2, highest]])
    kind = ">u2" if highest > 255 else "u1"
    path = tmp_path / "x.pgm"
    path.write_bytes(f"P5\n# a comment 7\n4 1\n{highest}\n".encode() + values.astype(kind).tobytes())
    assert read_values(path).tolist() == values.tolist()
    path.write_text(f"P2 4 1 {highest}\n0 1 2 {highest}\n")
    assert read_values(path).tolist() == values.tolist()


def test_classes_of_values():
    assert number_classes(2) == {0: 0, 1: 1, 255: IGNORE}
    assert number_classes(2, ignored=(0,), first=1) == {0: IGNORE, 1: 0, 2: 1}
    assert number_classes(3, ignored=(1,)) == {0: 0, 1: IGNORE, 2: 2}
    assert number_classes(2, ignored=()) == {0: 0, 1: 1}


def test_a_mask_by_hand(tmp_path):
    values = np.array([[0, 3, 7], [200, 7, 0]], dtype=np.uint8)
    mask = read_mask(save(tmp_path / "x.png", values), {0: 5, 3: 0, 7: 1, 200: IGNORE})
    assert mask.tolist() == [[5, 0, 1], [255, 1, 5]]
    assert mask.dtype == torch.uint8


def test_masks_come_as_palettes_16_bits_and_black_and_white(tmp_path):
    values = np.array([[0, 1, 2, 1]])
    palette = Image.fromarray(values.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9])  # equal colours are different classes
    palette.save(tmp_path / "p.png")
    assert read_mask(tmp_path / "p.png", number_classes(3)).tolist() == values.tolist()
    wide = save(tmp_path / "w.png", np.array([[0, 1000, 65535]], dtype=np.uint16))
    assert read_mask(wide, {0: 0, 1000: 1, 65535: IGNORE}).tolist() == [[0, 1, 255]]
    black_and_white = save(tmp_path / "b.png", np.array([[False, True]]))
    assert read_mask(black_and_white, number_classes(2)).tolist() == [[0, 1]]


@pytest.mark.parametrize(("value", "dtype"), [(13, np.uint8), (254, np.uint8), (65535, np.uint16), (-1, np.int32)])
def test_a_value_that_stands_for_nothing(tmp_path, value, dtype):
    values = np.zeros((5, 7), dtype=dtype)
    values[3, 2] = values[4, 6] = value
    path = save(tmp_path / "x.tif", values)
    message = (
        rf"x\.tif has the value {value} at row 3, column 2\. Classes are 0\.\.2, 4, 6\.\.7, ignored values are 255\.$"
    )
    with pytest.raises(ValueError, match=message):
        read_mask(path, {**dict.fromkeys((0, 1, 2, 4, 6, 7), 0), 255: IGNORE})


def test_no_value_is_ignored(tmp_path):
    path = save(tmp_path / "x.png", np.full((2, 3), 255, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"value 255 at row 0, column 0\. Classes are 0\.\.1, ignored values are none"):
        read_mask(path, number_classes(2, ignored=()))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F"])
def test_a_mask_in_colours(tmp_path, mode):
    path = save(tmp_path / "x.tif", np.zeros((2, 3), dtype=np.uint8), mode)
    with pytest.raises(ValueError, match=rf"x\.tif is a picture of mode {mode}; a mask has one number per pixel"):
        read_mask(path, number_classes(2))


def test_a_damaged_or_missing_mask(tmp_path):
    (tmp_path / "x.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        read_mask(tmp_path / "x.png", number_classes(2))
    with pytest.raises(FileNotFoundError, match=r"No image .*y\.png"):
        read_mask(tmp_path / "y.png", number_classes(2))


@pytest.fixture
def files(tmp_path):
    """Three pictures of 2 x 3 pixels; picture i is i everywhere, and its mask too."""
    images = [save(tmp_path / f"{i}.png", np.full((2, 3, 3), i, dtype=np.uint8)) for i in range(3)]
    masks = [save(tmp_path / f"m{i}.png", np.full((2, 3), i, dtype=np.uint8)) for i in range(3)]
    return MaskFiles(images, masks, classes=number_classes(3), class_names=["a", "b", "c"])


def test_images_have_their_masks(files):
    assert [(int(image.max()), int(mask.max())) for image, mask in (files[i] for i in range(3))] == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]
    part = files.subset(torch.tensor([2, 0]))
    assert [int(part[i][1].max()) for i in range(len(part))] == [2, 0]
    assert part.class_names == ("a", "b", "c")
    assert part.strata.tolist() == [0, 0]
    kept = files.in_memory("reading")
    assert kept.images.shape == (3, 3, 2, 3)
    assert torch.equal(kept.label, kept.images[:, 0])


def test_image_and_mask_of_different_sizes(files):
    save(files.masks[1], np.zeros((3, 2), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"1\.png has 2x3 pixels, but its mask .*m1\.png has 3x2"):
        files[1]


def test_sets_that_do_not_fit(files):
    with pytest.raises(ValueError, match="Every image needs a mask, got 3 images and 2 masks"):
        MaskFiles(files.images, files.masks[:2], classes={}, class_names=["a"])
    with pytest.raises(ValueError, match="At most 255 classes are possible, got 256"):
        MaskFiles(files.images, files.masks, classes={}, class_names=[str(i) for i in range(256)])


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_files_by_name(tmp_path):
    folder = touch(tmp_path, "b.png", "a.c.PNG", "list.txt", ".hidden.png")
    assert find_by_name(folder, None, (".png",)) == {"a.c": folder / "a.c.PNG", "b": folder / "b.png"}
    assert [*find_by_name(folder, ["b"], (".png",))] == ["b"]
    assert [*find_by_name(folder, ["b", "a.c"], (".png",))] == ["b", "a.c"]
    with pytest.raises(FileNotFoundError, match=r"train\.txt names x, but .* no such file in .*\(2 of 3 .* in \.png"):
        find_by_name(folder, ["b", "x", "y"], (".png",), listed_in="train.txt")
    with pytest.raises(FileNotFoundError, match=r"No files in .* that end in \.bmp, \.gif"):
        find_by_name(folder, None, (".bmp", ".gif"))
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere"):
        find_by_name(tmp_path / "nowhere", None, (".png",))
    touch(folder, "b.jpg")
    with pytest.raises(ValueError, match=r"b\.jpg and b\.png have one name"):
        find_by_name(folder, None, (".png", ".jpg"))


def test_images_are_paired_by_name(tmp_path):
    images = find_by_name(touch(tmp_path / "i", "b.jpg", "a.jpg"), None, (".jpg",))
    masks = find_by_name(touch(tmp_path / "m", "b.png", "a.png"), None, (".png",))
    ours, theirs = pair_files(images, masks)
    assert [path.name for path in ours] == ["a.jpg", "b.jpg"]
    assert [path.name for path in theirs] == ["a.png", "b.png"]
    more = images | {"c": tmp_path / "i" / "c.jpg", "d": tmp_path / "i" / "d.jpg"}
    message = r"i/c\.jpg has no mask of the same name in .*/m, where the first is a\.png \(2 of 4 files have no mask\)"
    with pytest.raises(ValueError, match=message):
        pair_files(more, masks)
    with pytest.raises(ValueError, match=r"m/b\.png has no image of the same name in .*/i"):
        pair_files({"a": images["a"]}, masks)


def test_lists_of_names(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("2007_000032\nfolder/my photo.JPG\n\nimg.v2\n")
    assert read_list(path) == ["2007_000032", "my photo", "img.v2"]
    path.write_text("a\nb.png\nb\n")
    with pytest.raises(ValueError, match=r"train\.txt names b more than once"):
        read_list(path)
    path.write_text(" \n")
    with pytest.raises(ValueError, match=r"train\.txt is empty"):
        read_list(path)
    with pytest.raises(FileNotFoundError, match=r"No list .*val\.txt"):
        read_list(tmp_path / "val.txt")
