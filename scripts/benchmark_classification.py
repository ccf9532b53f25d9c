"""Clouds per second of EAT and PCT in training and evaluation, beside the straightforward formulation, as markdown.

The straightforward formulation is that of tests/reference.py: concatenated neighbours, Conv1d layout, `x[batch, idx]`,
FPS over strided (B, N, 3), the N x N matrix for PCT. It runs once as its users run it, with the default allocator, and
once with the allocator that the command line of pcea sets. Every measurement is a process of its own; rounds go through
all variants in turn, and the table holds medians over the rounds. On the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarking import (
    ROOT,
    measure_in_rounds,
    network_parser,
    network_tasks,
    prepare,
    print_networks,
    run,
    seconds_of_a_step,
    timed,
)

from pcea.commands.cpu import share_cores

# Networks of the size of the shipped configurations, beside the straightforward PCT.
SMALL = ("small EAT", "PointEA small", "PointEA base")
SAMPLING = {
    "straightforward, 32 x 1,024 -> 512": {"ours": False, "clouds": 32, "points": 1024, "chosen": 512},
    "pcea, 32 x 1,024 -> 512": {"ours": True, "clouds": 32, "points": 1024, "chosen": 512},
    "pcea, 100,000 -> 25,000": {"ours": True, "clouds": 1, "points": 100_000, "chosen": 25_000},
}


def main() -> None:
    """Measure in rounds and print the tables."""
    parser = network_parser(__doc__, batch_size=32, num_points=1024, dim=256)
    parser.add_argument("--root", default=str(ROOT / "data"), help="where ModelNet40 may be, for the check of bf16")
    args = parser.parse_args()
    if args.child:
        task = json.loads(args.child)
        print(json.dumps(MEASUREMENTS[task.pop("measure")](**task)))
        return

    common = {"steps": args.steps, "threads": args.threads}
    tasks = network_tasks(args)
    if "PCT" in args.models:
        tasks |= {
            (model, mode): {"measure": "network", "model": model, "training": mode == "training", "dim": args.dim}
            | {"batch_size": args.batch_size, "num_points": args.num_points, "ours": True, "tuned": True, "bf16": False}
            | common
            for model in SMALL
            for mode in ("training", "evaluation")
        }
    tasks |= {("FPS", name): {"measure": "sampling"} | variant | common for name, variant in SAMPLING.items()}
    seconds = measure_in_rounds(__file__, tasks, args.rounds)
    print_networks({key: s for key, s in seconds.items() if len(key) == 3}, args)
    if "PCT" in args.models:
        print("\n| network | mode | clouds/s | x PCT, straightforward, tuned allocator |\n| --- | --- | --- | --- |")
        for model in SMALL:
            for mode in ("training", "evaluation"):
                own, pct = seconds[model, mode], seconds["PCT", mode, "straightforward, tuned allocator"]
                print(f"| {model} | {mode} | {args.batch_size / own:.1f} | {pct / own:.1f} |")
    print("\n| farthest point sampling | time |\n| --- | --- |")
    for name in SAMPLING:
        print(f"| {name} | {1000 * seconds['FPS', name]:.1f} ms |")
    print("\n" + run(__file__, {"measure": "bf16", "threads": args.threads, "root": args.root}))


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
    if ours:
        share_cores()
    import torch

    prepare(threads, tuned=tuned)
    network = build(model, ours=ours, dim=dim)
    points, label = torch.randn(batch_size, num_points, 3), torch.randint(40, (batch_size,))
    return seconds_of_a_step(network, lambda: network(points), label, training=training, bf16=bf16, steps=steps)


def measure_sampling(*, ours: bool, clouds: int, points: int, chosen: int, steps: int, threads: int) -> float:
    """Median seconds of farthest point sampling, in this process."""
    if ours:
        share_cores()
    import torch

    prepare(threads, tuned=True)
    from reference import straightforward_sample

    from pcea.ops import farthest_point_sample

    sample = farthest_point_sample if ours else straightforward_sample
    cloud = torch.randn(clouds, points, 3)
    return timed(lambda: sample(cloud, chosen), steps)


def check_bf16(*, threads: int, root: str) -> str:
    """Compare the logits of bf16 and fp32 in evaluation; one sentence."""
    import torch

    from pcea import eat_classifier
    from pcea.io.weights import load_weights

    prepare(threads, tuned=True)
    accuracy = None
    try:
        about = load_weights("modelnet40_eat_cpu").description
        network, n, what = eat_classifier(weights="modelnet40_eat_cpu"), about.num_points, "the shipped weights"
    except FileNotFoundError:
        network, n, what = eat_classifier(), 1024, "random weights"
        network(torch.randn(32, n, 3))  # running statistics
    try:
        from pcea.datasets.modelnet40 import ModelNet40

        clouds = ModelNet40(root, "test", num_points=n)
        points, label, data = clouds.points, clouds.label, f"ModelNet40's {len(clouds):,} test clouds"
    except FileNotFoundError:
        points, label, data = torch.nn.functional.normalize(torch.randn(256, n, 3), dim=-1), None, "256 random spheres"
    if what == "random weights":
        points, data = points[:256], f"256 of {data}" if label is not None else data
    network.eval()

    def logits(bf16: bool) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return torch.cat([network(chunk).float() for chunk in points.split(32)])

    exact, rounded = logits(False), logits(True)
    agreement = 100 * (exact.argmax(1) == rounded.argmax(1)).float().mean()
    if label is not None and what == "the shipped weights":
        fp32, bf16 = (100 * (x.argmax(1) == label).float().mean() for x in (exact, rounded))
        accuracy = f"; overall accuracy {fp32:.2f} in fp32, {bf16:.2f} in bf16"
    return (
        f"bf16 against fp32, {what} on {data}: largest logit difference {(exact - rounded).abs().max():.3f} "
        f"(logits of standard deviation {exact.std():.2f}), same prediction for {agreement:.1f}%{accuracy or ''}."
    )


MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "network": measure_network,
    "sampling": measure_sampling,
    "bf16": check_bf16,
}


def build(model: str, *, ours: bool, dim: int) -> Any:
    """One of the networks."""
    if not ours:
        from reference import (
            StraightforwardClassifier,
            StraightforwardExternalAttention,
            StraightforwardOffsetAttention,
        )

        attention = {"EAT": StraightforwardExternalAttention, "PCT": StraightforwardOffsetAttention}[model]
        return StraightforwardClassifier(attention=attention, dim=dim)
    from pcea.models.point_ea import point_ea_classifier
    from pcea.models.point_transformer import PointTransformerClassifier, PointTransformerEncoder, eat_classifier
    from pcea.nn.attention import OffsetAttention

    if model == "EAT":
        return eat_classifier(dim=dim)
    if model == "small EAT":
        return eat_classifier(dim=128, num_centers=(256, 128), num_neighbors=20, out_channels=512, widths=(256, 128))
    if model.startswith("PointEA"):
        return point_ea_classifier(size="small" if model.endswith("small") else "base")
    return PointTransformerClassifier(PointTransformerEncoder(OffsetAttention, dim=dim), num_classes=40)


if __name__ == "__main__":
    main()
