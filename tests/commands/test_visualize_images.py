"""`pcea visualize` with pictures: what the network attends to is drawn where it is. Needs no Open3D."""

from pathlib import Path

import numpy as np
import pytest
import torch
from examples import run_visualize as run
from PIL import Image

from pcea.commands import visualize
from pcea.datasets.images import read_image
from pcea.inference.image_subject import _without_filling
from pcea.inference.images import ImagePredictor
from pcea.inference.masks import MaskPredictor
from pcea.io.description import NetworkDescription
from pcea.models.eamlp import ImageTransformer
from pcea.nn.attention import MultiHeadExternalAttention, SelfAttention
from pcea.nn.layers import ExternalAttention2d
from pcea.nn.recording import AttentionMap, record_attention
from pcea.visualization import palette
from pcea.visualization.images import to_greyscale

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
NAMES = ("warm", "cold", "dark")


def describe(task: str, image_size: tuple[int, int]) -> NetworkDescription:
    return NetworkDescription(task, "own.network", {}, NAMES, mean=MEAN, std=STD, image_size=image_size)


class Planted(torch.nn.Module):
    """Segments colours; slot 0 of its attention is for red, 1 for blue, 2 for black."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 3
        self.attention = ExternalAttention2d(3, memory_units=3)
        with torch.no_grad():
            self.attention.conv_in.weight.copy_(torch.eye(3)[..., None, None])
            self.attention.conv_in.bias.zero_()
            self.attention.attention.key.copy_(torch.tensor([[60.0, 0, -60], [-60, 0, 60], [-30, 0, -30]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.attention(images)
        red, _, blue = images.unbind(1)
        return 50 * torch.stack([red, blue, torch.full_like(red, 0.2)], dim=1)


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> MaskPredictor:
    trained = MaskPredictor(Planted(), describe("masks", (16, 16)))
    monkeypatch.setattr(visualize, "load", lambda *_, **__: trained)
    return trained


def classifier(attention: type = MultiHeadExternalAttention, pool: str = "class") -> ImagePredictor:
    torch.manual_seed(0)
    network = ImageTransformer(
        lambda dim: attention(dim, num_heads=2), num_classes=3, dim=8, depth=2, token_dim=4, token_memory_units=5,
        kernel_sizes=(3, 3), strides=(2, 2), pool=pool,
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return ImagePredictor(network, describe("images", (16, 24)))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A red rectangle in a black picture, and red beside blue."""
    first, second = np.zeros((40, 60, 3), np.uint8), np.full((30, 30, 3), (0, 0, 250), np.uint8)
    first[8:20, 30:50] = second[:, :10] = (250, 0, 0)
    for name, array in (("rectangle.png", first), ("halves.png", second)):
        Image.fromarray(array).save(tmp_path / name)
    return [tmp_path / "rectangle.png", tmp_path / "halves.png"]


RECTANGLE = (slice(16, 40), slice(60, 100))  # in a picture of twice the size
TITLE, BORDER = 30, 5


def drawn(path: Path, height: int, width: int) -> np.ndarray:
    """The picture in the first place of a sheet."""
    sheet = np.asarray(Image.open(path))
    return sheet[TITLE + BORDER : TITLE + BORDER + height, BORDER : BORDER + width]


def over_black(color: tuple[int, ...] | list[int]) -> list[int]:
    return [round(0.6 * c) for c in color]


@pytest.mark.usefixtures("segmenter")
def test_a_planted_slot_is_drawn_exactly_on_its_region(files, tmp_path, capsys) -> None:
    output = tmp_path / "out.png"
    code, out, error = run(capsys, files[0], "--mode", "slots", "--size", 120, "--output", output)
    assert (code, error) == (0, "")
    picture = drawn(output, 80, 120)
    assert out == f"{output}: {np.asarray(Image.open(output)).shape[1]} x {TITLE + 2 * BORDER + 80} pixels\n"
    black, red = palette(2).tolist()  # black is most of the picture
    inside = np.zeros((80, 120), bool)
    inside[RECTANGLE] = True
    # Two pixels of the drawing are one of the picture: only the row beside the border is a mixture.
    near = np.zeros((80, 120), bool)
    near[15:41, 59:101] = True
    near[17:39, 61:99] = False
    assert (picture[~inside & ~near] == over_black(black)).all()
    shade = to_greyscale(torch.tensor([250, 0, 0], dtype=torch.uint8).view(3, 1, 1))[0, 0, 0].item()
    assert (np.abs(picture[inside & ~near].astype(int) - over_black(red) - round(0.4 * shade)) <= 1).all()


