import subprocess
import sys

import pytest

from pcea.commands.cpu import tune_allocator

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
