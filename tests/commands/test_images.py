"""The command line with images, from training to pictures: the shipped recipes at tiny sizes on fake files."""

import csv
import json

import numpy as np
import pytest
import torch
from examples import assert_one_line, recipe, run
from PIL import Image

from pcea.inference.networks import load
from pcea.io.weights import load_weights

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_picture(path, color, size, rng):
    """A picture of one colour, with some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(-20, 20, (*size, 3))
    Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def cifar(tmp_path, rng):
    """Four pictures a class to train on and two to test on; the class is a shade of red."""
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(CLASSES):
            for i in range(count):
                path = tmp_path / "data" / "cifar10" / split / name / f"{i}.png"
                write_picture(path, (25 * number, 100, 200), (32, 32), rng)
    return tmp_path


TINY_EAMLP = {"dim": 24, "depth": 2, "token_dim": 8, "token_memory_units": 5}
AVERAGE = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
    "--trainer.callbacks.init_args.decay=0.5",
)


def test_cifar10(capsys, cifar, tmp_path):
    options = [*recipe("cifar10_eamlp", cifar, TINY_EAMLP), "--data.init_args.batch_size=10"]
    code, output, errors = run(capsys, "fit", *options, *AVERAGE, "--data.init_args.val_fraction=0.25")
    assert code == 0, errors
    last = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    assert f"--weights {last}" in output

    code, output, errors = run(capsys, "validate", *options, *AVERAGE, "--data.init_args.val_fraction=0.25")
    assert code == 0, errors
    assert "top5 accuracy" in output

    code, output, errors = run(capsys, "test", *options, *AVERAGE)
    assert code == 0, errors
    assert "WeightAveraging" not in errors  # the averaged weights are those of the checkpoint
    record = json.loads((last.parent / "last.test.json").read_text())
    expected = {"config": "cifar10_eamlp", "epoch": 2, "selection": "last", "dataset": "CIFAR10", "split": "test",
                "num_points": 0, "votes": 1, "categories": {}}  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert record["metrics"].keys() == {"overall_accuracy", "mean_class_accuracy", "top5_accuracy"}
    assert f"top5 accuracy           {record['metrics']['top5_accuracy']:6.2f} %" in output

    # A weights file predicts what the checkpoint predicts, and both what the test measured.
    trained = load(last)
    about = trained.description
    assert (about.task, about.class_names, about.image_size) == ("images", CLASSES, (32, 32))
    assert about.mean == (0.4914, 0.4822, 0.4465)
    code, _, errors = run(capsys, "export", last, "--output", tmp_path / "cifar.safetensors")
    assert code == 0, errors
    files = sorted((cifar / "data" / "cifar10" / "test").glob("*/*.png"))
    tables = []
    for source in (("--weights", last), ("--weights", tmp_path / "cifar.safetensors")):
        code, output, errors = run(
            capsys, "predict", *files, *source, "--top", 10, "--output", tmp_path / "out.csv", "--overwrite"
        )
        assert code == 0, errors
        lines = output.splitlines()
        assert [line.split()[0] for line in lines[:-1]] == list(map(str, files))
        tables.append(list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines())))
    first, second = ([float(row["probability"]) for row in table] for table in tables)
    assert first == pytest.approx(second, abs=0.02)  # half precision
    best = [row for row in tables[0] if row["rank"] == "1"]
    correct = np.mean([row["file"].split("/")[-2] == row["class"] for row in best])
    assert 100 * correct == pytest.approx(record["metrics"]["overall_accuracy"])


def test_resume_goes_on_at_the_next_epoch(capsys, cifar, tmp_path):
    """With a moving average of the weights, which goes on from the weights that it averaged."""
    options = [*recipe("cifar10_eamlp", cifar, TINY_EAMLP), "--data.init_args.batch_size=10", *AVERAGE]
    keep_all = (
        "--checkpoint.save_top_k=-1",
        "--checkpoint.filename={epoch}",
        "--checkpoint.monitor=val/overall_accuracy",
    )
    options += [*keep_all, "--data.init_args.val_fraction=0.25"]
    assert run(capsys, "fit", *options)[0] == 0
    first = tmp_path / "runs" / "version_0" / "checkpoints" / "epoch=0.ckpt"
    code, _, errors = run(capsys, "fit", *options, "--ckpt_path", first)
    assert code == 0, errors
    ends = [
        torch.load(tmp_path / "runs" / f"version_{v}" / "checkpoints" / "last.ckpt", weights_only=True) for v in (0, 1)
    ]
    for kind in ("state_dict", "current_model_state"):
        for name, value in ends[0][kind].items():
            assert value.equal(ends[1][kind][name]), (kind, name)
    assert not all(v.equal(ends[0]["current_model_state"][n]) for n, v in ends[0]["state_dict"].items())


SKY, ROAD = (30, 60, 220), (200, 60, 30)


@pytest.fixture
def masks(tmp_path, rng):
    """Pictures whose upper part is sky and whose lower part is road, with 255 between them in the masks."""
    root = tmp_path / "data"
    for i in range(12):
        horizon = int(rng.integers(12, 28))
        label = np.zeros((40, 56), dtype=np.uint8)
        label[horizon:], label[horizon - 2 : horizon] = 1, 255
        image = np.where((label == 0)[..., None], SKY, ROAD) + rng.integers(-20, 20, (40, 56, 3))
        for folder, array in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{i:02}.png")
    (root / "classes.yaml").write_text("[sky, road]\n")
    return tmp_path


TINY_EANET = {"width": 4, "depth": "[1,1,1,1]", "memory_units": 8, "output_stride": 8}


def test_masks(capsys, masks, tmp_path, rng):
    crop = {"class_path": "pcea.transforms.RandomScaledCrop", "init_args": {"size": [32, 32]}}
    options = [
        *recipe("folder_masks_eanet50", masks, TINY_EANET),
        "--trainer.max_epochs=15",
        "--model.init_args.optimizer.init_args.lr=0.01",
        "--data.init_args.batch_size=4",
        "--data.init_args.num_workers=0",
        f"--data.init_args.train_transforms={json.dumps([crop])}",
    ]
    code, _, errors = run(capsys, "fit", *options)
    assert code == 0, errors
    last = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"

    code, output, errors = run(capsys, "test", *options)
    assert code == 0, errors
    record = json.loads((last.parent / "last.test.json").read_text())
    assert record["metrics"].keys() == {"miou", "pixel_accuracy"}
    assert record["metrics"]["miou"] > 80
    assert record["num_points"] == 0
    heading, *rows = output.split("\n\n")[-1].splitlines()[:3]
    assert heading.split() == ["class", "IoU", "pixels"]
    assert [row.split()[0] for row in rows] == ["sky", "road"]
    assert len(heading) == len(rows[0]) == len(rows[1])
    pixels, iou = record["categories"]["sky"]
    assert rows[0].split() == ["sky", f"{iou:.2f}", "%", str(pixels)]

    # A larger picture than those of the training, in a form of its own.
    picture = np.where((np.arange(300) < 180)[:, None, None], SKY, ROAD) + rng.integers(-20, 20, (300, 200, 3))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / "tall.jpg")
    code, _, errors = run(capsys, "export", last, "--output", tmp_path / "masks.safetensors")
    assert code == 0, errors
    code, _, errors = run(capsys, "export", last, "--output", tmp_path / "masks.pt2")
    assert code == 0, errors
    extra = {"metadata.json": ""}
    torch.export.load(tmp_path / "masks.pt2", extra_files=extra)
    shown = json.loads(json.loads(extra["metadata.json"])["preprocessing"])
    assert (shown["longest_side"], "image_size" in shown) == (1024, False)  # not the size of the crops
    assert "pretrained" not in load_weights(tmp_path / "masks.safetensors").description.arguments  # nothing to download
    for folder, source in (("one", ("--weights", last)), ("two", ("--weights", tmp_path / "masks.safetensors"))):
        code, output, errors = run(capsys, "predict", tmp_path / "tall.jpg", *source, "--output", tmp_path / folder)
        assert code == 0, errors
        words = output.splitlines()[0].split()
        assert words[1:6] == ["200", "x", "300", "pixels", "sky"]
        assert float(words[6]) == pytest.approx(60, abs=4)
        with Image.open(tmp_path / folder / "tall.png") as mask:
            label = np.asarray(mask)
        truth = np.repeat((np.arange(300) >= 180)[:, None], 200, axis=1)
        assert (label == truth).mean() > 0.95
        with Image.open(tmp_path / folder / "tall_overlay.jpg") as overlay:
            assert overlay.size == (200, 300)

    options = ("--weights", last, "--mode", "prediction", "--size", 300, "--output", tmp_path / "drawn.png")
    code, _, errors = run(capsys, "visualize", tmp_path / "tall.jpg", *options)
    assert code == 0, errors
    assert_one_line(run(capsys, "predict", tmp_path / "tall.jpg", "--weights", last, "--top", 3), "--top is not for it")
