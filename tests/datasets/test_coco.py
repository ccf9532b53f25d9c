import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from pcea.datasets.coco import CocoObjects

H, W = 7, 11
SQUARE = [[2, 1, 6, 1, 6, 4, 2, 4]]  # columns 2 to 6, rows 1 to 4


def square():
    mask = torch.zeros(H, W, dtype=torch.uint8)
    mask[1:4, 2:6] = 1
    return mask


def annotation(number, image=10, category=7, bbox=(2, 1, 4, 3), **options):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **options}


def write(root, listed=(), *, pictures=(10, 4), size=(H, W), **changes):
    """A set with the categories 7 and 3; the red of a picture is its id."""
    (root / "pictures").mkdir(exist_ok=True)
    for number in pictures:
        Image.fromarray(np.full((*size, 3), (number, 5, 6), dtype=np.uint8)).save(root / "pictures" / f"{number}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": H, "width": W} for n in (10, 4)],
        "annotations": [*listed],
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
    } | changes
    (root / "a.json").write_text(json.dumps(content))
    return root


def read(root, **options):
    return CocoObjects(root / "a.json", root / "pictures", **options)


def test_objects_by_hand(tmp_path):
    write(
        tmp_path,
        [
            annotation(1, bbox=[2.5, 1, 4, 3], area=9.5),
            annotation(2, image=4, category=3, iscrowd=1),
            annotation(3, category=3, bbox=[-2, 3, 5, 40], iscrowd=0),
        ],
    )
    found = read(tmp_path)
    assert (found.class_names, found.category_ids, found.has_masks) == (("three", "seven"), (3, 7), False)
    assert found.image_names == ["10.png", "4.png"]
    image, target = found[0]
    assert (tuple(image.shape), image.dtype, int(image[0, 0, 0])) == ((3, H, W), torch.uint8, 10)
    assert target["boxes"].tolist() == [[2.5, 1, 6.5, 4], [0, 3, 3, 7]]
    assert target["labels"].tolist() == [2, 1]
    assert target["area"].tolist() == [9.5, 200]
    assert target["iscrowd"].tolist() == [0, 0]
    assert int(target["image_id"]) == 10
    assert "masks" not in target
    assert {name: values.dtype for name, values in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "area": torch.float32,
        "iscrowd": torch.int64,
        "image_id": torch.int64,
    }
    assert found[1][1]["iscrowd"].tolist() == [1]
    assert int(found[1][1]["image_id"]) == 4


def test_masks_are_polygons_or_run_lengths_and_may_overlap(tmp_path):
    compressed = rle.encode(np.asfortranarray(square().numpy()))
    # Down the columns: 15 zeros to column 2, row 1; then 3 ones and 4 zeros, four times, and the rest.
    counts = [15, 3, 4, 3, 4, 3, 4, 3, 38]
    two = [[0, 0, 2, 0, 2, 2, 0, 2], [8, 4, 11, 4, 11, 7, 8, 7]]
    segmentations = [
        SQUARE,
        {"size": [H, W], "counts": counts},
        {"size": [H, W], "counts": compressed["counts"].decode()},
        two,
    ]
    write(tmp_path, [annotation(k, segmentation=s) for k, s in enumerate(segmentations)])
    _, target = read(tmp_path, masks=True)[0]
    assert target["masks"].dtype == torch.uint8
    for mask in target["masks"][:3]:
        assert torch.equal(mask, square())
    assert int(target["masks"][3, :2, :2].sum()) == 4
    assert int(target["masks"][3, 4:, 8:].sum()) == 9
    assert int(target["masks"][3].sum()) == 13
    _, empty = read(tmp_path, masks=True)[1]
    assert (tuple(empty["boxes"].shape), tuple(empty["masks"].shape)) == ((0, 4), (0, H, W))


def test_boxes_without_area_are_left_out_with_their_masks(tmp_path):
    write(
        tmp_path,
        [
            annotation(1, bbox=[2, 1, 0, 3], segmentation=SQUARE),
            annotation(2, segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]]),
            annotation(3, bbox=[W, 0, 4, 4], segmentation=SQUARE),
            annotation(4, bbox=[3, 3, -2, -2], segmentation=SQUARE),
        ],
    )
    with pytest.warns(
        UserWarning, match=r"a\.json: 3 of 4 boxes have no area .* left out; the first is annotation 1\.$"
    ):
        found = read(tmp_path, masks=True)
    _, target = found[0]
    assert target["boxes"].tolist() == [[2, 1, 6, 4]]
    assert target["masks"].flatten(1).sum(1).tolist() == [1]


