import os
import subprocess
import sys

import pytest

from pcea.io.atomic import atomic_file, atomic_folder, remove_leftovers


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


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    folder = tmp_path / "new" / "out"
    with atomic_folder(folder) as temporary:
        (temporary / "a.ply").write_text("first")
        assert not (folder / "a.ply").exists()

    def fail():
        with atomic_folder(folder) as temporary:
            (temporary / "a.ply").write_text("second")
            (temporary / "b.ply").write_text("second")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert [path.name for path in folder.iterdir()] == ["a.ply"]
    assert (folder / "a.ply").read_text() == "first"


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"^Cannot write to .*file/out: Not a directory\.$"),
        atomic_folder(tmp_path / "file" / "out"),
    ):
        pass

    def read_only(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pcea.io.atomic.TemporaryDirectory", read_only)
    with pytest.raises(OSError, match=r"^Cannot write to .*: Permission denied\.$"), atomic_folder(tmp_path):
        pass


def test_an_error_of_reading_is_not_one_of_writing(tmp_path):
    """What happens inside has a message of its own."""
    with pytest.raises(OSError, match=r"^could not read that$"), atomic_folder(tmp_path / "out"):
        raise OSError("could not read that")


def test_the_umask_decides_the_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file") as part:
            part.write_text("x")
            part.chmod(0o600)  # as some libraries make files
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".x.ckpt.{dead.pid}.part", f".y.{os.getpid()}.part", "mine.part", ".hidden.part"):
        (tmp_path / name).touch()
    (tmp_path / f".pcea_{dead.pid}_abc").mkdir()
    (tmp_path / f".pcea_{dead.pid}_abc" / "a.ply").touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f".y.{os.getpid()}.part", "mine.part", ".hidden.part"])
    remove_leftovers(tmp_path / "nowhere")
