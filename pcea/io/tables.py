"""Tables of numbers in text files, whatever their header, delimiter, decimal mark and encoding."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pcea.io.meshes import first_line
from pcea.io.text import read_text

# Extensions of text tables.
TABLES = (".txt", ".csv", ".xyz", ".asc", ".xyzn", ".xyzrgb", ".pts")

_COMMENTS = ("#", "//", "%", "!")
# Names of columns, in lower case, without units: x, pos_x, Points:0 (ParaView), Coord. X (CloudCompare), Normals:2.
_PREFIX = r"(?:points?|pos|positions?|coords?|coordinates?|location|xyz)[\s._:-]*"
_COORDINATE = re.compile(rf"(?:{_PREFIX})?([xyz])(?:[\s._-]*(?:coord|coordinate|pos))?|{_PREFIX}([012])")
_NORMAL = re.compile(r"(?:n|norm|normals?)[\s._:-]*([xyz012])|([xyz])[\s._-]*normal")
_UNIT = re.compile(r"\s*(?:[\[(].*?[\])]|[ _](?:m|mm|cm|meters?|metres?))\s*$")
_MAP_NAMES = {"easting": "x", "northing": "y", "elevation": "z", "height": "z", "altitude": "z"}
_POINT, _UNIT_NORMAL = ("x", "y", "z"), ("nx", "ny", "nz")
_REMARK = re.compile(r"\s+(?:#|//).*")
_DECIMAL_COMMA = re.compile(r"[-+]?\d*(,\d+)?([eE][-+]?\d+)?")
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
            f"{path}: the header {layout.header[:60]!r} names no columns x, y and z, so the first three are taken.",
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
    for number, line in enumerate(lines):
        start += len(lines[number - 1]) + 1 if number else 0
        bare = line.strip()
        if not bare:
            continue
        if bare.startswith(_COMMENTS):
            comment = bare.lstrip("#/%! \t")
            header = comment or header
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
        else:
            # An empty cell at the end is a missing value where it has a name.
            named = _name_columns(header, len(padded), delimiter, labels) or _name_columns(
                header, len(cells), delimiter, labels
            )
            if (are_numbers and len(cells) > 1) or (
                named and all(i < len(cells) and _is_number(cells[i]) for i in named.values())
            ):
                if delimiter == "," and not named and _has_decimal_commas(lines[number:]):
                    raise ValueError(
                        f"{bare[:40]!r} seems to have decimal commas, and commas between columns too; write decimal "
                        f"points, semicolons between columns, or a line of their names"
                    )
                # A remark is no header.
                is_header = not is_only_comment or len(_words(header)) == len(cells)
                return _Layout(start, len(cells), delimiter, comma, named, header if is_header else "", count)
            header, is_only_comment, count = bare, False, None
    if is_only_comment or _name_columns(header, len(_words(header)), None, labels):
        return None
    cells = [cell.strip() for cell in _split(header, delimiter)]
    words = [cell for cell in cells if not _is_number(cell)]
    what = f", as {words[0][:40]!r} is none" if 0 < len(words) < len(cells) else ""
    raise ValueError(f"{header[:80]!r} is not a row of numbers{what}")


def _find_delimiter(line: str) -> tuple[str | None, str | None]:
    """The delimiter of a row, None for white space, and what to replace commas with if they are none."""
    for delimiter in ";|":
        if delimiter in line:
            return delimiter, "."
    words = line.split()
    if "," in line:
        if len(words) > 1 and all(map(_DECIMAL_COMMA.fullmatch, words)):
            return None, "."
        if all(map(_is_number, line.replace(",", " ").split())) and any(len(c.split()) > 1 for c in line.split(",")):
            return None, " "  # as in 1,2,3 255 0 0
        return ",", None
    if "\t" in line and all(len(cell.split()) == 1 for cell in line.split("\t")):
        return "\t", None
    return None, None


def _has_decimal_commas(lines: Iterable[str]) -> bool:
    """Whether all rows read like 6,370, 2,698, 0,410: with a comma within all columns but one, and one behind each.

    Integers are written like this only if their blanks are as regular as those.
    """
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


def _words(header: str) -> list[str]:
    return [word for word in re.split(r"[\s,;|]+", header) if word]


def _name_columns(header: str, num_columns: int, delimiter: str | None, labels: Sequence[str]) -> dict[str, int]:
    """Index of each column that a header names, in the order x y z [nx ny nz] [label]; {} without x, y and z."""
    if not header:
        return {}
    cells = next(csv.reader([header], delimiter=delimiter or " ", skipinitialspace=True))
    for names in (cells, _words(header)):
        while len(names) > num_columns and not names[-1]:
            names.pop()
        if names and len(names) == num_columns - 1:
            names.insert(0, "")  # R names no column of row names
        if len(names) != num_columns:
            continue
        if numbered := _name_numbered(names, labels):
            return numbered
        found: dict[str, int] = {}
        plain = [_UNIT.sub("", name.strip("\"' ").lower()).strip("\"' ") for name in names]
        for index, name in enumerate(plain):
            found.setdefault(name, index)  # x before pos_x, whatever their order
        for index, name in enumerate(plain):
            found.setdefault(_canonical(name), index)
        for name, axis in _MAP_NAMES.items():
            if name in plain:
                found.setdefault(axis, plain.index(name))
        label = next((plain.index(name) for name in labels if name in plain), None)
        if not {*_POINT} <= {*found}:
            continue
        wanted = (*_POINT, *_UNIT_NORMAL) if {*_UNIT_NORMAL} <= {*found} else _POINT
        return {name: found[name] for name in wanted} | ({} if label is None else {"label": label})
    return {}


def _name_numbered(names: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """The columns 0, 1, 2 ... of an array as pandas writes it, perhaps its index first, as `_name_columns` gives them.

    They are x y z [nx ny nz] [label], as in a table without a header.
    """
    first = int(names[0] == "")
    count = next((i for i, name in enumerate(names[first:]) if name != str(i)), len(names) - first)
    if count < 3:
        return {}
    found = dict(zip((*_POINT, *_UNIT_NORMAL) if count >= 6 else _POINT, range(first, first + count)))
    label = next((names.index(name) for name in labels if name in names), None)
    if label is None and count in (4, 7) and labels:
        label = first + count - 1
    return found if label is None else {**found, "label": label}


def _canonical(name: str) -> str:
    """x, y, z, nx, ny or nz for one of its many names; else the name."""
    axes = dict(zip("012", "xyz"))
    if match := _COORDINATE.fullmatch(name):
        axis = match[1] or match[2]
        return axes.get(axis, axis)
    if match := _NORMAL.fullmatch(name):
        axis = match[1] or match[2]
        return "n" + axes.get(axis, axis)
    return name


def _parse(text: str, layout: _Layout, *, max_rows: int | None = None, columns: Sequence[int] = ()) -> np.ndarray:
    """All columns of a text, or the given ones."""
    options: dict[str, Any] = {"delimiter": layout.delimiter, "max_rows": max_rows, "ndmin": 2}
    if layout.comma is not None and "," in text:
        text = text.replace(",", layout.comma)
    if any(mark[0] in text for mark in _COMMENTS[1:]):
        options["comments"] = _COMMENTS
    if '"' in text:
        options["quotechar"] = '"'
    if columns:
        options["usecols"] = columns
    # Few rows of a large file are found in less time than it takes to split all of it.
    rest = text[layout.start :]
    lines = rest.split("\n") if max_rows is None else (match[0] for match in re.finditer(r"[^\n]+", rest))
    if layout.num_rows is not None:
        lines = _rows_of_scans([line for line in lines if line.strip()], layout.num_rows)
        if max_rows is None and len(lines) < layout.num_rows:
            raise ValueError(f"it ends before its {layout.num_rows} rows")
    elif layout.delimiter is not None and rest.partition("\n")[0].strip(" ").endswith(layout.delimiter):
        options.setdefault("usecols", range(layout.num_columns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of an empty file; the caller reports it
        return np.loadtxt(lines, **options)


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