def test_boxes_as_fractions_are_refused(tmp_path):
    write(tmp_path, [annotation(i, bbox=[0.2, 0.1, 0.5, 0.9 - i / 9]) for i in range(2)])
    with pytest.raises(ValueError, match=r"within the first pixel .* in pixels, not in fractions"):
        read(tmp_path)


def test_boxes_as_corners_are_noticed(tmp_path):
    write(tmp_path, [annotation(i, bbox=[W / 2, H / 2, W, H + i]) for i in range(4)])
    with pytest.warns(UserWarning, match=r"4 of 4 boxes reach beyond their images .* not the corners x1, y1, x2, y2"):
        read(tmp_path)


def test_images_without_objects_may_be_left_out(tmp_path):
    write(tmp_path, [annotation(1), annotation(2, image=4, iscrowd=1)])
    assert len(read(tmp_path)) == 2
    kept = read(tmp_path, keep_empty=False)
    assert kept.image_names == ["10.png"]
    assert len(kept[0][1]["boxes"]) == 1
    write(tmp_path)
    with pytest.raises(ValueError, match=r"a\.json has no image with an object, and keep_empty is false"):
        read(tmp_path, keep_empty=False)


@pytest.mark.parametrize(
    ("listed", "changes", "message"),
    [
        ([annotation(5, image=99)], {}, "annotation 5 is of image 99, which the file does not list"),
        ([annotation(5, category=4)], {}, "annotation 5 is of category 4, which the file does not list"),
        (
            [annotation(5, bbox=[1, 2, 3])],
            {},
            r"needs image_id, category_id and bbox, .*\[x, y, width, height\]; got .*5",
        ),
        ([annotation(5, bbox=[1, 2, 3, None])], {}, "needs image_id, category_id and bbox"),
        ([annotation(5, area=-5)], {}, "annotation 5 has the area -5, which is negative"),
        ([annotation(5, bbox=[1, 2, 3, float("nan")])], {}, "annotation 5 has a bbox or area that is not a number"),
        ([{"id": 5, "image_id": 10, "bbox": [0, 0, 1, 1]}], {}, "needs image_id, category_id and bbox"),
        (["text"], {}, "needs image_id, category_id and bbox.* got 'text'"),
        (
            [],
            {"images": [{"id": 1, "file_name": "1.png"}]},
            "an image needs id, file_name, height and width, got .*1.png",
        ),
        ([], {"images": [{"id": "x", "file_name": "1.png", "height": 3, "width": 4}]}, "an image needs id"),
        ([], {"images": [{"id": True, "file_name": "1.png", "height": 3, "width": 4}]}, "an image needs id"),
        ([], {"images": [{"id": 2**63, "file_name": "1.png", "height": 3, "width": 4}]}, "an image needs id"),
        ([], {"images": [{"id": 1, "file_name": None, "height": 3, "width": 4}]}, "an image needs id"),
        ([], {"images": [{"id": 1, "file_name": "1.png", "height": 0, "width": 4}]}, "must be positive, got .*1.png"),
        ([], {"images": [{"id": 1, "file_name": "1.png", "height": 3, "width": 4}] * 2}, "has two images with id 1"),
        ([], {"images": []}, "has no images"),
        ([], {"categories": []}, "has no categories"),
        (
            [],
            {"categories": [{"id": 3, "name": "a"}, {"id": 8, "name": "a"}]},
            "two categories with the name 'a', ids 3 and 8.* rename one, or remove it",
        ),
        ([annotation(5, iscrowd="yes")], {}, "annotation 5 needs image_id"),
        ([annotation(5, iscrowd=2)], {}, "annotation 5 needs image_id"),
        ([annotation(5, area="large")], {}, "annotation 5 needs image_id"),
        ([annotation(4), [1, 2]], {}, r"annotation at place 1 needs image_id, .* got \[1, 2\]"),
        ([], {"categories": [{"id": 3}]}, "a category needs id and name, got {'id': 3}"),
        ([], {"categories": [{"id": 3, "name": "a"}] * 2}, "has two categories with id 3"),
        ([], {"annotations": None}, "must have the lists images, .* no list annotations"),
    ],
)
def test_a_wrong_file(tmp_path, listed, changes, message):
    write(tmp_path, listed, **changes)
    with pytest.raises(ValueError, match=rf"^[^\n]*a\.json[^\n]*{message}[^\n]*$"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], r"\[\]; it must be polygons, .* set masks to false"),
        (None, "None; it must be polygons or run lengths; set masks to false"),
        ([[1, 2, 3, 4]], r"it must be polygons, \[\[x1, y1"),
        ([[1, 2, 3, 4, 5, 6, 7]], "it must be polygons"),
        ([[1, 2, 3, 4, 5, "6"]], "it must be polygons"),
        ({"size": [W, H], "counts": [H * W]}, f"it must be run lengths of {H} x {W} pixels, with the size .{H}, {W}."),
        ({"size": [H, W], "counts": [H * W - 1]}, "it must be run lengths"),
        ({"size": [H, W]}, "it must be run lengths"),
        (
            {"size": [H, W], "counts": [-5, H * W + 5]},
            f"which have {H * W} together, not {H * W}, and are not negative",
        ),
        ({"size": [H, W], "counts": [1.5, H * W - 1.5]}, "it must be run lengths"),
        ({"size": [H, W], "counts": ""}, "it must be run lengths"),
        ({"size": [H, W], "counts": "oooo"}, "it must be run lengths"),  # a number without end
        ({"size": [H, W], "counts": "椅"}, "it must be run lengths"),
        ({"size": [H, W], "counts": "1"}, f"which have {H * W} together, not 1"),
        ({"size": [H, W], "counts": "o" * 9 + "1"}, "it must be run lengths"),  # a number of 50 bits
        ([[1, 2, 3, 4, 5, float("nan")]], "it must be polygons"),
        ([[1, 2, 3, 4, 5, float("inf")]], "it must be polygons"),
        ([[1, 2, 3, 4, 5, 1e9]], f"it must be polygons, .* near its image of {H} x {W} pixels"),
        ([[1, 2, 3, 4, 5, True]], "it must be polygons"),
        ([*SQUARE, [1, 2, 3, 4]], "it must be polygons"),
    ],
)
def test_a_wrong_segmentation(tmp_path, segmentation, message):
    write(tmp_path, [annotation(5, segmentation=segmentation)])
    assert len(read(tmp_path)) == 2  # it does not matter if only boxes are read
    with pytest.raises(ValueError, match=rf"a\.json: annotation 5 has the segmentation [^\n]*{message}"):
        read(tmp_path, masks=True)