@pytest.mark.usefixtures("segmenter")
def test_the_weight_of_a_slot_and_what_a_query_is_like(files, tmp_path, capsys) -> None:
    for options in (("--slot", 0), ("--query", "40,10")):
        assert run(capsys, files[0], "--size", 120, *options, "--output", tmp_path / "out.png")[0] == 0
        picture = drawn(tmp_path / "out.png", 80, 120).astype(int)
        brightness = picture.sum(-1)
        inside, outside = brightness[RECTANGLE][2:-2, 2:-2], brightness[50:]
        assert np.median(inside) > outside.max() + 100
    assert (picture[20:22, 80:82] == (255, 0, 25)).all()  # the mark


def test_a_prediction_has_the_colours_of_its_classes(files, segmenter, tmp_path, capsys) -> None:
    output = tmp_path / "out.png"
    assert run(capsys, files[1], "--mode", "prediction", "--size", 120, "--output", output)[0] == 0
    picture = drawn(output, 120, 120).astype(int)
    warm, cold, _ = palette(3).tolist()
    for place, color, shade in (((60, 10), warm, 75), ((60, 100), cold, 28)):
        assert picture[place] == pytest.approx(np.array(over_black(color)) + round(0.4 * shade), abs=1)
    subject = segmenter.subject(files[1], size=60)
    view = subject.view("prediction", layer=0)
    assert [name for name, _ in view.legend] == ["cold", "warm"]  # by share; dark occurs nowhere
    assert (view.legend_title, view.title) == ("class", "halves")


@pytest.mark.usefixtures("segmenter")
def test_sheets(files, tmp_path, capsys) -> None:
    run(capsys, *files, "--mode", "slots", "--grid", "--size", 60, "--output", tmp_path / "sheet.png")
    several = np.asarray(Image.open(tmp_path / "sheet.png"))
    # The second picture, which is a square, is higher than the first.
    assert several.shape[0] == TITLE + 2 * BORDER + 60
    first = several[TITLE + BORDER + 10 : TITLE + BORDER + 50, BORDER : BORDER + 60]
    second = several[TITLE + BORDER : TITLE + BORDER + 60, 60 + 3 * BORDER : 120 + 3 * BORDER]
    # The same slot, for red, has the same colour in both.
    assert np.array_equal(first[14, 40], second[30, 4])
    assert not np.array_equal(second[30, 4], second[30, 50])
    run(capsys, files[0], "--grid", "--size", 60, "--output", tmp_path / "sheet.png")
    one = np.asarray(Image.open(tmp_path / "sheet.png"))
    # Colors, slots, slot, query and the prediction, with room for the longest legend beside each.
    assert one.shape[0] % 5 == 0
    assert one.shape[0] > 5 * (TITLE + 2 * BORDER + 40)


# Networks for classes: a class token, several layers and heads, and the middle of the picture


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_each_layer_is_drawn_by_its_own_grid(files, pool) -> None:
    trained = classifier(pool=pool)
    subject = trained.subject(files[0], size=96)
    with record_attention(trained.network) as maps, torch.inference_mode():
        logits = trained.logits(read_image(files[0]))
    assert [layer.grid for layer in subject.layers.values()] == [(8, 12), (4, 6), (4, 6)]
    best = int(logits.argmax())
    assert subject.name == f"rectangle: {NAMES[best]} {100 * float(logits.softmax(0)[best]):.0f} %"
    for layer, recorded in enumerate(maps.values()):
        weights = recorded.weights[0] if recorded.weights.ndim == 3 else recorded.weights[0].mean(0)
        rows, columns = recorded.grid
        cells = weights[-rows * columns :].unflatten(0, (rows, columns))
        shown = subject.weights(layer).unflatten(0, (64, 96))
        expected = torch.nn.functional.interpolate(cells.permute(2, 0, 1)[None], (64, 96), mode="bilinear")
        torch.testing.assert_close(shown, expected[0].permute(1, 2, 0))


def test_a_head(files) -> None:
    trained = classifier()
    views = [
        trained.subject(files[0], size=48, head=head).view("slot", layer=2, slot=1).values for head in (*range(8), None)
    ]
    torch.testing.assert_close(torch.stack(views[:8]).mean(0), views[8])
    assert not torch.equal(views[0], views[1])


def test_the_picture_is_shown_as_far_as_the_network_sees_it(files) -> None:
    trained = classifier()
    subject = trained.subject(files[1], size=48)
    view = subject.view("prediction", layer=0)
    # 30 x 30 pixels, of which a network for 16 x 24 sees 20 x 30.
    assert view.picture.shape == (32, 48, 3)
    assert torch.equal(view.colors.view_as(view.picture), view.picture)  # not tinted
    assert {name.split()[0] for name, _ in view.legend} == set(NAMES)
    assert subject.find_query("0,5") == 0
    assert subject.find_query("29,24") == 32 * 48 - 1
    assert subject.default_query() == subject.find_query("15,15")
    with pytest.raises(ValueError, match=r"halves\.png: query .* y in 5\.\.24, which the network sees of it, got 3,2"):
        subject.find_query("3,2")


