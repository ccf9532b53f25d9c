"""The ablation: what it runs, what it leaves out, and its table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pcea.models.edge_pooling import Attention
from pcea.nn import ExternalAttention, TokenMLP

ROOT = Path(__file__).parents[2]
COST = {"parameters": 612_840, "multiplications": 25.3e6, "clouds_per_second": 170.2}


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(tmp_path)
    import ablation

    return ablation


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command[3:]))
    return commands


def write_record(ablation: Any, config: str, variant: str, seed: int, **metrics: float) -> None:
    folder = ablation.folder_of(config, variant, seed) / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.test.json").write_text(json.dumps({"metrics": metrics, "commit": "abc"}))


def attention_of(network: Any) -> list[Any]:
    return [module.attention for module in network.modules() if isinstance(module, Attention)]


@pytest.mark.parametrize("config", ["modelnet40_pointea_fast", "labeled_psb_pointea"])
def test_every_variant_builds_what_it_says(ablation: Any, config: str) -> None:
    networks = {variant: ablation.build(config, variant)[0] for variant in ablation.VARIANTS}
    kinds = {variant: {type(a).__name__ for a in attention_of(network)} for variant, network in networks.items()}
    assert kinds.pop("multi-head external attention") == {"MultiHeadExternalAttention"}
    assert kinds.pop("self-attention") == {"SelfAttention"}
    assert kinds.pop("MLP of equal size") == {"TokenMLP"}
    assert kinds.pop("nothing") == set()
    assert set(map(frozenset, kinds.values())) == {frozenset({"ExternalAttention"})}
    first = {variant: next(iter(attention_of(network)), None) for variant, network in networks.items()}
    assert {v: first[v].memory_units for v in ("8 slots", "16 slots", "external attention", "256 slots")} == {
        "8 slots": 8, "16 slots": 16, "external attention": 64, "256 slots": 256
    }  # fmt: skip
    assert [first[f"normalized over {axis}"].normalization for axis in ("slots", "tokens")] == ["slots", "tokens"]
    assert [first[v].tied for v in ("external attention", "normalized over slots", "tied memories")] == [
        False, False, True
    ]  # fmt: skip
    assert sum(p.numel() for p in first["MLP of equal size"].parameters()) == sum(
        p.numel() for p in first["external attention"].parameters()
    )
    assert isinstance(first["external attention"], ExternalAttention)
    assert isinstance(first["MLP of equal size"], TokenMLP)


def test_what_is_missing_is_trained_and_tested(ablation: Any, commands: list[list[str]], monkeypatch) -> None:
    monkeypatch.setattr(ablation, "measure", lambda *_: COST)
    write_record(ablation, "a", "nothing", 0, overall_accuracy=90)
    ablation.main(["a", "--seeds", "0", "1", "--variants", "nothing", "--", "--trainer.devices=1"])
    folder = "runs/ablation/a/nothing.seed1"
    options = ["--config", "a", "--seed_everything", "1", "--trainer.default_root_dir", folder]
    options += ["--model.init_args.network.init_args.memory_units=0", "--trainer.devices=1"]
    assert commands == [["fit", *options], ["test", *options]]


def test_an_interrupted_run_goes_on(ablation: Any, commands: list[list[str]]) -> None:
    checkpoint = ablation.folder_of("a", "nothing", 0) / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    ablation.train_and_test("a", "nothing", 0, [])
    assert commands[0][-2:] == ["--ckpt_path", str(checkpoint)]
    assert "--ckpt_path" not in commands[1]


def test_the_table_and_its_record(ablation: Any, commands, monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(ablation, "measure", lambda *_: COST)
    monkeypatch.setattr(ablation, "ABLATIONS", tmp_path / "records")
    for seed, value in enumerate((91.0, 92.0, 93.0)):
        write_record(ablation, "a", "nothing", seed, overall_accuracy=value)
    write_record(ablation, "a", "8 slots", 1, overall_accuracy=50.0, instance_miou=80.0)
    ablation.main(["a", "--record"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| nothing | 3 | 92.00 ± 1.00 | 0.613M | 25M | 170 |",
        "| 8 slots | 1 | 80.00 | 0.613M | 25M | 170 |",
    ]
    first = json.loads((tmp_path / "records" / "a.json").read_text())[0]
    assert first == {
        "variant": "nothing", "overall_accuracy": {"0": 91.0, "1": 92.0, "2": 93.0}, "commits": ["abc"], **COST
    }  # fmt: skip
    # Runs elsewhere stay in the record.
    monkeypatch.setattr(ablation, "RUNS", tmp_path / "other")
    write_record(ablation, "a", "nothing", 2, overall_accuracy=96.0)
    ablation.main(["a", "--record", "--variants", "nothing"])
    assert capsys.readouterr().out.splitlines()[2:] == ["| nothing | 3 | 93.00 ± 2.65 | 0.613M | 25M | 170 |"]
    rows = json.loads((tmp_path / "records" / "a.json").read_text())
    assert [row["variant"] for row in rows] == ["nothing", "8 slots"]
    assert rows[0]["overall_accuracy"] == {"0": 91.0, "1": 92.0, "2": 96.0}
    assert not commands, "it trained"


def test_costs_are_those_of_the_network(ablation: Any) -> None:
    costs = [ablation.measure("modelnet40_pointea_fast", v, batch_size=2) for v in ("external attention", "nothing")]
    assert costs[0]["parameters"] - costs[1]["parameters"] == sum(
        blocks * (2 * 64 * width + 2 * width) for blocks, width in ((1, 32), (2, 64), (2, 128))
    )
    # Two products of 64 slots per centre and block.
    assert costs[0]["multiplications"] - costs[1]["multiplications"] == sum(
        blocks * centers * 2 * 64 * width for blocks, width, centers in ((1, 32, 512), (2, 64, 128), (2, 128, 32))
    )
    assert costs[0]["clouds_per_second"] > 0
