"""Classes of pictures and of their pixels, by networks whose answer is known: it is in the colours."""

import csv
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pcea.commands.predict import predict
from pcea.datasets.images import read_image
from pcea.datasets.masks import number_classes, read_mask, read_values
from pcea.inference.images import Crop, ImagePredictor, load_image
from pcea.inference.masks import MaskPrediction, MaskPredictor, to_masks, write_masks
from pcea.io.description import NetworkDescription
from pcea.visualization import palette
from pcea.visualization.images import to_greyscale

NAMES = ("red", "green", "blue")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


class Colors(nn.Module):
    """Logits of three classes: how red, green and blue a pixel is, or all of them on average."""

    def __init__(self, per_pixel: bool) -> None:
        super().__init__()
        self.per_pixel, self.num_classes = per_pixel, 3
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        colors = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        return 20 * (colors if self.per_pixel else colors.mean((2, 3)))


def trained(per_pixel: bool, image_size: tuple[int, ...] = ()) -> ImagePredictor | MaskPredictor:
    about = NetworkDescription(
        "masks" if per_pixel else "images", "own.Colors", {}, NAMES, mean=MEAN, std=STD, image_size=image_size
    )
    return (MaskPredictor if per_pixel else ImagePredictor)(Colors(per_pixel), about)


def test_images_of_one_size_are_one_batch() -> None:
    predictor = trained(per_pixel=False, image_size=(6, 6))
    images = [torch.randint(0, 256, size, dtype=torch.uint8) for size in ((3, 6, 6), (3, 17, 13), (3, 30, 11))]
    together = predictor.predict_contents(images, top=3)
    assert [len(batch) for batch in predictor.network.seen] == [3]
    for image, prediction in zip(images, together):
        alone = predictor.predict(image, top=3)
        assert prediction.class_names == alone.class_names
        assert prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    predictor = trained(per_pixel=False)  # sees images in the size that they have
    assert [len(p.class_names) for p in predictor.predict_contents(images, top=2)] == [2, 2, 2]
    assert [len(batch) for batch in predictor.network.seen] == [1, 1, 1]


def shown(image: Tensor, predictor: ImagePredictor) -> Tensor:
    """What the network is given of an image."""
    predictor.predict(image)
    return predictor.network.seen[-1]


def picture(*colors: tuple[int, int, int], height: int = 10, width: int = 8) -> Tensor:
    """Columns of colours beside one another, (3, height, width * len(colors))."""
    blocks = [torch.tensor(c, dtype=torch.uint8).view(3, 1, 1).expand(3, height, width) for c in colors]
    return torch.cat(blocks, dim=2).contiguous()


RED, GREEN, BLUE = (250, 10, 20), (5, 255, 40), (10, 20, 240)


# What the network is shown


def test_colours_are_normalized_by_the_checkpoints_mean_and_deviation() -> None:
    images = shown(picture(RED), trained(per_pixel=True))
    assert images.shape == (1, 3, 10, 8)
    expected = [(c / 255 - m) / s for c, m, s in zip(RED, MEAN, STD)]
    torch.testing.assert_close(images[0, :, 4, 4], torch.tensor(expected))


@pytest.mark.parametrize(
    ("size", "image_size", "crop"),
    [
        ((30, 40), (10, 10), Crop(0, 5, 30, 30)),
        ((40, 30), (10, 10), Crop(5, 0, 30, 30)),
        ((30, 40), (10, 20), Crop(5, 0, 20, 40)),
        ((5, 4), (10, 10), Crop(0, 0, 4, 4)),
        ((32, 32), (32, 32), Crop(0, 0, 32, 32)),
        ((1, 900), (10, 10), Crop(0, 449, 1, 1)),
        ((900, 1), (10, 20), Crop(449, 0, 1, 1)),
    ],
)
def test_a_classifier_sees_the_middle_in_the_form_of_its_training(
    size: tuple[int, int], image_size: tuple[int, int], crop: Crop
) -> None:
    given = torch.randint(256, (3, *size), dtype=torch.uint8)
    assert trained(per_pixel=False, image_size=image_size).crop(given) == crop
    assert shown(given, trained(per_pixel=False, image_size=image_size)).shape == (1, 3, *image_size)
    assert trained(per_pixel=True, image_size=image_size).crop(given) == Crop(0, 0, *size)


