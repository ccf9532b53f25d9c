import gc
import importlib
import os
import subprocess
import sys

import pytest

from pcea.commands.cpu import quick_imports, share_cores, tune_allocator

CODE = """
import resource
{tune}
import torch
for _ in range(20):
    torch.ones(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_freed_memory_is_kept_for_the_next_tensor():
    """Without the setting each of the 20 tensors of 64 MB faults its pages in anew."""
    faults = [
        int(subprocess.run([sys.executable, "-c", CODE.format(tune=tune)], capture_output=True, check=True).stdout)
        for tune in ("", "from pcea.commands.cpu import tune_allocator; tune_allocator()")
    ]
    assert faults[1] < faults[0] - 15 * 2_000


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("looked for glibc"))
    assert tune_allocator() is None


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_command_line_decides_before_torch_is_imported():
    code = "import sys, pcea.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_what_is_imported_quickly_is_not_looked_through_again():
    try:
        with quick_imports():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_an_import_that_fails_leaves_the_collector_on():
    try:
        with pytest.raises(ModuleNotFoundError), quick_imports():
            importlib.import_module("no_such_module")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
