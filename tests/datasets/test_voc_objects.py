import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pcea.datasets.voc_objects import VocObjects

DATA = Path(os.environ.get("PCEA_DATA", "data"))
H, W = 7, 11


def item(name, *box, difficult=None, extra=""):
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{sides}</bndbox>{extra}</object>"


def write(root, split, *, size=(0, 0), **pictures):
    """A list of pictures with the objects of each, as XML. The size that the file says is unknown."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\r\n".join(pictures) + "\r\n")
    for name, items in pictures.items():
        Image.new("RGB", (W, H), (50, 60, 70)).save(root / "JPEGImages" / f"{name}.jpg")
        sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        text = f"<annotation>{sides}{''.join(items)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def test_objects_by_hand(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    write(
        tmp_path,
        "train",
        b=[item("dog", 1, 1, 4, 3, difficult=0, extra=part), item("cat", 3.5, 2, 11, 7, difficult=1)],
        a=[],
    )
    found = VocObjects(tmp_path, "train")
    assert (found.class_names, found.category_ids, found.has_masks) == (("cat", "dog"), (1, 2), False)
    assert found.image_names == ["b.jpg", "a.jpg"]
    image, target = found[0]
    assert (tuple(image.shape), image.dtype) == ((3, H, W), torch.uint8)
    assert target["boxes"].tolist() == [[0, 0, 4, 3], [2.5, 1, 11, 7]]
    assert target["labels"].tolist() == [2, 1]
    assert target["iscrowd"].tolist() == [0, 1]
    assert target["area"].tolist() == [12, 51]
    assert int(target["image_id"]) == 0
    _, empty = found[1]
    assert (tuple(empty["boxes"].shape), int(empty["image_id"])) == ((0, 4), 1)


@pytest.mark.parametrize("size", [(W, H), (H, W), (0, 0), ("", ""), ("nan", 3)])
def test_sizes_that_are_right_turned_or_unknown(tmp_path, size):
    write(tmp_path, "train", size=size, x=[item("a", 1, 1, 3, 3)])
    assert len(VocObjects(tmp_path, "train")[0][1]["boxes"]) == 1


def test_a_picture_that_was_scaled_is_named(tmp_path):
    write(tmp_path, "train", size=(10 * W, 10 * H), x=[item("a", 1, 1, 3, 3)], y=[])
    with pytest.warns(
        UserWarning, match=r"train\.txt: 2 of 2 files give another size .* is .*x\.xml \(110x70, the picture"
    ):
        VocObjects(tmp_path, "train")


def test_boxes_on_a_picture_that_lies_on_its_side_in_the_file(tmp_path):
    write(tmp_path, "train", size=(W, H), x=[item("a", 1, 1, 3, 3)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (W, H)).save(tmp_path / "JPEGImages" / "x.jpg", exif=exif)
    with pytest.warns(UserWarning, match=rf"x\.xml \({W}x{H}, the picture {H}x{W}, turned by its EXIF orientation\)"):
        VocObjects(tmp_path, "train")
    write(tmp_path, "train", size=(H, W), x=[item("a", 1, 1, 3, 3)])
    Image.new("RGB", (W, H)).save(tmp_path / "JPEGImages" / "x.jpg", exif=exif)
    assert VocObjects(tmp_path, "train")[0][0].shape == (3, W, H)


def test_boxes_are_clipped_and_left_out_without_area(tmp_path):
    boxes = [item("a", 0, 0, 40, 3), item("a", 5, 5, 5, 5), item("a", 9, 2, 3, 4), item("a", 12, 1, 14, 7)]
    write(tmp_path, "train", x=boxes)
    with pytest.warns(UserWarning, match=r"train\.txt: 2 of 4 boxes have no area .*; the first is of .*x\.xml\.$"):
        found = VocObjects(tmp_path, "train")
    # A box counts its last pixel in: that from 5 to 5 is one pixel.
    assert found[0][1]["boxes"].tolist() == [[0, 0, 11, 3], [4, 4, 5, 5]]
    assert found[0][1]["labels"].tolist() == [1, 1]


def test_the_picture_says_how_large_it_is_and_which_side_is_up(tmp_path):
    write(tmp_path, "train", x=[item("a", 1, 1, 40, 40)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (W, H)).save(tmp_path / "JPEGImages" / "x.jpg", exif=exif)
    image, target = VocObjects(tmp_path, "train")[0]
    assert image.shape == (3, W, H)
    assert target["boxes"].tolist() == [[0, 0, H, W]]


def test_classes_are_those_of_train_or_given(tmp_path):
    write(tmp_path, "train", x=[item("dog", 1, 1, 2, 2), item("cat", 1, 1, 2, 2)])
    write(tmp_path, "test", y=[item("dog", 1, 1, 2, 2)])
    assert VocObjects(tmp_path, "test").class_names == ("cat", "dog")
    given = VocObjects(tmp_path, "test", class_names=["dog", "cat", "cow"])
    assert given.class_names == ("dog", "cat", "cow")
    assert given[0][1]["labels"].tolist() == [1]
    write(tmp_path, "test", y=[item("cow", 1, 1, 2, 2)])
    with pytest.raises(ValueError, match=r"y\.xml has the class 'cow'; known are cat, dog"):
        VocObjects(tmp_path, "test")
    write(tmp_path, "train", x=[])
    with pytest.raises(ValueError, match=r"files that .*train\.txt names have no object, so no classes are known"):
        VocObjects(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "is not XML: "),
        ("", "is not XML: "),
        (f"<a>{item('a', 1, 1, 2, 2)}{item('', 1, 1, 2, 2)}</a>", "object 2 needs a name"),
        ("<a><object><name>a</name></object></a>", "object 1 needs a name, a bndbox .* got 'a' and .None"),
        (f"<a>{item('a', 1, 1, 2)}</a>", "object 1 needs a name, a bndbox"),
        (f"<a>{item('a', 1, 1, 2, 'wide')}</a>", "object 1 needs .*'wide'"),
        (f"<a>{item('a', 1, 1, 2, 'nan')}</a>", "object 1 needs .*'nan'"),
        (f"<a>{item('a', 1, 1, 2, 2, difficult='maybe')}</a>", "0 or 1 if it says whether it is difficult"),
    ],
)
def test_a_wrong_file(tmp_path, text, message):
    write(tmp_path, "train", x=[])
    (tmp_path / "Annotations" / "x.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"^[^\n]*x\.xml[^\n]*{message}[^\n]*$"):
        VocObjects(tmp_path, "train")


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No list .*train\.txt"):
        VocObjects(tmp_path, "train")
    write(tmp_path, "train", x=[item("a", 1, 1, 2, 2)], y=[])
    (tmp_path / "JPEGImages" / "y.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt names y, but there is no such file in .*JPEGImages"):
        VocObjects(tmp_path, "train")
    (tmp_path / "Annotations" / "x.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt names x, but there is no such file in .*Annotations"):
        VocObjects(tmp_path, "train")
    write(tmp_path, "train", x=[item("a", 1, 1, 2, 2)])
    (tmp_path / "JPEGImages" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x\.jpg cannot be read as an image"):
        VocObjects(tmp_path, "train")


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "BCCD").is_dir(), reason=f"{DATA / 'BCCD'} is not there; see data/README.md")
def test_the_real_bccd():
    # What a search for <name> in the files of each list counts.
    expected = {"train": (205, [209, 2382, 214]), "val": (87, [83, 968, 87]), "test": (72, [69, 805, 71])}
    for split, (images, objects) in expected.items():
        found = VocObjects(DATA / "BCCD", split)
        assert found.class_names == ("Platelets", "RBC", "WBC")
        assert len(found) == images
        labels = torch.cat([target["labels"] for target in found.targets])
        assert labels.bincount().tolist() == [0, *objects]
    # White blood cells are stained: what is in their boxes has less green.
    greens: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for image, target in (found[i] for i in range(20)):
        assert image.shape == (3, 480, 640)
        for label, (x1, y1, x2, y2) in zip(target["labels"].tolist(), target["boxes"].int().tolist()):
            greens[label].append(float(image[1, y1:y2, x1:x2].float().mean()))
    assert np.mean(greens[3]) < np.mean(greens[2]) - 10


@pytest.mark.parametrize("encoding", ["GB2312", "gbk", "Big5", "Shift_JIS", "windows-1252", "UTF-8", "UTF-16"])
def test_xml_in_any_encoding_that_python_knows(tmp_path, encoding):
    name = "hält" if encoding == "windows-1252" else "椅子"
    write(tmp_path, "train", a=[item("X", 1, 1, 4, 3)])
    path = tmp_path / "Annotations/a.xml"
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + path.read_text().replace("X", name)
    path.write_bytes(text.encode(encoding))
    assert VocObjects(tmp_path, "train").class_names == (name,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b'<?xml version="1.0" encoding="GB2312"?><annotation>' + b"\xff\xff</annotation>",
            "codec can't decode",
        ),
        (b'<?xml version="1.0" encoding="hex"?><annotation/>', "not a text encoding"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding"),
        (b"<annotation>", "no element found"),
    ],
)
def test_xml_that_cannot_be_decoded(tmp_path, content, reason):
    write(tmp_path, "train", a=[])
    (tmp_path / "Annotations/a.xml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a.xml is not XML: .*{reason}"):
        VocObjects(tmp_path, "train")
