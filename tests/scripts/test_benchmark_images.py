"""The cost table of images: what its other layers compute, what the counts are, and that a measurement runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import DoubleAttention2d, FusedNonLocalAttention2d, Hamburger2d, NonLocalAttention2d
from torch import nn

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_images.py"
C, N, S, R = 512, 128 * 128, 64, 64  # channels, pixels, memory slots, rank


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import benchmark_images

    return benchmark_images


def identity(*convs: nn.Conv2d) -> None:
    for conv in convs:
        nn.init.dirac_(conv.weight)


@pytest.mark.parametrize("kind", [NonLocalAttention2d, FusedNonLocalAttention2d])
def test_non_local_attention_by_hand(kind) -> None:
    # One channel, two pixels 0 and 1: pixel 0 has logits 0, 0; pixel 1 has logits 0, 3 (query 3 x, key x), value 2 x.
    layer = kind(1)
    identity(layer.key, layer.out)
    nn.init.constant_(layer.query.weight, 3)
    nn.init.constant_(layer.value.weight, 2)
    out = layer(torch.tensor([[[[0.0, 1.0]]]]))
    share = torch.tensor(3.0).sigmoid()
    torch.testing.assert_close(out, torch.tensor([[[[0 + 1.0, 1 + 2 * share]]]]))


def test_the_fused_block_is_the_non_local_block() -> None:
    plain, fused, image = NonLocalAttention2d(5), FusedNonLocalAttention2d(5), torch.randn(2, 5, 3, 7)
    fused.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused(image), plain(image))


def test_double_attention_pixel_by_pixel() -> None:
    layer, image = DoubleAttention2d(5), torch.randn(1, 5, 3, 7)
    pixels = image.flatten(2)[0].t()  # (N, C)
    feature, gather, distribute, out = (
        conv.weight[:, :, 0, 0] for conv in (layer.feature, layer.gather, layer.distribute, layer.out)
    )
    weights = torch.stack([gather @ x for x in pixels]).exp()
    descriptors = [sum(w * (feature @ x) for w, x in zip(column, pixels)) / column.sum() for column in weights.t()]
    expected = []
    for x in pixels:
        own = (distribute @ x).exp()
        expected.append(x + out @ sum(w * descriptor for w, descriptor in zip(own / own.sum(), descriptors)))
    torch.testing.assert_close(layer(image)[0].flatten(1).t(), torch.stack(expected))


def test_hamburger_finds_non_negative_factors() -> None:
    matrix = torch.rand(2, 7, 3) @ torch.rand(2, 3, 11)
    errors = []
    for iterations in (1, 6, 500):
        torch.manual_seed(0)
        bases, coefficients = Hamburger2d(7, rank=3, iterations=iterations).factorize(matrix)
        assert bases.min() >= 0 <= coefficients.min()
        errors.append((bases @ coefficients - matrix).norm() / matrix.norm())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_hamburger_rebuilds_between_two_convolutions() -> None:
    layer, image = Hamburger2d(5, rank=5, iterations=500).eval(), torch.randn(1, 5, 3, 7)
    identity(layer.lower, layer.upper)
    torch.testing.assert_close(layer(image), image + image.relu(), atol=0.1, rtol=0)
    layer.norm.train()
    layer(image).square().sum().backward()
    assert layer.lower.weight.grad.abs().max() > 0  # through the last update


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("EA block, tied", 2 * C * C + S * C + 3 * C, 2 * C * C * N + 2 * S * C * N),
        ("EA block, untied", 2 * C * C + 2 * S * C + 3 * C, 2 * C * C * N + 2 * S * C * N),
        ("non-local self-attention", 4 * C * C, 4 * C * C * N + 2 * C * N * N),
        ("non-local, fused kernel", 4 * C * C, 4 * C * C * N + 2 * C * N * N),
        ("A2 double attention", 4 * C * C, 4 * C * C * N + 2 * C * C * N),
        (
            "Hamburger (NMF)",
            2 * C * C + 2 * C,
            # The first H, six updates of D and seven of H with a Gram matrix of the other factor each, D H.
            2 * C * C * N + R * C * N + (6 + 7) * (R * C * N + R * R * (C + N)) + R * C * N,
        ),
    ],
)
def test_costs_are_those_counted_by_hand(benchmark, name: str, parameters: int, macs: int) -> None:
    assert benchmark.costs(name, channels=C, size=128) == (parameters, macs)


def test_costs_are_those_of_the_documentation(benchmark) -> None:
    table = {name: benchmark.costs(name, channels=512, size=128) for name in benchmark.LAYERS}
    assert [f"{parameters / 1e6:.3f}M / {macs / 1e9:.2f}G" for parameters, macs in table.values()] == [
        "0.559M / 9.66G",
        "0.591M / 9.66G",
        "1.049M / 292.06G",
        "1.049M / 292.06G",
        "1.049M / 25.77G",
        "0.525M / 17.54G",
    ]


def test_tables(benchmark, capsys) -> None:
    layers = ["EA block, tied", "non-local self-attention"]
    seconds = {(layers[0], "forward"): 0.5, (layers[0], "forward + backward"): 2.0, (layers[1], "forward"): 6.0}
    memory = {key: 2**20 * (1 + value) for key, value in seconds.items()}
    benchmark.print_costs(layers, seconds, memory, channels=512, size=128)
    benchmark.print_ratios(layers, seconds, memory)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| EA block, tied | 0.559M | 9.66G | 500 ms | 2 s | 2 MiB | 3 MiB |"
    assert lines[3].endswith("| 292.06G | 6 s | skipped: memory | 7 MiB | - |")
    assert lines[-1] == "| non-local self-attention | 12.0 | - | 4.7 | - |"


def test_memory_of_the_maps_is_measured() -> None:
    task = {"measure": "memory", "name": "non-local self-attention", "channels": 8, "size": 64, "training": True}
    # From a small process: the system hands the peak of the parent down to its child.
    code = f"from benchmarking import run; print(run({str(SCRIPT)!r}, {task}))"
    grown = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert 3 * 2**26 < int(grown) < 3.5 * 2**26  # three maps of 64 MiB, and little beside them


def test_time_is_measured(benchmark) -> None:
    task = {"name": "Hamburger (NMF)", "channels": 8, "size": 16, "training": True, "steps": 2, "measure": "seconds"}
    assert 0 < benchmark.run(str(SCRIPT), task) < 1
