"""The benchmark of examples on shapes and a network whose results are worked out by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import benchmark_examples

    class Shapes(list[Any]):
        """Four training and two test shapes of each of three categories, which lie in different directions."""

        parts: ClassVar = {"a": (), "b": (), "c": ()}

        def __init__(self, _: str, split: str):
            for k in range(4 if split == "train" else 2):
                for category in range(3):
                    pos = torch.full((50, 3), 0.1 * k)
                    pos[:, category] += 1
                    self.append(SimpleNamespace(pos=pos, category=torch.tensor(category)))

    predictor = SimpleNamespace(embed=lambda cloud: cloud.points.mean(0), description=SimpleNamespace(num_points=20))
    monkeypatch.setattr(benchmark_examples, "LabeledPSB", Shapes)
    monkeypatch.setattr(benchmark_examples.pcea, "load", lambda _: predictor)
    return benchmark_examples


def test_categories_that_lie_apart_are_all_told(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--examples", "1", "4"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| 1", "| 4"]
    assert [row[1] for row in rows] == ["100.0 ± 0.0", "100.0 ± 0.0"]
    assert all(0 <= float(row[2]) < 20 for row in rows)
    assert rows[1][3] == "100.0"  # the category without a folder is farther from all examples
    assert [float(row[5].rstrip(" |")) for row in rows] == [0.0, 100.0]  # each alone says nothing of how far is too far


def test_a_draw_has_the_same_number_of_each_category(benchmark: Any) -> None:
    label = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2])
    for seed in range(5):
        assert label[benchmark.draw(label, 2, seed)].tolist() == [0, 0, 1, 1, 2, 2]
    assert benchmark.draw(label, 2, 0).tolist() != benchmark.draw(label, 2, 1).tolist()
