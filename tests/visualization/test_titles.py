import numpy as np
import pytest
from pictures import ink

from pcea.visualization.legends import text_width
from pcea.visualization.titles import draw_title, shorten_title


def test_the_file_name_is_shortened_in_its_middle():
    title = "a_long_name_of_a_chair_0123: night stand 91 %"
    for width in (text_width(title) - 1, 250, 200):
        shortened = shorten_title(title, width)
        name, rest = shortened.split(": ")
        start, end = name.split("...")
        assert rest == "night stand 91 %"
        assert title.startswith(start)
        assert title.split(":")[0].endswith(end)
        assert len(start) - len(end) in (0, 1)
        assert width - 2 * text_width("m") < text_width(shortened) <= width  # as long as there is room


def test_titles_that_fit_are_left_alone():
    for title in ("", "chair", "a: chair 91 %", "a: b: c"):
        assert shorten_title(title, text_width(title)) == title


def test_what_follows_the_name_is_shortened_last():
    assert shorten_title("name: night stand", text_width("n...: night stand")) == "n...: night stand"
    assert shorten_title("name: night stand", text_width("nam...and")) == "nam...and"
    assert shorten_title("name: night stand", 0) == "..."


@pytest.mark.parametrize("title", ["W" * 100, "$_$" * 40, "椅" * 40 + ": chair 91 %", "caf\udce9: chair 91 %"])
def test_titles_fit(title):
    picture = draw_title(title, width=150)
    assert (picture.shape, picture.dtype) == ((30, 150, 3), np.uint8)
    columns = np.flatnonzero(ink(picture).any(0))
    assert columns.min() < 5
    assert 100 < columns.max() < 149
    assert not ink(picture)[[0, -1]].any()


def test_an_empty_title_is_blank():
    assert not ink(draw_title("", width=150)).any()
