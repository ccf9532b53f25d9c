"""Classifiers that judge together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pcea.inference.examples import feature_of
from pcea.inference.networks import load
from pcea.io.checkpoints import read_network
from pcea.io.description import NetworkDescription, StoredNetwork
from pcea.io.weights import save_weights
from pcea.models.build import actual_arguments
from pcea.models.capture import example_inputs
from pcea.models.ensemble import ClassifierEnsemble
from pcea.models.point_ea import point_ea_classifier
from pcea.models.point_transformer import eat_classifier

SIZES: dict[str, Any] = {
    "num_classes": 3, "widths": [4, 6, 8], "num_centers": [12, 6, 3], "num_neighbors": 3, "memory_units": 3
}  # fmt: skip


@pytest.fixture
def members() -> list[nn.Module]:
    torch.manual_seed(0)
    return [point_ea_classifier(**SIZES) for _ in range(3)]


def test_mean_probabilities_and_in_training_the_logits_of_each(members: list[nn.Module]) -> None:
    points, mask = torch.randn(2, 20, 3), torch.arange(20) < torch.tensor([[20], [15]])
    network = ClassifierEnsemble(members).eval()
    expected = torch.stack([member(points, mask=mask).softmax(1) for member in members]).mean(0)
    logits = network(points, mask=mask)
    torch.testing.assert_close(logits.softmax(1), expected)
    energy = torch.stack([member(points, mask=mask).logsumexp(1) for member in members]).mean(0)
    torch.testing.assert_close(logits.logsumexp(1), energy)
    assert network.train()(points, mask=mask).shape == (2, 3, 3)
    network.encoder.eval()
    assert not any(member.encoder.training for member in members)


def test_members_must_have_the_same_classes() -> None:
    with pytest.raises(ValueError, match=r"all of the same classes; they have \[3, 4\]"):
        ClassifierEnsemble([point_ea_classifier(3), point_ea_classifier(4)])
    with pytest.raises(ValueError, match=r"at least one classifier.*\[\]"):
        ClassifierEnsemble([])


def test_ensembles_of_ensembles_are_flat(members: list[nn.Module]) -> None:
    network = ClassifierEnsemble([ClassifierEnsemble(members[:2]), members[2]])
    assert [*network.members] == members


def test_centers_of_members_are_shared_where_they_are_the_same(members: list[nn.Module]) -> None:
    points = torch.randn(2, 30, 3)
    centers, winner = ClassifierEnsemble(members).eval().pooled_centers(points)
    assert torch.equal(centers[:, :3], members[0].pooled_centers(points).centers)
    assert torch.equal(winner, torch.cat([member.pooled_centers(points).winner for member in members], 1))
    more = point_ea_classifier(**{**SIZES, "num_centers": [12, 6, 5]})  # those 3, and 2 more
    centers, winner = ClassifierEnsemble([members[0], more.eval()]).eval().pooled_centers(points)
    assert winner.max() < 3 + 5
    assert not {*winner.unique().tolist()} & {3, 4, 5}
    other = eat_classifier(3, dim=8, num_centers=(10, 5), num_neighbors=4, out_channels=7, widths=(6, 6)).eval()
    centers, winner = ClassifierEnsemble([members[0], other]).eval().pooled_centers(points)
    assert centers.shape == (2, 3 + 5, 3)
    mine = other.pooled_centers(points)
    last = winner[:, -7:, None].expand(-1, -1, 3)
    assert torch.equal(centers.gather(1, last), mine.centers.gather(1, mine.winner[..., None].expand(-1, -1, 3)))


def test_the_feature_is_that_of_all_members(members: list[nn.Module]) -> None:
    points = torch.randn(2, 20, 3)
    feature = feature_of(ClassifierEnsemble(members).eval(), points)
    assert torch.equal(feature, torch.cat([feature_of(member, points) for member in members], 1))


def test_inputs_of_its_graph_have_the_points_that_all_members_need(members: list[nn.Module]) -> None:
    other = eat_classifier(3, dim=8, num_centers=(40, 20), num_neighbors=4, out_channels=7, widths=(6, 6))
    for both in ([members[0], other], [other, members[0]]):
        assert example_inputs(ClassifierEnsemble(both))["points"].shape == (2, 41, 3)


def test_inputs_of_its_graph_are_those_of_a_member(members: list[nn.Module]) -> None:
    shapes = [
        {name: value.shape for name, value in example_inputs(n).items()}
        for n in (ClassifierEnsemble(members), members[0])
    ]
    assert shapes[0] == shapes[1]


def test_members_start_from_weights(tmp_path: Path, members: list[nn.Module]) -> None:
    """The description of the ensemble holds the sizes that the members' files have, and its file is read alone."""
    files = []
    for number, member in enumerate(members):
        files.append(tmp_path / f"{number}.safetensors")
        description = NetworkDescription("points", "pcea.models.point_ea_classifier", SIZES, ("a", "b", "c"))
        save_weights(files[-1], StoredNetwork(description, member.state_dict()))
    written = {
        "members": [
            {"class_path": "pcea.models.point_ea_classifier", "init_args": {"weights": str(file), "dropout": 0.1}}
            for file in files
        ]
    }
    network = ClassifierEnsemble([point_ea_classifier(weights=file) for file in files]).eval()
    arguments = actual_arguments("pcea.models.ClassifierEnsemble", written, network)
    assert [member["init_args"] for member in arguments["members"]] == [{**SIZES, "dropout": 0.1}] * 3
    together = tmp_path / "together.safetensors"
    description = NetworkDescription("points", "pcea.models.ClassifierEnsemble", arguments, ("a", "b", "c"))
    save_weights(together, StoredNetwork(description, network.state_dict()))
    for file in files:
        file.unlink()
    points = torch.randn(2, 20, 3)
    assert read_network(together).description.arguments == arguments
    loaded = load(together).network
    torch.testing.assert_close(loaded(points), network(points), atol=1e-3, rtol=1e-3)
