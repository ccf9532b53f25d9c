"""The robustness benchmark on a network and clouds whose results are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcea.inference.points import PointPredictor
from pcea.io.description import NetworkDescription

ROOT = Path(__file__).parents[2]


class Tall(nn.Module):
    """Says `tall` of a cloud that is higher than wide, else `flat`: right until it is turned on its side."""

    num_classes = 2

    def forward(self, points: Tensor, *_: object) -> Tensor:
        low, high = points.aminmax(dim=1)
        size = high - low
        return 10 * torch.stack([size[:, 1] - size[:, 0], size[:, 0] - size[:, 1]], dim=1)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import benchmark_robustness

    names = ("tall", "flat")
    predictor = PointPredictor(Tall(), NetworkDescription("points", "own", {}, names, 200))
    monkeypatch.setattr(benchmark_robustness.pcea, "load", lambda _: predictor)
    generator = torch.Generator().manual_seed(0)
    clouds = torch.rand(20, 200, 3, generator=generator) - 0.5
    clouds[::2] *= torch.tensor([0.2, 1.0, 0.2])
    clouds[1::2] *= torch.tensor([1.0, 0.2, 0.9])
    monkeypatch.setattr(benchmark_robustness, "read_clouds", lambda *_: (clouds, torch.tensor([0, 1] * 10), names))
    return benchmark_robustness


def test_numbers_by_hand(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    benchmark.cross_data = lambda *_: {"all": "1 / 2", "auroc": 50.0}
    benchmark.main(["own", "--up", "y", "--clouds", "0", "--output", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["whole"]["accuracy"] == 100
    assert [len(levels) for levels in record["corruptions"].values()] == [5] * 11
    for name in ("axis_pose", "any_pose"):
        assert record[f"whole, {name}"]["accuracy"] < record["whole"]["accuracy"]
    # Turned on its side, a third of the tall stay tall, and few of the flat stay flat the same way.
    poses = [level["accuracy"] for level in record["corruptions"]["axis_pose"]]
    assert poses[0] > poses[-1]
    assert record["corruptions"]["jitter"][0]["accuracy"] == 100
    every = [level["accuracy"] for levels in record["corruptions"].values() for level in levels]
    assert record["mean_accuracy"] == pytest.approx(sum(every) / 55, abs=0.01)
    assert record["psb"] == {"all": "1 / 2", "auroc": 50.0}
    assert f"mean over corruptions and levels: {record['mean_accuracy']}" in capsys.readouterr().out


def test_a_part_writes_no_record(benchmark: Any, tmp_path: Path) -> None:
    benchmark.main(["own", "--up", "y", "--only", "jitter", "--output", str(tmp_path / "record.json")])
    assert not (tmp_path / "record.json").exists()
