"""Tables of numbers in text files, whatever their header, delimiter, decimal mark and encoding."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pcea.io.arrays import with_unit_length
from pcea.io.columns import UNIT_NORMAL, name_columns, names_other_columns, words_of
from pcea.io.meshes import first_line
from pcea.io.text import read_text

# Extensions of text tables.
TABLES = (".txt", ".csv", ".xyz", ".asc", ".xyzn", ".xyzrgb", ".pts")

_COMMENTS = ("#", "//", "%", "!")
_REMARK = re.compile(r"\s+(?:#|//).*")
_ANY_REMARK = re.compile(r"(?:#|//|%|!).*")
# 1,234,567.8 and 1.234.567,8.
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:(?:,\d{3})+(\.\d*)?|(?:\.\d{3})+(,\d*)?)")
# So many lines before the rows may be their header.
_HEADERS = 20
_DECIMAL_COMMA = re.compile(r"[-+]?\d*(,\d+)?([eE][-+]?\d+)?")
# Of so many rows the first column counts them hardly by chance.
_COUNTED = 10
# A header ends within this many characters.
_HEAD = 2**16


class Table(NamedTuple):
    """Numbers in rows.

    Attributes:
        rows: The numbers, (N, C) float64.
        names: Names of the C columns if a header names x, y and z, else ().
    """

    rows: np.ndarray
    names: tuple[str, ...]


class _Layout(NamedTuple):
    """How a text is to be read.

    Attributes:
        start: Number of characters before the first row.
        num_columns: Numbers or words per row, without what follows the last delimiter.
        delimiter: Between columns; None for white space.
        comma: What to replace commas with; None if they are delimiters.
        named: Index of each column that the header names: x, y, z, and perhaps normals and a label.
        header: The header's last line, "" if there is none.
        num_rows: The number of rows, if the text tells it in a line before them.
    """

    start: int
    num_columns: int
    delimiter: str | None
    comma: str | None
    named: dict[str, int]
    header: str
    num_rows: int | None


def read_table(path: Path, *, max_rows: int | None = None, is_column: bool = False) -> np.ndarray:
    """Numbers in rows, (N, C), as they are in a text file. What stands before the first row is skipped.

    NumPy's reader does the work, for it is as fast as pandas's on such files. What it does not do, find the header, the
    delimiter and the decimal mark, is done here from the first lines: csv.Sniffer takes digits for delimiters.

    Args:
        path: The file.
        max_rows: Read no more than these; None reads all.
        is_column: The text is one number per line without a header. Otherwise a single number before the rows is their
            count.

    Raises:
        ValueError: If the text is not a table of numbers, or ends before the number of rows that it tells.
    """
    try:
        text = _read_text(path)
        if is_column:
            layout: _Layout | None = _Layout(0, 1, None, None, {}, "", None)
        else:
            layout = _find_layout(text, ())
        return np.empty((0, 3)) if layout is None else _parse(text, layout, max_rows=max_rows)
    except ValueError as error:
        raise _not_a_table(path, error) from error


def read_columns(path: Path, *, labels: Sequence[str] = ()) -> Table:
    """The columns of a text file that its header names: x y z, nx ny nz if all three are there, and perhaps a label.

    Without a header, or with one that does not name x, y and z, all columns are returned; the latter gives a warning.

    Args:
        path: The file.
        labels: Names of a label's column, in lower case; the first that is there counts and is called `label`.

    Raises:
        ValueError: If the text is not a table of numbers.
    """
    try:
        text = _read_text(path)
        layout = _find_layout(text, labels)
        if layout is None:
            return Table(np.empty((0, 3)), ())
        rows = _parse(text, layout, columns=list(layout.named.values()))
    except ValueError as error:
        raise _not_a_table(path, error) from error
    if layout.header and not layout.named:
        warnings.warn(
            f"{path}: the header {layout.header[:60]!r} does not name columns x, y and z of its rows, so the first "
            "three are taken.",
            stacklevel=2,
        )
    return Table(rows, tuple(layout.named))


def read_text_cloud(path: Path) -> np.ndarray:
    """The points of a text file in rows x y z, or x y z and three more columns: normals, if as_points finds them such.

    Without a header, all further columns of .xyzrgb are colours, and those of .pts intensity and colours unless they
    are three.

    Raises:
        ValueError: If the text is not a table of numbers.
    """
    rows, names = read_columns(path)
    if not names and rows.shape[1] > 3 and len(rows) >= _COUNTED and (np.ptp(rows[:, 0] - np.arange(len(rows))) == 0):
        warnings.warn(
            f"{path}: its first column counts the rows. If that is not x, begin it with the names of its columns.",
            stacklevel=2,
        )
    if UNIT_NORMAL[0] in names:
        rows[:, 3:6] = with_unit_length(rows[:, 3:6])
    extension = path.suffix.lower()
    has_colors = not names and (extension == ".xyzrgb" or (extension == ".pts" and rows.shape[1] != 6))
    return rows[:, : 3 if has_colors else 6]


def _not_a_table(path: Path, error: ValueError) -> ValueError:
    return ValueError(f"{path} is not a table of numbers: {first_line(error).partition('; use `')[0].rstrip('.')}.")


def _read_text(path: Path) -> str:
    text = read_text(path)
    if "\0" in text:
        raise ValueError("it is binary")
    return text


def _find_layout(text: str, labels: Sequence[str]) -> _Layout | None:
    """How to read a text, from its first lines; None if it holds no rows but perhaps their header.

    Raises:
        ValueError: If it is other text.
    """
    lines = text[:_HEAD].split("\n")
    if len(text) > _HEAD and len(lines) > 1:
        lines.pop()  # it may be cut
    header, is_only_comment, count, start = "", True, None, 0
    heads: list[str] = []
    for number, line in enumerate(lines):
        start += len(lines[number - 1]) + 1 if number else 0
        bare = line.strip()
        if not bare:
            continue
        if bare.startswith(_COMMENTS) and not _is_row_in_spite(bare, heads, labels):
            comment = bare.lstrip("#/%! \t")
            header = comment or header
            heads.append(comment)
            continue
        bare = _REMARK.sub("", bare)
        delimiter, comma = _find_delimiter(bare)
        padded = _split(bare if comma is None else bare.replace(",", comma), delimiter)
        cells = _without_last_empty(padded)
        are_numbers = all(map(_is_number, cells))
        if len(cells) == 1 and cells[0].isdecimal() and len(cells[0]) < 16:
            count = int(cells[0])
        elif are_numbers and header == "" and _numbers_columns(cells, delimiter, lines[number + 1 :]):
            header, is_only_comment = bare, False
            heads.append(bare)
        else:
            named: dict[str, int] = {}
            if are_numbers or sum(map(_is_number, cells)) >= 3:
                rows = lines[number:]
                header, named = _find_header(heads, (len(padded), len(cells)), delimiter, labels, rows) or (header, {})
            if (are_numbers and len(cells) > 1) or (
                named and all(i < len(cells) and _is_number(cells[i]) for i in named.values())
            ):
                if delimiter == "," and _has_decimal_commas(lines[number:], named, header):
                    raise ValueError(
                        f"{bare[:40]!r} seems to have decimal commas, and commas between columns too; write decimal "
                        f"points, semicolons between columns, or a line of their names"
                    )
                if {"ncols", "nrows"} <= {head.split()[0].lower() for head in heads if head.split()}:
                    raise ValueError("it is a grid of heights (ESRI); export it as rows of x y z")
                is_remark = is_only_comment and len(words_of(header)) != len(cells) and not names_other_columns(header)
                return _Layout(start, len(cells), delimiter, comma, named, "" if is_remark else header, count)
            _check_skipped(heads, bare, cells, delimiter)
            heads.append(bare)
            header, is_only_comment, count = bare, False, None
    if is_only_comment or name_columns(header, len(words_of(header)), None, labels):
        return None
    cells = [cell.strip() for cell in _split(header, delimiter)]
    words = [cell for cell in cells if not _is_number(cell)]
    what = f", as {words[0][:40]!r} is none" if 0 < len(words) < len(cells) else ""
    raise ValueError(f"{header[:80]!r} is not a row of numbers{what}")


def _is_row_in_spite(line: str, heads: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether a line that begins like a comment is a row, which has numbers where a header names x, y and z."""
    delimiter, comma = _find_delimiter(line)
    if delimiter is None:
        return False
    cells = _split(line if comma is None else line.replace(",", comma), delimiter)
    return any(
        all(_is_number(cells[i]) for i in named.values())
        for head in heads[-_HEADERS:]
        if (named := name_columns(head, len(cells), delimiter, labels))
    )


