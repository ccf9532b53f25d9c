"""Zip files of strangers."""

from __future__ import annotations

import zipfile
from pathlib import Path

# Real meshes, tables and arrays shrink 2 to 50 times; deflate can do 1032, a bomb has more than 500.
_LARGEST_RATIO, _SMALL = 200, 1 << 26


def check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a zip file whose members would take far more room than what is stored of them.

    Args:
        archive: The open file. Python's zipfile reads no more of a member than its directory says.
        path: Its path, for the message.

    Raises:
        ValueError: If its members have more than 64 MiB together and more than 200 times the size of the file.
    """
    size, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if unpacked > max(_SMALL, _LARGEST_RATIO * size):
        raise ValueError(f"{path} would unpack to {unpacked:,} bytes from {size:,}; it looks like a zip bomb.")
