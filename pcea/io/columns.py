"""What the columns of a table are, by the names in its header."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

POINT, UNIT_NORMAL = ("x", "y", "z"), ("nx", "ny", "nz")
# Words before or behind the axis in names of coordinates: x, pos_x, Points:0 (ParaView), Coord. X (CloudCompare).
_PLACE = r"(?:points?|pos|positions?|coords?|coordinates?|locations?|xyz|vertex|vertices)"
_AXIS = re.compile(rf"(?:{_PLACE}[\s._:-]*)?([xyz])(?:[\s._-]*{_PLACE})?|{_PLACE}[\s._:-]*([012])")
# The axis between other words, as in field.x, world_x and Points_m_XYZ:0 (VeloView); digits only beside such a place.
_AXIS_WORD = re.compile(r"(?:(.*[^a-z])|^)([xyz])(?:([^a-z].*)|$)")
_AXIS_DIGIT = re.compile(rf"((?:.*[^a-z])?{_PLACE}[^a-z0-9]+)([012])")
# Of three columns with an axis in their names these are no places.
_NO_PLACE = re.compile(
    r"n|norm|normals?|v|vel|velocity|a|acc|acceleration|linear|angular|gyro|mag|magnetic|f|force|m|moment|torque|q|quat"
    r"|quaternion|orientation|r|rot|rotation|s|scale|size|dim|std|err|error|sigma|var|cov|grad|gradient|colou?r|w|omega"
)
_NORMAL = re.compile(r"(?:n|norm|normals?)[\s._:-]*([xyz012])|([xyz])[\s._-]*normal")
_BRACKET = re.compile(r"\s*(?:\[[^\]]*\]|\([^)]*\))")
_LENGTH = r"(?:[mckµu]?m|met(?:er|re)s?|(?:us)?ft|feet|in|inch(?:es)?)"
_UNIT = re.compile(rf"\s*(?:/.*|,\s*{_LENGTH}|[ _]{_LENGTH})$")
_EAST, _NORTH = ("easting", "east", "e"), ("northing", "north", "n")
_HEIGHT = ("elevation", "height", "altitude", "elev", "h")
_AXES_OF_DIGITS = dict(zip("012", "xyz"))


def name_columns(
    header: str, num_columns: int, delimiter: str | None, labels: Sequence[str], *, has_row_names: bool = False
) -> dict[str, int]:
    """Index of each column that a header names, in the order x y z [nx ny nz] [label]; {} without x, y and z.

    Args:
        header: The line.
        num_columns: Columns of the rows. The header may name one less: the last, or with `has_row_names` the first.
        delimiter: Between the columns; None for white space.
        labels: Names of a label's column, in lower case; the first that is there counts.
        has_row_names: Whether the first column could be names or numbers of the rows.
    """
    for names in _ways_to_split(header, delimiter):
        while len(names) > num_columns and not names[-1]:
            names.pop()
        if names and len(names) == num_columns - 1:
            names.insert(0 if has_row_names else len(names), "")  # R names no column of row names
        if not names or len(names) != num_columns:
            continue
        if numbered := _name_numbered(names, labels):
            return numbered
        plain = [_plain(name) for name in names]
        found = _find_axes([name.strip("\"' ") for name in names], plain)
        if not {*POINT} <= {*found}:
            continue
        found |= _find_normals(plain)
        wanted = (*POINT, *UNIT_NORMAL) if {*UNIT_NORMAL} <= {*found} else POINT
        label = next((plain.index(name) for name in labels if name in plain), None)
        return {name: found[name] for name in wanted} | ({} if label is None else {"label": label})
    return {}


def words_of(header: str) -> list[str]:
    """The words of a line, whatever is between them."""
    return [word for word in re.split(r"[\s,;|]+", header) if word]


def names_other_columns(header: str) -> bool:
    """Whether x, y and z are among the words of a line, but not as its first three."""
    words = [word.strip("\"'").lower() for word in words_of(_BRACKET.sub("", header))]
    return {*POINT} <= {*words} and words[:3] != [*POINT]


def _ways_to_split(header: str, delimiter: str | None) -> list[list[str]]:
    """The names in a header: between the delimiters of the rows, or between any; without units, or words before a :."""
    if not header:
        return []
    bare = _BRACKET.sub("", header)
    words = words_of(bare)
    ways = [next(csv.reader([header], delimiter=delimiter or " ", skipinitialspace=True)), words_of(header), words]
    return [*ways, words[1:]] if words and words[0].endswith(":") else ways


def _plain(name: str) -> str:
    """A name in lower case, without quotation marks and its unit."""
    return _UNIT.sub("", _BRACKET.sub("", name.strip("\"' ").lower())).strip("\"' ")


def _find_axes(names: Sequence[str], plain: Sequence[str]) -> dict[str, int]:
    """The columns of x, y and z: of all that have an axis in their names those whose names have nothing else, if any.

    Coordinates of two kinds, such as pixels and metres, are never mixed.
    """
    for triple in (POINT, tuple("XYZ")):
        if {*triple} <= {*names}:
            return {axis.lower(): names.index(axis) for axis in triple}
    bare = {axis: plain.index(axis) for axis in POINT if axis in plain}
    for axis, others in zip(POINT, (_EAST, _NORTH, _HEIGHT)):
        if other := next((name for name in others if name in plain), None):
            bare.setdefault(axis, plain.index(other))
    if {*POINT} <= {*bare}:
        return bare
    known_stems: dict[str, dict[str, int]] = {}
    other_stems: dict[str, dict[str, int]] = {}
    for index, name in enumerate(plain):
        if match := _AXIS.fullmatch(name):
            axis = match[1] or match[2]
            stem = name[: match.start(1 if match[1] else 2)]
            known_stems.setdefault(stem, {}).setdefault(_AXES_OF_DIGITS.get(axis, axis), index)
        elif match := _AXIS_WORD.fullmatch(name):
            before, axis, behind = match[1] or "", match[2], match[3] or ""
            if not any(_NO_PLACE.fullmatch(word) for word in re.split(r"[^a-z]+", before + " " + behind)):
                other_stems.setdefault(f"{before}*{behind}", {}).setdefault(axis, index)
        elif match := _AXIS_DIGIT.fullmatch(name):
            other_stems.setdefault(match[1], {}).setdefault(_AXES_OF_DIGITS[match[2]], index)
    complete = [group for group in known_stems.values() if len(group) == 3]
    if not complete:
        complete = [group for group in other_stems.values() if len(group) == 3]
        complete = complete if len(complete) == 1 else []  # which of them?
    return complete[0] if complete else {}


def _find_normals(plain: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, name in enumerate(plain):
        if match := _NORMAL.fullmatch(name):
            axis = match[1] or match[2]
            found.setdefault("n" + _AXES_OF_DIGITS.get(axis, axis), index)
    return found


def _name_numbered(names: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """The columns 0, 1, 2 ... of an array as pandas writes it, perhaps its index first, as `name_columns` gives them.

    They are x y z [nx ny nz] [label], as in a table without a header.
    """
    first = int(names[0] == "")
    count = next((i for i, name in enumerate(names[first:]) if name != str(i)), len(names) - first)
    if count < 3:
        return {}
    found = dict(zip((*POINT, *UNIT_NORMAL) if count >= 6 else POINT, range(first, first + count)))
    label = next((names.index(name) for name in labels if name in names), None)
    if label is None and count in (4, 7) and labels:
        label = first + count - 1
    return found if label is None else {**found, "label": label}
