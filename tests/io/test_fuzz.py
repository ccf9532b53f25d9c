import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


def fuzz(*options):
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_damaged_files_are_read_or_refused_and_nothing_else():
    counts = fuzz("--cases", "160")
    assert counts["cases"] == 160
    assert counts["points"] > 10  # some damages do no harm, so that readers are reached
    assert counts["ValueError"] > 50


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_many_damaged_files():
    assert fuzz("--cases", "10000", "--first", "1000")["cases"] == 10_000
