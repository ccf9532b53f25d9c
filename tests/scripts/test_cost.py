"""The calculator, by hand."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cost.py"
sys.path.insert(0, str(SCRIPT.parent))
from cost import cost  # noqa: E402


def test_by_hand():
    options = Namespace(
        clouds=1000, points=2048, epochs=36, batch_size=10, rate=20, rate_points=1024, parameters=5e6, gigabits=0.08,
        latency=250,
    )  # fmt: skip
    alone = cost(options, 1)  # 10 clouds/s: 100 steps of a second in each epoch
    assert (alone.hours, alone.efficiency, alone.clouds_a_step) == (1, 1, 10)
    pair = cost(options, 2)  # 20 MB at 10 MB/s, and two messages of a quarter of a second
    assert pair.efficiency == pytest.approx(1 / 3.5)
    assert pair.hours == pytest.approx(36 * 50 * 3.5 / 3600)


def test_the_table_says_where_it_stops():
    command = [sys.executable, str(SCRIPT), "--clouds", "100000", "--gigabits", "1", "--devices", "16"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    hours = [float(line.split("|")[2]) for line in printed.splitlines() if line.startswith("| ") and "." in line]
    assert len(hours) == 5
    assert hours == sorted(hours, reverse=True)
    assert "Worth it up to 16 devices" in printed
    few = subprocess.run([*command[:2], "--clouds", "3200"], capture_output=True, text=True, check=True).stdout
    assert "Worth it up to 1 devices" in few
