"""A batch that several threads evaluate in shares gives what it gives whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pcea
from pcea.models import point_ea_classifier
from pcea.models.point_ea import PointEAClassifier
from pcea.nn.shares import in_shares

CLOUDS = 17


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2, "the number of threads was not restored"
    torch.set_num_threads(before)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of clouds in every share that the classifier is given."""
    sizes: list[int] = []
    classify = PointEAClassifier._classify

    def counted(self, points, *rest):
        sizes.append(len(points))
        return classify(self, points, *rest)

    monkeypatch.setattr(PointEAClassifier, "_classify", counted)
    return sizes


def small_classifier(**options) -> PointEAClassifier:
    return point_ea_classifier(
        5, widths=[8, 8], num_centers=[32, 8], depths=[1, 1], num_neighbors=4, memory_units=4, **options
    ).eval()


NETWORKS = {
    "PointEA": small_classifier,
    "EAT": lambda: pcea.eat_classifier(5, dim=16, num_centers=[32, 16], num_neighbors=4, out_channels=16),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_classifier_gives_what_it_gives_whole(name: str, masked: bool) -> None:
    network = NETWORKS[name]().eval()
    points = torch.randn(CLOUDS, 64, 3)
    options = {"mask": torch.arange(64) < torch.randint(40, 65, (CLOUDS, 1))} if masked else {}
    with torch.no_grad():
        shared = network(points, **options)
    whole = network(points, **options)  # with gradients nothing is shared
    assert whole.requires_grad
    torch.testing.assert_close(shared, whole.detach(), rtol=1e-4, atol=1e-5)


def test_clouds_are_shared_among_the_threads(sizes: list[int]) -> None:
    network, points = small_classifier(), torch.randn(CLOUDS, 64, 3)
    with torch.no_grad():
        logits = network(points)
    assert sorted(sizes) == [8, 9]
    assert not logits.requires_grad
    assert not logits.is_inference()
    with torch.inference_mode():
        assert network(points).is_inference()
    sizes.clear()
    with torch.no_grad():
        network(points[:15])
        for threads in (1, 3):  # too few threads, and too many for so few clouds
            torch.set_num_threads(threads)
            network(points)
    torch.set_num_threads(2)
    assert sizes == [15, CLOUDS, CLOUDS]


def test_a_recording_of_one_layer_is_of_all_clouds() -> None:
    """The other shares run in threads of their own, which a recording does not follow."""
    network, points = small_classifier(), torch.randn(CLOUDS, 64, 3)
    layer = next(module for module in network.modules() if isinstance(module, pcea.ExternalAttention))
    with pcea.record_attention(layer) as maps, torch.no_grad():
        network(points)
    with pcea.record_attention(network) as expected, torch.no_grad():
        network(points)
    assert len(maps[""].weights) == CLOUDS
    torch.testing.assert_close(maps[""].weights, next(iter(expected.values())).weights, rtol=1e-4, atol=1e-5)


def test_autocast_holds_in_every_share() -> None:
    seen = []

    def function(points):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.get_num_threads()))
        return points

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        in_shares(nn.Identity().eval(), function, torch.randn(CLOUDS, 3))
    assert seen == [(True, torch.bfloat16, 1)] * 2


class Foreign(nn.Module):
    """May do anything with a batch."""

    def __init__(self, dim: int):  # noqa: ARG002
        super().__init__()

    def forward(self, tokens, *, mask=None):  # noqa: ARG002
        return tokens - tokens.mean(0)


def test_what_may_see_other_clouds_or_threads_gets_the_whole_batch(sizes: list[int]) -> None:
    points = torch.randn(CLOUDS, 64, 3)
    plain, foreign = small_classifier(), small_classifier(attention=Foreign)
    training, hooked = small_classifier(), small_classifier()
    training.dropout.train()
    hooked.last.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        for network in (foreign, training, hooked):
            network(points)
        with pcea.record_attention(plain) as maps:
            plain(points)
        assert all(len(layer.weights) == CLOUDS for layer in maps.values())
        with FlopCounterMode(display=False) as counter:
            plain(points)
        with torch.profiler.profile():
            plain(points)
        with torch.device("cpu"):
            plain(points)
    assert sizes == [CLOUDS] * 7
    torch.set_num_threads(1)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        plain(points)
    torch.set_num_threads(2)
    assert counter.get_total_flops() == whole.get_total_flops() > 0


def refuse_nan(points):
    if points.isnan().any():
        raise ValueError(f"a bad one among {len(points)}")
    return points


def test_errors_are_those_of_the_whole_batch() -> None:
    network, points = small_classifier(), torch.randn(CLOUDS, 64, 3)
    with torch.no_grad():
        with pytest.raises(ValueError, match=rf"\({CLOUDS}, 64, 2\)"):
            network(points[..., :2])
        with pytest.raises(ValueError, match="channels"):
            network(points, torch.randn(CLOUDS, 64, 3))
        points[-1] = torch.nan  # in the share of another thread
        with pytest.raises(ValueError, match=f"a bad one among {CLOUDS}"):
            in_shares(network, refuse_nan, points)


def test_interruption_restores_the_threads() -> None:
    def function(points):
        if len(points) == 8:
            raise KeyboardInterrupt
        return points

    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        in_shares(nn.Identity().eval(), function, torch.randn(CLOUDS, 3))


def test_a_norm_of_the_whole_batch_gets_the_whole_batch(sizes: list[int]) -> None:
    network = small_classifier()
    network.encoder.stages[0].blocks[0].pool1.norm = nn.BatchNorm1d(8, track_running_stats=False).eval()
    with torch.no_grad():
        network(torch.randn(CLOUDS, 64, 3))
    assert sizes == [CLOUDS]
