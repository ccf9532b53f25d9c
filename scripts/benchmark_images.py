"""External attention on a feature map beside the layers that it replaces: parameters, MACs, time and memory.

The map is that of the EA paper's cost table, 1 x 512 x 128 x 128. The other layers are those of tests/reference.py,
written from their papers. MACs are those of the matrix products and convolutions of a forward pass.

"Forward" is evaluation without gradients, "forward + backward" a training step without optimizer, with the gradient of
the input. Every measurement is a process of its own. Rounds go through all of them in turn, and the table holds medians
over the rounds. Time is processor time of one thread, which other programs disturb less than the time on the clock.
Memory is the growth of the process's peak (resident set) in the first step, beyond its state with layer and input in
place; it is measured once, in a process with the default allocator, as the tuned one keeps what is freed. What would
not fit into the free memory is skipped, and the table says so. Linux only, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarking import ROOT, duration, free_memory, measure_in_rounds, peak_memory, prepare, run

if TYPE_CHECKING:
    from torch import Tensor, nn

EXTERNAL = "EA block, tied"
NON_LOCAL = "non-local self-attention"
LAYERS = (EXTERNAL, "EA block, untied", NON_LOCAL, "non-local, fused kernel", "A2 double attention", "Hamburger (NMF)")
MODES = ("forward", "forward + backward")
MAPS = {"forward": 2, "forward + backward": 3}  # N x N fp32 maps that the non-local block holds at its peak
_LONG = 5  # seconds of steps after which no further one is timed

Results = dict[tuple[str, ...], float]


def main() -> None:
    """Measure in rounds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--size", type=int, default=128, help="height and width of the feature map")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each measurement, at most")
    parser.add_argument("--layers", nargs="*", choices=LAYERS, default=LAYERS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        task = json.loads(args.child)
        print(json.dumps(MEASUREMENTS[task.pop("measure")](**task)))
        return

    tasks: dict[tuple[str, ...], dict[str, Any]] = {
        (name, mode): {"name": name, "channels": args.channels, "size": args.size, "training": mode != "forward"}
        for name in args.layers
        for mode in MODES
        if name != NON_LOCAL or 4 * args.size**4 * MAPS[mode] < 0.9 * free_memory()
    }
    timing = {key: task | {"measure": "seconds", "steps": args.steps} for key, task in tasks.items()}
    seconds = measure_in_rounds(__file__, timing, args.rounds)
    memory: Results = {key: run(__file__, task | {"measure": "memory"}) for key, task in tasks.items()}
    print(
        f"1 x {args.channels} x {args.size} x {args.size}, fp32, one thread, medians of {args.rounds} rounds; time with"
        " the allocator tuned as by the command line, memory with the default one.\n"
    )
    print_costs(args.layers, seconds, memory, channels=args.channels, size=args.size)
    print_ratios(args.layers, seconds, memory)


def print_costs(layers: list[str], seconds: Results, memory: Results, *, channels: int, size: int) -> None:
    """Parameters, MACs, time and memory of every layer."""
    titles = ["layer", "parameters", "MACs", *MODES, *(f"memory {mode}" for mode in MODES)]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for name in layers:
        parameters, macs = costs(name, channels=channels, size=size)
        keys = [(name, mode) for mode in MODES]
        times = [duration(seconds[key]) if key in seconds else "skipped: memory" for key in keys]
        memories = [f"{memory[key] / 2**20:,.0f} MiB" if key in memory else "-" for key in keys]
        cells = [f"{parameters / 1e6:.3f}M", f"{macs / 1e9:.2f}G", *times, *memories]
        print(f"| {name} | {' | '.join(cells)} |")


def print_ratios(layers: list[str], seconds: Results, memory: Results) -> None:
    """How many times the time and memory of the tied EA block every other layer takes, where both were measured."""
    titles = [f"times {EXTERNAL}", *MODES, *(f"memory {mode}" for mode in MODES)]
    print(f"\n| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for name in layers:
        pairs = [(results, (name, mode), (EXTERNAL, mode)) for results in (seconds, memory) for mode in MODES]
        cells = [f"{of[own] / of[ea]:.1f}" if own in of and ea in of else "-" for of, own, ea in pairs]
        print(f"| {name} | {' | '.join(cells)} |")


def costs(name: str, *, channels: int, size: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a layer on 1 x channels x size x size, without computing anything."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # On the meta device the fused kernel, unknown to the counter on a CPU, is two matrix products, which it counts.
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        layer = build(name, channels)
        layer(torch.empty(1, channels, size, size))
    return sum(p.numel() for p in layer.parameters()), counter.get_total_flops() // 2


def measure_seconds(*, name: str, channels: int, size: int, training: bool, steps: int) -> float:
    """Median seconds of processor time of one step, in this process; the first one alone if it takes long."""
    prepare(1, tuned=True)
    step, image = set_up(name, channels, size, training)
    seconds: list[float] = []
    while len(seconds) <= steps and sum(seconds) < _LONG:
        start = time.process_time()
        step(image)
        seconds.append(time.process_time() - start)
    return median(seconds[1:] or seconds)


def measure_memory(*, name: str, channels: int, size: int, training: bool) -> int:
    """Bytes by which one step raises the peak of this process."""
    prepare(1, tuned=False)
    step, image = set_up(name, channels, size, training)
    before = peak_memory()
    step(image)
    return peak_memory() - before


MEASUREMENTS: dict[str, Callable[..., Any]] = {"seconds": measure_seconds, "memory": measure_memory}


def set_up(name: str, channels: int, size: int, training: bool) -> tuple[Callable[[Tensor], None], Tensor]:
    """A step of a layer, and its input."""
    import torch

    layer = build(name, channels).train(training)

    def step(image: Tensor) -> None:
        with torch.set_grad_enabled(training):
            out = layer(image)
            if training:
                out.sum().backward()
                image.grad = None

    step(torch.randn(1, channels, 8, 8, requires_grad=training))  # loads the kernels, which count as no memory
    return step, torch.randn(1, channels, size, size, requires_grad=training)


def build(name: str, channels: int) -> nn.Module:
    """The layer of that name."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    from reference import DoubleAttention2d, FusedNonLocalAttention2d, Hamburger2d, NonLocalAttention2d

    from pcea.nn.layers import ExternalAttention2d

    layers: tuple[Callable[[], nn.Module], ...] = (
        lambda: ExternalAttention2d(channels),
        lambda: ExternalAttention2d(channels, tied=False),
        lambda: NonLocalAttention2d(channels),
        lambda: FusedNonLocalAttention2d(channels),
        lambda: DoubleAttention2d(channels),
        lambda: Hamburger2d(channels),
    )
    return dict(zip(LAYERS, layers))[name]()


if __name__ == "__main__":
    main()
