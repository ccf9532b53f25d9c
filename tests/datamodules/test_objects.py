import json
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import attach
from PIL import Image
from torchvision.transforms import v2

from pcea.datamodules.objects import CocoDataModule, ObjectFolderDataModule, VocObjectDataModule
from pcea.datasets.batches import ObjectBatch

H, W = 7, 11

LACKS_A_CLASS = pytest.mark.filterwarnings("ignore:No object in the training split")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (CocoDataModule, "No annotations .*instances_train2017.json"),
        (VocObjectDataModule, r"No list .*train\.txt"),
        (ObjectFolderDataModule, "No folder .*images"),
    ],
)
def test_constructors_touch_no_disk(tmp_path, make, message):
    data = make(str(tmp_path / "missing"))
    assert data.sets == {}
    assert (data.class_names, data.category_ids, data.has_masks) == ((), (), False)
    with pytest.raises(FileNotFoundError, match=message):
        data.setup("fit")


def picture(path, value, size=(H, W)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), (value, 50, 60), dtype=np.uint8)).save(path)


def write_instances(root, number, size=(H, W), name=None):
    """Picture number `number`, whose red is its number; its map has one object, at (1, 1), of 2 x 3 pixels."""
    name = name or f"{number:02}"
    picture(root / "images" / f"{name}.png", number, size)
    values = np.zeros(size, dtype=np.uint16)
    values[1:3, 1:4] = 5
    (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(root / "labels" / f"{name}.png")


@pytest.fixture
def nuclei(tmp_path):
    """Twelve pictures of one size and six of another."""
    for number in range(18):
        write_instances(tmp_path, number, (H, W) if number < 12 else (W, H))
    return str(tmp_path)


def reds(batches):
    return [[int(image[0].min()) for image in batch.images] for batch in batches]


def sizes(data):
    data.setup("fit")
    data.setup("test")
    return {name: len(images) for name, images in data.sets.items()}


def test_a_folder_is_divided_by_size(nuclei):
    def divided(**options):
        data = ObjectFolderDataModule(nuclei, test_fraction=1 / 3, val_fraction=0.25, **options)
        assert sizes(data) == {"train": 9, "val": 3, "test": 6}
        return {name: sorted(images.image_names) for name, images in data.sets.items()}

    first = divided()
    assert sorted(name for names in first.values() for name in names) == [f"{n:02}.png" for n in range(18)]
    small = [f"{n:02}.png" for n in range(12)]
    assert [len({*names} & {*small}) for names in first.values()] == [6, 2, 4]
    assert divided() == first
    other = divided(split_seed=1)
    assert other["test"] == first["test"]
    assert other["val"] != first["val"]
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1, got 1"):
        ObjectFolderDataModule(nuclei, test_fraction=1)


def test_a_folder_with_splits_keeps_them(tmp_path):
    for number, name in enumerate(("train/a", "train/b", "val/c", "test/d")):
        write_instances(tmp_path, number, name=name)
    data = ObjectFolderDataModule(str(tmp_path), class_name="nucleus")
    assert sizes(data) == {"train": 2, "val": 1, "test": 1}
    assert data.sets["test"].image_names == ["d.png"]
    assert (data.class_names, data.category_ids, data.has_masks) == (("nucleus",), (1,), True)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_hold_images_of_any_size(nuclei, seed_everything, in_memory, num_workers):
    data = attach(
        ObjectFolderDataModule(
            nuclei,
            val_fraction=0,
            batch_size=6,
            in_memory=in_memory,
            num_workers=num_workers,
            train_transforms=[v2.RandomHorizontalFlip(p=1.0)],
        )
    )
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(batch.images) for batch in batches] == [6, 6]  # of 15; the last three are dropped
    for batch in batches:
        assert type(batch) is ObjectBatch
        for image, target in zip(batch.images, batch.targets):
            width = image.shape[2]
            assert image.dtype == torch.uint8
            assert target["boxes"].tolist() == [[width - 4, 1, width - 1, 3]]
            assert target["masks"].shape == (1, *image.shape[1:])
            assert int(target["masks"][0, 1:3, width - 4 : width - 1].sum()) == 6
    assert data.val_dataloader() == []


