import numpy as np
import pytest
import torch
from examples import attach
from PIL import Image
from torchvision.transforms import v2

from pcea.datamodules.masks import (
    ADE20KDataModule,
    CamVidDataModule,
    CityscapesDataModule,
    MaskFolderDataModule,
    VOC2012DataModule,
)
from pcea.datasets.batches import IGNORE
from pcea.datasets.images import ImageTensors
from pcea.datasets.masks import MaskFiles
from pcea.transforms.images import RandomScaledCrop


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (VOC2012DataModule, "No VOCdevkit/VOC2012 under"),
        (ADE20KDataModule, "No ADEChallengeData2016 under"),
        (CityscapesDataModule, "No cityscapes under"),
        (CamVidDataModule, "No CamVid under"),
        (MaskFolderDataModule, r"num_classes is not given and there is no .*classes\.yaml"),
    ],
)
def test_constructors_touch_no_disk(tmp_path, make, message):
    data = make(str(tmp_path / "missing"))
    assert data.sets == {}
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        data.setup("fit")


def write(image, mask, size=(6, 8), value=0):
    """An image whose red is its class everywhere, and its mask."""
    image.parent.mkdir(parents=True, exist_ok=True)
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), (value, 50, 60), dtype=np.uint8)).save(image)
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(mask)


@pytest.fixture
def camvid(tmp_path):
    """Eight images to train on, three to validate by, two to test on."""
    for split, count in (("train", 8), ("val", 3), ("test", 2)):
        for number in range(count):
            name = f"{split}{number}.png"
            write(tmp_path / "CamVid" / split / name, tmp_path / "CamVid" / f"{split}annot" / name, value=number)
    return str(tmp_path)


def sizes(data):
    data.setup("fit")
    data.setup("test")
    return {name: len(images) for name, images in data.sets.items()}


def test_camvid_validates_by_the_official_split(camvid):
    data = CamVidDataModule(camvid, val_fraction=0.5)
    assert sizes(data) == {"train": 8, "val": 3, "test": 2}
    assert all(type(images) is ImageTensors for images in data.sets.values())


def test_camvid_trains_on_both_official_splits(camvid):
    assert sizes(CamVidDataModule(camvid, train_split="trainval", val_fraction=0)) == {"train": 11, "test": 2}
    data = CamVidDataModule(camvid, train_split="trainval", val_fraction=0.2, in_memory=False)
    assert sizes(data) == {"train": 9, "val": 2, "test": 2}
    assert type(data.sets["train"]) is MaskFiles


@pytest.mark.parametrize(("train_split", "count"), [("train", 4), ("trainaug", 6)])
def test_voc2012_reports_on_val(tmp_path, train_split, count):
    folder = tmp_path / "VOC2012"
    lists = {"train": range(4), "trainaug": range(6), "val": range(6, 8)}
    for number in range(8):
        for masks in ("SegmentationClass", "SegmentationClassAug"):
            write(folder / "JPEGImages" / f"{number}.jpg", folder / masks / f"{number}.png", value=number)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, listed in lists.items():
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(map(str, listed)))
    data = VOC2012DataModule(str(tmp_path), train_split=train_split, val_fraction=0.25)
    assert sizes(data) == {"train": count - round(count / 4), "val": round(count / 4), "test": 2}
    held = {path.stem for name in ("train", "val") for path in data.sets[name].images}
    assert held == {*map(str, range(count))}
    assert {path.stem for path in data.sets["test"].images} == {"6", "7"}


def test_ade20k_and_cityscapes_report_on_validation(tmp_path):
    for split, count in (("training", 4), ("validation", 1)):
        for number in range(count):
            image = tmp_path / "ADEChallengeData2016" / "images" / split / f"{split}{number}.jpg"
            write(image, tmp_path / "ADEChallengeData2016" / "annotations" / split / f"{split}{number}.png")
    for split, count in (("train", 4), ("val", 1)):
        for number in range(count):
            image = tmp_path / "leftImg8bit" / split / "ulm" / f"{split}{number}_leftImg8bit.png"
            write(image, tmp_path / "gtFine" / split / "ulm" / f"{split}{number}_gtFine_labelIds.png")
    for data in (ADE20KDataModule(str(tmp_path)), CityscapesDataModule(str(tmp_path))):
        data.val_fraction = 0.25
        assert sizes(data) == {"train": 3, "val": 1, "test": 1}
        assert "val" in str(data.sets["test"].images[0])
        assert all("train" in str(path) for path in (*data.sets["train"].images, *data.sets["val"].images))


