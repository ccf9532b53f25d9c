"""The page for a browser: what it shows is what Python computes, and it needs nothing else."""

import base64
import io
import json
import re
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from examples import self_attention, trained_on_parts
from PIL import Image
from torch import nn

import pcea
from pcea.inference.images import ImagePredictor
from pcea.inference.points import PointPredictor
from pcea.io.description import NetworkDescription
from pcea.models.eamlp import ImageTransformer
from pcea.nn.attention import MultiHeadExternalAttention, SelfAttention
from pcea.nn.recording import AttentionMap, record_attention
from pcea.visualization import Page, make_page, show
from pcea.visualization import subject as subject_module
from pcea.visualization.subject import Subject
from pcea.visualization.window import in_notebook

NASTY = "</script><script>alert(1)</script>\"'&$title 椅子 é"
# Neighbours among the 256 colours of viridis differ by up to this.
ONE_STEP = 4


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, drawing by the processor."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        chromium = driver.chromium.launch(executable_path=path, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page and wait until it has drawn; at the end, nothing may have been requested, or be in the console."""
    opened = []

    def open_page(page, *, fragment="", width=900, height=700, **options):
        path = tmp_path / f"page{len(opened)}.html"
        page.save(path)
        tab = browser.new_page(viewport={"width": width, "height": height}, **options)
        tab.set_default_timeout(120_000)
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        opened.append((tab, said, asked, path.as_uri()))
        tab.goto(path.as_uri() + fragment)
        # A canvas has 300 x 150 pixels until something is drawn on it.
        drawn = "(pane) => pane.view && pane.scene.canvas.width !== 300 && !pcea.frame"
        tab.wait_for_function(f"() => window.pcea && pcea.panes.every({drawn})")
        return tab

    yield open_page
    for tab, said, asked, address in opened:
        tab.close()
        assert said == []
        # A picture that the page holds is no request to anywhere.
        assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} == {address}


def cloud_subject(count=600, **arguments):
    torch.manual_seed(0)
    network = trained_on_parts()
    return network.subject(torch.rand(count, 3) * torch.tensor([3.0, 2, 1]) + 5, category="bar", **arguments)


def image_predictor(attention):
    torch.manual_seed(0)
    network = ImageTransformer(
        partial(attention, num_heads=2), num_classes=3, dim=8, depth=2, token_dim=4, token_memory_units=5,
        kernel_sizes=(3, 3), strides=(2, 2),
    ).eval()  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    about = NetworkDescription(
        "images", "own.network", {}, ("a", "b", "c"), mean=(0.0,) * 3, std=(1.0,) * 3, image_size=(16, 24)
    )
    return ImagePredictor(network, about)


def colors_in(tab, pane=0, **choice):
    """The colours that a page computes, (N, 3)."""
    code = """([pane, change]) => {
        const { choice, subject } = pcea.panes[pane];
        return Array.from(subject.view({ ...choice, ...change }, pcea.scale).rgb);
    }"""
    return torch.tensor(tab.evaluate(code, [pane, choice])).view(-1, 3)


def assert_same_colors(found, expected, share=1.0):
    difference = (found - expected.int()).abs().amax(1)
    assert float((difference <= ONE_STEP).float().mean()) >= share


