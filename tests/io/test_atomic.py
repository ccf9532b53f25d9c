import pytest

from pcea.io.atomic import atomic_file


def test_a_file_takes_its_place_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with atomic_file(path) as part:
        part.write_text("after")
        assert path.read_text() == "before"
        assert part.parent == tmp_path  # of one file system, so that it can be moved at once
    assert path.read_text() == "after"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as part:  # noqa: PT012
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").write_text("")
    with pytest.raises(OSError, match=r"folder'$") as raised, atomic_file(folder) as part:
        part.write_text("text")
    assert str(raised.value.filename) == str(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
