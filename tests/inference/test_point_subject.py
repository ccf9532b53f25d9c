"""What a network makes of a file, with the part network of test_part_prediction and an untrained classifier."""

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from examples import NUM_POINTS, PARTS, true_parts
from examples import POINT_SIZES as SIZES
from examples import trained_on_parts as trained

from pcea import eat_classifier
from pcea.inference.networks import load
from pcea.inference.point_subject import PartSubject, PointSubject
from pcea.inference.points import PointPredictor
from pcea.inference.pose import up_rotation
from pcea.io.description import NetworkDescription
from pcea.io.points import Normalization, Points, normalize_points, orient
from pcea.models.point_transformer import PointTransformerClassifier, PointTransformerEncoder
from pcea.nn.attention import ExternalAttention, OffsetAttention
from pcea.nn.recording import record_attention
from pcea.visualization import palette
from pcea.visualization.subject import shared_views

FILE = "folder/shape.off"


def predictor(network: torch.nn.Module, names: tuple[str, ...], num_points: int) -> PointPredictor:
    return PointPredictor(network, NetworkDescription("points", "own.network", {}, names, num_points))


def classifier(num_points: int = 40, **sizes) -> PointPredictor:
    torch.manual_seed(0)
    network = eat_classifier(3, **{**SIZES, **sizes}).eval()
    return predictor(network, ("cup", "lamp", "table"), num_points)


def cloud(N: int = 100) -> Points:
    return Points(torch.rand(N, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 4.0, 2.0]) + 7)


def test_the_network_sees_a_subset_upright_and_normalized() -> None:
    trained, points = classifier(), cloud()
    subject = PointSubject(FILE, points, trained, up="z", seed=3)
    chosen = torch.randperm(100, generator=torch.Generator().manual_seed(3))[:40]
    turned = orient(points.points, "z")
    upright = Normalization.of(turned[chosen]).apply(turned)
    assert subject.points.equal(upright)  # in the file's order
    with record_attention(trained.network) as maps, torch.inference_mode():
        logits = trained.network(upright[chosen][None])
    assert list(subject.layers) == [f"encoder.blocks.{i}.attention" for i in range(4)]
    assert all(subject.layers[name].weights.equal(maps[name].weights) for name in maps)
    best = int(logits.argmax())
    assert subject.name == f"shape: {trained.class_names[best]} {100 * float(logits.softmax(1)[0, best]):.0f} %"


def test_points_keep_their_numbers_where_some_are_not_drawn() -> None:
    points, kept = cloud(), torch.arange(100) % 5 > 0
    subject = PointSubject(FILE, points, classifier(), kept=kept)
    assert len(subject.points) == 80
    assert subject.numbers.tolist() == [n for n in range(100) if n % 5]
    assert subject.find_query("99") == 79
    assert subject.find_query(",".join(map(str, points.points[7].tolist()))) == 5
    with pytest.raises(ValueError, match="query: point 10 is not drawn, as it is no part of the shape"):
        subject.find_query("10")
    with pytest.raises(ValueError, match=r"the number of a point, 0\.\.99"):
        subject.find_query("100")


def test_the_class_is_that_of_predict() -> None:
    trained = classifier()
    for N in (30, 100, 3000):
        points = torch.rand(N, 3, generator=torch.Generator().manual_seed(N)) * torch.tensor([1.0, 4.0, 2.0])
        subject, predicted = trained.subject(points, up="z", seed=5), trained.predict(points, up="z", seed=5)
        assert subject.name == f"The array: {predicted.title}"
    points = np.random.default_rng(0).random((3000, 3))
    assert load().subject(points).name == f"The array: {load().predict(points).title}"


def test_a_stray_point_that_the_network_does_not_see_changes_nothing() -> None:
    points, chosen = cloud(), torch.randperm(100, generator=torch.Generator().manual_seed(0))
    before = PointSubject(FILE, points, classifier())
    points.points[chosen[40]] = 1e4
    subject = PointSubject(FILE, points, classifier())
    assert subject.name == before.name
    assert all(subject.layers[name].weights.equal(layer.weights) for name, layer in before.layers.items())
    torch.testing.assert_close(subject.frame, before.frame)


@pytest.mark.parametrize(("points_per_pass", "shown"), [(None, 40), (60, 60), (0, 100), (1000, 100)])
def test_how_many_points_the_network_sees(points_per_pass: int | None, shown: int) -> None:
    trained = classifier(num_centers=())
    subject = PointSubject(FILE, cloud(), trained, points_per_pass=points_per_pass)
    assert all(layer.weights.shape == (1, shown, 8) for layer in subject.layers.values())


def test_attention_is_exact_where_the_network_saw_the_point() -> None:
    subject = PointSubject(FILE, cloud(), classifier(num_centers=()), points_per_pass=0)
    for layer, attention in enumerate(subject.layers.values()):
        torch.testing.assert_close(subject.weights(layer), attention.weights[0])


def test_a_classifiers_prediction() -> None:
    trained = classifier()
    view = PointSubject(FILE, cloud(), trained).view("prediction", layer=0)
    assert [name.split()[0] for name, _ in view.legend] == sorted(
        trained.class_names, key=lambda name: -float(next(n.split()[1] for n, _ in view.legend if n.startswith(name)))
    )
    assert sum(float(name.split()[1]) for name, _ in view.legend) == pytest.approx(100, abs=0.2)
    assert view.colors.unique(dim=0).tolist() == palette(1).tolist()


