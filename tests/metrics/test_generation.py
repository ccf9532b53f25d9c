import pytest
import torch
from examples import COLOR_LABEL as LABEL
from examples import REAL_COLORS as REAL
from examples import MeanColor as Given
from examples import color_images as colors

from pcea.metrics.generation import ClassSpread, FeatureNetwork, GenerationMetrics


def measure(generated, real=REAL, label=LABEL):
    metrics = GenerationMetrics(3, FeatureNetwork(Given(), (0.0,) * 3, (1.0,) * 3))
    for i in range(0, len(label), 2):  # in several batches
        metrics.update(*(colors(rows[i : i + 2]) for rows in (real, generated)), label[i : i + 2])
    return {name: float(value) for name, value in metrics.compute().items()}


def test_copies_of_the_real_images_are_perfect():
    found = measure(REAL)
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["class_accuracy"] == found["real_class_accuracy"] == 1
    assert found["diversity"] == pytest.approx(1)
    assert found["classifier_score"] == found["real_classifier_score"]


def test_diversity_and_accuracy_by_hand():
    """Class a varies half as much as the real one, b not at all, and looks like c; c has a single image."""
    found = measure([[125, 0, 0], [175, 0, 0], [0, 0, 150], [0, 0, 150], [0, 0, 10]])
    assert found["diversity"] == pytest.approx((0.5**2 + 0) / 2)
    assert found["class_accuracy"] == pytest.approx(3 / 5)
    assert found["real_class_accuracy"] == 1


def test_the_distance_by_hand():
    """Only red varies: by 51 and 102 about means of 51 and 153, so that the distance is that of two normals."""
    real = [[0, 0, 0], [102, 0, 0]] * 2
    generated = [[51, 0, 0], [255, 0, 0]] * 2
    label = torch.tensor([0, 1, 0, 1])
    deviation = (4 / 3) ** 0.5  # of four numbers, of which torchmetrics takes the unbiased variance
    expected = (102 / 255) ** 2 + ((102 - 51) / 255 * deviation) ** 2
    assert measure(generated, real, label)["frechet_distance"] == pytest.approx(expected, abs=1e-5)


def test_the_score_by_hand():
    """Images of two classes with certainty: each of ten parts of two images holds two classes or one."""
    same, varied = [[250, 0, 0]] * 20, [[250, 0, 0], [0, 250, 0]] * 10
    found = measure(same, varied, torch.zeros(20, dtype=torch.int64))
    assert found["classifier_score"] == pytest.approx(1)
    # The score of a part is 2 or 1, their mean a multiple of a tenth.
    assert 1 < found["real_classifier_score"] < 2
    assert 10 * found["real_classifier_score"] == pytest.approx(round(10 * found["real_classifier_score"]), abs=1e-3)
    metrics = GenerationMetrics(3, FeatureNetwork(Given(), (0.0,) * 3, (1.0,) * 3))
    for seed in range(5):  # the parts are fixed, and drawing them leaves no trace
        metrics.reset()
        metrics.update(colors(varied), colors(same), torch.zeros(20, dtype=torch.int64))
        state = torch.manual_seed(seed).get_state()
        assert metrics.compute()["real_classifier_score"] == found["real_classifier_score"]
        assert torch.equal(torch.get_rng_state(), state)


def test_the_spread_of_classes():
    metric = ClassSpread(3, 2)
    features = torch.randn(9, 2) + 5
    label = torch.tensor([0, 1, 0, 0, 1, 2, 0, 1, 0])
    metric.update(features[:4], label[:4])
    metric.update(features[4:], label[4:])
    expected = [float(features[label == c].T.cov().trace()) for c in (0, 1)]
    assert metric.compute().tolist() == pytest.approx([*expected, float("nan")], nan_ok=True, rel=1e-5)


def test_the_classifier_sees_what_it_was_trained_on():
    """Bytes are normalized by its mean and std and scaled to its size."""
    seen = []

    class Sees(Given):
        def forward(self, images):
            seen.append(images)
            return super().forward(images)

    network = FeatureNetwork(Sees(), (0.2,) * 3, (0.4,) * 3, (8, 8))
    features, logits = network(colors([[51, 102, 153]]))
    torch.testing.assert_close(seen[0], torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    torch.testing.assert_close(features, torch.tensor([[0.0, 0.5, 1.0]]))
    torch.testing.assert_close(logits, 100 * features)
