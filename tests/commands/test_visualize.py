"""The command: files in, pictures and coloured clouds out. Pictures need Open3D and EGL."""

import json
import os
import re
import sys
import tempfile
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from examples import PARTS, trained_on_parts
from examples import POINT_SIZES as SIZES
from examples import run_visualize as run
from PIL import Image

from pcea import eat_classifier
from pcea.commands import visualize
from pcea.io.description import NetworkDescription, StoredNetwork
from pcea.io.readers import read_file
from pcea.io.weights import save_weights
from pcea.visualization.renderer import check_rendering


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    network = eat_classifier(3, **SIZES)
    path = tmp_path_factory.mktemp("weights") / "classes.safetensors"
    names = ("cup", "lamp", "table")
    description = NetworkDescription("points", "pcea.eat_classifier", {"num_classes": 3, **SIZES}, names, 40)
    save_weights(path, StoredNetwork(description, network.state_dict()))
    return str(path)


@pytest.fixture
def can_draw() -> None:
    try:
        check_rendering()
    except (OSError, ImportError) as error:
        pytest.skip(str(error))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A box as a mesh, a cloud far from the origin, and one with numbers in text."""
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.stl")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "cloud.npy", rng.random((300, 3)) * 50 + 1000)
    np.savetxt(tmp_path / "text.xyz", rng.random((200, 3)))
    return [tmp_path / name for name in ("box.stl", "cloud.npy", "text.xyz")]


@pytest.mark.usefixtures("can_draw")
@pytest.mark.parametrize("mode", ["colors", "slots", "slot", "query", "critical", "prediction"])
def test_a_picture_in_each_mode(mode, files, weights, tmp_path, capsys) -> None:
    output = tmp_path / "picture.png"
    options = ("--weights", weights, "--mode", mode, "--size", 200, "--num_points", 500)
    code, out, _ = run(capsys, files[0], *options, "--output", output)
    assert code == 0
    picture = np.asarray(Image.open(output))
    height, width, _ = picture.shape
    assert out.strip() == f"{output}: {width} x {height} pixels"
    assert (picture[:, :200] != 255).any(-1).mean() > 0.1  # the box
    if mode != "colors":  # these have no names
        assert (picture[:, 200:] != 255).any(-1).mean() > 0.01  # the meaning of its colours


def test_a_coloured_cloud_has_all_points_of_the_file(tmp_path, capsys) -> None:
    points = np.concatenate([[[60.0, 0, 0]], np.random.default_rng(0).random((2000, 3))])
    np.save(tmp_path / "cloud.npy", points)
    with pytest.warns(UserWarning, match="far from all others"):
        code, out, _ = run(capsys, tmp_path / "cloud.npy", "--mode", "slots", "--output", tmp_path / "out.ply")
    assert (code, out.split(": ")[1].strip()) == (0, "2001 points")
    content = trimesh.load(tmp_path / "out.ply").metadata["_ply_raw"]["vertex"]["data"]
    assert content["x"].ravel() == pytest.approx(points[:, 0])
    assert [content[name].ravel()[0] for name in ("red", "green", "blue", "slot")] == [190, 190, 190, -1]
    assert (content["slot"].ravel()[1:] >= 0).all()
    assert b"left out: red 190 green 190 blue 190" in (tmp_path / "out.ply").read_bytes()[:2000]


@pytest.mark.usefixtures("can_draw")
def test_sheets(files, weights, tmp_path, capsys) -> None:
    options = ("--weights", weights, "--size", 90, "--num_points", 300, "--grid", "--output", tmp_path / "sheet.png")
    run(capsys, *files, *options)
    several = np.asarray(Image.open(tmp_path / "sheet.png")).shape
    run(capsys, files[1], *options)
    one = np.asarray(Image.open(tmp_path / "sheet.png")).shape
    # Three files in two rows; four layers in the four modes of attention, and a row of what depends on no layer.
    assert (several[0], one[0]) == (2 * 120, 5 * 120)
    assert several[1] < one[1]


@pytest.mark.usefixtures("can_draw")
def test_a_turntable(files, weights, tmp_path, capsys) -> None:
    options = ("--weights", weights, "--size", 60, "--num_points", 300, "--animate", tmp_path / "turn.gif")
    assert run(capsys, files[0], *options)[0] == 0
    with Image.open(tmp_path / "turn.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (36, 0)
        frames = [np.asarray(gif.convert("RGB")).astype(int) for i in range(0, 36, 9) if gif.seek(i) is None]
    changed = [np.abs(a - b).max() > 100 for a, b in pairwise(frames)]
    assert all(changed)


def test_frames_of_a_turntable_are_not_kept(files, weights, tmp_path, monkeypatch, capsys) -> None:
    """But for four, whose colours stand for all, and the one that is written, with its neighbours."""
    frames, alive = [], []

    def draw(*_, angles, **__):
        for _ in angles:
            picture = np.full((5, 7, 3), len(frames), np.uint8)
            frames.append(weakref.ref(picture))
            yield picture
            alive.append(sum(frame() is not None for frame in frames))

    monkeypatch.setattr(visualize, "check_rendering", lambda: None)
    monkeypatch.setattr(visualize, "draw_sheet", draw)
    assert run(capsys, files[1], "--weights", weights, "--animate", tmp_path / "turn.gif")[0] == 0
    assert len(frames) == 40
    assert max(alive) <= 7


def test_a_coloured_cloud_has_the_files_order_and_coordinates(files, weights, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("pcea.visualization.sheets.Renderer", None)  # nothing is drawn
    output = tmp_path / "slots.ply"
    code, out, _ = run(capsys, files[1], "--weights", weights, "--mode", "slots", "--output", output)
    assert (code, out.strip()) == (0, f"{output}: 300 points")
    columns = trimesh.load(output).metadata["_ply_raw"]["vertex"]["data"]
    expected = np.load(files[1])
    for axis, name in enumerate("xyz"):
        np.testing.assert_allclose(columns[name].ravel(), expected[:, axis], atol=1e-4)
    colors = np.stack([columns[name].ravel() for name in ("red", "green", "blue")], 1)
    slot = columns["slot"].ravel()
    for number in np.unique(slot):
        assert len(np.unique(colors[slot == number], axis=0)) == 1
    assert len(np.unique(slot)) > 1


def test_the_query_is_a_number_or_a_place_in_the_files_coordinates(files, weights, tmp_path, capsys) -> None:
    points = np.load(files[1])
    place = ",".join(map(str, points[123]))
    for query in ("123", place):
        run(capsys, files[1], "--weights", weights, f"--query={query}", "--output", tmp_path / "query.ply")
        value = trimesh.load(tmp_path / "query.ply").metadata["_ply_raw"]["vertex"]["data"]["value"].ravel()
        assert value.argmax() == 123
        assert value[123] == pytest.approx(1, abs=1e-5)


def test_parts(files, tmp_path, capsys) -> None:
    trained = trained_on_parts()
    path = tmp_path / "parts.safetensors"
    save_weights(path, StoredNetwork(trained.description, trained.network.state_dict()))
    options = ("--weights", path, "--mode", "parts", "--output", tmp_path / "parts.ply")
    assert run(capsys, files[2], *options, "--category", "tower")[0] == 0
    labels = trimesh.load(tmp_path / "parts.ply").metadata["_ply_raw"]["vertex"]["data"]["part_label"]
    assert set(np.unique(labels)) == set(PARTS["tower"])
    code, _, error = run(capsys, files[2], *options)
    assert code == 2
    assert "Say what the files show: category must be one of tower, bar" in error


def test_without_output_the_window_begins_with_what_was_asked_for(files, weights, monkeypatch, capsys) -> None:
    opened = []
    monkeypatch.setattr("pcea.visualization.window.check_display", lambda: None)
    monkeypatch.setattr("pcea.visualization.window.open_window", opened.append)
    run(capsys, *files, "--weights", weights, "--slot", 5, "--layer", 2, "--num_points", 100)
    [browser] = opened
    assert (browser.mode, browser.slot, browser.layer, len(browser.subjects)) == ("slot", 5, 2, 3)
    assert len(browser.subject.points) == 100


BAD = [
    (("cloud.npy", "--output", "picture.jpg"), "--output must end in .html, .png or .ply, got picture.jpg"),
    (("cloud.npy", "--animate", "turn.png"), "--animate must end in .gif"),
    (("cloud.npy", "--output", "no/where/picture.png"), "No folder no/where to write picture.png into"),
    (("cloud.npy", "text.xyz", "--output", "o.png"), "2 files make one picture only as a sheet: add --grid"),
    (("cloud.npy", "text.xyz", "--output", "o.ply"), "holds the points of one file in one view"),
    (("cloud.npy", "--grid", "--output", "o.html"), "shows all layers and modes as it is: leave out --grid"),
    (("cloud.npy", "--output", "no/where/page.html"), "No folder no/where to write page.html into"),
    (("cloud.npy", "--layer", "4", "--output", "o.html"), "layer must be one of 0 (encoder.blocks.0.attention)"),
    (("empty.npy", "--output", "o.html"), "empty.npy is empty or unreadable"),
    (("cloud.npy", "--compare", "modelnet40_eat_cpu", "--output", "o.png"), "--compare is for a page"),
    (("cloud.npy", "--compare", "nothing", "--output", "o.html"), "nothing"),
    (("cloud.npy", "--azimuth", "9", "--output", "o.html"), "--azimuth is for a picture: give --output drawn.png"),
    (("cloud.npy", "--elevation", "9", "--output", "o.ply"), "--elevation is for a picture: give --output drawn.png"),
    (("cloud.npy", "--size", "90", "--output", "o.html"), "--size is for a picture: give --output drawn.png"),
    (("cloud.npy", "--grid", "--mode", "slots", "--output", "o.png"), "shows all layers and modes: leave --mode out"),
    (("cloud.npy", "--grid", "--layer", "1", "--output", "o.png"), "shows all layers and modes: leave --layer out"),
    (("cloud.npy", "--grid"), "--grid is a picture: add --output sheet.png"),
    (("cloud.npy", "--query", "300", "--output", "o.ply"), "query must be the number of a point, 0..299, or x,y,z"),
    (("cloud.npy", "--query=-1", "--output", "o.ply"), "query must be the number of a point, 0..299, or x,y,z"),
    (("cloud.npy", "--query", "1,2", "--output", "o.ply"), "query must be the number of a point or x,y,z, got '1,2'"),
    (("cloud.npy", "--query", "leg", "--output", "o.ply"), "query must be the number of a point or x,y,z, got 'leg'"),
    (("cloud.npy", "--layer", "4", "--output", "o.ply"), "layer must be one of 0 (encoder.blocks.0.attention)"),
    (("cloud.npy", "--slot", "8", "--output", "o.ply"), "slot must be in 0..7, got 8"),
    (
        ("cloud.npy", "--mode", "parts", "--output", "o.ply"),
        "has the modes colors, slots, slot, query, critical, prediction",
    ),
    (("cloud.npy", "--up", "w", "--output", "o.ply"), "up must be one of"),
    (
        ("cloud.npy", "--category", "Chair", "--output", "o.ply"),
        "names the class of a mesh or cloud: --category is not for it",
    ),
    (("missing.off", "--output", "o.ply"), "No such file: missing.off"),
    (("nan.npy", "--output", "o.ply"), "1 of 50 points have NaN or infinite coordinates"),
    (("empty.npy", "--output", "o.ply"), "empty.npy is empty or unreadable"),
    (("fake.off", "--output", "o.ply"), "fake.off could not be read as .off"),
    (("cloud.npy", "fake.off", "nan.npy", "--grid", "--output", "o.png"), "2 of 3 files cannot be read"),
    (
        ("few.npy", "--output", "o.ply"),
        "few.npy: The network needs at least 16 points per cloud, got N=10",
    ),
    (("shape.xyzq", "--output", "o.ply"), "unknown extension '.xyzq'"),
    (("fake.off", "--num_points", "0", "--output", "o.png"), "num_points must be at least 1, got 0"),
    (("fake.off", "--points_per_pass=-3", "--output", "o.png"), "points_per_pass must be at least 1, or 0 for all"),
    (("cloud.npy", "--size", "0", "--output", "o.png"), "size must be in 1..4096 pixels, got 0"),
    (("cloud.npy", "--slot", "1", "--query", "2", "--output", "o.png"), "--slot is for --mode slot, got --mode query"),
    (("cloud.npy", "--slot", "1", "--mode", "critical", "--output", "o.png"), "--slot is for --mode slot"),
    ((".", "--output", "o.png"), "files make one picture only as a sheet"),
]


def test_each_of_two_networks_gets_the_options_that_it_takes(files, weights, tmp_path, capsys):
    page = tmp_path / "page.html"
    options = ("--weights", weights, "--compare", "labeled_psb_pointea", "--num_points", 300, "--output", page)
    code, _, error = run(capsys, files[0], *options, "--category", "Cup")
    assert (code, page.is_file()) == (0, True), error
    code, _, error = run(capsys, files[0], *options)
    assert (code, "category must be one of Airplane" in error) == (2, True)
    code, _, error = run(capsys, files[0], *options, "--head", "1")
    assert (code, "--head is not for it" in error) == (2, True)


def test_a_network_is_not_compared_with_itself(files, weights, tmp_path, capsys):
    options = ("--weights", weights, "--compare", weights, "--output", tmp_path / "page.html")
    code, _, error = run(capsys, files[0], *options)
    assert code == 2
    assert "--compare must be other weights than --weights" in error


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, files, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(visualize, "check_rendering", lambda: None)
    rng = np.random.default_rng(0)
    np.save("nan.npy", np.where(np.arange(150) == 7, np.nan, rng.random(150)).reshape(50, 3))
    np.save("empty.npy", np.zeros((0, 3)))
    np.save("few.npy", rng.random((10, 3)))
    Path("fake.off").write_text("hello")
    Path("shape.xyzq").write_text("1 2 3\n")
    before = sorted(Path().iterdir())
    code, out, error = run(capsys, *arguments, "--weights", weights)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert out == ""
    assert sorted(Path().iterdir()) == before


def test_folders_and_patterns_are_drawn_as_they_are_predicted(files, weights, tmp_path, capsys) -> None:
    (tmp_path / "pages").mkdir()
    for number, named in enumerate((tmp_path, f"{tmp_path}/*.*")):
        page = tmp_path / "pages" / f"{number}.html"
        code, _, error = run(capsys, named, "--weights", weights, "--output", page)
        assert code == 0, error
        text = page.read_text(encoding="utf-8")
        assert all(f'"{file.stem}' in text for file in files)


def test_without_a_display_there_is_a_page(files, weights, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("no browser can be seen here"))
    monkeypatch.chdir(tmp_path)
    code, out, error = run(capsys, files[1], "--weights", weights, "--slot", 3)
    assert code == 0
    assert error == "pcea: no window, but a page: There is no display to open a window on.\n"
    assert out.startswith("cloud_attention.html: 0.")
    start = json.loads(re.search(r'"start": (\{.*?\})', Path("cloud_attention.html").read_text(encoding="utf-8"))[1])
    assert (start["mode"], start["slot"], start["layer"]) == ("slot", 3, 3)


def test_where_open3d_has_no_window_the_browser_opens_the_page(files, weights, tmp_path, monkeypatch, capsys) -> None:
    def fail():
        raise OSError("Open3D cannot open a window")

    opened = []
    monkeypatch.setattr("pcea.visualization.window.check_display", fail)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(os, "access", lambda *_: False)  # nor can the current folder be written
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(tmp_path))
    assert run(capsys, files[1], "--weights", weights)[0] == 0
    assert opened == [(tmp_path / "cloud_attention.html").as_uri()]


def test_a_page_of_many_files_and_two_networks(files, weights, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)  # its libraries are missing
    options = ("--weights", weights, "--compare", "modelnet40_eat_cpu", "--num_points", 600)
    code, out, error = run(capsys, files[0], *options, "--output", tmp_path / "page.html")
    assert (code, error) == (0, "")
    assert out.startswith(f"{tmp_path / 'page.html'}: 0.")
    about = json.loads(re.search(r'id="about">(.*?)</script>', (tmp_path / "page.html").read_text("utf-8"), re.S)[1])
    assert [network["name"] for network in about["networks"]] == [str(weights), "modelnet40_eat_cpu"]
    assert [len(network["subjects"][0]["layers"]) for network in about["networks"]] == [4, 4]
    run(capsys, *files[1:], "--weights", weights, "--output", tmp_path / "page.html")
    about = json.loads(re.search(r'id="about">(.*?)</script>', (tmp_path / "page.html").read_text("utf-8"), re.S)[1])
    assert [subject["name"] for subject in about["networks"][0]["subjects"]] == ["cloud", "text"]


def test_a_read_only_folder(files, weights, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who can write anywhere
    code, _, error = run(capsys, files[1], "--weights", weights, "--output", tmp_path / "o.png")
    assert (code, error) == (2, f"pcea: error: The folder {tmp_path} cannot be written to.\n")


def test_a_checkpoint_that_is_none(files, tmp_path, capsys) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"hello")
    code, _, error = run(capsys, files[1], "--weights", tmp_path / "bad.ckpt", "--output", tmp_path / "o.ply")
    assert code == 2
    assert "bad.ckpt is not a checkpoint" in error


def test_an_input_is_not_overwritten(files, weights, tmp_path, capsys) -> None:
    trimesh.load(files[0]).export(tmp_path / "box.ply")
    before = (tmp_path / "box.ply").read_bytes()
    code, _, error = run(capsys, tmp_path / "box.ply", "--weights", weights, "--output", f"{tmp_path}/./box.ply")
    assert code == 2
    assert "box.ply, which is to be read. Give another output." in error
    assert (tmp_path / "box.ply").read_bytes() == before


def test_a_result_can_be_read_again(files, weights, tmp_path, capsys) -> None:
    run(capsys, files[0], "--weights", weights, "--num_points", 120, "--output", tmp_path / "box.ply")
    table = read_file(tmp_path / "box.ply")
    assert np.asarray(table).shape == (120, 6)
    assert np.abs(np.asarray(table)[:, :3]).max(0) == pytest.approx([0.5, 1, 1.5], abs=0.05)
