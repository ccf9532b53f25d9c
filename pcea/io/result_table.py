"""A table of results that grows while they come, survives a killed process, and is continued by the next one."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pcea.io.atomic import atomic_file

# Python's limit for one cell is 128 KiB, which the outlines of the objects in one image may exceed.
_LONGEST_CELL = 2**31 - 1


class ResultTable:
    """A CSV file with the columns file, `columns`, error and settings, to which results are appended.

    What was added is on disk when `save` returns. If the process dies while it writes, the next one cuts off what
    follows the last complete result. One process at a time can open a table, where the filesystem has locks.

    Args:
        path: The file, continued if it exists.
        columns: Names of the columns of a result.
        num_rows: Number of rows of each result. A file that failed has one row.
        settings: What the results depend on besides the file, in every row. A table of other settings is refused.
        overwrite: Start anew instead of continuing.

    Attributes:
        files: Names of all files in the table, as `name_in_table` gives them.
        errors: Why files failed, by their names.

    Raises:
        ValueError: If the file is another table, was made with other settings, or another process writes to it.
        OSError: If it cannot be written.
    """

    def __init__(
        self, path: Path, columns: Iterable[str], *, num_rows: int = 1, settings: str = "", overwrite: bool = False
    ):
        self.path, self._columns, self._num_rows, self._settings = path, tuple(columns), num_rows, settings
        self.files: set[str] = set()
        self.errors: dict[str, str] = {}
        self._waiting = io.StringIO(newline="")
        self._stream: BinaryIO = path.open("a+b")
        try:
            self._lock()
            if overwrite:
                self._stream.truncate(0)
            self._continue()
        except BaseException:
            self._stream.close()
            raise

    def add(self, file: Path, rows: Sequence[Sequence[object]]) -> None:
        """Add the result of a file: as many rows as all results have, of as many values as there are columns."""
        assert len(rows) == self._num_rows, f"{len(rows)} rows instead of {self._num_rows}"
        self._add([(name_in_table(file), *row, "", self._settings) for row in rows])

    def add_error(self, file: Path, message: str) -> None:
        """Add a file that failed, and why."""
        message = " ".join(message.split())  # a line break could look like the end of the row
        self.errors[name_in_table(file)] = message
        self._add([(name_in_table(file), *[""] * len(self._columns), message, self._settings)])

    def save(self) -> None:
        """Bring everything that was added to disk."""
        self._stream.write(self._waiting.getvalue().encode("utf-8", "backslashreplace"))
        self._waiting = io.StringIO(newline="")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def __enter__(self) -> ResultTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.save()
        finally:
            self._stream.close()

    def _add(self, rows: Iterable[Sequence[object]]) -> None:
        csv.writer(self._waiting).writerows(rows)

    def _lock(self) -> None:
        with suppress(ImportError, OSError):  # Windows, or a filesystem without locks
            import fcntl

            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"Another process writes to {self.path}.") from None

    def _continue(self) -> None:
        """Read what the file holds and cut off what is not complete."""
        self._add([("file", *self._columns, "error", "settings")])
        header = self._waiting.getvalue().encode()
        self._stream.seek(0)
        first = self._stream.readline()
        if first == header:
            self._waiting = io.StringIO(newline="")
            self._stream.truncate(len(header) + self._read_results())
        elif header.startswith(first):  # empty, or cut off
            self._stream.truncate(0)
            self.save()
        else:
            raise ValueError(
                f"{self.path} is no table with the columns {header.decode().strip()}: --overwrite replaces it."
            )

    def _read_results(self) -> int:
        """Read the rows below the header; returns how many bytes the complete results take."""
        complete = position = 0
        line = b""

        def lines() -> Iterator[str]:
            nonlocal position, line
            for line in self._stream:
                position += len(line)
                yield line.decode("utf-8", "replace")

        rows: list[list[str]] = []
        for row in _parse(remaining := lines(), self.path):
            if len(row) != len(self._columns) + 3 or not line.endswith(b"\n"):
                if next(remaining, None) is not None:
                    raise ValueError(f"{self.path} has a row that is not complete: {','.join(row)[:200]}")
                break
            name, error, settings = row[0], row[-2], row[-1]
            if settings != self._settings:
                raise ValueError(
                    f"{self.path} has results of other settings: {settings}; those of now are {self._settings}. Give "
                    "another --output, or --overwrite."
                )
            if rows and rows[0][0] != name:
                raise ValueError(f"{self.path} has {len(rows)} rows for {rows[0][0]} instead of {self._num_rows}.")
            rows.append(row)
            if error or len(rows) == self._num_rows:
                self.files.add(name)
                if error:
                    self.errors[name] = error
                complete, rows = position, []
        return complete


def name_in_table(file: Path) -> str:
    """How a table names a file: bytes that are no UTF-8 are escaped."""
    return str(file).encode("utf-8", "backslashreplace").decode()


def read_results(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table by the names of its columns, without those of failed files."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = _parse(stream, path)
        header = next(rows, None)
        if header is None:
            raise ValueError(f"{path} is empty: it has no table of results.")
        for row in rows:
            cells = dict(zip(header, row))
            if not cells["error"]:
                yield cells


def check_parquet() -> None:
    """Raise an ImportError if Parquet files cannot be written."""
    if find_spec("pyarrow") is None:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'pcea[parquet]', or give an --output that ends in .csv."
        )


def write_parquet(table: Path, output: Path, columns: Mapping[str, type]) -> None:
    """Write a table as a Parquet file, whole or not at all; empty cells become nulls.

    Args:
        table: The CSV file.
        output: The Parquet file; one that exists is replaced.
        columns: The type of each column: int, float or str. Others are text.
    """
    import pyarrow
    from pyarrow import parquet
    from pyarrow.csv import ConvertOptions, ParseOptions, open_csv

    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    types = {name: kinds[kind] for name, kind in {"file": str, **columns, "error": str, "settings": str}.items()}
    convert = ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    with (
        atomic_file(output) as part,
        open_csv(table, parse_options=ParseOptions(newlines_in_values=True), convert_options=convert) as batches,
        parquet.ParquetWriter(part, batches.schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def _parse(lines: Iterable[str], path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(_LONGEST_CELL)  # for good: other readers may still need it when this one ends
    try:
        yield from csv.reader(lines)
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.") from error
