"""Text files of users, in whichever of the usual encodings."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_text(path: Path) -> str:
    """Decode UTF-8, UTF-16 with or without a byte order mark, or CP1252, with newlines as line ends.

    Raises:
        ValueError: If UTF-16 is cut.
    """
    return _decode(path.read_bytes(), "cp1252", "replace")


def read_names(path: Path) -> list[str]:
    """The lines of a list of files that are not empty, without the space around them.

    Decoded like text, but the name of a file may be any bytes: those that are not UTF-8 are kept as Python keeps them.

    Raises:
        ValueError: If UTF-16 is cut.
    """
    try:
        lines = _decode(path.read_bytes(), "utf-8", "surrogateescape").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: {error}.") from error
    return [line.strip() for line in lines if line.strip()]


def _decode(content: bytes, otherwise: str, errors: str) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    elif b"\0" in content[:2]:
        text = content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode(otherwise, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
