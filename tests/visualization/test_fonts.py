import warnings

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from pictures import ORANGE, ink

from pcea.visualization import fonts
from pcea.visualization.fonts import drawable, font_families
from pcea.visualization.legends import draw_legend, text_width
from pcea.visualization.titles import draw_title
from pcea.visualization.views import View

CHAIR = "椅"


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    """A machine that has the fonts of Matplotlib alone; none of them has Chinese."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    forget()
    yield
    forget()


def forget():
    fonts._fonts.cache_clear()
    fonts._add_new_fonts.cache_clear()


@pytest.fixture
def font(tmp_path):
    """A font in which CHAIR is a wide black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (1900, 900), (1900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "chair"])
    builder.setupCharacterMap({ord(CHAIR): "chair"})
    builder.setupGlyf({".notdef": square, "chair": square})
    builder.setupHorizontalMetrics({".notdef": (2000, 0), "chair": (2000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Chairs", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "chairs.ttf")
    return tmp_path / "chairs.ttf"


@pytest.fixture
def known_font(font, plain_machine):
    font_manager.fontManager.addfont(font)


def view(name):
    return View(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.uint8), legend=((name, ORANGE),), legend_title=name)


def test_what_no_font_has_is_escaped():
    assert drawable(f"a {CHAIR}.npy") == "a \\u6905.npy"
    assert drawable("caf\udce9\x07\ue001") == "caf\\udce9\\x07\\ue001"
    assert drawable("two\n lines\tof x") == "two lines of x"
    assert drawable("Möbel ½ αβγ Стул") == "Möbel ½ αβγ Стул"


def test_a_font_that_has_it_is_found(known_font):
    assert drawable(f"a {CHAIR}") == f"a {CHAIR}"
    assert font_families(f"a {CHAIR}")[-1] == "Chairs"
    assert font_families("a") == font_families("b")
    assert "Chairs" not in font_families("a")
    assert text_width(CHAIR) > 2 * text_width("W")


def test_a_font_that_was_installed_after_matplotlib_made_its_list(font, tmp_path, monkeypatch):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(broken), str(font)])
    assert drawable(CHAIR) == CHAIR
    assert font_families(CHAIR)[-1] == "Chairs"


@pytest.mark.parametrize("name", [f"chair {CHAIR}", "椅子 стул", "caf\udce9"])
def test_legends_are_drawn_without_warnings(name, caplog, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        key = draw_legend(view(name), height=200)
    assert ink(key).any()
    assert not ink(key)[:, [0, 1, -2, -1]].any()
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("known_font")
def test_legends_are_drawn_with_the_font_that_was_found():
    key = draw_legend(view(CHAIR), height=200)
    black = (key < 60).all(-1)
    assert np.count_nonzero(black) > 150  # two squares


@pytest.mark.usefixtures("known_font")
def test_titles_are_drawn_with_the_font_that_was_found():
    """Two squares, 26 pixels wide each, and no escape."""
    columns = np.flatnonzero((draw_title(f"{CHAIR}{CHAIR}", width=200) < 60).all(-1).any(0))
    assert 50 < len(columns) < 60
