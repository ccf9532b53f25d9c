"""Which files a command reads, and which of them one process of several."""

from pathlib import Path

import pytest

from pcea.commands.input_files import Share, find_files


@pytest.fixture
def scans(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.off", "b/1.STL", "b/c/3.ply", "b/readme.md", "b/.4.off", "b/.git/5.off", "a.off", "x[1].off"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def found(*arguments, output=None):
    return [str(path) for path in find_files(arguments, endings=(".off", ".stl", ".ply", ".csv"), output=output)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.off", "b/2.off"], ["a.off", "b/2.off"]),
        (["b"], ["b/1.STL", "b/2.off", "b/c/3.ply"]),
        (["b/2.off", "b", "./b/../b/2.off"], ["b/2.off", "b/1.STL", "b/c/3.ply"]),
        (["*.off"], ["a.off", "x[1].off"]),
        (["**/*.off"], ["a.off", "b/2.off", "x[1].off"]),
        (["x[1].off"], ["x[1].off"]),
        (["b/c*"], ["b/c/3.ply"]),
        (["b/readme.md"], ["b/readme.md"]),
        (["@lists/all.txt", "a.off"], ["b/2.off", "a.off", "b/c/3.ply"]),
    ],
)
def test_what_is_found(scans, arguments, expected):
    (scans / "lists").mkdir()
    (scans / "lists" / "all.txt").write_text("b/2.off\n\n  a.off  \nb/c\n")
    assert found(*arguments) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_as_windows_writes_them(scans, encoding):
    Path("list.txt").write_text("b/2.off\r\na.off\r\n", encoding=encoding)
    assert found("@list.txt") == ["b/2.off", "a.off"]


def test_two_links_to_one_file_are_two_files(scans):
    Path("link.off").symlink_to("a.off")
    assert found("a.off", "link.off") == ["a.off", "link.off"]


def test_linked_folders_are_walked(scans):
    for name, target in (("b/far", "../else"), ("b/loop", "."), ("else/3.off", "../a.off")):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(target)
    assert found("b") == ["b/1.STL", "b/2.off", "b/c/3.ply", "b/far/3.off"]


def test_results_are_not_read_as_files(scans):
    for name in ("b/out.csv", "b/out.rank0of2.csv", "b/table.csv", "b/out.off", "b/parts/2.ply"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert found("b", output=Path("b/out.csv"))[2:] == ["b/out.off", "b/table.csv", "b/c/3.ply", "b/parts/2.ply"]
    assert found("b", output=Path("b/out.parquet"))[2:] == ["b/out.off", "b/table.csv", "b/c/3.ply", "b/parts/2.ply"]
    assert "b/parts/2.ply" not in found("b", output=Path("b/parts"))


def test_what_is_missing(scans):
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"^Nothing to read in empty: no file ends in \.csv \.off \.ply \.stl"):
        found("empty")
    with pytest.raises(FileNotFoundError, match=r"^No such file: no\.off, \*\.glb\.$"):
        found("a.off", "no.off", "*.glb")
    with pytest.raises(FileNotFoundError, match=r"list\.txt"):
        found("@list.txt")


def test_all_shares_together_are_all_files(monkeypatch):
    files = [Path(f"{i}") for i in range(11)]
    assert Share.of_environment().of(files) == files
    assert Share.of_environment().mark(Path("a/out.csv")) == Path("a/out.csv")
    monkeypatch.setenv("WORLD_SIZE", "4")
    shares = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(Share.of_environment())
    assert [share.mark(Path("a/out.csv")).name for share in shares] == [f"out.rank{rank}of4.csv" for rank in range(4)]
    assert sorted(file for share in shares for file in share.of(files)) == sorted(files)


def test_job_arrays_count_from_anywhere(monkeypatch):
    """--array=3-9:2, and torchrun with two processes in each task."""
    for name, value in (("MIN", 3), ("STEP", 2), ("COUNT", 4), ("ID", 7)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert Share.of_environment() == (2, 4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Share.of_environment() == (5, 8)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "11")
    with pytest.raises(ValueError, match="names process 9 of 8, counted from 0"):
        Share.of_environment()
