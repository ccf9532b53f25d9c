"""Networks are loaded and used in several threads at once, and left as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import trained_on_parts
from torch import Tensor, nn

import pcea
from pcea.inference.explanation import explain
from pcea.inference.points import PointPredictor
from pcea.io.points import Points


@pytest.fixture(scope="module")
def network() -> PointPredictor:
    return pcea.load("modelnet40_eat_cpu")


def clouds(count: int) -> list[Tensor]:
    return [torch.rand(600, 3, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def test_each_thread_gets_the_feature_of_its_own_cloud(network: PointPredictor) -> None:
    expected = [network.embed(cloud) for cloud in clouds(4)]
    with ThreadPoolExecutor(4) as pool:
        for found, feature in zip(pool.map(network.embed, clouds(4)), expected):
            torch.testing.assert_close(found, feature, rtol=1e-3, atol=1e-3)


def test_others_may_be_built_while_a_network_is_loaded() -> None:
    """What counts the parameters of a file's network is a hook of the whole process."""
    done = False

    def build() -> int:
        count = 0
        while not done:
            count += len(nn.Sequential(*[nn.Linear(1, 1) for _ in range(200)]))
        return count

    with ThreadPoolExecutor(4) as pool:
        foreign = pool.submit(build)
        try:
            loaded = list(pool.map(pcea.load, ["modelnet40_eat_cpu"] * 6))
        finally:
            done = True
        assert foreign.result() > 0
    assert {network.digest() for network in loaded} == {loaded[0].digest()}


def test_loading_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    pcea.load("modelnet40_eat_cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_in_training_is_used_in_evaluation_mode(network: PointPredictor) -> None:
    cloud = clouds(1)[0]
    expected, state = network.predict(cloud, up="y"), network.digest()
    network.network.train()
    network.network.head[1].eval()
    modes = [module.training for module in network.network.modules()]
    try:
        assert network.predict(cloud, up="y") == expected
        network.embed(cloud)
        network.subject(cloud)
        assert [module.training for module in network.network.modules()] == modes
        assert network.digest() == state
    finally:
        network.network.eval()


def test_results_can_be_trained_on_and_changed(network: PointPredictor) -> None:
    cloud = clouds(1)[0]
    probe = nn.Linear(len(network.embed(cloud)), 2)
    probe(network.embed(cloud)).sum().backward()
    assert probe.weight.grad is not None
    labels = trained_on_parts().predict(cloud, category="bar", up="y").part_label
    labels[0] = 1
    assert labels[0] == 1


def test_another_default_type_changes_nothing(network: PointPredictor) -> None:
    cloud = clouds(1)[0]
    expected = network.predict(cloud, up="z")
    torch.set_default_dtype(torch.float64)
    try:
        assert network.predict(cloud, up="z").class_names == expected.class_names
        other = pcea.load("modelnet40_eat_cpu")
        assert other.predict(cloud, up="z").probabilities == pytest.approx(expected.probabilities, abs=1e-4)
        assert other.embed(cloud).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


class Cloud:
    """As Open3D's, whose points are in an attribute."""

    points = np.zeros((10, 3))


@pytest.mark.parametrize("source", [Cloud(), [Cloud()], [[0, 0, 0], [1, 1]], (i for i in range(3))])
def test_what_is_no_array_is_named(network: PointPredictor, source: object) -> None:
    with pytest.raises(
        TypeError, match=r"file or an array of points \(N, 3\) is needed, got .*np.asarray\(cloud.points"
    ):
        network.predict(source)


@pytest.mark.parametrize(
    ("count", "num_regions", "message"),
    [
        (600, 1, "num_regions must be at least 2, got 1"),
        (260, 4, "Without one of 4 regions .* of 260 points are left, but the network needs at least 256"),
    ],
)
def test_too_little_is_left_to_explain(
    network: PointPredictor, count: int, num_regions: int, message: str, tmp_path: Path
) -> None:
    cloud = Points(clouds(1)[0][:count])
    with pytest.raises(ValueError, match=message):
        explain(network, cloud, cloud, network.pose(cloud), num_regions=num_regions)