def _find_header(
    heads: Sequence[str], counts: Sequence[int], delimiter: str | None, labels: Sequence[str], rows: Sequence[str]
) -> tuple[str, dict[str, int]] | None:
    """The last line before the rows that names their columns, and what it names; None if there is none.

    Units, remarks and counts may follow it. `counts` are the columns with and without empty ones at the end, which are
    missing values where they have a name.
    """
    has_row_names = _have_row_names(rows, delimiter)
    for head in heads[: -_HEADERS - 1 : -1]:
        for count in counts:
            if named := name_columns(head, count, delimiter, labels, has_row_names=has_row_names):
                return head, named
    return None


def _have_row_names(lines: Iterable[str], delimiter: str | None) -> bool:
    """Whether the first column of rows looks like their names: alone in quotes, words, or numbers that count them.

    Many rows are looked at, as x counts the points of a line of a raster too.
    """
    first = [*islice(filter(None, map(str.strip, lines)), 1000)]
    if all(line.startswith('"') and line.count('"') == 2 for line in first):
        return True
    cells = [_split(line, delimiter)[0] for line in first]
    if not all(map(_is_number, cells)):
        return not any(map(_is_number, cells))
    return len({float(cell) - i for i, cell in enumerate(cells)}) == 1


def _check_skipped(heads: Sequence[str], line: str, cells: Sequence[str], delimiter: str | None) -> None:
    """Refuse a row with missing values that stands below the header, where it would be left out without a word.

    Raises:
        ValueError: If it is one: a line of units has no number.
    """
    if any(map(_is_number, cells)) and any(name_columns(h, len(cells), delimiter, ()) for h in heads[-_HEADERS:]):
        word = next(cell for cell in cells if not _is_number(cell))
        raise ValueError(f"{line[:80]!r} is not a row of numbers, as {word[:40]!r} is none")


