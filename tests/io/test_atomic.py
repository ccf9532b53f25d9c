import os
import subprocess
import sys
import threading
import time

import pytest

from pcea.io.atomic import atomic_file, atomic_folder, one_process, remove_leftovers


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
    with atomic_file(tmp_path / "y") as mine, atomic_folder(tmp_path) as folder:
        mine.touch()
        names = mine.name, folder.name
        for name in ("mine.part", ".hidden.part", names[0].replace(str(os.getpid()), str(dead.pid))):
            (tmp_path / name).touch()
        other = tmp_path / names[1].replace(str(os.getpid()), str(dead.pid))
        other.mkdir()
        (other / "a.ply").touch()
        remove_leftovers(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {*names, "mine.part", ".hidden.part"}
    remove_leftovers(tmp_path / "nowhere")


def test_what_another_machine_writes_stays_for_a_day(tmp_path):
    """Its process may have the number of a dead one here."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    new, old = (tmp_path / f".{name}.ckpt@elsewhere.{dead.pid}.part" for name in ("new", "old"))
    for file, age in ((new, 3600), (old, 2 * 24 * 3600)):
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    remove_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == [new]


def test_one_process_at_a_time(tmp_path):
    """Another process waits until this one is through, or until it is killed."""
    lock = tmp_path / "new" / "lock"
    code = f"""if True:
        import sys, time
        from pathlib import Path
        from pcea.io.atomic import one_process
        with one_process(Path({str(lock)!r})):
            print("in", flush=True)
            time.sleep(100)"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    order = []

    def enter():
        with one_process(lock):
            order.append("entered")

    waiting = threading.Thread(target=enter)
    waiting.start()
    time.sleep(0.2)
    order.append("killed")
    other.kill()
    other.communicate()
    waiting.join(10)
    assert order == ["killed", "entered"]


def test_without_a_lock_nobody_waits(tmp_path):
    (tmp_path / "file").touch()
    entered = False
    with one_process(tmp_path / "file" / "lock"), one_process(tmp_path / "file" / "lock"):
        entered = True
    assert entered
