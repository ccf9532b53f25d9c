import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pcea.datasets.object_folder import read_object_folder
from pcea.datasets.splits import divide

DATA = Path(os.environ.get("PCEA_DATA", "data"))
# Object 3 has two pieces, object 300 one pixel, and the values have gaps.
MAP = np.array([[0, 3, 3, 0, 0, 0, 300], [0, 3, 0, 0, 9, 9, 0], [3, 0, 0, 0, 9, 9, 0]])


def write(root, name, values=MAP, *, folder="labels", dtype=np.uint16, size=None, mode="RGB"):
    for kind in ("images", folder):
        (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size or values.shape[1::-1]).save(root / "images" / f"{name}.png")
    Image.fromarray(values.astype(dtype)).save(root / folder / f"{name}.png")
    return root


def test_objects_by_hand(tmp_path):
    found = read_object_folder(write(tmp_path, "x"), "train", class_name="nucleus")
    assert (found.class_names, found.category_ids, found.has_masks) == (("nucleus",), (1,), True)
    assert found.image_names == ["x.png"]
    image, target = found[0]
    assert (tuple(image.shape), image.dtype) == ((3, 3, 7), torch.uint8)
    assert target["boxes"].tolist() == [[0, 0, 3, 3], [4, 1, 6, 3], [6, 0, 7, 1]]
    assert target["boxes"].dtype == torch.float32
    assert target["area"].tolist() == [4, 4, 1]
    assert target["labels"].tolist() == [1, 1, 1]
    assert target["iscrowd"].tolist() == [0, 0, 0]
    assert target["masks"].dtype == torch.uint8
    assert target["masks"].tolist() == [(value == MAP).astype(int).tolist() for value in (3, 9, 300)]


def test_eight_bits_black_and_white_and_palettes(tmp_path):
    write(tmp_path, "a", MAP.clip(max=200), dtype=np.uint8)
    write(tmp_path, "b", MAP > 0, dtype=bool)
    write(tmp_path, "c", MAP.clip(max=200), dtype=np.uint8)
    Image.open(tmp_path / "labels" / "c.png").convert("P").save(tmp_path / "labels" / "c.png")
    found = read_object_folder(tmp_path, "train")
    with pytest.warns(UserWarning, match=r"b\.png has no values but 0 and 1, so its 4 pieces are one object"):
        assert [len(found[i][1]["boxes"]) for i in range(3)] == [3, 1, 3]
    assert found[1][1]["area"].tolist() == [9]
    assert [int(found[i][1]["image_id"]) for i in range(3)] == [0, 1, 2]
    assert found.class_names == ("object",)


@pytest.mark.parametrize("value", [1, 255])
def test_masks_in_place_of_label_maps_are_named_once(tmp_path, value):
    for name in ("x", "y"):
        write(tmp_path, name, value * (MAP == 3), dtype=np.uint8)
    found = read_object_folder(tmp_path, "train")
    with pytest.warns(UserWarning, match=rf"x\.png has no values but 0 and {value}, so its 2 pieces are one object"):
        assert len(found[0][1]["labels"]) == 1
    found[1]  # a second warning would be an error


def test_one_object_in_one_or_more_pieces_is_no_mask(tmp_path):
    write(tmp_path, "x", 255 * (MAP == 9), dtype=np.uint8)
    write(tmp_path, "y", MAP * (MAP == 3))
    found = read_object_folder(tmp_path, "train")
    assert [len(found[i][1]["labels"]) for i in range(2)] == [1, 1]


def test_an_image_without_objects(tmp_path):
    _, target = read_object_folder(write(tmp_path, "x", np.zeros((3, 7))), "train")[0]
    assert {name: tuple(values.shape) for name, values in target.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "masks": (0, 3, 7),
        "iscrowd": (0,),
        "area": (0,),
        "image_id": (),
    }


def test_strata_are_sizes_and_kinds_of_colours(tmp_path):
    for number in range(10):
        write(tmp_path, f"{number}a")
        write(tmp_path, f"{number}b", MAP.T)
        write(tmp_path, f"{number}c", mode="L")
    strata = read_object_folder(tmp_path, "train").strata
    assert strata.view(10, 3).unique(dim=0).shape == (1, 3)
    assert strata.bincount().tolist() == [10, 10, 10]


def test_pictures_of_all_sizes_are_divided_too(tmp_path):
    for number in range(20):
        write(tmp_path, f"{number:02}", np.ones((3, 7 + number)))
    files = read_object_folder(tmp_path, "train")
    assert files.strata.tolist() == [0] * 20
    assert [len(divide(files, split, test_fraction=0.2)) for split in ("train", "test")] == [16, 4]


def test_the_folder_of_the_maps_may_be_called_masks_and_be_divided(tmp_path):
    write(tmp_path, "train/a", folder="masks")
    write(tmp_path, "val/b", folder="masks")
    assert read_object_folder(tmp_path, "train").image_names == ["a.png"]
    assert read_object_folder(tmp_path, "test").image_names == ["b.png"]
    assert read_object_folder(tmp_path, "val") is None


def test_what_does_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder .*images"):
        read_object_folder(tmp_path, "train")
    write(tmp_path, "x", size=(8, 3))
    with pytest.raises(ValueError, match=r"x\.png has 3x8 pixels, but its label map .*labels/x\.png has 3x7"):
        read_object_folder(tmp_path, "train")[0]
    write(tmp_path, "x", np.zeros((3, 7, 3)), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"labels/x\.png is a picture of mode RGB; a mask has one number per pixel"):
        read_object_folder(tmp_path, "train")[0]
    (tmp_path / "labels" / "x.png").rename(tmp_path / "labels" / "y.png")
    with pytest.raises(ValueError, match=r"x\.png has no mask of the same name in .*labels, where the first is y\.png"):
        read_object_folder(tmp_path, "train")


def test_values_of_more_than_16_bits(tmp_path):
    write(tmp_path, "x")
    (tmp_path / "labels" / "x.png").unlink()
    Image.fromarray(np.full((3, 7), 65536, dtype=np.int32)).save(tmp_path / "labels" / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif: values of a label map must be 0\.\.65535, got 65536\.\.65536"):
        read_object_folder(tmp_path, "train")[0]


def test_a_map_of_more_objects_than_memory_holds(tmp_path):
    write(tmp_path, "x", np.arange(1000 * 1000).reshape(1000, 1000) % 65536)
    with pytest.raises(
        ValueError,
        match=r"labels/x\.png has 65535 objects on 1000x1000 pixels, whose masks take 61 GiB.* one value per",
    ):
        read_object_folder(tmp_path, "train")[0]


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "dsb2018").is_dir(), reason=f"{DATA / 'dsb2018'} is not there; see data/README.md")
def test_the_real_nuclei():
    found = read_object_folder(DATA / "dsb2018", "train", class_name="nucleus")
    assert len(found) == 538
    assert sorted(found.strata.bincount().tolist()) == [7, 90, 107, 334]
    assert sum(len(found[i][1]["boxes"]) for i in range(0, 538, 20)) == sum(
        len(np.unique(np.asarray(Image.open(path)))) - 1 for path in found.labels[::20]
    )
    _, target = found[0]
    assert (target["masks"].sum(0) <= 1).all()
    assert target["masks"].flatten(1).sum(1).tolist() == target["area"].tolist()
