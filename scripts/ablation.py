"""What external attention is worth: train a configuration with other attentions in its place, and print a table.

    python scripts/ablation.py modelnet40_pointea_fast            # train and test what is missing, then print
    python scripts/ablation.py labeled_psb_pointea --table        # print what is there
    python scripts/ablation.py labeled_psb_pointea --record       # also keep it, for the table in configs/README.md

Each variant and seed is a run of `pcea fit` and `pcea test` in runs/ablation/CONFIG/VARIANT.seed0. A run that was
interrupted goes on from its last epoch, and results that are recorded already, of runs elsewhere, stay in the table.
Parameters, multiplications per cloud (of the matrix products) and clouds per second in evaluation are measured with the
variant's network on this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from result_tables import ABLATED, ABLATIONS, ablation_table

RUNS = Path("runs/ablation")
NETWORK = "--model.init_args.network.init_args"

# What each row of the table changes in the configuration.
EXTERNAL = {"attention": "pcea.nn.ExternalAttention"}
VARIANTS: dict[str, dict[str, str]] = {
    "external attention": {},
    "multi-head external attention": {
        "attention": "pcea.nn.MultiHeadExternalAttention",
        "attention.init_args.num_heads": "4",
        "attention.init_args.expansion": "1",
    },
    "self-attention": {"attention": "pcea.nn.SelfAttention"},
    "MLP of equal size": {"attention": "pcea.nn.TokenMLP"},
    "nothing": {"memory_units": "0"},
    "normalized over slots": EXTERNAL
    | {"attention.init_args.tied": "false", "attention.init_args.normalization": "slots"},
    "normalized over tokens": EXTERNAL
    | {"attention.init_args.tied": "false", "attention.init_args.normalization": "tokens"},
    "8 slots": {"memory_units": "8"},
    "16 slots": {"memory_units": "16"},
    "256 slots": {"memory_units": "256"},
    "tied memories": EXTERNAL,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="name of a configuration of PointEA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--table", action="store_true", help="print only, train nothing")
    parser.add_argument("--record", action="store_true", help="as --table, and write the record of the table")
    parser.epilog = "Options after -- go to `pcea fit` and `pcea test`."
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args, options = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    if not (args.table or args.record):
        for seed in args.seeds:
            for variant in args.variants:
                train_and_test(args.config, variant, seed, options)
    path = ABLATIONS / f"{args.config}.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    rows = measure_all(args.config, args.variants, args.seeds, {row["variant"]: row for row in recorded})
    print(ablation_table(rows))
    if args.record:
        ABLATIONS.mkdir(parents=True, exist_ok=True)
        rows += [row for row in recorded if row["variant"] not in args.variants]
        path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def folder_of(config: str, variant: str, seed: int) -> Path:
    """Where a run is."""
    return RUNS / config / f"{variant.replace(' ', '-')}.seed{seed}"


def record_of(config: str, variant: str, seed: int) -> Path | None:
    """The record of a run, if it was tested."""
    return next(iter(sorted(folder_of(config, variant, seed).glob("version_*/checkpoints/last.test.json"))), None)


def options_of(variant: str) -> list[str]:
    """What the variant changes, as options of the command line."""
    return [f"{NETWORK}.{name}={value}" for name, value in VARIANTS[variant].items()]


def train_and_test(config: str, variant: str, seed: int, options: Sequence[str]) -> None:
    """Run `pcea fit` and `pcea test`, unless there is a record."""
    if record_of(config, variant, seed):
        return
    folder = folder_of(config, variant, seed)
    common = ["--config", config, "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
    common += [*options_of(variant), *options]
    begun = sorted(folder.glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    resumed = ["--ckpt_path", str(begun[-1])] if begun else []
    for command in (["fit", *common, *resumed], ["test", *common]):
        subprocess.run([sys.executable, "-m", "pcea", *command], check=True)


def measure_all(
    config: str, variants: Sequence[str], seeds: Sequence[int], recorded: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row of the table for each variant that has a record: its name, the result of each seed, and what it costs.

    Args:
        config: Name of the configuration.
        variants: The rows, in their order.
        seeds: Whose runs count.
        recorded: Rows of an earlier table by their variant; runs that are here replace its results.
    """
    rows = []
    for variant in variants:
        row = recorded.get(variant, {"commits": []})
        name = next((name for name in ABLATED if name in row), "")
        results, commits = dict(row.get(name, {})), {*row["commits"]}
        for seed in seeds:
            if path := record_of(config, variant, seed):
                record = json.loads(path.read_text(encoding="utf-8"))
                name = next(name for name in ABLATED if name in record["metrics"])
                results[str(seed)] = record["metrics"][name]
                commits.add(record["commit"])
        if results:
            results = dict(sorted(results.items()))
            rows.append({"variant": variant, name: results, "commits": sorted(commits), **measure(config, variant)})
    return rows


def measure(config: str, variant: str, *, batch_size: int = 32) -> dict[str, float]:
    """Parameters, multiplications per cloud, and clouds per second of the variant's network in evaluation."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network, num_points = build(config, variant)
    network.eval()
    inputs: dict[str, Any] = {"points": torch.randn(batch_size, num_points, 3)}
    if network.encoder.in_channels > 3:
        inputs["features"] = torch.randn(batch_size, num_points, network.encoder.in_channels - 3)
    if getattr(network, "num_categories", 0):
        inputs["category"] = torch.zeros(batch_size, dtype=torch.int64)
    with torch.inference_mode():
        # Only operations of torch are counted, not compiled loops.
        with patch("pcea.nn.compiled._module", return_value=None), FlopCounterMode(display=False) as counter:
            network(**inputs)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            network(**inputs)
            seconds.append(time.perf_counter() - start)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiplications": counter.get_total_flops() / 2 / batch_size,
        "clouds_per_second": batch_size / statistics.median(seconds[1:]),
    }


def build(config: str, variant: str) -> tuple[Any, int]:
    """The variant's network, and the number of points per cloud that it is trained with."""
    import yaml
    from jsonargparse import ArgumentParser

    from pcea.io.configs import config_path
    from pcea.tasks.base import Task

    content = yaml.safe_load(config_path(config).read_text(encoding="utf-8"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Task, "model")
    parsed = parser.parse_args([f"--model={json.dumps(content['model'])}", *options_of(variant)])
    return parser.instantiate(parsed).model.network, content["data"]["init_args"]["num_points"]


if __name__ == "__main__":
    main()