def test_a_classifier_that_was_trained_on_these_pixels_sees_them_unchanged() -> None:
    given = torch.randint(256, (3, 32, 24), dtype=torch.uint8)
    sized, unsized = (shown(given, trained(per_pixel=False, image_size=size)) for size in ((32, 24), ()))
    assert torch.equal(sized, unsized)


@pytest.mark.parametrize(("longest_side", "expected"), [(30, (20, 30)), (60, (40, 60)), (1000, (40, 60)), (1, (1, 1))])
def test_large_pictures_are_scaled_down_for_pixels(longest_side: int, expected: tuple[int, int]) -> None:
    network = trained(per_pixel=True)
    prediction = network.predict(torch.zeros(3, 40, 60, dtype=torch.uint8), longest_side=longest_side)
    assert tuple(network.network.seen[0].shape) == (1, 3, *expected)
    assert prediction.shown == expected
    assert prediction.label.shape == prediction.confidence.shape == (40, 60)


# What comes out


def test_the_class_of_a_picture() -> None:
    network = trained(per_pixel=False, image_size=(4, 4))
    expected = (20 * torch.tensor(GREEN) / 255).softmax(0)
    # Only the middle counts: red and blue are cut off.
    for image in (picture(GREEN), picture(RED, GREEN, BLUE, height=8)):
        names, probabilities, *_ = network.predict(image)
        assert names == ("green", "blue", "red")
        assert probabilities == pytest.approx([float(expected[i]) for i in (1, 2, 0)], abs=1e-5)


@pytest.mark.parametrize(("known_above", "known"), [(None, ""), (-100.0, "yes"), (100.0, "no")])
def test_what_is_known_is_left_open_without_calibration(known_above: float | None, known: str) -> None:
    network = trained(per_pixel=False, image_size=(4, 4))
    network.description = network.description._replace(known_above=known_above)
    prediction = network.predict(picture(GREEN))
    assert [row[3] for row in network.rows(prediction)] == [known] * 3
    assert str(prediction).startswith("unsure: nothing it knows" if known == "no" else "green 100.0%")


@pytest.mark.parametrize("longest_side", [1000, 12])
def test_the_class_of_every_pixel(longest_side: int) -> None:
    prediction = trained(per_pixel=True).predict(picture(RED, BLUE, BLUE), longest_side=longest_side)
    truth = torch.tensor([0] * 8 + [2] * 16).expand(10, 24)
    assert torch.equal(prediction.label, truth)
    assert prediction.shares == pytest.approx({2: 2 / 3, 0: 1 / 3})
    assert list(prediction.shares) == [2, 0]  # green occurs nowhere
    sure = (20 * torch.tensor(RED) / 255).softmax(0)[0]
    assert float(prediction.confidence[5, 1]) == pytest.approx(float(sure), abs=1e-5)


def test_probabilities_are_brought_to_the_size_of_the_picture_bilinearly(generator: torch.Generator) -> None:
    logits = torch.randn(3, 5, 7, generator=generator)
    prediction = to_masks(logits, torch.zeros(3, 23, 31, dtype=torch.uint8), NAMES)
    larger = nn.functional.interpolate(logits.softmax(0)[None], (23, 31), mode="bilinear")[0]
    confidence, label = larger.max(0)
    torch.testing.assert_close(prediction.confidence, confidence)
    assert torch.equal(prediction.label, label)