@pytest.mark.parametrize("seed", range(5))
def test_compressed_run_lengths_are_checked_as_pycocotools_reads_them(tmp_path, seed):
    """Masks of few and of many runs; a text that is cut or changed is refused or has the right number of pixels."""
    random = np.random.default_rng(seed)
    mask = random.random((H, W)) < random.random()
    text = rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    write(tmp_path, [annotation(1, segmentation={"size": [H, W], "counts": text})])
    assert read(tmp_path, masks=True)[0][1]["masks"][0].tolist() == mask.astype(int).tolist()
    for _ in range(20):
        place = random.integers(len(text))
        damaged = text[:place] + chr(random.integers(40, 120)) + text[place + 1 :]
        write(tmp_path, [annotation(1, segmentation={"size": [H, W], "counts": damaged})])
        with suppress(ValueError):
            decoded = read(tmp_path, masks=True)[0][1]["masks"][0]
            assert set(decoded.unique().tolist()) <= {0, 1}


def test_a_large_mask_of_long_runs(tmp_path):
    H, W = 900, 1100
    mask = np.zeros((H, W), np.uint8)
    mask[100:800, 300:1000] = 1
    text = rle.encode(np.asfortranarray(mask))["counts"].decode()
    image = {"id": 10, "file_name": "10.png", "height": H, "width": W}
    write(tmp_path, [annotation(1, segmentation={"size": [H, W], "counts": text})], size=(H, W), images=[image])
    assert (read(tmp_path, masks=True)[0][1]["masks"][0].numpy() == mask).all()


