"""Time and peak memory of external, offset and self-attention from 1k to 1M tokens, as a markdown table.

Every measurement runs in a process of its own: warm up once, then the median of a few runs. Memory is the growth of the
process's peak (resident set) beyond its state with the input in place. What would not fit into the free memory or take
too long is skipped, and the table says so. Linux only, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from statistics import median

from benchmarking import duration, free_memory, peak_memory
from benchmarking import run as run_child

SIZES = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
ATTENTIONS = {
    "external": "external (S = 64)",
    "offset": "offset (PCT)",
    "self": "scaled dot product, 4 heads",
}
DIM = 256
MATRICES = {False: 4, True: 8}  # N x N fp32 matrices that PCT's form holds at its peak, forward and with backward
TIME_GROWTH = {"external": 4.2, "offset": 17.0, "self": 17.0}  # per step of SIZES


def main() -> None:
    """Measure every attention at every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-points", type=int, default=SIZES[-1], help="largest number of tokens (default: 1M)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each measurement, at most")
    parser.add_argument("--max-seconds", type=float, default=60, help="skip what is expected to take longer per run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(**json.loads(args.child))))
        return

    print(f"C = {DIM}, one cloud, fp32, {args.threads} threads, allocator tuned as by the command line.\n")
    print("| N | attention | forward | forward + backward | memory forward | memory forward + backward |")
    print("| --- | --- | --- | --- | --- | --- |")
    last: dict[tuple[str, bool], float] = {}
    for n in (size for size in SIZES if size <= args.max_points):
        for attention, title in ATTENTIONS.items():
            times, memories = [], []
            for backward in (False, True):
                result = run(attention, n, backward, last, args)
                times.append(result if isinstance(result, str) else duration(result["seconds"]))
                memories.append("-" if isinstance(result, str) else f"{result['bytes'] / 2**20:,.0f} MiB")
            print(f"| {n:,} | {title} | {' | '.join(times + memories)} |", flush=True)


def run(
    attention: str, n: int, backward: bool, last: dict[tuple[str, bool], float], args: argparse.Namespace
) -> dict[str, float] | str:
    """Measure in a child process, or say why not."""
    expected = last.get((attention, backward), 0) * TIME_GROWTH[attention]
    last[attention, backward] = expected
    if expected > args.max_seconds:
        return f"skipped: about {duration(expected)}"
    need = 4 * n * DIM * (12 if backward else 6) + (4 * n * n * MATRICES[backward] if attention == "offset" else 0)
    if need > 0.9 * free_memory():
        return f"skipped: needs about {need / 2**30:,.0f} GiB"
    task = {"attention": attention, "n": n, "backward": backward, "threads": args.threads, "repeats": args.repeats}
    try:
        result: dict[str, float] = run_child(__file__, task)
    except subprocess.CalledProcessError as error:
        return f"failed ({error.returncode})"
    last[attention, backward] = result["seconds"]
    return result


def measure(*, attention: str, n: int, backward: bool, threads: int, repeats: int) -> dict[str, float]:
    """Time and memory of one attention at one size, in this process."""
    import torch

    from pcea.commands.cpu import tune_allocator
    from pcea.nn.attention import ExternalAttention, OffsetAttention, SelfAttention

    tune_allocator()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = {
        "external": lambda: ExternalAttention(DIM),
        "offset": lambda: OffsetAttention(DIM),
        "self": lambda: SelfAttention(DIM, key_dim=DIM, num_heads=4),
    }[attention]()

    def step(tokens: torch.Tensor) -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            out = layer(tokens)
            if backward:
                out.sum().backward()
                tokens.grad = None
        return time.perf_counter() - start

    step(torch.randn(1, 64, DIM, requires_grad=backward))  # loads the kernels, so that they do not count as memory
    tokens = torch.randn(1, n, DIM, requires_grad=backward)
    before = peak_memory()
    seconds = [step(tokens)]
    while len(seconds) <= repeats and sum(seconds) < 20:
        seconds.append(step(tokens))
    return {"seconds": median(seconds[1:] or seconds), "bytes": peak_memory() - before}


if __name__ == "__main__":
    main()