@pytest.fixture
def folder(tmp_path):
    """Ten images of two sizes; their class is their number modulo 3."""
    for number in range(10):
        size = (6, 8) if number % 2 else (9, 5)
        write(tmp_path / "images" / f"{number}.png", tmp_path / "masks" / f"{number}.png", size, number % 3)
    return tmp_path


def test_a_folder_is_divided_into_three(folder):
    data = MaskFolderDataModule(str(folder), num_classes=3, test_fraction=0.3, val_fraction=0.3)
    with pytest.warns(UserWarning, match="'class 1' has no pixel in the 7 training masks"):  # its three were held out
        assert sizes(data) == {"train": 5, "val": 2, "test": 3}
    assert {path.stem for images in data.sets.values() for path in images.images} == {*map(str, range(10))}
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1, got 1"):
        MaskFolderDataModule(str(folder), test_fraction=1)


def test_a_folder_with_splits_keeps_them(folder):
    (folder / "train.txt").write_text("\n".join(map(str, range(7))))
    (folder / "val.txt").write_text("7\n8\n9")
    data = MaskFolderDataModule(str(folder), num_classes=3, val_fraction=0)
    assert sizes(data) == {"train": 7, "test": 3}
    (folder / "test.txt").write_text("9")
    (folder / "val.txt").write_text("7\n8")
    assert sizes(MaskFolderDataModule(str(folder), num_classes=3)) == {"train": 7, "val": 2, "test": 1}


@pytest.mark.parametrize("in_memory", [False, True])
def test_masks_of_0_and_255_stop_before_training(folder, in_memory):
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 2 * 255).save(path)
    data = MaskFolderDataModule(str(folder), num_classes=2, in_memory=in_memory)
    with pytest.raises(ValueError, match=r"'class 1' has no pixel .* class_values: \[0, 255\]"):
        data.setup("fit")
    MaskFolderDataModule(str(folder), num_classes=2).setup("validate")
    data = MaskFolderDataModule(str(folder), num_classes=2, in_memory=in_memory, class_values=[0, 255])
    data.setup("fit")
    assert {*torch.cat([mask.flatten() for _, mask in data.sets["train"]]).tolist()} == {0, 1}


def test_options_of_the_classes_reach_the_files(folder):
    data = MaskFolderDataModule(str(folder), num_classes=2, ignore_value=2)
    data.setup("test")
    assert data.class_names == ("class 0", "class 1")
    assert data.sets["test"].classes == {0: 0, 1: 1, 2: IGNORE}


@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_are_crops_with_their_masks(folder, in_memory):
    data = MaskFolderDataModule(
        str(folder),
        num_classes=3,
        batch_size=4,
        val_fraction=0,
        mean=(0, 0, 0),
        std=(1 / 255,) * 3,
        train_transforms=[RandomScaledCrop((7, 11), fill=(IGNORE,) * 3), v2.RandomHorizontalFlip()],
        in_memory=in_memory,
    )
    attach(data, training=True)
    data.setup("fit")
    seen = set()
    for batch in data.train_dataloader():
        images, label = data.on_after_batch_transfer(batch, 0)
        assert images.shape == (4, 3, 7, 11)
        assert images.dtype == torch.float32
        assert label.dtype == torch.int64
        assert torch.equal(images[:, 0].long(), label)  # padding included
        seen |= set(label.unique().tolist())
    assert seen == {0, 1, 2, IGNORE}


def test_images_of_different_sizes_are_measured_one_at_a_time(folder):
    data = MaskFolderDataModule(str(folder), num_classes=3, test_fraction=0.5)
    attach(data)
    data.setup("test")
    found = [tuple(batch.label.shape) for batch in data.test_dataloader()]
    assert {*found} == {(1, 6, 8), (1, 9, 5)}
    data.eval_batch_size = 5
    with pytest.raises(ValueError, match=r"must have one size, got \dx\d and \dx\d\. .*eval_batch_size: 1"):
        next(iter(data.test_dataloader()))
