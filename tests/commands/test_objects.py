"""The command line with detectors, from training to pictures: the shipped recipes at tiny sizes on made files."""

import json

import numpy as np
import pytest
from examples import assert_one_line, recipe, run
from PIL import Image

from pcea.inference.networks import load

COLORS = {"RBC": (220, 40, 40), "WBC": (40, 60, 220), "Platelets": (40, 200, 60)}
TINY = {"channels": 16, "hidden": 32, "proposals": "[100,50]", "box_batch": 32, "memory_units": 8}


def options_of(name, folder, root, network, **more):
    """Options that shrink a shipped recipe, and more."""
    return [*recipe(name, folder, network), f"--data.init_args.root={root}", *(f"--{k}={v}" for k, v in more.items())]


def draw_blocks(rng, size, count):
    """A grey picture with blocks of the colours of the classes; boxes by class."""
    image, boxes = rng.integers(90, 110, (*size, 3)), []
    for number, name in enumerate([*COLORS][i % 3] for i in range(count)):
        x, y = 6 + 30 * (number % 3), int(rng.integers(4, size[0] - 28))
        image[y : y + 22, x : x + 22] = np.array(COLORS[name]) + rng.integers(-15, 15, (22, 22, 3))
        boxes.append((name, (x, y, x + 22, y + 22)))
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)), boxes


@pytest.fixture
def cells(tmp_path, rng):
    """Eight pictures of 100 x 64 pixels in the layout of Pascal VOC."""
    root = tmp_path / "cells"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i in range(8):
        picture, boxes = draw_blocks(rng, (64, 100), 3)
        picture.save(root / "JPEGImages" / f"{i}.jpg", quality=95)
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for name, (x, y, x2, y2) in boxes
        )
        (root / "Annotations" / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")
    for split, numbers in {"train": range(4), "val": range(4, 6), "trainval": range(6), "test": range(6, 8)}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in numbers))
    return root


def test_boxes(capsys, cells, tmp_path):
    options = options_of(
        "bccd_fasterrcnn_ea", tmp_path, cells, {**TINY, "image_size": "[64,100]", "score_threshold": 0.0},
        **{"data.init_args.batch_size": 3, "data.init_args.train_transforms": "[]"},
    )  # fmt: skip
    code, output, errors = run(capsys, "fit", *options)
    assert code == 0, errors
    last = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    assert f"--weights {last}" in output

    results = tmp_path / "results.json"
    code, output, errors = run(capsys, "test", *options, f"--model.init_args.results={results}")
    assert code == 0, errors
    record = json.loads((last.parent / "last.test.json").read_text())
    assert record["metrics"].keys() == {"box_ap", "box_ap50"}
    assert record["convention"].startswith("COCO's average precision")
    assert (record["dataset"], record["num_points"], record["votes"]) == ("cells", 0, 1)
    assert [*record["categories"]] == [*COLORS]
    assert record["categories"]["WBC"][0] == 2
    heading, *rows = output.split("\n\n")[-1].splitlines()[:4]
    assert heading.split() == ["class", "box", "AP", "objects"]
    assert [row.split()[0] for row in rows] == [*COLORS]
    assert {r["image_id"] for r in json.loads(results.read_text())} == {0, 1}

    trained = load(last)
    assert (trained.class_names, trained.description.category_ids) == (tuple(COLORS), (1, 2, 3))
    weights = tmp_path / "cells.safetensors"
    code, _, errors = run(capsys, "export", last, "--output", weights)
    assert code == 0, errors
    file, found = cells / "JPEGImages" / "7.jpg", []
    for source in (("--weights", last), ("--weights", weights)):
        out = tmp_path / source[1].stem
        code, output, errors = run(capsys, "predict", file, *source, "--threshold", 0.0, "--output", out)
        assert code == 0, errors
        assert output.startswith(f"{file}  100 x 64 pixels")
        assert (out / "7_objects.jpg").is_file()
        found.append(json.loads((out / "objects.json").read_text())["annotations"])
    assert len(found[0]) == len(found[1])
    assert found[0][0]["score"] == pytest.approx(found[1][0]["score"], abs=0.02)  # half precision

    drawn = tmp_path / "drawn.png"
    code, _, errors = run(capsys, "visualize", file, "--weights", last, "--grid", "--output", drawn)
    assert code == 0, errors
    assert drawn.is_file()
    assert_one_line(run(capsys, "predict", file, "--weights", last, "--top", 3), "--top is not for it")


def test_masks(capsys, tmp_path, rng):
    root = tmp_path / "nuclei"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        picture, boxes = draw_blocks(rng, (64, 100), 3)
        picture.save(root / "images" / f"{i}.png")
        values = np.zeros((64, 100), dtype=np.uint16)
        for number, (_, (x, y, x2, y2)) in enumerate(boxes, start=300):
            values[y:y2, x:x2] = number
        Image.fromarray(values).save(root / "labels" / f"{i}.png")
    crop = {"class_path": "torchvision.transforms.v2.RandomCrop", "init_args": {"size": [64, 64]}}
    options = options_of(
        "dsb2018_maskrcnn_ea", tmp_path, root, TINY,
        **{"data.init_args.batch_size": 2, "data.init_args.train_transforms": json.dumps([crop])},
    )  # fmt: skip
    for command in ("fit", "test"):
        code, _, errors = run(capsys, command, *options)
        assert code == 0, errors
    last = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    record = json.loads((last.parent / "last.test.json").read_text())
    assert record["metrics"].keys() == {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}
    assert record["categories"]["nucleus"][0] == 3
    out = tmp_path / "out"
    code, _, errors = run(
        capsys, "predict", root / "images" / "0.png", "--weights", last, "--threshold", 0.05, "--output", out
    )
    assert code == 0, errors
    annotations = json.loads((out / "objects.json").read_text())["annotations"]
    assert annotations[0]["segmentation"]["size"] == [64, 100]