def _find_delimiter(line: str) -> tuple[str | None, str | None]:
    """The delimiter of a row, None for white space, and what to replace commas with if they are none."""
    unquoted = re.sub('"[^"]*"', "", line)
    for delimiter in ";|":
        if delimiter in unquoted:
            return delimiter, "."
    words = line.split()
    thousands = [match for match in map(_THOUSANDS.fullmatch, words) if match]
    if (
        len(words) >= 3
        and (len(thousands) >= 2 or any(match[1] or match[2] for match in thousands))
        and all(_is_number(word.replace(",", "").replace(".", "")) for word in words)
        and not all(map(_is_number, words))
        and not all(map(_DECIMAL_COMMA.fullmatch, words))
    ):
        raise ValueError(f"{line[:60]!r} seems to have separators of thousands; write numbers without")
    if "," in line:
        if len(words) > 1 and all(map(_DECIMAL_COMMA.fullmatch, words)):
            return None, "."
        if all(map(_is_number, line.replace(",", " ").split())) and any(len(c.split()) > 1 for c in line.split(",")):
            return None, " "  # as in 1,2,3 255 0 0
        return ",", None
    if "\t" in line and all(len(cell.split()) == 1 for cell in line.split("\t")):
        return "\t", None
    return None, None


def _has_decimal_commas(lines: Iterable[str], named: Mapping[str, int], header: str) -> bool:
    """Whether all rows read like 6,370, 2,698, 0,410: with a comma within all columns but one, and one behind each.

    Integers are written like this only if their blanks are as regular as those. Without blanks, as in
    6,370,2,698,0,410, a header names half as many columns as there seem to be, or every second has as many digits, some
    with a 0 first.
    """
    lines = list(lines)
    if not named:
        cells = [line.strip().split(",") for line in lines if line.strip()]
        pairs = [row[1::2] for row in cells if len(row) % 2 == 0 and len(row) >= 6]
        if len(pairs) == len(cells) and all(re.fullmatch(r"[-+]?\d+", cell) for row in cells for cell in row):
            digits = [cell for row in pairs for cell in row]
            is_fraction = all(map(str.isdecimal, digits)) and len({*map(len, digits)}) == 1 < len(digits[0])
            if 2 * len(words_of(header)) == len(cells[0]) or (is_fraction and any(d[0] == "0" for d in digits)):
                return True
    if named:
        return False
    bare = (_REMARK.sub("", line.strip()) for line in lines)
    rows = [re.split(r",\s+", line.rstrip(", ")) for line in bare if line and not line.startswith(_COMMENTS)]
    is_regular = len(rows[0]) >= 3 and all(
        len(row) == len(rows[0]) and all(map(_DECIMAL_COMMA.fullmatch, row)) for row in rows
    )
    return is_regular and sum(any("," in cell for cell in column) for column in zip(*rows)) >= len(rows[0]) - 1


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return [cell.strip("\"'") for cell in line.split()]
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _without_last_empty(cells: list[str]) -> list[str]:
    last = max((i for i, cell in enumerate(cells) if cell), default=0)
    return cells[: last + 1]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _numbers_columns(cells: Sequence[str], delimiter: str | None, following: Iterable[str]) -> bool:
    """Whether a row only counts the columns, 0 1 2 ..., as pandas writes it for an array, above other numbers.

    Between blanks it is a point unless the next row has one column more, its index: pandas writes commas, if not told
    otherwise, and scans that begin at 0 1 2 are not rare.
    """
    if list(cells) != [str(i) for i in range(len(cells))] or len(cells) < 3:
        return False
    row = next((line for line in following if line.strip()), "")
    return "." in row and (delimiter is not None or len(row.split()) == len(cells) + 1)


