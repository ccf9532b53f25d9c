"""Part segmenters: clouds per second of EAT and PCT beside the straightforward formulation, and clouds of any size.

The first two tables are of PCT's published layout: all points, no neighbour embedding. The straightforward formulation
is that of tests/reference.py: Conv1d layout, the cloud's features repeated for every point, the N x N matrix for PCT.
The third table lets one cloud of growing size through the networks in evaluation. Every measurement is a process of its
own; rounds go through all of them in turn, and the tables hold medians over the rounds. Memory is measured once, in a
process with the default allocator, as the tuned one keeps what is freed. What would not fit into the free memory or
take too long is skipped, and the table says so. Linux only, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarking import (
    VARIANTS,
    duration,
    free_memory,
    measure_in_rounds,
    network_parser,
    network_tasks,
    peak_memory,
    prepare,
    print_networks,
    run,
    seconds_of_a_step,
)

NUM_CLASSES, NUM_CATEGORIES = 50, 16
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
NETWORKS = {
    "EAT, as published": {"model": "EAT", "neighbor_embedding": False},
    "EAT, neighbour embedding": {"model": "EAT", "neighbor_embedding": True},
    "PCT, as published": {"model": "PCT", "neighbor_embedding": False},
}
MATRICES = 3  # N x N fp32 matrices that PCT holds at its peak, measured at 8,192 points


def main() -> None:
    """Measure in rounds and print the tables."""
    parser = network_parser(__doc__, batch_size=16, num_points=2048, dim=128)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="points of the single clouds, increasing")
    parser.add_argument("--max-seconds", type=float, default=120, help="skip what is expected to take longer per cloud")
    args = parser.parse_args()
    if args.child:
        task = json.loads(args.child)
        print(json.dumps(MEASUREMENTS[task.pop("measure")](**task)))
        return

    seconds = measure_in_rounds(__file__, network_tasks(args), args.rounds)
    if seconds:
        print_networks(seconds, args)
        print_ratios(seconds)
    if args.sizes:
        print_clouds(args)


def print_ratios(seconds: dict[tuple[str, ...], float]) -> None:
    """How many times the clouds/s of PCT those of our EAT are, where both were measured."""
    default, tuned, fp32, bf16 = VARIANTS
    rows = [(fp32, fp32), (bf16, bf16), (fp32, default), (fp32, tuned), (bf16, default), (bf16, tuned)]
    print("\n| times the clouds/s | training | evaluation |\n| --- | --- | --- |")
    for ours, theirs in rows:
        pairs = [(("EAT", mode, ours), ("PCT", mode, theirs)) for mode in ("training", "evaluation")]
        if all(key in seconds for pair in pairs for key in pair):
            ratios = " | ".join(f"{seconds[pct] / seconds[eat]:.2f}" for eat, pct in pairs)
            print(f"| EAT, {ours}, by PCT, {theirs} | {ratios} |")


def print_clouds(args: argparse.Namespace) -> None:
    """Time and memory of one cloud in evaluation, by its size."""
    times: dict[tuple[str, int], list[float]] = {}
    skipped: dict[tuple[str, int], str] = {}
    memory: dict[tuple[str, int], str] = {}
    for i in range(args.rounds):
        last: dict[str, tuple[int, float]] = {}
        for n in args.sizes:
            for name in NETWORKS:
                print(f"round {i + 1} of {args.rounds}: {name}, {n:,} points", file=sys.stderr)
                if (name, n) in skipped:
                    continue
                reason = skip(name, n, last.get(name), args)
                result = reason or measure(name, n, args, tuned=True)
                if isinstance(result, str):
                    skipped[name, n] = result
                    continue
                last[name] = n, result["seconds"]
                times.setdefault((name, n), []).append(result["seconds"])
                if (name, n) not in memory:
                    memory[name, n] = in_words(measure(name, n, args, tuned=False))
    print(
        f"\nOne cloud in evaluation, fp32, width {args.dim}, {args.threads} threads: time with the allocator tuned as "
        f"by the command line, median of {args.rounds} rounds; memory with the default allocator, the peak of the "
        "process (resident set) and its growth in the forward pass.\n"
    )
    print("| N | network | time | peak | growth |\n| --- | --- | --- | --- | --- |")
    for n in args.sizes:
        for name in NETWORKS:
            key = name, n
            row = f"{skipped[key]} | - | -" if key in skipped else f"{duration(median(times[key]))} | {memory[key]}"
            print(f"| {n:,} | {name} | {row} |")


def in_words(result: dict[str, float] | str) -> str:
    """The two cells of a measurement of memory."""
    if isinstance(result, str):
        return f"{result} | -"
    return " | ".join(f"{result[key] / 2**20:,.0f} MiB" for key in ("peak", "growth"))


def skip(name: str, n: int, last: tuple[int, float] | None, args: argparse.Namespace) -> str | None:
    """Why not to try N points, from the free memory and from the last smaller cloud: its size and seconds."""
    is_quadratic = NETWORKS[name]["model"] == "PCT"
    need = 4 * n * args.dim * 4 + (4 * n * n * MATRICES if is_quadratic else 0)
    expected = 0.0 if last is None else last[1] * (n / last[0]) ** (2 if is_quadratic else 1)
    if need > 0.9 * free_memory():
        return f"skipped: needs about {need / 2**30:,.0f} GiB"
    return f"skipped: about {duration(expected)}" if expected > args.max_seconds else None


def measure(name: str, n: int, args: argparse.Namespace, *, tuned: bool) -> dict[str, float] | str:
    """Measure one cloud in a child process, or say why there is no result."""
    task = {"measure": "cloud", "n": n, "dim": args.dim, "threads": args.threads, "tuned": tuned} | NETWORKS[name]
    task["steps"] = args.steps if tuned else 0
    timeout = 60 + 3 * args.max_seconds
    try:
        return run(__file__, task, timeout=timeout)
    except subprocess.CalledProcessError as error:
        return f"failed ({error.returncode})"
    except subprocess.TimeoutExpired:
        return f"stopped after {duration(timeout)}"


def measure_network(
    *,
    model: str,
    training: bool,
    ours: bool,
    tuned: bool,
    bf16: bool,
    batch_size: int,
    num_points: int,
    dim: int,
    steps: int,
    threads: int,
) -> float:
    """Median seconds of one training or evaluation step, in this process."""
    import torch

    prepare(threads, tuned=tuned)
    network = build(model, dim=dim, neighbor_embedding=False) if ours else build_straightforward(model, dim=dim)
    points, category = torch.randn(batch_size, num_points, 3), torch.randint(NUM_CATEGORIES, (batch_size,))
    label = torch.randint(NUM_CLASSES, (batch_size, num_points))
    return seconds_of_a_step(
        network, lambda: network(points, category=category), label, training=training, bf16=bf16, steps=steps
    )


def measure_cloud(
    *, model: str, neighbor_embedding: bool, n: int, dim: int, tuned: bool, steps: int, threads: int
) -> dict[str, float]:
    """Seconds and bytes of the forward pass of one cloud, in this process; the first pass alone if `steps` is 0."""
    import torch

    prepare(threads, tuned=tuned)
    network = build(model, dim=dim, neighbor_embedding=neighbor_embedding).eval()
    category = torch.zeros(1, dtype=torch.int64)

    def step(points: torch.Tensor) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            network(points, category=category)
        return time.perf_counter() - start

    step(torch.rand(1, 64, 3))  # loads the kernels, so that they do not count as memory
    points = torch.rand(1, n, 3)
    before = peak_memory()
    seconds = [step(points)]
    while len(seconds) <= steps and sum(seconds) < 20:
        seconds.append(step(points))
    return {"seconds": median(seconds[1:] or seconds), "peak": peak_memory(), "growth": peak_memory() - before}


MEASUREMENTS: dict[str, Callable[..., Any]] = {"network": measure_network, "cloud": measure_cloud}


def build(model: str, *, dim: int, neighbor_embedding: bool) -> Any:
    """Our network."""
    from pcea.models.point_segmenter import eat_part_segmenter, pct_part_segmenter

    builder = {"EAT": eat_part_segmenter, "PCT": pct_part_segmenter}[model]
    return builder(NUM_CLASSES, NUM_CATEGORIES, dim=dim, neighbor_embedding=neighbor_embedding)


def build_straightforward(model: str, *, dim: int) -> Any:
    """The network in the straightforward formulation."""
    from reference import StraightforwardExternalAttention, StraightforwardOffsetAttention, StraightforwardSegmenter

    attention = {"EAT": StraightforwardExternalAttention, "PCT": StraightforwardOffsetAttention}[model]
    return StraightforwardSegmenter(NUM_CLASSES, NUM_CATEGORIES, attention=attention, dim=dim)


if __name__ == "__main__":
    main()
