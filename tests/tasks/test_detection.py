import json
import math
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pcea.datasets.batches import ObjectBatch
from pcea.models import FasterRCNN
from pcea.tasks.detection import DetectionTask

SGD = partial(torch.optim.SGD, lr=0.1)


class Given(nn.Module):
    """Detects what it was told for each image, by the red of its first pixel."""

    def __init__(self, detections=(), *, num_classes=2, has_masks=False):
        super().__init__()
        self.detections, self.num_classes, self.has_masks = detections, num_classes, has_masks
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, images, targets=None):
        self.seen += images
        if targets is not None:
            return {"loss_box": self.weight * 2, "loss_class": self.weight * len(targets)}
        return [self.detections[round(255 * float(image[0, 0, 0]))] for image in images]


def found(*objects, masks=None):
    """Objects as (box, label, score)."""
    boxes, labels, scores = zip(*objects) if objects else ((), (), ())
    answer = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }
    return answer if masks is None else {**answer, "masks": masks}


def true(number, *objects, crowd=(), masks=None):
    """Objects as (box, label)."""
    boxes, labels = zip(*objects) if objects else ((), ())
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    target = {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": torch.tensor([int(i in crowd) for i in range(len(boxes))]),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
        "image_id": torch.tensor(number),
    }
    return target if masks is None else {**target, "masks": masks}


class Data(L.LightningDataModule):
    """Two images of different sizes in all splits, and what tasks ask, without deriving from `DataModule`."""

    num_points, with_normals, up, parts, mean, std, eval_transforms = 0, False, None, {}, (), (), ()
    dataset_name, sets = "Data", {}

    def __init__(self, targets, *, class_names=("cat", "dog"), category_ids=(3, 7), has_masks=False):
        super().__init__()
        self.targets, self.class_names, self.category_ids, self.has_masks = (
            targets, class_names, category_ids, has_masks,
        )  # fmt: skip

    def loader(self):
        images = [torch.full((3, 20 + i, 30), i, dtype=torch.uint8) for i in range(len(self.targets))]
        batches = [ObjectBatch([image], [target]) for image, target in zip(images, self.targets)]
        return DataLoader(batches[self.trainer.global_rank :: self.trainer.world_size], batch_size=None)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


# The first image: a cat found well and one found with an IoU of 0.62; the second: a dog taken for a cat.
A, B, C = (0, 0, 10, 10), (10, 10, 20, 20), (5, 5, 15, 15)
DETECTIONS = [found((A, 1, 0.9), ((10, 10, 20, 16.2), 1, 0.8)), found((C, 1, 0.3))]
TARGETS = [true(5, (A, 1), (B, 1)), true(9, (C, 2))]


def test_the_metrics_by_hand(trainer):
    task = DetectionTask(Given(DETECTIONS), SGD)
    [metrics] = trainer.test(task, datamodule=Data(TARGETS), verbose=False)
    # Cats: both are found first at IoU 0.5, 0.55 and 0.6; above only the first, which is half of the recall: 51 of the
    # 101 places of COCO's curve. The dog is not found.
    cat = (3 + 7 * 51 / 101) / 10
    assert metrics == pytest.approx({"test/box_ap": cat / 2, "test/box_ap50": 0.5}, abs=1e-6)
    assert task.by_category == {"cat": (2, pytest.approx(cat)), "dog": (1, 0.0)}


@pytest.mark.slow
def test_what_is_found_in_an_image_does_not_depend_on_the_batch():
    network = FasterRCNN(num_classes=2, depth=18, channels=16, hidden=16, image_size=None, score_threshold=0.0)
    task = DetectionTask(network, SGD).eval()
    images = [torch.randint(0, 256, (3, height, 96), dtype=torch.uint8) for height in (64, 128, 64)]
    with torch.no_grad():
        together, alone = task(images), [task([image])[0] for image in images]
    for one, other in zip(together, alone):
        assert len(one["boxes"]) > 50
        torch.testing.assert_close(one["scores"], other["scores"])
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=1e-4)


