"""Reading in other processes: the order, and files that end or stop their reader."""

import os
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pcea.io.points import Points
from pcea.io.reader_processes import read_files


def read(path, *, pauses=False):
    """What a file's name says: an error, a warning, an end, or a cloud of as many points."""
    kind, _, number = path.stem.partition("_")
    if kind == "abort":
        os.abort()
    if kind == "hang":
        time.sleep(60)
    if kind == "bad":
        raise ValueError(f"{path} is bad.")
    if kind == "gone":
        raise FileNotFoundError(2, "No such file", str(path))
    if kind == "package":
        raise ImportError("lazrs is missing")
    if kind == "warn":
        warnings.warn(f"{path} is odd.", stacklevel=1)
    if pauses:
        time.sleep(0.05 * (int(number) % 3))
    return Points(torch.full((int(number or 1), 3), 0.5))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_files_come_in_their_order_with_what_they_hold(workers):
    files = [Path(f"ok_{i}") for i in range(1, 12)] + [Path("bad_1"), Path("gone_1"), Path("ok_2")]
    results = list(read_files(files, partial(read, pauses=workers > 1), workers=workers, ahead=4))
    assert [file for file, _ in results] == files
    for i in range(11):
        assert results[i][1].points.equal(torch.full((i + 1, 3), 0.5))
    assert (type(results[11][1]), str(results[11][1])) == (ValueError, "bad_1 is bad.")
    assert type(results[12][1]) is OSError
    assert "gone_1" in str(results[12][1])


def test_a_file_that_ends_or_stops_its_reader_costs_that_file_alone():
    files = [Path(name) for name in ("ok_1", "abort_1", "ok_2", "hang_1", "ok_3", "abort_2", "ok_4")]
    started = time.monotonic()
    results = dict(read_files(files, read, workers=2, ahead=5, timeout=2))
    assert [len(results[Path(f"ok_{i}")].points) for i in (1, 2, 3, 4)] == [1, 2, 3, 4]
    for name in ("abort_1", "abort_2"):
        assert str(results[Path(name)]) == f"{name} ended the process that read it ({signal.SIGABRT.name})."
    assert str(results[Path("hang_1")]) == "hang_1 was given up after 2 seconds of reading."
    assert time.monotonic() - started < 50


def test_one_that_has_enough_does_not_wait_for_a_file_that_hangs():
    started = time.monotonic()
    results = read_files([Path("ok_1"), Path("hang_1"), Path("hang_2")], read, workers=2, ahead=2)
    next(results)
    results.close()
    assert time.monotonic() - started < 50


def test_warnings_and_missing_packages_are_those_of_this_process():
    with pytest.warns(UserWarning, match="warn_1 is odd"):
        list(read_files([Path("warn_1")], read, workers=1))
    with pytest.raises(ImportError, match="lazrs is missing"):
        list(read_files([Path("package_1"), Path("ok_1")], read, workers=1))


def test_no_more_files_are_read_than_ahead(tmp_path):
    """Each file is written when it is read, by a reader that is passed by its name."""
    for i in range(20):
        np.save(tmp_path / f"{i:02}.npy", np.zeros(3))
    results = read_files(sorted(tmp_path.iterdir()), Path.unlink, workers=2, ahead=5)
    next(results)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == 20 - 6
    results.close()


class Unready:
    """A reader that ends the process that it is passed to."""

    def __call__(self, path):
        return path

    def __reduce__(self):
        return os._exit, (3,)


def test_workers_that_cannot_start():
    with pytest.raises(OSError, match="could not start: see above, or use --workers 0"):
        list(read_files([Path("ok_1")], Unready(), workers=1))
