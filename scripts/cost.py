"""What a training costs: hours on 1, 2, 4, ... devices, and where more of them no longer help.

Example: 100 epochs of 200,000 clouds of 2,048 points on machines with 10 Gbit/s between them,

    python scripts/cost.py --clouds 200000 --points 2048 --epochs 100 --rate 83 --parameters 1.0e6

`--rate` is what one device trains, measured: the progress bar of `pcea fit` shows batches per second; times the batch
size that is the rate. Networks with external attention take time about in proportion to the points, so the rate for
other sizes is an estimate. In each step every device exchanges the gradients with the others (a ring all-reduce,
2 (D - 1) / D times their size); nothing of that is taken to overlap with computing, and reading the data costs nothing.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

# Below this share of its time, a device mostly waits.
WORTH_IT = 0.5


class Cost(NamedTuple):
    """A training on some devices.

    Attributes:
        devices: How many.
        hours: Time from start to end.
        efficiency: Share of their time in which they compute.
        clouds_a_step: Clouds that all devices together learn from in a step.
    """

    devices: int
    hours: float
    efficiency: float
    clouds_a_step: int


def cost(options: argparse.Namespace, devices: int) -> Cost:
    """The cost of a training on so many devices.

    Args:
        options: As on the command line.
        devices: How many.
    """
    computing = options.batch_size / (options.rate * options.rate_points / options.points)  # seconds a step
    sent = 2 * (devices - 1) / devices * 4 * options.parameters  # bytes
    exchanging = sent / (options.gigabits * 1e9 / 8) + (devices > 1) * 2 * (devices - 1) * options.latency / 1000
    clouds_a_step = devices * options.batch_size
    steps = options.epochs * -(-options.clouds // clouds_a_step)
    seconds = steps * (computing + exchanging)
    return Cost(devices, seconds / 3600, computing / (computing + exchanging), clouds_a_step)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clouds", type=int, default=9840, help="clouds of an epoch (ModelNet40: 9840)")
    parser.add_argument("--points", type=int, default=1024, help="points of a cloud")
    parser.add_argument("--epochs", type=int, default=100, help="epochs")
    parser.add_argument("--batch_size", type=int, default=32, help="clouds of a step on one device")
    parser.add_argument(
        "--rate", type=float, default=83, help="clouds/s that one device trains (83: PointEA, one core)"
    )
    parser.add_argument("--rate_points", type=int, default=1024, help="points of a cloud in that measurement")
    parser.add_argument("--parameters", type=float, default=1.0e6, help="numbers in the network")
    parser.add_argument("--gigabits", type=float, default=10, help="Gbit/s between two devices")
    parser.add_argument("--latency", type=float, default=0.05, help="milliseconds until a message arrives")
    parser.add_argument("--devices", type=int, default=64, help="most devices")
    options = parser.parse_args()
    counts = [2**i for i in range(options.devices.bit_length())]
    rows = [cost(options, devices) for devices in counts]
    data = options.clouds * options.points * 6 * 4 / 1e9
    print(f"Points and normals of an epoch: {data:.2f} GB in memory, or --data.init_args.in_memory false.\n")
    print("| devices | hours | busy | clouds per step |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row.devices} | {row.hours:.2f} | {100 * row.efficiency:.0f} % | {row.clouds_a_step} |")
    useful = [row for row in rows if row.efficiency >= WORTH_IT and row.clouds_a_step <= options.clouds / 100]
    last = useful[-1].devices if useful else 1
    print(
        f"\nWorth it up to {last} devices: with more they wait for one another more than half of the time, or an epoch "
        "has fewer than 100 steps. The batch grows with the devices: raise the learning rate, or lower --batch_size."
    )


if __name__ == "__main__":
    main()