def test_self_attention_has_no_slots(files) -> None:
    trained = classifier(SelfAttention)
    subject = trained.subject(files[0], size=48)
    assert subject.modes == ("colors", "query", "prediction")
    view = subject.view("query", layer=2, query=subject.default_query())
    assert view.color_bar.label == "weight of the query, layer 2"
    with pytest.raises(ValueError, match="has the modes colors, query, prediction, not 'slots'"):
        subject.view("slots", layer=2)


# Bad input

OUT = ("--output", "o.png")
BAD = [
    (("halves.png", "--output", "o.ply"), "Images have no coordinates: give --output page.html or drawn.png"),
    (("halves.png", "--output", "no/where/o.png"), "No folder no/where to write o.png into"),
    (("halves.png", "--animate", "o.gif"), "names the class of every pixel: --animate is not for it"),
    (("halves.png", "--category", "Chair", *OUT), "names the class of every pixel: --category is not for it"),
    (("halves.png", "--layer", "1", *OUT), "layer must be one of 0 (attention.attention), got 1"),
    (("halves.png", "--layer", "3", "--mode", "prediction", *OUT), "layer must be one of 0 (attention.attention)"),
    (("halves.png", "--slot", "3", *OUT), "slot must be in 0..2, got 3"),
    (("halves.png", "--head", "1", *OUT), "head must be in 0..0, got 1"),
    (("halves.png", "--query", "30,2", *OUT), "query must be a pixel x,y with x in 0..29 and y in 0..29, got 30,2"),
    (("halves.png", "--query", "5", *OUT), "query must be a pixel x,y, got '5'"),
    (("halves.png", "--query", "ear", *OUT), "query must be a pixel x,y, got 'ear'"),
    (
        ("halves.png", "--mode", "critical", *OUT),
        "has the modes colors, slots, slot, query, prediction, not 'critical'",
    ),
    (("halves.png", "--size", "0", *OUT), "size must be in 1..4096 pixels, got 0"),
    (("halves.png", "--size", "5000", *OUT), "size must be in 1..4096 pixels, got 5000"),
    (("halves.png", "rectangle.png", *OUT), "2 files make one picture only as a sheet: add --grid"),
    (("halves.png", "--azimuth", "9", *OUT), "--azimuth is not for it"),
    (("missing.png", *OUT), "No such file: missing.png"),
    (("bad.png", *OUT), "bad.png cannot be read as an image"),
    (("bad.png", "halves.png", "worse.png", "--grid", *OUT), "2 of 3 files cannot be read: bad.png cannot"),
    (("cloud.npy", *OUT), "cloud.npy is not an image, and the network is for images"),
]


@pytest.mark.usefixtures("segmenter")
@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, files, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("cloud.npy", np.zeros((9, 3)))
    Path("bad.png").write_text("hello")
    Path("worse.png").write_bytes(files[0].read_bytes()[:50])
    before = sorted(Path().iterdir())
    code, out, error = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_a_network_for_clouds(files, tmp_path, capsys) -> None:
    code, _, error = run(capsys, files[0], "--output", tmp_path / "o.png")
    assert code == 2
    assert "rectangle.png has an unknown extension '.png'" in error
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).random((50, 3)))
    code, _, error = run(capsys, tmp_path / "cloud.npy", "--head", 0, "--output", tmp_path / "o.png")
    assert code == 2
    assert "names the class of a mesh or cloud: --head is not for it" in error


def test_attention_of_what_a_picture_was_filled_up_with_is_left_out():
    """Of two rows of tokens the picture covers the upper half, of four columns three quarters."""
    weights = torch.rand(1, 8, 3)
    attention = AttentionMap(weights, grid=(2, 4))
    found = _without_filling(attention, (0.5, 0.75)).weights
    rows, columns = weights.view(2, 4, 3), found.view(2, 4, 3)
    # Its middles of rows are at 0.25 and 0.75 of the first token, those of columns at 0.375, 1.125, 1.875 and 2.625.
    torch.testing.assert_close(columns[0, 0], rows[0, 0])
    torch.testing.assert_close(columns[1, 0], 0.75 * rows[0, 0] + 0.25 * rows[1, 0])
    torch.testing.assert_close(columns[0, 1], 0.375 * rows[0, 0] + 0.625 * rows[0, 1])
    torch.testing.assert_close(_without_filling(attention, (1.0, 1.0)).weights, weights)
    assert _without_filling(attention._replace(grid=None), (0.5, 0.5)).weights is weights
