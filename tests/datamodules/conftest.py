"""Fixtures of the tests of data modules."""

import pytest


@pytest.fixture
def seed_everything(monkeypatch):
    """Lightning's seed, as the workers of a data module read it; none until this is called."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return lambda seed: monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
