from pathlib import Path

import pytest

from pcea.io.walk import walk


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("top/b.txt", "top/a.txt", "top/in/c.txt", "top/.hidden/d.txt", "other/e.txt", "other/deep/f.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return Path("top")


def found(folder, **options):
    return [(here / name).as_posix() for here, names in walk(folder, **options) for name in names]


def test_links_are_followed(folder):
    (folder / "far").symlink_to("../other")
    assert found(folder) == ["top/a.txt", "top/b.txt", "top/far/e.txt", "top/far/deep/f.txt", "top/in/c.txt"]


def test_each_folder_comes_once(folder):
    (folder / "again").symlink_to("in")  # comes first, but `in` is its own name
    (folder / "in/self").symlink_to(".")
    (folder / "in/up").symlink_to("../..")
    (folder / "x").symlink_to("../other/deep")
    (folder / "y").symlink_to("../other")
    (Path("other/deep/back")).symlink_to("../../top")
    (folder / "broken").symlink_to("nowhere")
    names = found(folder)
    assert names == ["top/a.txt", "top/b.txt", "top/broken", "top/in/c.txt", "top/x/f.txt", "top/y/e.txt"]


def test_a_folder_to_leave_out(folder):
    assert found(folder, without=Path("top/in")) == ["top/a.txt", "top/b.txt"]
    assert found(folder, without=folder) == found(folder, without=Path("nowhere")) == found(folder)
    assert found(Path("nowhere")) == []
