import codecs

import pytest

from pcea.io.text import read_names, read_text

ENCODED = {
    "UTF-8": "ä\nb".encode(),
    "UTF-8 with a byte order mark": codecs.BOM_UTF8 + "ä\r\nb".encode(),
    "UTF-16 of Windows": codecs.BOM_UTF16_LE + "ä\r\nb".encode("utf-16-le"),
    "UTF-16, the other order": codecs.BOM_UTF16_BE + "ä\nb".encode("utf-16-be"),
    "UTF-16 without a mark": "a\nb".encode("utf-16-le"),
    "an old Mac": "ä\rb".encode(),
}


@pytest.mark.parametrize("name", ENCODED)
def test_usual_encodings(tmp_path, name):
    (tmp_path / "a.txt").write_bytes(ENCODED[name])
    first = "a" if "without" in name else "ä"
    assert read_text(tmp_path / "a.txt") == f"{first}\nb"
    assert read_names(tmp_path / "a.txt") == [first, "b"]


def test_other_bytes_are_cp1252_in_text_and_themselves_in_names(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"# Sch\xf6n\n\n  x \n")
    assert read_text(tmp_path / "a.txt") == "# Schön\n\n  x \n"
    names = read_names(tmp_path / "a.txt")
    assert [name.encode("utf-8", "surrogateescape") for name in names] == [b"# Sch\xf6n", b"x"]