def _parse(text: str, layout: _Layout, *, max_rows: int | None = None, columns: Sequence[int] = ()) -> np.ndarray:
    """All columns of a text, or the given ones."""
    options: dict[str, Any] = {"delimiter": layout.delimiter, "max_rows": max_rows, "ndmin": 2, "comments": None}
    if layout.comma is not None and "," in text:
        text = text.replace(",", layout.comma)
    if '"' in text:
        options["quotechar"] = '"'
    if columns:
        options["usecols"] = columns
    # Few rows of a large file are found in less time than it takes to split all of it.
    rest = text[layout.start :]
    lines = rest.split("\n") if max_rows is None else (match[0] for match in re.finditer(r"[^\n]+", rest))
    if any(mark in rest for mark in _COMMENTS):
        lines = _without_remarks(lines, layout)
    if isinstance(lines, list):
        while lines and not lines[-1].strip(",;| \t\x1a"):  # empty rows of Excel
            lines.pop()
    if layout.num_rows is not None:
        lines = _rows_of_scans([line for line in lines if line.strip()], layout.num_rows)
        if max_rows is None and len(lines) < layout.num_rows:
            raise ValueError(f"it ends before its {layout.num_rows} rows")
    elif layout.delimiter is not None and rest.partition("\n")[0].strip(" ").endswith(layout.delimiter):
        options.setdefault("usecols", range(layout.num_columns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of an empty file; the caller reports it
        return np.loadtxt(lines, **options)


def _without_remarks(lines: Iterable[str], layout: _Layout) -> list[str]:
    """Lines without comments. Where columns have names, others may hold the marks: comments are what has no numbers."""
    rows = []
    for line in lines:
        if not layout.named or layout.delimiter is None:
            bare = _ANY_REMARK.sub("", line)
        else:
            bare = _REMARK.sub("", line)
            if bare.count(layout.delimiter) < layout.num_columns - 1:
                bare = line
            if line.lstrip().startswith(_COMMENTS):
                cells = _split(bare, layout.delimiter)
                if not all(i < len(cells) and _is_number(cells[i]) for i in layout.named.values()):
                    continue
        if bare.strip() or not line.strip():
            rows.append(bare)
    return rows


def _rows_of_scans(lines: list[str], count: int) -> list[str]:
    """The rows of a file of one scan after another, as in PTS, each after the number of its rows."""
    rows, position = lines[:count], count
    while position < len(lines):
        word = lines[position].strip()
        if not word.isdecimal() or len(word) > 15:
            return lines  # the number before the rows was not their count
        count = int(word)
        scan = lines[position + 1 : position + 1 + count]
        if len(scan) < count:
            raise ValueError(f"it ends before the {count} rows of its last scan")
        rows += scan
        position += 1 + count
    return rows
