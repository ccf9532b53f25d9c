"""Results in a folder: what would overwrite something, and what failures leave."""

import pytest

from pcea.io.output_folder import atomic_folder, check_output


def check(folder, files, endings=(".ply", ".npz")):
    check_output(folder, files, endings=endings)


def test_results_that_would_overwrite_something(tmp_path):
    files = [tmp_path / "a" / "scan.off", tmp_path / "b" / "scan.npy"]
    with pytest.raises(ValueError, match=r"scan\.off and .*scan\.npy would both be written to .*out/scan\.ply"):
        check(tmp_path / "out", files)
    check(tmp_path / "out", files[:1])
    check(tmp_path / "a", files[:1])
    with pytest.raises(ValueError, match=r"would overwrite .*scan\.ply"):
        check(tmp_path / "b" / ".." / "a", [tmp_path / "a" / "scan.ply"])
    (tmp_path / "file").touch()
    for output in ("file", "parts.csv"):
        with pytest.raises(ValueError, match="writes a folder, with 2 files for each"):
            check(tmp_path / output, files[:1])


def test_endings_may_be_more_than_a_suffix(tmp_path):
    files = [tmp_path / "photo.jpg", tmp_path / "photo_overlay.jpg"]
    check(tmp_path / "out", files, [".png", "_overlay.jpg"])
    with pytest.raises(ValueError, match=r"would overwrite .*photo_overlay\.jpg"):
        check(tmp_path, files, [".png", "_overlay.jpg"])
    with pytest.raises(ValueError, match=r"photo\.jpg and .*photo_overlay\.jpg would both be written to"):
        check(tmp_path / "out", files, ["_overlay.png", ".png"])


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

    monkeypatch.setattr("pcea.io.output_folder.TemporaryDirectory", read_only)
    with pytest.raises(OSError, match=r"^Cannot write to .*: Permission denied\.$"), atomic_folder(tmp_path):
        pass
