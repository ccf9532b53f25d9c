"""Read files ahead in other processes, which may crash or hang without harm to this one."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

READ_TIMEOUT = 600.0
"""Seconds that one file may take; the largest scans take one or two minutes."""

# Python's pools are not used: one process that dies breaks a whole ProcessPoolExecutor, and its file is not named.

Reader = Callable[[Path], Any]


def read_files(
    files: Iterable[Path], read: Reader, *, workers: int, ahead: int = 1, timeout: float = READ_TIMEOUT
) -> Iterator[tuple[Path, Any]]:
    """Read files, in their order.

    Args:
        files: The files.
        read: Reads one. With workers it must be picklable: a function of a module, or a `partial` of one.
        workers: Number of processes; 0 reads in this one, when the next file is asked for.
        ahead: How many files are read ahead of the one that is asked for, with workers.
        timeout: Seconds after which a worker is killed.

    Yields:
        Each file with what `read` returned, or with the ValueError or OSError that it raised. A file that kills its
        worker, or keeps it too long, comes with an OSError that says so.

    Raises:
        ImportError: If a format needs a package that cannot be imported.
        OSError: If no worker can be started.
    """
    if not workers:
        for file in files:
            yield file, _try(read, file)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    idle: SimpleQueue[_Worker] = SimpleQueue()
    all_workers = [_Worker(read, timeout) for _ in range(workers)]
    for worker in all_workers:
        idle.put(worker)

    def read_one(file: Path) -> tuple[Any, list[Any]]:
        worker = idle.get()
        try:
            return worker.read(file)
        finally:
            idle.put(worker)

    def finish() -> tuple[Path, Any]:
        file, future = pending.popleft()
        result, caught = future.result()
        for message, category in caught:
            warnings.warn(message, category, stacklevel=3)
        if isinstance(result, ImportError):
            raise result
        return file, result

    pending: deque[tuple[Path, Future[tuple[Any, list[Any]]]]] = deque()
    threads = ThreadPoolExecutor(workers)
    try:
        for file in files:
            pending.append((file, threads.submit(read_one, file)))
            if len(pending) > ahead:
                yield finish()
        while pending:
            yield finish()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in all_workers:
            worker.stop()
        threads.shutdown()


class _Worker:
    """A process that reads one file at a time. It starts with the first file, and again after it died.

    Args:
        read: Reads a file.
        timeout: Seconds after which it is killed.
    """

    def __init__(self, read: Reader, timeout: float):
        self._read, self._timeout = read, timeout
        self._process: Any = None
        self._connection: Any = None

    def read(self, file: Path) -> tuple[Any, list[Any]]:
        """What was read, or the error; and the warnings that came, with their categories."""
        if self._process is None or not self._process.is_alive():
            self._start()
        try:
            self._connection.send(file)
            if not self._connection.poll(self._timeout):
                self.stop()
                return OSError(f"{file} was given up after {self._timeout:g} seconds of reading."), []
            answer: tuple[Any, list[Any]] = pickle.loads(self._connection.recv_bytes())
            return answer
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return OSError(f"{file} ended the process that read it ({end})."), []

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        # A fork of this process, which has threads, could hang. The fork server has none, and imports torch only once.
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if has_server else "spawn")
        if has_server:
            context.set_forkserver_preload([getattr(self._read, "func", self._read).__module__])
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._read), daemon=True)
        self._process.start()
        other.close()
        try:
            self._connection.recv_bytes()
        except EOFError:
            raise OSError("A process that reads files could not start: see above, or use --workers 0.") from None


def _serve(connection: Connection, read: Reader) -> None:
    """Answer each file with what it holds, until the other end closes, as it does however its process ends."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    torch.set_num_threads(1)
    connection.send_bytes(b"ready")
    while True:
        try:
            file = connection.recv()
        except EOFError:
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = _try(read, file, ImportError)
        # Plain pickle copies tensors; that of multiprocessing would pass an open file for each.
        connection.send_bytes(pickle.dumps((result, [(str(each.message), each.category) for each in caught])))


def _try(read: Reader, file: Path, *more: type[Exception]) -> Any:
    """What a reader returns for a file, or the error in plain words, which can be pickled."""
    try:
        return read(file)
    except (ValueError, OSError, *more) as error:  # type: ignore[misc]
        kinds: tuple[type[Exception], ...] = (OSError, ImportError, ValueError)
        return next(kind for kind in kinds if isinstance(error, kind))(str(error))
