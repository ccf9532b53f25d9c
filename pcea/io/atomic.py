"""Write a file, or several into a folder, completely or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

# A file being written has the process ID in its name, so that a later process can clean up after a dead one.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.part|\.pcea_(\d+)_\w+")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes its place at the end if nothing failed.

    A file already at `path` stays there until the new one is complete and on disk, whatever happens in between. The
    file gets the permissions that the umask gives to new files.

    Raises:
        OSError: If it cannot be written; it names `path`, not the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
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
    """Make a folder and a temporary one inside it, whose files move to `folder` at the end if nothing failed.

    Raises:
        OSError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(prefix=f".pcea_{os.getpid()}_", dir=folder)
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {error.strerror or error}.") from error
    with temporary as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir()):
            file.replace(folder / file.name)


def remove_leftovers(folder: Path) -> None:
    """Delete half-written files of dead processes from a folder; what cannot be deleted stays."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            if found and not _is_running(int(found[1] or found[2])):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # another user's process, or its state is unknown: leave its files alone
    return True


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