def test_transforms_follow_seed_epoch_and_image_in_any_process(nuclei, seed_everything):
    def boxes(seed=0, epoch=0, num_workers=0):
        seed_everything(seed)
        torch.rand(1)  # the global generator must not matter
        data = attach(
            ObjectFolderDataModule(
                nuclei,
                val_fraction=0,
                batch_size=7,
                num_workers=num_workers,
                train_transforms=[v2.RandomHorizontalFlip(), v2.RandomZoomOut(p=1.0)],
            )
        )
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return {int(target["image_id"]): target["boxes"].tolist() for batch in loader for target in batch.targets}

    first = boxes()
    assert len(first) == 14
    assert boxes() == first
    assert boxes(num_workers=2) == first
    for other in (boxes(epoch=1), boxes(seed=1)):
        common = first.keys() & other.keys()  # another image may be the dropped one
        assert any(other[number] != first[number] for number in common)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_image_is_tested_once(nuclei, world_size):
    found = []
    for rank in range(world_size):
        data = ObjectFolderDataModule(
            nuclei, test_fraction=0.4, eval_batch_size=2, eval_transforms=[v2.RandomVerticalFlip(p=1.0)]
        )
        attach(data, world_size=world_size, rank=rank)
        data.setup("test")
        for batch in data.test_dataloader():
            found += [int(target["image_id"]) for target in batch.targets]
            heights = [image.shape[1] for image in batch.images]
            assert [t["boxes"][0, 3] for t in batch.targets] == [height - 1 for height in heights]
    assert sorted(found) == sorted({*found})
    assert len(found) == len(data.sets["test"]) == 7
    assert reds(data.predict_dataloader()) == [
        [int(name[:2]) for name in data.sets["test"].image_names[i : i + 2]] for i in range(0, 7, 2)
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_named_in_one_line(nuclei, num_workers, tmp_path, seed_everything):
    for path in (tmp_path / "labels").iterdir():
        path.write_bytes(b"not a picture")
    data = attach(ObjectFolderDataModule(nuclei, val_fraction=0, num_workers=num_workers))
    data.setup("fit")

    def read():
        for batch in data.train_dataloader():
            data.on_before_batch_transfer(batch, 0)

    with pytest.raises(ValueError, match=r"^[^\n]*labels/\d\d\.png cannot be read as an image: [^\n]*$"):
        read()


def write_coco(root, name, ids, categories=(3, 9), crowds=(), empty=()):
    """Pictures with an object each, and for those in `crowds` a crowd region too."""
    annotations = []
    for number in ids:
        picture(root / name / f"{number}.png", number)
        if number not in empty:
            row = {"image_id": number, "category_id": categories[0], "bbox": [1, 1, 3, 2], "area": 6}
            row["segmentation"] = [[1, 1, 4, 1, 4, 3, 1, 3]]
            annotations += [row, row | {"iscrowd": 1}] if number in crowds else [row]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": H, "width": W} for n in ids],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"category {c}"} for c in categories],
    }
    path = root / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def coco(tmp_path):
    write_coco(tmp_path, "train2017", range(10, 20), crowds=[*range(10, 20)], empty=(13,))
    write_coco(tmp_path, "val2017", [30, 25, 40], crowds=(25,), empty=(40,))
    return tmp_path


def test_coco_reports_on_val(coco, seed_everything):
    data = attach(CocoDataModule(str(coco), val_fraction=0.2, batch_size=4))
    with pytest.warns(
        UserWarning, match=r"No object in .*train2017\.json has the class 'category 9' \(1 of 2 classes\)"
    ):
        assert sizes(data) == {"train": 8, "val": 2, "test": 3}
    assert (data.class_names, data.category_ids) == (("category 3", "category 9"), (3, 9))
    assert not data.has_masks
    [first] = [batch for batch in data.test_dataloader() if int(batch.targets[0]["image_id"]) == 25]
    assert first.targets[0]["iscrowd"].tolist() == [0, 1]  # evaluation keeps the crowd
    for batch in data.train_dataloader():
        for target in batch.targets:
            assert target["iscrowd"].tolist() == [0] * len(target["boxes"])
            assert len(target["boxes"]) == (int(target["image_id"]) != 13)
    assert [int(batch.targets[0]["image_id"]) for batch in data.test_dataloader()] == [30, 25, 40]


@LACKS_A_CLASS
def test_coco_with_masks_without_empty_images(coco):
    data = CocoDataModule(str(coco), masks=True, keep_empty=False, val_fraction=0)
    assert sizes(data) == {"train": 9, "test": 3}
    assert data.has_masks
    assert data.sets["test"][0][1]["masks"].flatten(1).sum(1).tolist() == [6]


