"""Fixtures of all tests, and the summary of skipped ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pcea.commands.record import Record
from pcea.nn import compiled

# In every order of tests the same loops are used, the compiled ones.
compiled.load_numba()


@pytest.fixture(autouse=True)
def _seed_and_threads() -> Iterator[None]:
    """The same numbers in every order of tests. One thread: tensors are small, and workers may run in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def _without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where numba is not installed."""
    monkeypatch.setattr(compiled, "_module", lambda _: None)


@pytest.fixture(params=["compiled loop", "plain torch"])
def _both_ways(request: pytest.FixtureRequest) -> None:
    if request.param == "plain torch":
        request.getfixturevalue("_without_numba")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def record() -> Record:
    """What one run measured."""
    return Record(
        config="modelnet40_eat",
        command="pcea test --config modelnet40_eat",
        seed=2,
        epoch=250,
        selection="last",
        dataset="ModelNet40",
        split="test",
        num_points=1024,
        votes=1,
        device="a device",
        minutes=61.6,
        commit="abc",
        metrics={"overall_accuracy": 93.456, "mean_class_accuracy": 90.1},
    )


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End a run with what was skipped and why, so that nothing is skipped silently."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[-1].removeprefix("Skipped: ") for report in reports)
    terminalreporter.section("skipped tests")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:5}  {reason}")
    if not reasons:
        terminalreporter.line("Nothing was skipped.")
