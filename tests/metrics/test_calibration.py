import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from pcea.metrics import Calibration
from pcea.metrics.temperature import fit_temperature


def drawn(temperature: float, L: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn with the probabilities that they give at a temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(L, 5, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_draw_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_batches_count_together_and_probabilities_become_frequencies() -> None:
    logits, labels = drawn(2.5)
    calibration = Calibration()
    for some in (slice(0, 5000), slice(5000, None)):
        calibration.update(logits[some], labels[some])
    trust = calibration.compute()
    before, after = (
        multiclass_calibration_error((logits / t).softmax(1), labels, num_classes=5) for t in (1, trust.temperature)
    )
    assert after < 0.02 < before
    scores = (logits / trust.temperature).logsumexp(1)
    assert (scores > trust.known_above).float().mean() == pytest.approx(0.95, abs=0.002)
    calibration.reset()
    calibration.update(*drawn(1.0))
    assert calibration.compute().temperature == pytest.approx(1.0, rel=0.05)