@LACKS_A_CLASS
def test_any_files_in_the_format_of_coco(tmp_path):
    for number, name in enumerate(("train", "valid", "test")):
        write_coco(tmp_path, name, range(10 * number, 10 * number + 4))
        (tmp_path / "annotations" / f"instances_{name}.json").rename(tmp_path / name / "_annotations.coco.json")
    options = {f"{ours}_images": theirs for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test"))}
    options |= {name.replace("images", "annotations"): f"{v}/_annotations.coco.json" for name, v in options.items()}
    data = CocoDataModule(str(tmp_path), **options)
    assert sizes(data) == {"train": 4, "val": 4, "test": 4}
    assert data.sets["val"].image_names[0] == "10.png"
    with pytest.raises(ValueError, match="val_images and val_annotations go together, got a and None"):
        CocoDataModule(str(tmp_path), val_images="a")


@LACKS_A_CLASS
@pytest.mark.filterwarnings("ignore:2 pictures of the training split are in test")
def test_pictures_in_two_splits_are_noticed(coco, voc):
    data = CocoDataModule(str(coco), train_images="val2017", train_annotations="annotations/instances_val2017.json")
    with pytest.warns(UserWarning, match="train_annotations and test_annotations are both"):
        data.setup("fit")
    lists = Path(voc) / "ImageSets" / "Main"
    (lists / "test.txt").write_text((lists / "train.txt").read_text())
    with pytest.warns(UserWarning, match="pictures of the training split are in test too, the first is .*JPEGImages"):
        VocObjectDataModule(str(voc)).setup("fit")


@LACKS_A_CLASS
def test_splits_of_coco_must_have_the_same_categories(coco):
    write_coco(coco, "val2017", [30], categories=(3, 8))
    data = CocoDataModule(str(coco))
    data.setup("fit")
    with pytest.raises(
        ValueError, match=r"val2017\.json must have the categories of .*train2017\.json.* 8, 'category 8'"
    ):
        data.setup("test")


@pytest.fixture
def voc(tmp_path):
    lists = {"train": range(4), "val": range(4, 7), "test": range(7, 9), "trainval": range(7)}
    for number in range(9):
        picture(tmp_path / "JPEGImages" / f"{number}.jpg", number)
        box = "<xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>3</ymax>"
        item = f"<object><name>cell</name><difficult>{number % 2}</difficult><bndbox>{box}</bndbox></object>"
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{number}.xml").write_text(f"<annotation>{item}</annotation>")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for name, numbers in lists.items():
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(map(str, numbers)))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"train": 4, "val": 3, "test": 2}),
        ({"train_split": "trainval", "val_fraction": 0}, {"train": 7, "test": 2}),
        ({"train_split": "trainval", "val_fraction": 2 / 7}, {"train": 5, "val": 2, "test": 2}),
        ({"test_split": "val", "val_fraction": 0.25}, {"train": 3, "val": 1, "test": 3}),
    ],
)
def test_splits_of_voc(voc, options, expected):
    assert sizes(VocObjectDataModule(voc, **options)) == expected


def test_voc_does_not_test_on_what_it_trains_on(voc):
    with pytest.raises(ValueError, match="val would also be trained on: set train_split to train"):
        VocObjectDataModule(voc, train_split="trainval", test_split="val")


def test_difficult_objects_are_not_trained_on(voc, seed_everything):
    data = attach(VocObjectDataModule(voc, batch_size=4, class_names=["cell", "other"]))
    with pytest.warns(UserWarning, match="No object in the training split of .* has the class 'other'"):
        data.setup("fit")
    data.setup("test")
    assert data.class_names == ("cell", "other")
    [batch] = data.train_dataloader()
    for target in batch.targets:
        assert target["boxes"].tolist() == [[[1, 1, 4, 3]], []][int(target["image_id"]) % 2]
    assert [batch.targets[0]["iscrowd"].tolist() for batch in data.test_dataloader()] == [[1], [0]]


def test_label_maps_without_any_object_are_noticed(nuclei):
    data = ObjectFolderDataModule(nuclei)
    data.setup("fit")
    for path in Path(nuclei, "labels").rglob("*.png"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    with pytest.warns(UserWarning, match="None of .* label maps that were looked at has an object, first .*png"):
        ObjectFolderDataModule(nuclei).setup("fit")
