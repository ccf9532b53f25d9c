"""The benchmark of labelled examples: the files that it writes, and the commands that it runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import yaml

from pcea.datasets import PartFolder

ROOT = Path(__file__).parents[2]


class Shapes(list[Any]):
    """Three training shapes and two test shapes of each of four categories with two parts each."""

    parts: ClassVar = {"a": (0, 1), "b": (2, 3), "c": (4, 5), "d": (6, 7)}

    def __init__(self, _: str, split: str, *, with_normals: bool):
        assert with_normals
        generator = torch.Generator().manual_seed(0)
        for category in range(4):
            for _ in range(3 if split == "train" else 2):
                pos = torch.randn(20, 3, generator=generator)
                y = torch.tensor([2 * category, 2 * category + 1]).repeat(10)
                normal = torch.nn.functional.normalize(pos, dim=1)
                self.append(SimpleNamespace(pos=pos, normal=normal, y=y, category=torch.tensor(category)))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import benchmark_part_examples

    commands: list[tuple[str, ...]] = []

    def run(*arguments: str) -> None:
        """Leave what the command would leave: a better result if it started from weights."""
        commands.append(arguments)
        if arguments[0] == "export":
            Path(arguments[-1]).touch()
            return
        folder = next(a for a in arguments if a.startswith("--trainer.default_root_dir=")).split("=")[1]
        checkpoints = Path(folder) / "version_0" / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        if arguments[0] == "fit":
            (checkpoints / "last.ckpt").touch()
        else:
            network = yaml.safe_load(Path(arguments[2]).read_text())["model"]["init_args"]["network"]["init_args"]
            metrics = {"instance_miou": 25.0 if network["weights"] is None else 50.0}
            (checkpoints / "last.test.json").write_text(json.dumps({"metrics": metrics}))

    monkeypatch.setattr(benchmark_part_examples, "LabeledPSB", Shapes)
    monkeypatch.setattr(benchmark_part_examples, "run", run)
    monkeypatch.setattr(benchmark_part_examples, "RUNS", tmp_path)
    return SimpleNamespace(main=benchmark_part_examples.main, commands=commands, runs=tmp_path)


def test_new_categories_are_learned_from_the_first_files_of_each(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main(["--examples", "1", "2"])
    assert capsys.readouterr().out.splitlines()[-2:] == ["| 1 | 25.0 | 50.0 |", "| 2 | 25.0 | 50.0 |"]
    train, test = (PartFolder(benchmark.runs / "files2", split, with_normals=True) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 2)
    assert train.parts == {"c": (0, 1)}
    assert train.batch([0]).label[0].tolist() == [0, 1] * 10


def test_weights_are_those_of_the_other_categories(benchmark: Any) -> None:
    benchmark.main(["--examples", "3"])
    pretrained = benchmark.commands[0]
    assert '--data.init_args.categories=["a", "b", "d"]' in pretrained
    assert benchmark.commands[1][0] == "export"
    tasks = [
        yaml.safe_load((benchmark.runs / f"{name}.yaml").read_text())["model"]["init_args"]
        for name in ("scratch", "fine_tuned")
    ]
    weights = [task["network"]["init_args"]["weights"] for task in tasks]
    assert weights == [None, str(benchmark.runs / "others.safetensors")]
    assert [task["encoder_rate"] for task in tasks] == [1, 0.1]


def test_what_was_run_is_not_run_again(benchmark: Any) -> None:
    benchmark.main(["--examples", "1"])
    count = len(benchmark.commands)
    benchmark.main(["--examples", "1"])
    assert len(benchmark.commands) == count == 6
