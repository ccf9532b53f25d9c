import pytest

from pcea.datasets import memory
from pcea.datasets.memory import fits_in_memory, free_memory


@pytest.fixture(autouse=True)
def _no_other_process(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_the_user_decides():
    assert fits_in_memory(10**18, True)
    assert not fits_in_memory(0, False)


def test_auto_takes_a_third_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 3000)
    assert fits_in_memory(1000, "auto")
    assert not fits_in_memory(1001, "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fits_in_memory(500, "auto")
    assert not fits_in_memory(501, "auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # torchrun says how many are on this machine
    assert fits_in_memory(1000, "auto")
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert fits_in_memory(10**18, "auto")


def test_free_memory_follows_the_limit_of_a_container(monkeypatch, tmp_path):
    whole = free_memory()
    assert whole is None or 2**20 < whole < 2**50
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "cgroup").write_text("1:cpu:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    for folder, limit in (("job", "5000"), ("job/step", "max")):
        for name, text in {"max": limit, "current": "3000", "stat": "anon 1\ninactive_file 700"}.items():
            (tmp_path / folder / f"memory.{name}").write_text(text + "\n")
    if whole is not None:
        assert free_memory() == 2700