# What is written


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(picture(RED, BLUE, BLUE).permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_mask_holds_the_classes_and_can_be_trained_on(tmp_path: Path) -> None:
    label = torch.tensor([[0, 1, 2], [2, 254, 2]])
    names = tuple(str(number) for number in range(255))
    write_masks(tmp_path, "x", MaskPrediction(picture(RED, height=2, width=3), label, label / 255, names, (2, 3)))
    assert torch.equal(read_mask(tmp_path / "x.png", number_classes(255)).long(), label)
    shown = read_image(tmp_path / "x.png").permute(1, 2, 0)
    assert torch.equal(shown, palette(255)[label])


def test_more_than_256_classes_keep_their_numbers(tmp_path):
    label, names = torch.tensor([[0, 255, 256, 299]]), tuple(map(str, range(300)))
    write_masks(tmp_path, "x", MaskPrediction(picture(RED, height=1, width=4), label, label / 299, names, (1, 4)))
    assert read_values(tmp_path / "x.png").tolist() == label.tolist()


def test_the_overlay_has_the_colours_of_the_classes_over_the_picture(tmp_path: Path) -> None:
    colors = picture(RED, BLUE, height=32, width=32)
    label = torch.tensor([1] * 32 + [0] * 32).expand(32, 64)
    write_masks(tmp_path, "x", MaskPrediction(colors, label, label / 2, NAMES, (32, 64)))
    overlay = read_image(tmp_path / "x_overlay.jpg").permute(1, 2, 0)
    for column in (10, 50):
        expected = 0.6 * palette(3)[label[5, column]].float() + 0.4 * to_greyscale(colors)[5, column].float()
        torch.testing.assert_close(overlay[5, column].float(), expected, atol=6, rtol=0)  # JPEG


def network_of(monkeypatch: pytest.MonkeyPatch, per_pixel: bool) -> None:
    monkeypatch.setattr("pcea.commands.predict.load", lambda *_, **__: trained(per_pixel, image_size=(4, 4)))


def test_shares_are_printed_and_files_written(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    network_of(monkeypatch, per_pixel=True)
    predict([photo], output=tmp_path / "new" / "out")
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{photo}  24 x 10 pixels  blue 66.7 %  red 33.3 %  mean confidence 100.0 %")
    assert str(tmp_path / "new" / "out") in last
    names = {"photo.png", "photo_overlay.jpg", "predictions.csv"}
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == names
    predict([photo], longest_side=12)
    assert "24 x 10 pixels, seen as 12 x 5  blue" in capsys.readouterr().out


def test_several_pictures_of_any_form(tmp_path: Path) -> None:
    """Grey, with a palette, transparent, and turned by the camera's note."""
    Image.new("L", (30, 20), 255).save(tmp_path / "grey.bmp")
    Image.new("P", (30, 20), 0).save(tmp_path / "palette.gif")
    Image.new("RGBA", (30, 20), (250, 0, 0, 255)).save(tmp_path / "alpha.png")
    files = [tmp_path / name for name in ("grey.bmp", "palette.gif", "alpha.png")]
    predictions = [trained(per_pixel=False, image_size=(4, 4)).predict(file, top=5) for file in files]
    assert predictions[2].class_names[0] == "red"
    assert all(sum(prediction.probabilities) == pytest.approx(1) for prediction in predictions)


# Errors


def test_unreadable_images_are_named_and_the_others_are_there(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "half.png").write_bytes(photo.read_bytes()[:60])
    files = [photo, tmp_path / "text.jpg", tmp_path / "half.png"]
    for per_pixel, output in ((True, "out"), (False, "out.csv")):
        network_of(monkeypatch, per_pixel)
        with pytest.raises(SystemExit, match="1"):
            predict(files, output=tmp_path / output)
        assert (tmp_path / output).exists()
        printed = capsys.readouterr()
        assert printed.out.startswith(str(photo))
        message = r"pcea: error: 2 of 3 files cannot be read: .*text\.jpg cannot.*half\.png cannot"
        assert re.match(message, printed.err)
        with pytest.raises(ValueError, match="2 of 2 files cannot be read"):
            predict(files[1:], output=tmp_path / f"no_{output}")
        table = tmp_path / "no_out" / "predictions.csv" if per_pixel else tmp_path / "no_out.csv"
        with table.open() as stream:
            errors = [row["error"] for row in csv.DictReader(stream)]
        assert [str(file) in error for file, error in zip(files[1:], errors)] == [True, True]


@pytest.mark.parametrize(
    ("per_pixel", "options", "message"),
    [
        (True, {"top": 2}, "names the class of every pixel: --top is not for it"),
        (False, {"longest_side": 100}, "names the class of an image: --longest_side is not for it"),
        (True, {"category": "Chair"}, "names the class of every pixel: --category is not for it"),
        (False, {"num_points": 9}, "names the class of an image: --num_points is not for it"),
        (False, {"up": "z"}, "names the class of an image: --up is not for it"),
        (True, {"longest_side": 0}, "longest_side must be at least 1, got 0"),
        (False, {"top": 0}, "top must be at least 1, got 0"),
        (False, {"output": Path()}, "is a folder: .* writes a CSV file"),
        (True, {"output": Path("out.csv")}, "this network writes a folder of results, not a table"),
    ],
)
def test_options_that_do_not_fit(
    photo: Path, monkeypatch: pytest.MonkeyPatch, per_pixel: bool, options: dict, message: str
) -> None:
    network_of(monkeypatch, per_pixel)
    with pytest.raises(ValueError, match=message):
        predict([photo], **options)


def test_a_result_does_not_overwrite_its_picture(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network_of(monkeypatch, per_pixel=True)
    with pytest.raises(ValueError, match=r"The result would overwrite .*photo\.png"):
        predict([photo], output=photo.parent)


def test_a_cloud_is_no_picture_and_a_picture_no_cloud(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "cloud.npy", np.zeros((9, 3)))
    with pytest.raises(ValueError, match=r"photo\.png has an unknown extension '\.png'; known are"):
        predict([photo])
    network_of(monkeypatch, per_pixel=False)
    with pytest.raises(ValueError, match=r"cloud\.npy is not an image, and the network is for images \(\.jpg"):
        predict([tmp_path / "cloud.npy"])


@pytest.mark.parametrize("image", [np.zeros((9, 8), np.uint8), torch.zeros(3, 9, 8), np.zeros((3, 9, 8), np.uint8)])
def test_what_is_no_image(image: object) -> None:
    with pytest.raises(ValueError, match=r"must be \(3, H, W\) uint8, or as an array \(H, W, 3\)"):
        load_image(image)


def test_images_in_memory() -> None:
    image = picture(RED, GREEN)
    array = image.permute(1, 2, 0).numpy()
    assert torch.equal(load_image(array), image)
    assert torch.equal(load_image(np.ascontiguousarray(array[..., ::-1])[..., ::-1]), image)  # BGR, as of OpenCV
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load_image(np.asarray(Image.fromarray(array))), image)  # cannot be written to
    with pytest.raises(ValueError, match="float32"):
        load_image(array.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(3, H, W\) uint8, .*, got \(4, 5\) torch.uint8"):
        load_image(Image.fromarray(np.zeros((4, 5), np.uint8)))
    assert str(trained(per_pixel=True).predict(image)).startswith("16 x 10 pixels  red 50.0 %  green 50.0 %")


def test_a_network_of_plain_colors():
    """Without mean and std, the network sees colours in 0..1."""
    network = Colors(per_pixel=False)
    predictor = ImagePredictor(
        network, NetworkDescription("images", "own.Colors", class_names=NAMES, image_size=(4, 6))
    )
    predictor.predict(torch.full((3, 4, 6), 51, dtype=torch.uint8))
    torch.testing.assert_close(network.seen[-1], torch.full((1, 3, 4, 6), 0.2))