@pytest.mark.slow
def test_every_mode_of_every_layer_is_as_in_python(visit):
    subject = cloud_subject()
    tab = visit(Page([subject]))
    assert subject.modes == ("colors", "slots", "slot", "query", "critical", "prediction", "parts")
    for layer in range(len(subject.layers)):
        for mode in subject.modes:
            expected = subject.view(mode, layer=layer, slot=3, query=77).colors
            found = colors_in(tab, mode=mode, layer=layer, slot=3, query=77)
            # Of two slots that are as strong, another one may win by a rounding.
            assert_same_colors(found, expected, 0.99 if mode == "slots" else 1)


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "heads"), [(MultiHeadExternalAttention, 8), (SelfAttention, 2)])
def test_images_and_their_heads_are_as_in_python(visit, attention, heads):
    image = torch.randint(0, 255, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trained = image_predictor(attention)
    by_head = {head: trained.subject(image, size=48, head=head) for head in (None, 0, 1)}
    tab = visit(Page([by_head[None]]))
    assert tab.evaluate("pcea.networks[0].subjects[0].layers.map(({ heads }) => heads)") == [1, heads, heads]
    for head, subject in by_head.items():
        for layer in range(3) if head is None else (1, 2):  # the first layer has one head
            for mode in [mode for mode in subject.modes if mode != "prediction"]:
                expected = subject.view(mode, layer=layer, slot=2, query=100).colors
                found = colors_in(tab, mode=mode, layer=layer, slot=2, query=100, head=-1 if head is None else head)
                assert_same_colors(found, expected, 0.99 if mode == "slots" else 1)
    tab.evaluate("pcea.panes[0].choose({ mode: 'prediction' })")
    tab.wait_for_function("() => !pcea.panes[0].scene.layer && pcea.panes[0].scene.image.complete")
    assert picture_of(tab).std() > 20  # the image itself


def test_self_attention_of_a_cloud_is_as_in_python(visit):
    subject = self_attention()
    tab = visit(Page([subject]))
    for query in range(len(subject.points)):
        expected = subject.view("query", layer=0, query=query).colors
        assert_same_colors(colors_in(tab, mode="query", layer=0, query=query), expected)


def picture_of(tab):
    return np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB")).astype(float)


def place_of(tab, point):
    """Where a point is on the screen."""
    return tab.evaluate(
        """(point) => {
            const { scene } = pcea.panes[0], { canvas } = scene, area = canvas.getBoundingClientRect();
            const [x, y] = scene.project(point);
            return [area.left + x * area.width / canvas.width, area.top + y * area.height / canvas.height];
        }""",
        point,
    )


def front_point(tab):
    """The point nearest to the eye, which no other hides."""
    tab.wait_for_timeout(300)  # drawn
    code = "[...Array(pcea.panes[0].subject.count).keys()].map((point) => pcea.panes[0].scene.project(point)[2])"
    return int(np.argmin(tab.evaluate(code)))


def test_a_click_makes_a_point_the_query(visit):
    subject = cloud_subject()
    tab = visit(Page([subject]))
    front = front_point(tab)
    tab.mouse.click(*place_of(tab, front))
    choice = tab.evaluate("pcea.panes[0].choice")
    assert (choice["mode"], choice["query"]) == ("query", front)
    assert_same_colors(colors_in(tab), subject.view("query", layer=3, query=front).colors)
    # The marker is drawn where the point is.
    tab.wait_for_timeout(300)
    x, y = map(round, place_of(tab, front))
    assert picture_of(tab)[y, x].tolist() == [255, 0, 26]
    # Its place is given in the coordinates of the file.
    tab.mouse.move(x + 300, y)
    tab.mouse.move(x, y)
    tab.wait_for_function("() => document.getElementById('status').textContent.includes(' at ')")
    status = tab.text_content("#status")
    place = [float(word) for word in re.search(r" at ([-\d., e]+) ·", status)[1].split(", ")]
    torch.testing.assert_close(torch.tensor(place), subject.source_points.points[front], atol=2e-4, rtol=0)
    assert f"point {front} " in status
    assert "likeness to the query: 1" in status
    part = subject.view("parts", layer=0)
    name = next(name for name, color in part.legend if color == tuple(part.colors[front].tolist()))
    assert f" · {name} · " in status
    # What is said follows the mode, and ends where the mouse leaves.
    tab.keyboard.press("m")
    tab.wait_for_function("() => document.getElementById('status').textContent.includes(' channels decided ')")
    tab.mouse.move(x, 5)
    tab.wait_for_function("() => document.getElementById('status').textContent.startsWith('Click a point')")


def test_a_point_is_hit_where_its_disc_is_drawn(visit):
    """One seen between the middles of large discs, which hide it, is not."""
    points = torch.tensor([[0, 0, 1], [0.05, 0, -1], [1, 1, 0], [-1, -1, 0.0]])
    tab = visit(make_page(points, AttentionMap(torch.rand(1, 4, 3))))
    tab.evaluate("pcea.camera.look(0, 0, 1, 0, 0)")
    tab.wait_for_timeout(300)  # drawn
    x, y = place_of(tab, 0)
    behind = place_of(tab, 1)[0] - x
    assert (picture_of(tab)[round(y), round(x + behind)] == picture_of(tab)[round(y), round(x)]).all()
    tab.mouse.click(x + behind, y)
    assert tab.evaluate("pcea.panes[0].choice.query") == 0
    # In smaller points it is seen.
    for _ in range(10):
        tab.keyboard.press("-")
    tab.wait_for_timeout(300)
    tab.mouse.click(x + behind, y)
    assert tab.evaluate("pcea.panes[0].choice.query") == 1


def test_a_tap_makes_a_point_the_query_and_says_what_it_is(visit):
    tab = visit(Page([cloud_subject()]), width=390, has_touch=True)
    front = front_point(tab)
    tab.touchscreen.tap(*place_of(tab, front))
    assert tab.evaluate("pcea.panes[0].choice.query") == front
    tab.wait_for_function(f"() => document.getElementById('status').textContent.includes('point {front} at')")


def test_the_mode_query_shows_the_farthest_point_before_a_click(visit):
    subject = cloud_subject()
    tab = visit(Page([subject]))
    tab.evaluate("pcea.panes[0].choose({ mode: 'query' })")
    assert tab.evaluate("[pcea.panes[0].choice.query, pcea.panes[0].scene.marker]") == [subject.default_query()] * 2
    assert_same_colors(colors_in(tab), subject.view("query", layer=3).colors)


def test_a_click_on_a_pixel_makes_it_the_query(visit):
    subject = image_predictor(MultiHeadExternalAttention).subject(torch.rand(3, 40, 60).mul(255).byte(), size=48)
    tab = visit(Page([subject]))
    tab.wait_for_timeout(300)
    tab.mouse.click(*place_of(tab, 5 * 48 + 7))
    assert tab.evaluate("pcea.panes[0].choice.query") == 5 * 48 + 7
    # Images are moved by the camera of all views, which the address holds.
    before = place_of(tab, 0)
    tab.mouse.wheel(0, -300)
    tab.wait_for_function("() => pcea.camera.zoom > 1")  # it comes later than the call returns
    tab.mouse.move(400, 400)
    tab.mouse.down()
    tab.mouse.move(430, 420, steps=3)
    tab.mouse.up()
    tab.wait_for_function("() => pcea.camera.pan[0] > 0 && !pcea.isMoving")
    moved = place_of(tab, 0)
    zoom, pan = tab.evaluate("[pcea.camera.zoom, pcea.camera.pan]")
    assert zoom > 1.2
    assert pan[0] > 0 > pan[1]
    assert moved != pytest.approx(before, abs=5)
    tab.wait_for_function(
        "() => location.hash.includes(`,${pcea.camera.pan.map((value) => Number(value.toFixed(4))).join(',')}&`)"
    )
    again = visit(Page([subject]), fragment=tab.evaluate("location.hash"))
    again.wait_for_timeout(300)
    assert place_of(again, 0) == pytest.approx(moved, abs=1)
    assert place_of(again, 99) == pytest.approx(place_of(tab, 99), abs=1)


def test_a_second_network_is_asked_of_the_same_place(visit):
    torch.manual_seed(0)
    points, network = torch.rand(600, 3) * torch.tensor([3.0, 2, 1]) + 5, trained_on_parts()
    first, second = (network.subject(some, category="bar") for some in (points, points[200:]))
    tab = visit(Page({"one": [first], "two": [second]}, mode="query", query=450))
    tab.evaluate("pcea.compare()")
    assert tab.evaluate("pcea.panes.map(({ choice }) => choice.query)") == [450, 250]


def test_the_keyboard_asks_for_the_point_in_the_middle(visit):
    tab = visit(Page([cloud_subject()]))
    tab.keyboard.press("q")
    tab.wait_for_function("() => pcea.panes[0].choice.mode === 'query'")
    query, x, y = tab.evaluate("""() => {
        const { scene, choice } = pcea.panes[0], [x, y] = scene.project(choice.query);
        return [choice.query, x - scene.canvas.width / 2, y - scene.canvas.height / 2];
    }""")
    assert (x**2 + y**2) ** 0.5 < 40
    assert f"point {query} at" in tab.text_content("#status")


def test_the_marked_thumbnail_is_in_view(visit):
    subject = cloud_subject(100)
    tab = visit(Page([subject] * 30))
    tab.evaluate("pcea.panes[0].choose({ file: 25 })")
    marked = "[...document.getElementById('files').children][25]"
    tab.wait_for_function(f"() => {marked}.getAttribute('aria-current') === 'true'")
    left, right, width = tab.evaluate(
        f"(({{ left, right }}) => [left, right, innerWidth])({marked}.getBoundingClientRect())"
    )
    assert 0 <= left < right <= width


@pytest.mark.slow
def test_two_networks_side_by_side_and_the_address(visit):
    first, second = cloud_subject(), cloud_subject(points_per_pass=300)
    page = Page({"one": [first, cloud_subject(300)], "two": [second, cloud_subject(300)]}, mode="slot", slot=2, layer=1)
    tab = visit(page, fragment="#a=0,1,slots,2,-1,3,9&camera=10,5,2,0.1,0.2&theme=dark&size=1")
    assert tab.evaluate("pcea.panes[0].choice") == {
        "network": 0, "file": 1, "mode": "slots", "layer": 2, "head": -1, "slot": 3, "query": 9,
    }  # fmt: skip
    assert tab.evaluate("[pcea.camera.zoom, pcea.isDark, pcea.size]") == [2, True, 1]
    tab.keyboard.press("c")
    tab.wait_for_function("() => pcea.panes.length === 2 && pcea.panes[1].view")
    assert tab.evaluate("pcea.panes[1].choice.network") == 1
    tab.evaluate("pcea.panes[1].choose({ file: 0, mode: 'slot', layer: 3 })")
    assert_same_colors(colors_in(tab, 1), second.view("slot", layer=3, slot=3).colors)
    tab.evaluate("pcea.panes[1].choose({ file: 1, mode: 'slots', layer: 2 })")
    tab.wait_for_function("() => location.hash.includes(`b=${Object.values(pcea.panes[1].choice).join(',')}&`)")
    again = visit(page, fragment=tab.evaluate("location.hash"))
    assert again.evaluate("pcea.panes.map((pane) => pane.choice)") == tab.evaluate(
        "pcea.panes.map((pane) => pane.choice)"
    )
    # What an old or mistaken address asks for and the page lacks falls back to what it has.
    wrong = visit(page, fragment="#a=7,99,nothing,88,5,-3,1e9&camera=x&size=y")
    assert wrong.evaluate("pcea.panes[0].choice.mode") == "colors"


@pytest.mark.parametrize(
    "fragment",
    [
        "#a=0,0,query,2.5,0.5,2.5,2.5&camera=10,1e9,0,0,0&size=1e6&strength=99",
        "#a=1e999,NaN,__proto__,-1,-1,-7,-2&b=&camera=1e300,1e300,-5,1e300,1e300&size=-1e6",
        "#a=%E0%A4%A&camera=,,,,&size=&theme=<script>alert(1)</script>",
    ],
)
def test_an_address_gets_what_there_is(visit, fragment):
    subject = cloud_subject(50)
    tab = visit(Page([subject]), fragment=fragment)
    choice = tab.evaluate("pcea.panes[0].choice")
    assert (choice["network"], choice["file"], choice["layer"], choice["head"]) == (0, 0, 3, -1)
    assert choice["query"] == subject.default_query()
    assert 0 <= choice["slot"] < 8
    camera = tab.evaluate("pcea.camera")
    assert -90 <= camera["elevation"] <= 90
    assert 0.2 <= camera["zoom"] <= 50
    assert max(map(abs, camera["pan"])) <= 10
    assert tab.evaluate("Object.values(pcea.panes[0].scene.frame()).flat().every(Number.isFinite)")
    assert abs(tab.evaluate("pcea.size")) <= 3
    assert_same_colors(colors_in(tab, mode="query"), subject.view("query", layer=3).colors)


def test_views_side_by_side_have_the_same_height(visit):
    tab = visit(Page([cloud_subject(), cloud_subject(200)]), fragment="#a=0,0,slot&b=0,1,slots")
    areas = "pcea.panes.map(({ stage }) => stage.getBoundingClientRect()).map(({ top, height }) => [top, height])"
    left, right = tab.evaluate(areas)
    assert left == right
    tab.set_viewport_size({"width": 800, "height": 400})
    assert min(height for _, height in tab.evaluate(areas)) > 150


@pytest.mark.slow
def test_comparing_again_and_again(visit):
    """Browsers take the oldest WebGL context away where there are more than 16."""
    tab = visit(Page([cloud_subject()]))
    for _ in range(40):
        tab.keyboard.press("c")
    assert not tab.evaluate("pcea.panes[0].scene.gl.isContextLost()")


def test_a_lost_graphics_context_comes_back(visit):
    tab = visit(Page([cloud_subject()]), fragment="#a=0,0,colors&size=3")
    tab.wait_for_timeout(300)
    tab.evaluate("lost = pcea.panes[0].scene.gl.getExtension('WEBGL_lose_context')")
    tab.evaluate("lost.loseContext()")
    tab.wait_for_function("() => pcea.panes[0].busy.textContent.includes('graphics memory')")
    tab.evaluate("pcea.panes[0].choose({ mode: 'query' })")
    assert "graphics memory" in tab.text_content(".busy")
    tab.evaluate("lost.restoreContext()")
    tab.wait_for_function("() => !pcea.panes[0].busy.textContent")
    tab.wait_for_timeout(300)
    assert (np.ptp(picture_of(tab)[200:], axis=-1) > 40).mean() > 0.05


def test_a_browser_without_webgl_is_told(browser, tmp_path):
    make_page(torch.rand(30, 3), AttentionMap(torch.rand(1, 30, 4))).save(tmp_path / "page.html")
    tab = browser.new_page()
    tab.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    tab.goto((tmp_path / "page.html").as_uri())
    assert "it has no WebGL 2" in tab.inner_text("#panes")
    tab.close()


def test_nothing_is_drawn_while_nothing_changes(visit):
    tab = visit(Page([cloud_subject()]))
    tab.wait_for_timeout(1000)
    tab.evaluate("drawn = 0; draw = pcea.draw; pcea.draw = () => { drawn++; draw.call(pcea); }; null")
    tab.wait_for_timeout(500)
    assert tab.evaluate("drawn") == 0
    tab.keyboard.press("t")
    tab.wait_for_function("() => drawn === 1")


def test_a_screen_of_high_density(visit):
    page = Page({name: [cloud_subject()] for name in ("one", "two")}, mode="slots", layer=1)
    tab = visit(page, device_scale_factor=2)
    tab.wait_for_timeout(300)
    width, height = tab.evaluate("(({ canvas }) => [canvas.width, canvas.height])(pcea.panes[0].scene)")
    assert width == 1800
    assert tab.evaluate("pcea.panes[0].heading") == "The array · one · slots · layer 1"
    with tab.expect_download() as download:
        tab.keyboard.press("p")
    picture = Image.open(download.value.path()).convert("RGB")
    assert picture.size == (width, height + 2 * 44)  # the heading is as large as on the page
    # Points do not shine through the legend.
    assert np.asarray(picture)[88 : 88 + height // 4, :10].min() > 200


def test_keys_help_and_the_saved_picture(visit):
    tab = visit(Page([cloud_subject(), cloud_subject(200)]))
    state = "[pcea.panes[0].choice.mode, pcea.panes[0].choice.layer, pcea.panes[0].choice.file, pcea.isDark]"
    for key, expected in {
        "m": ["slots", 3, 0, False], "Shift+M": ["colors", 3, 0, False], "l": ["colors", 0, 0, False],
        "s": ["slot", 0, 0, False], "f": ["slot", 0, 1, False], "t": ["slot", 0, 1, True],
    }.items():  # fmt: skip
        tab.keyboard.press(key)
        assert tab.evaluate(state) == expected
    tab.keyboard.press("h")
    assert tab.is_visible("#help")
    tab.keyboard.press("m")  # nothing changes behind it
    assert tab.evaluate(state) == ["slot", 0, 1, True]
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#help")
    # A slider takes the arrows, and leaves the letters.
    turned = tab.evaluate("pcea.camera.azimuth")
    tab.focus("#size")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("t")
    assert tab.evaluate("[pcea.size, pcea.camera.azimuth, pcea.isDark]") == [0.1, turned, False]
    tab.focus(".stage canvas:not([hidden])")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("[pcea.camera.azimuth, pcea.camera.elevation]") == [25, 30]
    with tab.expect_download() as download:
        tab.keyboard.press("p")
    picture = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(float)
    assert picture.std() > 5
    before = tab.evaluate("pcea.camera.azimuth")
    tab.mouse.move(300, 400)
    tab.mouse.down()
    tab.mouse.move(400, 400, steps=4)
    tab.mouse.up()
    assert tab.evaluate("pcea.camera.azimuth") != before
    assert tab.evaluate("pcea.panes[0].choice.mode") == "slot"  # a drag is no click
    tab.keyboard.press("r")
    assert tab.evaluate("pcea.camera.azimuth") == 35


def test_a_phone(visit):
    tab = visit(Page([cloud_subject()]), width=390)
    tab.wait_for_timeout(300)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    area = tab.evaluate("(({ width, height }) => [width, height])(pcea.panes[0].scene.canvas)")
    assert min(area) > 200
    drawn = picture_of(tab)[350:600]
    assert (np.ptp(drawn, axis=-1) > 40).mean() > 0.05  # colours


@pytest.mark.slow
def test_a_million_points(visit):
    torch.manual_seed(0)
    points = nn.functional.normalize(torch.randn(1_000_000, 3), dim=1)
    tokens = points[:256]
    attention = AttentionMap((tokens @ torch.randn(3, 64)).softmax(1)[None], points=tokens[None])
    page = make_page(points, {str(layer): attention for layer in range(4)})
    assert len(page.html) < 30e6
    tab = visit(page)
    assert tab.evaluate("pcea.panes[0].subject.count") == 1_000_000
    # While it is moved, a part of the points is drawn.
    tab.evaluate("pcea.hurry()")
    assert tab.evaluate("pcea.isMoving")
    # However slow that is.
    tab.evaluate("pcea.hurried = 64; pcea.draw()")
    assert tab.evaluate("pcea.panes[0].scene.gl.getError()") == 0
    tab.wait_for_function("() => !pcea.isMoving")
    tab.wait_for_timeout(500)
    assert (np.ptp(picture_of(tab)[200:], axis=-1) > 40).mean() > 0.1


def test_more_points_than_are_shown(monkeypatch, visit):
    monkeypatch.setattr("pcea.visualization.pages.MAX_POINTS", 100)
    monkeypatch.setattr("pcea.visualization.pages._MAX_TOKENS", 20)
    points = torch.rand(300, 3)
    tab = visit(make_page(points, AttentionMap(torch.rand(1, 300, 5).softmax(-1)), query=250))
    note = tab.text_content(".what")
    assert "100 of 300 points are shown." in note
    assert "300 tokens, of which 20 are used." in note
    shown = tab.evaluate("pcea.panes[0].subject.numberOf(pcea.panes[0].choice.query)")
    nearest = tab.evaluate("[...Array(100).keys()].map((i) => pcea.panes[0].subject.numberOf(i))")
    assert shown == min(nearest, key=lambda number: float((points[number] - points[250]).norm()))


def test_names_are_text(visit):
    subject = Subject(torch.rand(30, 3), {NASTY: AttentionMap(torch.rand(1, 30, 4))}, name=NASTY)
    tab = visit(Page({NASTY: [subject, subject]}, title=NASTY))
    assert tab.title() == NASTY
    assert tab.text_content("h1") == NASTY
    assert tab.text_content(".name") == NASTY
    assert tab.evaluate("pcea.networks[0].subjects[0].layers[0].name") == NASTY
    assert tab.evaluate("document.scripts.length") == 2  # the numbers are read and gone


def test_long_names_leave_room(visit):
    layers = {name: AttentionMap(torch.rand(1, 30, 4)) for name in ("layer" * 50, "b" * 250)}
    tab = visit(Page({name * 250: [Subject(torch.rand(30, 3), layers, name="x" * 250)] for name in "mn"}))
    tab.evaluate("pcea.panes[0].view.legend = [['y'.repeat(250), [0, 0, 0]]]; pcea.panes[0].drawLegend()")
    assert tab.evaluate("document.documentElement.scrollWidth") == 900
    assert tab.evaluate("pcea.panes[0].legend.offsetWidth") <= 450
    assert tab.evaluate("pcea.panes[0].stage.clientHeight") > 350


def test_names_that_are_not_utf8(tmp_path):
    page = Page([Subject(torch.rand(30, 3), {"": AttentionMap(torch.rand(1, 30, 4))}, name="caf\udce9")])
    page.save(tmp_path / "page.html")
    assert '"caf?"' in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_far_from_the_origin(visit):
    """As in maps: metres, millions of them from the origin."""
    points = torch.rand(30, 3, dtype=torch.float64) + torch.tensor([5e5, 4e6, 100])
    tab = visit(make_page(points, AttentionMap(torch.rand(1, 30, 4)), query=7))
    places = tab.evaluate("[...Array(30).keys()].map((i) => pcea.panes[0].subject.place(i))")
    found = torch.tensor(places, dtype=torch.float64)
    torch.testing.assert_close(found, points, atol=3e-5, rtol=0)
    seen = torch.tensor(tab.evaluate("[...Array(30).keys()].map((i) => pcea.panes[0].scene.project(i).slice(0, 2))"))
    assert len(seen.round().unique(dim=0)) > 25


def test_colours_of_many_files_are_found_once(monkeypatch):
    ranked = []
    rank_slots = subject_module.rank_slots
    monkeypatch.setattr(
        subject_module, "rank_slots", lambda weights: ranked.append(len(weights)) or rank_slots(weights)
    )
    layers = {name: AttentionMap(torch.rand(1, 30, 4)) for name in "ab"}
    Page([Subject(torch.rand(30, 3), layers) for _ in range(5)])
    assert ranked == [5, 5]


def test_sizes():
    """40,000 points and four layers: well under 4 MB."""
    points = torch.rand(40_000, 3)
    attention = {f"{i}": AttentionMap(torch.rand(1, 256, 64), points=points[None, :256]) for i in range(4)}
    assert len(make_page(points, attention).html) < 1.2e6
    # The same numbers are written once.
    twice = Page([Subject(points, attention)] * 2)
    assert len(twice.html) < 1.01 * len(Page([Subject(points, attention)]).html) + 20_000


def test_it_asks_for_nothing():
    html = make_page(torch.rand(30, 3), AttentionMap(torch.rand(1, 30, 4))).html
    assert "default-src 'none'" in html
    addresses = re.findall(r"(?:https?:)?//[\w.]+\.\w+", html)
    assert addresses == []
    about = json.loads(re.search(r'id="about">(.*?)</script>', html, re.S)[1])
    arrays = base64.b64decode(re.search(r'id="arrays">(.*?)</script>', html, re.S)[1])
    kind, offset, length = about["networks"][0]["subjects"][0]["points"]
    assert (kind, length) == ("u16", 90)
    assert offset + 2 * length <= len(arrays)


def test_it_starts_as_asked():
    points, attention = torch.rand(30, 3), AttentionMap(torch.rand(1, 30, 4))
    for options, expected in (
        ({}, ("colors", None, None)),
        ({"slot": 2}, ("slot", 2, None)),
        ({"query": 7}, ("query", None, 7)),
    ):
        about = json.loads(re.search(r'id="about">(.*?)</script>', make_page(points, attention, **options).html)[1])
        assert tuple(about["start"][name] for name in ("mode", "slot", "query")) == expected


def test_errors(tmp_path):
    points, attention = torch.rand(30, 3), AttentionMap(torch.rand(1, 30, 4))
    for options in ({"slot": 4}, {"query": 30}):
        with pytest.raises(ValueError, match="must be"):
            make_page(points, attention, **options)
    with pytest.raises(ValueError, match=r"points must be one cloud, \(N, 3\), got \(0, 3\)"):
        make_page(points[:0], attention)
    with pytest.raises(ValueError, match="give at least one subject"):
        Page([])
    with pytest.raises(ValueError, match="There is nothing to see: all 30 points of the cloud are equal"):
        make_page(torch.zeros(30, 3), attention)
    attention.weights[0, 3, 2] = torch.nan
    with pytest.raises(ValueError, match="Some attention weights are not finite"):
        make_page(points, attention)
    attention.weights[0, 3, 2] = 0
    with pytest.raises(OSError, match="nowhere"):
        make_page(points, attention).save(tmp_path / "nowhere" / "page.html")


def test_a_notebook_shows_the_page(monkeypatch):
    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(__import__("sys").modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert in_notebook()
    page = show(torch.rand(30, 3), AttentionMap(torch.rand(1, 30, 4)), slot=1)
    shown = page._repr_html_()
    assert re.fullmatch(
        r'<iframe srcdoc="[^"]*" style="[^"]*" sandbox="allow-scripts allow-downloads"></iframe>', shown
    )
    del shell.kernel  # IPython in a terminal
    assert not in_notebook()


def test_a_page_within_a_notebook(browser, tmp_path):
    page = make_page(torch.rand(300, 3), AttentionMap(torch.rand(1, 300, 4)), query=5)
    (tmp_path / "notebook.html").write_text(f"<!doctype html><h1>Notebook</h1>{page._repr_html_()}", encoding="utf-8")
    tab = browser.new_page()
    said = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto((tmp_path / "notebook.html").as_uri())
    frame = tab.frames[1]
    frame.wait_for_function("() => window.pcea && pcea.written")
    assert frame.evaluate("pcea.panes[0].choice.query") == 5
    with tab.expect_download() as download:
        frame.click("#save")
    assert download.value.suggested_filename == "cloud.png"
    frame.click("#ask")
    assert frame.is_visible("#help")
    assert said == []
    tab.close()


def test_any_network_of_ones_own(visit):
    network = nn.Sequential(nn.Linear(3, 8), pcea.ExternalAttention(8, memory_units=4))
    points = torch.rand(1, 50, 3)
    with record_attention(network) as attention, torch.inference_mode():
        network(points)
    tab = visit(make_page(points[0], attention))
    assert tab.evaluate("pcea.panes[0].subject.modes") == ["colors", "slots", "slot", "query"]


def test_a_classifier_says_what_it_sees_and_how_it_lies(visit):
    predictor = pcea.load("modelnet40_pointea_files")
    assert isinstance(predictor, PointPredictor)
    lying = torch.rand(400, 3) * torch.tensor([1.0, 1, 3])
    page = predictor.visualize(lying, up="z")
    tab = visit(page)
    note = predictor.subject(lying, up="z").note
    assert re.fullmatch(r"\w+ [\d.]+ %, \w+ [\d.]+ %, \w+ [\d.]+ %\.", note)
    assert note in tab.text_content(".what")
    # Drawn upright: the long axis of the file stands.
    extent = tab.evaluate(
        "[0, 1, 2].map((a) => Math.max(...pcea.panes[0].subject.xyz.filter((_, i) => i % 3 === a)) - "
        "Math.min(...pcea.panes[0].subject.xyz.filter((_, i) => i % 3 === a)))"
    )
    assert extent[1] == max(extent)