def test_validation_counts_like_the_test_and_forgets(trainer):
    task = DetectionTask(Given(DETECTIONS), SGD)
    for _ in range(2):
        [metrics] = trainer.validate(task, datamodule=Data(TARGETS), verbose=False)
        assert metrics["val/box_ap50"] == pytest.approx(0.5)


def test_detections_in_a_crowd_count_nowhere(trainer):
    def ap(crowd):
        detections = [found((A, 1, 0.9), (B, 1, 0.8))]
        task = DetectionTask(Given(detections), SGD)
        # The detection of the crowd has the higher score, so that it would spoil the precision.
        [metrics] = trainer.test(task, datamodule=Data([true(1, (A, 1), (B, 1), crowd=crowd)]), verbose=False)
        return metrics["test/box_ap"], task.by_category["cat"][0]

    assert ap(crowd=()) == (pytest.approx(1.0), 2)
    assert ap(crowd=(0,)) == (pytest.approx(1.0), 1)


def test_masks_are_measured_apart_from_boxes(trainer):
    masks = torch.zeros(2, 20, 30)
    masks[0, :10, :10] = 1
    masks[1, 10:, 10:20] = 1
    answers = masks.clone()
    answers[1, 10:16] = 0.4  # below one half: of the second object less than half is left
    detections = [found((A, 1, 0.9), (B, 1, 0.8), masks=answers.unsqueeze(1))]
    task = DetectionTask(Given(detections, has_masks=True), SGD)
    data = Data([true(1, (A, 1), (B, 1), masks=masks.to(torch.uint8))], has_masks=True)
    [metrics] = trainer.test(task, datamodule=data, verbose=False)
    expected = {"box_ap": 1, "box_ap50": 1, "mask_ap": 51 / 101, "mask_ap50": 51 / 101}
    assert metrics == pytest.approx({f"test/{name}": value for name, value in expected.items()})
    assert task.by_category["cat"] == (2, pytest.approx(51 / 101))


def test_an_image_without_objects_counts_what_is_found_in_it(trainer):
    detections = [found((A, 1, 0.9)), found((A, 1, 0.95))]
    task = DetectionTask(Given(detections), SGD)
    [metrics] = trainer.test(task, datamodule=Data([true(1, (A, 1)), true(2)]), verbose=False)
    assert metrics["test/box_ap"] == pytest.approx(0.5)  # the better one of two is wrong


@pytest.mark.parametrize("has_masks", [False, True])
def test_two_processes_measure_the_same_as_one(has_masks):
    """Of three images one process has two."""
    masks = torch.zeros(2, 20, 30)
    masks[0, :10, :10] = masks[1, 10:, 10:20] = 1
    more = {"masks": masks.unsqueeze(1)} if has_masks else {}
    # The order of those with one score is that of the images.
    detections = [found((A, 1, 0.9), (B, 1, 0.5)) | more for _ in range(3)]
    true_masks = masks.to(torch.uint8) if has_masks else None
    targets = [true(i, (A, 1), (B, 1 + i % 2), masks=true_masks) for i in range(3)]
    results = []
    for devices in (1, 2):
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        task, data = DetectionTask(Given(detections, has_masks=has_masks), SGD), Data(targets, has_masks=has_masks)
        results += trainer.test(task, datamodule=data, verbose=False)
    assert 0 < results[0]["test/box_ap"] < 1
    assert results[0] == pytest.approx(results[1])


def test_no_objects_at_all(trainer):
    task = DetectionTask(Given([found()]), SGD)
    [metrics] = trainer.validate(task, datamodule=Data([true(1)]), verbose=False)
    assert math.isnan(metrics["val/box_ap"])
    with pytest.raises(ValueError, match="No image of the test split has an object"):
        trainer.test(task, datamodule=Data([true(1)]), verbose=False)


def test_the_loss_is_the_sum_of_losses(monkeypatch):
    logged = {}
    task = DetectionTask(Given(), SGD)
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    image = torch.full((3, 4, 5), 255, dtype=torch.uint8)
    loss = task.training_step(ObjectBatch([image] * 3, TARGETS[:1] * 3), 0)
    assert loss == 5
    assert logged == {"train/loss": 5, "train/loss_box": 2, "train/loss_class": 3}
    assert task.network.seen[0].equal(torch.ones(3, 4, 5))