def test_critical_points_are_those_that_win_the_maximum() -> None:
    """Each of the 32 pooled channels is decided by one centre; by hand from the encoder's own outputs."""
    trained, points = classifier(num_points=0, num_centers=()), cloud()
    subject = PointSubject(FILE, points, trained)
    view = subject.view("critical", layer=0)
    encoder = trained.network.encoder
    with torch.inference_mode():
        outputs, _, _ = encoder(subject.points[None])
        fused = encoder.fuse(torch.cat(outputs, dim=-1))[0]
    expected = [0] * 100
    for channel in range(32):
        expected[max(range(100), key=lambda i: float(fused[i, channel]))] += 1
    assert view.values.tolist() == expected
    assert view.values.sum() == 32


def test_parts_and_their_confidence() -> None:
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    subject = PartSubject("tower.npy", Points(points), trained(), category="tower")
    assert subject.modes == ("colors", "slots", "slot", "query", "critical", "prediction", "parts")
    view = subject.view("parts", layer=0)
    assert [name for name, _ in view.legend] == ["foot", "head"]
    truth = true_parts(normalize_points(points), "tower")
    assert (view.values == truth).float().mean() > 0.9
    foot, head = palette(2)
    assert torch.equal(view.colors[view.values == PARTS["tower"][0]].unique(dim=0), foot[None])
    assert torch.equal(view.colors[view.values == PARTS["tower"][1]].unique(dim=0), head[None])
    sure = subject.view("prediction", layer=0)
    assert sure.color_bar.label == "probability of the part"
    assert 0.5 <= float(sure.values.min()) <= float(sure.values.max()) <= 1
    # Points near the border between foot and head are the least sure.
    border = normalize_points(points)[:, 1].abs() < 0.1
    assert sure.values[border].mean() < sure.values[~border].mean()
    assert len(subject.layers["encoder.blocks.0.attention"].points[0]) == NUM_POINTS


def test_parts_and_attention_are_of_the_same_pose(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found once, by the whole cloud: other points might give another one."""
    network, asked = trained(), []

    def rotation(cloud: Points, *, up: str) -> torch.Tensor:
        asked.append((len(cloud.points), up))
        return up_rotation("y" if len(asked) == 1 else "-y")

    monkeypatch.setattr(network, "rotation", rotation)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    subject = PartSubject("tower.npy", Points(points), network, category="tower", up="auto")
    found = subject.view("parts", layer=0).values
    assert asked == [(200, "auto")]
    assert (found == true_parts(normalize_points(points), "tower")).float().mean() > 0.9
    torch.testing.assert_close(subject.points, normalize_points(points))


def test_self_attention_has_no_slots() -> None:
    encoder = PointTransformerEncoder(OffsetAttention, dim=16, num_centers=(), input_layers=0, out_channels=32)
    network = PointTransformerClassifier(encoder, num_classes=3, widths=(16, 8)).eval()
    subject = PointSubject(FILE, cloud(), predictor(network, ("a", "b", "c"), 40))
    assert subject.modes == ("colors", "query", "critical", "prediction")
    assert subject.view("query", layer=1, query=3).color_bar.label.startswith("weight of the query")
    with pytest.raises(ValueError, match="has the modes colors, query, critical, prediction, not 'slots'"):
        subject.view("slots", layer=0)


def test_several_files_share_their_colours() -> None:
    trained = classifier()
    subjects = [PointSubject(FILE, Points(cloud(N).points + N), trained) for N in (90, 100)]
    first, second = (dict(view.legend) for view in shared_views(subjects, "slots", layer=3))
    assert {name: first[name] for name in first.keys() & second.keys()} == {n: second[n] for n in first.keys() & second}


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (10, {}, r"folder/shape.off: The network needs at least 16 points per cloud, got N=10"),
        (100, {"points_per_pass": -1}, "points_per_pass must be at least 1, or 0 for all points, got -1"),
    ],
)
def test_errors(points: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointSubject(FILE, cloud(points), classifier(), **options)


def test_a_layer_that_is_not_there_is_named_in_every_mode() -> None:
    subject = PointSubject(FILE, cloud(), classifier())
    for mode in subject.modes:
        with pytest.raises(ValueError, match=r"layer must be one of 0 \(encoder.blocks.0.attention\), .*, got 4"):
            subject.view(mode, layer=4)


class Plain(torch.nn.Linear):
    """A layer that is not attention."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, tokens: torch.Tensor, **_: object) -> torch.Tensor:
        return super().forward(tokens)


class Own(torch.nn.Module):
    """A network that does not say where its tokens are."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.attention = ExternalAttention(3, memory_units=8)

    def forward(self, points: torch.Tensor, *_: object) -> torch.Tensor:
        return self.attention(points).amax(1)


def test_tokens_without_positions_are_the_points_that_were_shown() -> None:
    subject = PointSubject(FILE, cloud(), predictor(Own(), ("a", "b", "c"), 40), seed=3)
    chosen = torch.randperm(100, generator=torch.Generator().manual_seed(3))[:40]
    assert subject.modes == ("colors", "slots", "slot", "query", "prediction")
    torch.testing.assert_close(subject.weights(0)[chosen], subject.attention(0).weights[0])


def test_a_network_without_attention() -> None:
    encoder = PointTransformerEncoder(Plain, dim=16, num_centers=(), input_layers=0)
    network = PointTransformerClassifier(encoder, num_classes=3).eval()
    with pytest.raises(ValueError, match="contains no attention layer"):
        PointSubject(FILE, cloud(), predictor(network, ("a", "b", "c"), 40))


def test_predictors_and_subjects_can_be_copied_and_sent_to_other_processes() -> None:
    network = classifier()
    subject = PointSubject(FILE, cloud(), network)
    for copy in (deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        assert copy(network).predict(cloud().points, up="y").title == network.predict(cloud().points, up="y").title
        assert copy(subject).view("colors", layer=0).colors.equal(subject.view("colors", layer=0).colors)
