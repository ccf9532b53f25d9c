"""Write a file, or several into a folder, as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes its place at the end if nothing failed.

    Raises:
        OSError: If it cannot be written, with the name that was asked for.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Make a folder, and in it a temporary one; its files move to `folder` at the end if nothing failed.

    Raises:
        OSError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(prefix=".pcea_", dir=folder)
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {error.strerror or error}.") from error
    with temporary as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir()):
            file.replace(folder / file.name)