def test_what_tools_write_differently(tmp_path):
    image = {"id": "10", "file_name": "10.png", "height": float(H), "width": str(W)}
    categories = [{"id": "3", "name": "three"}]
    listed = [
        annotation("a7", image="10", category=3.0, area=None, iscrowd="0"),
        annotation(8, image=10, category="3", area="2.5", iscrowd="1"),
        annotation(9, iscrowd=None, category=3, bbox=(2, 1, 3, 4)),
    ]
    target = read(write(tmp_path, listed, images=[image], categories=categories))[0][1]
    assert target["area"].tolist() == [12, 2.5, 12]
    assert target["iscrowd"].tolist() == [0, 1, 0]
    assert int(target["image_id"]) == 10


def test_damaged_annotations_can_be_left_out_with_a_count(tmp_path):
    damaged = [annotation(6, segmentation=[[1, 2]]), annotation(7, bbox=[1]), "text"]
    write(tmp_path, [annotation(5, segmentation=SQUARE), *damaged])
    with pytest.warns(
        UserWarning, match=r"a\.json: 3 of 4 annotations are damaged and left out; the first is annotation 6, which has"
    ):
        found = read(tmp_path, masks=True, skip_unreadable=True)
    assert (found[0][1]["masks"] == square()).all()


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No annotations .*a\.json"):
        read(tmp_path)
    write(tmp_path, pictures=(10,))
    with pytest.raises(FileNotFoundError, match=r"lists 4\.png, but there is no .*4\.png \(1 of 2 images are missing"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No folder .*other of the images that .*a\.json lists"):
        CocoObjects(tmp_path / "a.json", tmp_path / "other")
    (tmp_path / "a.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"^[^\n]*a\.json is not JSON: [^\n]*$"):
        read(tmp_path)


def test_a_picture_of_another_size(tmp_path):
    write(tmp_path, size=(H, W + 1))
    with pytest.raises(ValueError, match=r"10\.png has 7x12 pixels, but .*a\.json says 7x11"):
        read(tmp_path)[0]


def test_what_stands_twice_counts_once(tmp_path):
    once = [annotation(1, segmentation=SQUARE), annotation(2, bbox=(1, 1, 3, 3), segmentation=SQUARE)]
    write(tmp_path, [*once, annotation(3, segmentation=SQUARE), annotation(1, category=3, segmentation=SQUARE)])
    with pytest.warns(UserWarning, match="1 of 4 annotations are exact duplicates and are dropped.*annotation 3"):
        found = read(tmp_path, masks=True)
    assert found[0][1]["labels"].tolist() == [2, 2, 1]
    pictures = [{"id": n, "file_name": "10.png", "height": H, "width": W} for n in (10, 4)]
    with pytest.raises(ValueError, match=r"lists 10.png twice, with the ids 10 and 4"):
        read(write(tmp_path, images=pictures))


@pytest.mark.parametrize("nothing", [{"size": [H, W], "counts": [H * W]}, [[2, 1, 2, 1, 2, 1]]])
def test_a_mask_without_a_pixel_is_no_object(tmp_path, nothing):
    write(tmp_path, [annotation(8, segmentation=nothing), annotation(9, segmentation=SQUARE)])
    found = read(tmp_path, masks=True)
    with pytest.warns(UserWarning, match=r"the mask of annotation 8 has no pixel, so it is left out \(1 of this"):
        target = found[0][1]
    assert target["masks"].equal(square()[None])
    assert {len(target[name]) for name in ("boxes", "labels", "area", "iscrowd")} == {1}
    assert len(read(tmp_path)[0][1]["boxes"]) == 2  # the boxes are there


@pytest.mark.parametrize("bbox", ["1234", {"1": 0, "2": 0, "3": 0, "4": 0}])
def test_a_bbox_is_a_list(tmp_path, bbox):
    with pytest.raises(ValueError, match=r"annotation 1 needs image_id, category_id and bbox"):
        read(write(tmp_path, [{"id": 1, "image_id": 10, "category_id": 7, "bbox": bbox}]))
