"""Tables of results: what stays of a killed process, and what is refused."""

import csv
import os
from pathlib import Path

import pytest

from pcea.io.result_table import ResultTable, check_parquet, read_results, write_parquet

COLUMNS = ("rank", "class")


def open_table(path, **options):
    return ResultTable(path, COLUMNS, **{"num_rows": 2, "settings": "top=2", **options})


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.reader(stream))


def test_what_is_written(tmp_path):
    with open_table(tmp_path / "a.csv") as table:
        table.add(Path("one.off"), [(1, "car"), (2, "bus, red")])
        table.add_error(Path("two.off"), "no\nmesh")
        assert len(rows_of(tmp_path / "a.csv")) == 1
        table.save()
        assert rows_of(tmp_path / "a.csv") == [
            ["file", "rank", "class", "error", "settings"],
            ["one.off", "1", "car", "", "top=2"],
            ["one.off", "2", "bus, red", "", "top=2"],
            ["two.off", "", "", "no mesh", "top=2"],
        ]
    assert [row["class"] for row in read_results(tmp_path / "a.csv")] == ["car", "bus, red"]
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty.csv is empty: it has no table"):
        list(read_results(tmp_path / "empty.csv"))


def test_a_table_that_was_cut_anywhere_goes_on_after_the_last_complete_result(tmp_path):
    """Names with a line break, a quote, a letter of two bytes and a byte that is no text; a failed file last."""
    files = [
        Path("line\nbreak.off"),
        Path('a "quote".off'),
        Path("ö.off"),
        Path(os.fsdecode(b"\xe9.off")),
        Path("z.off"),
    ]

    def fill(path):
        with open_table(path) as table:
            kept = set(table.files)
            for file in files:
                name = str(file).encode("utf-8", "backslashreplace").decode()
                if name in table.files:
                    continue
                if file.name == "z.off":
                    table.add_error(file, "no mesh")
                else:
                    table.add(file, [(1, "car"), (2, "bus")])
        return kept

    whole = tmp_path / "whole.csv"
    fill(whole)
    content = whole.read_bytes()
    numbers = set()
    for cut in range(len(content) + 1):
        path = tmp_path / "cut.csv"
        path.write_bytes(content[:cut])
        numbers.add(len(fill(path)))
        assert path.read_bytes() == content, cut
    assert numbers == {0, 1, 2, 3, 4, 5}


def test_what_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    with open_table(path) as table:
        table.add(Path("one.off"), [(1, "car"), (2, "bus")])
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"results of other settings: top=2; those of now are top=3"):
        open_table(path, settings="top=3")
    with pytest.raises(ValueError, match=r"no table with the columns file,rank,error,settings"):
        ResultTable(path, ("rank",))
    path.write_bytes(content.replace(b"one.off,2", b"two.off,2") + content.splitlines(keepends=True)[1])
    with pytest.raises(ValueError, match=r"1 rows for one\.off instead of 2"):
        open_table(path)
    damaged = content.replace(b"1,car,,top=2", b"1,car") + content.splitlines(keepends=True)[1]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a row that is not complete: one\.off,1,car"):
        open_table(path)
    assert path.read_bytes() == damaged  # nothing was cut off
    with open_table(path, overwrite=True) as table:
        assert not table.files
    assert len(rows_of(path)) == 1


def test_two_processes_do_not_write_to_one_table(tmp_path):
    pytest.importorskip("fcntl")
    with open_table(tmp_path / "a.csv"), pytest.raises(ValueError, match=r"Another process writes to .*a\.csv"):
        open_table(tmp_path / "a.csv")


def test_parquet(tmp_path):
    """The first block of rows has only errors, and no class at all."""
    parquet = pytest.importorskip("pyarrow.parquet")
    with open_table(tmp_path / "a.csv", num_rows=1) as table:
        for index in range(40_000):
            table.add_error(Path(f"{index}.off"), "no mesh, but a picture")
        table.add(Path("line\nbreak.off"), [(1, "NA")])
    write_parquet(tmp_path / "a.csv", tmp_path / "a.parquet", {"rank": int, "class": str})
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert len(rows) == 40_001
    assert rows[-1] == {"file": "line\nbreak.off", "rank": 1, "class": "NA", "error": None, "settings": "top=2"}
    assert rows[0]["rank"] is rows[0]["class"] is None


def test_parquet_without_pyarrow(monkeypatch):
    monkeypatch.setattr("pcea.io.result_table.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'pcea\[parquet\]'"):
        check_parquet()
