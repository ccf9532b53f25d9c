"""What the benchmarks share: a process for every measurement, rounds through all of them, time and memory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "straightforward, default allocator": {"ours": False, "tuned": False, "bf16": False},
    "straightforward, tuned allocator": {"ours": False, "tuned": True, "bf16": False},
    "pcea fp32": {"ours": True, "tuned": True, "bf16": False},
    "pcea bf16": {"ours": True, "tuned": True, "bf16": True},
}
# Longest time for a child; far beyond what a measurement takes.
_CHILD_SECONDS = 3600


def network_parser(description: str | None, *, batch_size: int, num_points: int, dim: int) -> argparse.ArgumentParser:
    """Command line of a benchmark of EAT and PCT."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each measurement, or more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--num-points", type=int, default=num_points)
    parser.add_argument("--dim", type=int, default=dim, help="width of the attention layers")
    parser.add_argument("--models", nargs="*", choices=("EAT", "PCT"), default=["EAT", "PCT"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def network_tasks(args: argparse.Namespace) -> dict[tuple[str, ...], dict[str, Any]]:
    """The measurements of every model in training and evaluation, in every variant."""
    size = {"batch_size": args.batch_size, "num_points": args.num_points, "dim": args.dim}
    common = {"steps": args.steps, "threads": args.threads}
    return {
        (model, mode, name): {"measure": "network", "model": model, "training": mode == "training"}
        | variant
        | size
        | common
        for model in args.models
        for mode in ("training", "evaluation")
        for name, variant in VARIANTS.items()
    }


def measure_in_rounds(
    script: str, tasks: dict[tuple[str, ...], dict[str, Any]], rounds: int
) -> dict[tuple[str, ...], float]:
    """Median seconds of every task, each a process of its own; rounds go through all tasks in turn."""
    seconds: dict[tuple[str, ...], list[float]] = {key: [] for key in tasks}
    for i in range(rounds):
        for key, task in tasks.items():
            print(f"round {i + 1} of {rounds}: {', '.join(key)}", file=sys.stderr)
            seconds[key].append(run(script, task))
    return {key: median(values) for key, values in seconds.items()}


def run(script: str, task: dict[str, Any], *, timeout: float = _CHILD_SECONDS) -> Any:
    """Let `script` do one measurement in a process of its own.

    Raises:
        subprocess.CalledProcessError: If it failed.
        subprocess.TimeoutExpired: If it took longer than `timeout` seconds.
    """
    command = [sys.executable, script, "--child", json.dumps(task)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout).stdout)


def print_networks(seconds: dict[tuple[str, ...], float], args: argparse.Namespace) -> None:
    """Clouds per second, and how many times those of each straightforward variant and of our fp32."""
    print(
        f"Batch {args.batch_size}, {args.num_points:,} points, width {args.dim}, {args.threads} threads, "
        f"medians of {args.rounds} rounds of {args.steps} steps. `x`: times the clouds/s of the named variant.\n"
    )
    default, tuned, fp32, _ = VARIANTS
    print("| model | mode | variant | clouds/s | x default | x tuned | x fp32 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (model, mode, name), own in seconds.items():
        ratios = " | ".join(f"{seconds[model, mode, other] / own:.2f}" for other in (default, tuned, fp32))
        print(f"| {model} | {mode} | {name} | {args.batch_size / own:.1f} | {ratios} |")


def prepare(threads: int, *, tuned: bool) -> None:
    """Set this process up; before its first tensor."""
    import torch

    from pcea.commands.cpu import tune_allocator
    from pcea.nn.compiled import load_numba

    if tuned:
        tune_allocator()
    load_numba()  # so that every step is computed alike
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sys.path.insert(0, str(ROOT / "tests"))


def seconds_of_a_step(
    network: nn.Module, forward: Callable[[], Tensor], label: Tensor, *, training: bool, bf16: bool, steps: int
) -> float:
    """Median seconds of forward pass and loss, in training with backward pass and SGD step.

    Args:
        network: What is trained.
        forward: Its logits, (..., P).
        label: Class of each row of logits, (...).
        training: Whether to train or to evaluate.
        bf16: Whether autocast is on.
        steps: How often to measure.
    """
    import torch
    import torch.nn.functional as F

    network.train(training)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        with torch.set_grad_enabled(training):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(forward().flatten(0, -2), label.flatten())
            if training:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return timed(step, steps)


def timed(step: Callable[[], object], steps: int) -> float:
    """Median seconds of a step after one to warm up: of as many as are asked for, and of at least a second of them."""
    step()
    seconds: list[float] = []
    while len(seconds) < steps or sum(seconds) < 1:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes. Linux only.

    That of `getrusage` may be the one of the process that started this one.
    """
    return _bytes_of("VmHWM", "/proc/self/status")


def free_memory() -> int:
    """Bytes that a new process may take without swapping. Linux only."""
    return _bytes_of("MemAvailable", "/proc/meminfo")


def _bytes_of(name: str, file: str) -> int:
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{file} has no {name}.")


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