def test_prediction_gives_the_detections(trainer):
    predicted = trainer.predict(DetectionTask(Given(DETECTIONS), SGD), datamodule=Data(TARGETS))
    assert [answer[0]["scores"].tolist() for answer in predicted] == [d["scores"].tolist() for d in DETECTIONS]


def test_results_are_written_as_coco_takes_them(trainer, tmp_path):
    path = tmp_path / "new" / "results.json"
    task = DetectionTask(Given(DETECTIONS), SGD, results=str(path))
    for _ in range(2):
        trainer.test(task, datamodule=Data(TARGETS), verbose=False)
        results = json.loads(path.read_text())
        assert [(r["image_id"], r["category_id"]) for r in results] == [(5, 3), (5, 3), (9, 3)]
        assert results[1]["bbox"] == [10, 10, 10, 6.2]
        assert results[1]["score"] == pytest.approx(0.8)


def test_precision_is_that_of_cocos_own_tool(trainer, tmp_path):
    """Recalls of exactly 0.1, 0.2, ... and an IoU of exactly 0.6 count as reached."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    places = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(10)]
    heights = [10, 6, 9, 8, 2, 7, 10, 6, 3, 9]  # IoUs of what is found: 1, 0.6, ...
    scores = [0.9 - 0.05 * i for i in range(10)]
    detections = [found(*(((x, 0, right, h), 1, s) for (x, _, right, _), h, s in zip(places, heights, scores)))]
    task = DetectionTask(Given(detections), SGD, results=str(tmp_path / "found.json"))
    [metrics] = trainer.test(task, datamodule=Data([true(1, *((place, 1) for place in places))]), verbose=False)

    truth = COCO()
    objects = [
        {"id": i + 1, "image_id": 1, "category_id": 3, "bbox": [x, 0, 10, 10], "area": 100, "iscrowd": 0}
        for i, (x, *_) in enumerate(places)
    ]
    truth.dataset = {
        "images": [{"id": 1}],
        "annotations": objects,
        "categories": [{"id": 3, "name": "cat"}],
        "info": {},
    }
    truth.createIndex()
    tool = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
    tool.evaluate()
    tool.accumulate()
    tool.summarize()
    assert metrics == pytest.approx({"test/box_ap": tool.stats[0], "test/box_ap50": tool.stats[1]}, abs=1e-6)


def test_results_of_pictures_that_were_changed_are_refused(trainer, tmp_path):
    data = Data(TARGETS)
    data.eval_transforms = (nn.Identity(),)
    task = DetectionTask(Given(DETECTIONS), SGD, results=str(tmp_path / "results.json"))
    with pytest.raises(ValueError, match="eval_transforms"):
        trainer.test(task, datamodule=data, verbose=False)
    assert not list(tmp_path.iterdir())


def test_results_without_class_names(trainer, tmp_path):
    path = tmp_path / "results.json"
    loader = Data(TARGETS, class_names=(), category_ids=())
    loader.trainer = trainer
    task = DetectionTask(Given(DETECTIONS), SGD, results=str(path))
    trainer.test(task, dataloaders=loader.loader(), verbose=False)
    assert [r["category_id"] for r in json.loads(path.read_text())] == [1, 1, 1]


def test_errors(trainer):
    with pytest.raises(ValueError, match="A Given learns masks, but the data has only boxes"):
        trainer.fit(DetectionTask(Given(has_masks=True), SGD), datamodule=Data(TARGETS))
    with pytest.raises(ValueError, match=r"The data has 2 classes, but the network has num_classes=5"):
        trainer.fit(DetectionTask(Given(num_classes=5), SGD), datamodule=Data(TARGETS))


def test_the_checkpoint_keeps_classes_and_their_numbers(trainer, tmp_path):
    task = DetectionTask(Given(DETECTIONS), SGD)
    trainer.fit(task, datamodule=Data(TARGETS))
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    other = DetectionTask(Given(), SGD)
    other.on_load_checkpoint(checkpoint)
    assert (other.class_names, other.category_ids) == (("cat", "dog"), (3, 7))
