"""Objects in pictures, by a network whose answer is known: what is red, and what is green, as one box each."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from torch import nn
from torchvision.ops import masks_to_boxes

from pcea.commands.predict import predict
from pcea.inference.objects import (
    ObjectPrediction,
    ObjectPredictor,
    coco_annotations,
    draw_objects,
    write_coco,
)
from pcea.io.description import NetworkDescription
from pcea.io.result_table import ResultTable
from pcea.visualization import palette

NAMES = ("red", "green")
PURE = ((255, 0, 0), (0, 255, 0))


class Colors(nn.Module):
    """Finds pure red with a score of 0.9 and pure green with one of 0.4."""

    def __init__(self, has_masks):
        super().__init__()
        self.has_masks, self.num_classes = has_masks, 2

    def forward(self, images):
        answers = []
        for image in images:
            masks = [(image * 255 == torch.tensor(color).view(3, 1, 1)).all(0) for color in PURE]
            seen = [i for i, mask in enumerate(masks) if mask.any()]
            chosen = torch.stack([masks[i] for i in seen]) if seen else torch.zeros(0, *image.shape[1:])
            answer = {
                "boxes": masks_to_boxes(chosen) + torch.tensor([0, 0, 1, 1]) if seen else torch.zeros(0, 4),
                "labels": torch.tensor(seen, dtype=torch.int64) + 1,
                "scores": torch.tensor([0.9, 0.4])[seen],
            }
            answers.append({**answer, "masks": chosen.float().unsqueeze(1)} if self.has_masks else answer)
        return answers


def trained(has_masks=True):
    about = NetworkDescription("objects", "own.Colors", {}, NAMES, category_ids=(4, 9))
    return ObjectPredictor(Colors(has_masks), about)


def test_what_the_network_itself_leaves_out_is_said():
    network = trained()
    network.network.detections_per_img, network.network.score_thresh = 2, 0.05
    with pytest.warns(UserWarning, match="more objects than the 2 that this network finds .* max_objects"):
        assert len(network.predict(picture(), threshold=0.3).boxes) == 2
    network.predict(picture(), threshold=0.5)
    with pytest.warns(UserWarning, match=r"threshold=0\.01 leaves nothing out.*no scores below 0\.05"):
        network.check(threshold=0.01)


def picture():
    """A red block of 6 x 4 at x 2, y 1 without its first pixel, and a green one of 3 x 3 at x 12, y 6."""
    image = torch.full((3, 12, 20), 90, dtype=torch.uint8)
    image[:, 1:5, 2:8] = torch.tensor(PURE[0], dtype=torch.uint8).view(3, 1, 1)
    image[:, 1, 2] = 90
    image[:, 6:9, 12:15] = torch.tensor(PURE[1], dtype=torch.uint8).view(3, 1, 1)
    return image


@pytest.mark.parametrize(("threshold", "labels"), [(0.0, [0, 1]), (0.5, [0]), (0.95, [])])
def test_objects_above_a_threshold(threshold, labels):
    found = trained().predict(picture(), threshold=threshold)
    assert found.label.tolist() == labels
    assert len(found.boxes) == len(found.scores) == len(found.masks) == len(labels)
    assert found.numbers == {NAMES[i]: 1 for i in labels}


def test_objects_by_hand():
    found = trained().predict(picture(), threshold=0.1)
    assert found.boxes.tolist() == [[2, 1, 8, 5], [12, 6, 15, 9]]
    assert found.masks.sum((1, 2)).tolist() == [23, 9]
    assert trained(has_masks=False).predict(picture()).masks is None


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_wrong_threshold(threshold):
    with pytest.raises(ValueError, match=rf"threshold must be in 0\.\.1, got {threshold}"):
        trained().predict(picture(), threshold=threshold)


def test_results_of_coco():
    found = trained().predict(picture(), threshold=0.1)
    first, second = coco_annotations(found, 17, (4, 9))
    assert (first["image_id"], first["category_id"], first["bbox"], first["score"]) == (17, 4, [2, 1, 6, 4], 0.9)
    assert second["category_id"] == 9
    assert torch.from_numpy(rle.decode(first["segmentation"])).bool().equal(found.masks[0])
    assert json.loads(json.dumps(first)) == first
    assert [r["category_id"] for r in coco_annotations(found, 17, ())] == [1, 2]
    assert "segmentation" not in coco_annotations(found._replace(masks=None), 17, ())[0]


def test_a_coco_dataset_of_two_pictures(tmp_path):
    predictor = trained()
    found = predictor.predict(picture(), threshold=0.1)
    with ResultTable(tmp_path / "predictions.csv", predictor.columns) as table:
        table.add(tmp_path / "a.png", predictor.rows(found))
        table.add_error(tmp_path / "bad.png", "no picture")
        table.add(tmp_path / "b.png", predictor.rows(found._replace(masks=None)))
    write_coco(tmp_path / "objects.json", tmp_path / "predictions.csv", NAMES, (4, 9))
    dataset = json.loads((tmp_path / "objects.json").read_text())
    assert dataset["categories"] == [{"id": 4, "name": "red"}, {"id": 9, "name": "green"}]
    assert dataset["images"][1] == {"id": 2, "file_name": "b.png", "width": 20, "height": 12}
    assert [(a["id"], a["image_id"], a["area"]) for a in dataset["annotations"]] == [
        (1, 1, 23), (2, 1, 9), (3, 2, 24), (4, 2, 9),
    ]  # fmt: skip


# Drawing


def prediction(boxes, labels, names, masks=None, size=(400, 800)):
    grey = torch.full((3, *size), 128, dtype=torch.uint8)
    scores = torch.full((len(boxes),), 0.75)
    return ObjectPrediction(grey, torch.tensor(boxes).view(-1, 4), torch.tensor(labels), scores, names, masks)


def test_boxes_are_drawn_in_the_colour_of_their_class():
    boxes = [[100.0, 100, 200, 200], [300, 100, 400, 200], [500, 100, 600, 200]]
    drawn = draw_objects(prediction(boxes, [0, 1, 0], NAMES))
    assert drawn.shape == (400, 800, 3)
    left, middle, right = (drawn[150, x].tolist() for x in (200, 400, 600))  # on their right borders
    assert left == right != middle != [128] * 3
    assert drawn[150, 150].tolist() == [128] * 3


def test_more_classes_or_objects_than_colours_are_drawn():
    names = tuple(f"class {i}" for i in range(1203))
    drawn = draw_objects(prediction([[100.0, 100, 200, 200]], [1202], names))
    assert drawn[150, 200].tolist() == palette(1203)[1202].tolist()
    boxes = [[float(i), 10, i + 5, 20] for i in range(600)]
    assert draw_objects(prediction(boxes, [0] * 600, ("cell",))).shape == (400, 800, 3)


def test_names_are_written_on_their_colour():
    drawn = draw_objects(prediction([[100.0, 100, 200, 200]], [1], NAMES))
    inside = drawn[102:115, 102:160].reshape(-1, 3)
    border = drawn[150, 200]
    assert (inside == border).all(1).mean() > 0.4
    assert ((inside == 0).all(1) | (inside == 255).all(1)).any()  # the letters
    alone = draw_objects(prediction([[100.0, 100, 200, 200]], [0], ("cell",)))
    assert (alone[102:115, 140:160] == 128).all()  # the score alone is shorter


def test_objects_of_one_class_are_coloured_each_on_its_own():
    boxes = [[100.0, 100, 200, 200], [300, 100, 400, 200]]
    drawn = draw_objects(prediction(boxes, [0, 0], ("cell",)))
    assert drawn[150, 200].tolist() != drawn[150, 400].tolist()


def test_masks_are_drawn_where_they_are():
    masks = torch.zeros(1, 400, 800, dtype=torch.bool)
    masks[0, 120:140, 120:180] = True
    drawn = draw_objects(prediction([[100.0, 100, 200, 200]], [0], NAMES, masks))
    assert drawn[130, 150].tolist() != [128] * 3
    assert drawn[170, 150].tolist() == [128] * 3


@pytest.mark.parametrize(("size", "asked", "shape"), [((10, 20), None, (400, 800)), ((10, 20), 40, (20, 40)),
                                                      ((900, 300), None, (900, 300))])  # fmt: skip
def test_small_pictures_are_enlarged_with_what_is_drawn(size, asked, shape):
    H, W = size
    found = prediction([[0.25 * W, 0.25 * H, 0.75 * W, 0.75 * H]], [0], NAMES, torch.ones(1, *size).bool(), size)
    drawn = draw_objects(found, size=asked)
    assert drawn.shape == (*shape, 3)
    assert draw_objects(found._replace(boxes=torch.zeros(0, 4)), size=asked).shape == (*shape, 3)
    border = drawn[shape[0] // 2, round(0.75 * shape[1])].astype(int) - drawn[0, 0].astype(int)
    assert abs(border).sum() > 30


# The command


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("pcea.commands.predict.load", lambda *_, **__: trained())
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    Image.fromarray(picture().permute(1, 2, 0).numpy()).save(paths[0])
    Image.fromarray(np.full((12, 20, 3), 90, dtype=np.uint8)).save(paths[1])
    return paths


def test_predict_counts_and_writes(files, tmp_path, capsys):
    predict(files, threshold=0.3, output=tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("one.png  20 x 12 pixels  1 red  1 green")
    assert lines[1].endswith("two.png  20 x 12 pixels  no objects")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "objects.json", "one_objects.jpg", "predictions.csv", "two_objects.jpg",
    ]  # fmt: skip
    written = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["one.png", "two.png"]
    assert [annotation["category_id"] for annotation in written["annotations"]] == [4, 9]
    with Image.open(tmp_path / "out" / "one_objects.jpg") as drawn:
        assert drawn.size == (800, 480)
    predict(files[:1])
    assert capsys.readouterr().out.endswith("1 red\n")  # the threshold is 0.5 unless told otherwise


def test_options_of_other_networks_are_refused(files):
    for options, message in (
        ({"top": 3}, "finds objects: --top is not for it"),
        ({"longest_side": 100}, "finds objects: --longest_side is not for it"),
        ({"category": "Chair"}, "finds objects: --category is not for it"),
        ({"up": "z"}, "finds objects: --up is not for it"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(files, **options)


def test_a_threshold_is_for_objects_alone(files, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match="names the class of a mesh or cloud: --threshold is not"):
        predict(files, threshold=0.3)
