from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from pcea.nn import compiled


def test_parts_cover_the_range_once() -> None:
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in (1, 2, 7):
            parts = compiled.run(lambda start, stop: (start, stop), count)
            assert len(parts) == min(threads, count)
            assert [i for start, stop in parts for i in range(start, stop)] == list(range(count))


def test_parts_run_side_by_side() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=20)
    places = compiled.run(lambda *_: both.wait(), 2)  # would break if one had to wait for the other
    assert sorted(places) == [0, 1]


def test_an_error_in_a_part_is_raised() -> None:
    torch.set_num_threads(2)

    def fail(start: int, stop: int) -> None:
        if start:
            raise ValueError("the second part")

    with pytest.raises(ValueError, match="the second part"):
        compiled.run(fail, 2)


def test_threads_are_started_anew_after_a_fork() -> None:
    torch.set_num_threads(2)
    compiled.run(lambda *_: None, 2)
    child = os.fork()
    if child == 0:  # without new threads this would wait for ever
        os._exit(0 if compiled.run(lambda _, stop: stop, 2) == [1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def output_of(code: str, **environment: str) -> list[str]:
    """The lines that a program prints."""
    command, given = [sys.executable, "-c", code], {**os.environ, **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.splitlines()


def test_numba_is_imported_when_much_work_has_been_asked_for() -> None:
    code = """
import sys, torch
from pcea.ops import farthest_point_sample, knn
knn(torch.rand(1, 512, 3), torch.rand(1, 1024, 3), k=16), farthest_point_sample(torch.rand(1, 1024, 3), 512)
print("numba" in sys.modules)
for _ in range(4):
    farthest_point_sample(torch.rand(16, 4096, 3), 2048)
    print("numba" in sys.modules)
"""
    assert output_of(code) == ["False", "False", "False", "False", "True"]


def test_numba_is_imported_for_training_at_once() -> None:
    code = """
import sys, torch
from pcea.ops import max_neighbors
values, index = torch.rand(1, 8, 3, requires_grad=True), torch.zeros(1, 2, 2, dtype=torch.int64)
with torch.no_grad():
    max_neighbors(values, index)
print("numba" in sys.modules)
max_neighbors(values, index)
print("numba" in sys.modules)
"""
    assert output_of(code) == ["False", "True"]


def test_loops_work_where_nothing_can_be_cached() -> None:
    code = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import numpy as np
from pcea.nn.norm_kernels import affine
rows = np.ones((2, 3), np.float32)
out = np.empty_like(rows)
affine(rows, rows[0], rows[0], out, 0, 2)
print(out.min(), out.max())
"""
    assert output_of(code) == ["2.0 2.0"]


def test_a_numba_that_cannot_be_imported_is_left_out(tmp_path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.0 or less')")
    code = """
import warnings, torch
from pcea.nn.compiled import kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(kernels("pcea.ops.cpu_kernels", torch.rand(1), work=1 << 40))
print(caught[-1].message)
"""
    found, line = output_of(code, PYTHONPATH=str(tmp_path))
    assert found == "None"
    assert line.endswith("numba cannot be imported: Numba needs NumPy 2.0 or less")


def test_a_full_disk_costs_the_cache_alone(monkeypatch) -> None:
    from numba.core.caching import FunctionCache

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", fail)
    twice = compiled.compiled(_double)
    assert twice(21) == 42


def _double(number: int) -> int:
    return 2 * number


def test_moments_by_hand() -> None:
    from pcea.nn.norm_kernels import moments

    rows = np.array([[1.0, 10], [3, 10], [5, 10]], np.float32)
    total, squares = moments(rows, np.array([1.0, 0], np.float32), 0, 3)
    assert total.tolist() == [6, 30]  # 0 + 2 + 4
    assert squares.tolist() == [20, 300]  # 0 + 4 + 16
