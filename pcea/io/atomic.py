"""Write a file completely or not at all; or several into a folder, each of them whole."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

# A file being written has machine and process in its name, so that a later process can clean up after a dead one, and
# that two machines do not write to one file of a disk that they share.
_HOST = re.sub(r"\W", "-", socket.gethostname().partition(".")[0])
_TEMPORARY = re.compile(r"\..+@([\w-]+)\.(\d+)\.part|\.pcea_([\w-]+)\.(\d+)_\w+")
# Whether a process of another machine runs cannot be asked; nothing takes it so long to write a file.
_OLD = 24 * 3600


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes its place at the end if nothing failed.

    A file already at `path` stays there until the new one is complete and on disk, whatever happens in between. The
    file gets the permissions that the umask gives to new files.

    Raises:
        OSError: If it cannot be written; it names `path`, not the temporary file.
    """
    temporary = path.with_name(f".{path.name}@{_HOST}.{os.getpid()}.part")
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
        temporary = temporary_folder(folder)
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {error.strerror or error}.") from error
    with temporary as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir()):
            file.replace(folder / file.name)


def temporary_folder(parent: Path) -> TemporaryDirectory[str]:
    """A temporary folder inside another; `remove_leftovers` deletes it after a process that was killed.

    Raises:
        OSError: If it cannot be made.
    """
    return TemporaryDirectory(prefix=f".pcea_{_HOST}.{os.getpid()}_", dir=parent)


@contextmanager
def one_process(lock: Path) -> Iterator[None]:
    """Let one process in at a time, on all machines that share the disk; the others wait.

    The lock of a process ends with it, however that ends. Where no lock can be had (a read-only folder, a filesystem
    without locks, Windows), no process waits.

    Args:
        lock: The file that is locked; it is made if need be, and stays.
    """
    with ExitStack() as stack:
        with suppress(OSError, ImportError):
            from fcntl import LOCK_EX, flock

            lock.parent.mkdir(parents=True, exist_ok=True)
            flock(stack.enter_context(lock.open("a")), LOCK_EX)
        yield


def remove_leftovers(folder: Path) -> None:
    """Delete half-written files of dead processes from a folder; what cannot be deleted stays.

    Those of another machine count as dead after a day.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            if found and not _is_written(path, found[1] or found[3], int(found[2] or found[4])):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _is_written(path: Path, host: str, process: int) -> bool:
    return _is_running(process) if host == _HOST else time.time() - path.stat().st_mtime < _OLD


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
