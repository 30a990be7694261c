import numpy as np
import pytest
import torch
from scipy.special import softmax

from training import calibration
from training.familiarity import Familiarity


def overconfident(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from honest logits, and those logits three times too large."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, (n, 1)) * np.array([[-0.5, 0.5]])
    labels = (random.random(n) < softmax(honest, axis=1)[:, 1]).astype(int)
    return honest * 3, labels


def test_the_temperature_undoes_overconfidence() -> None:
    logits, labels = overconfident()
    temperature = calibration.fit_temperature(logits, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    assert calibration.log_loss(logits, labels, temperature) < calibration.log_loss(logits, labels)


def test_without_a_mistake_the_temperature_stays_finite() -> None:
    logits = np.array([[5.0, -5.0], [-5.0, 5.0]] * 20)
    assert 0.05 <= calibration.fit_temperature(logits, np.array([0, 1] * 20)) <= 20


@pytest.mark.parametrize("error", [0.01, 0.03, 0.1])
def test_what_is_answered_keeps_the_promised_error(error: float) -> None:
    logits, labels = overconfident()
    probabilities = softmax(logits / 3, axis=1)
    threshold = calibration.close_call(probabilities, labels, error)
    wrong = (probabilities.max(1) >= threshold) & (probabilities.argmax(1) != labels)
    n = len(labels)
    assert (wrong.sum() + 1) / (n + 1) <= error
    # And it is the smallest such threshold: one more mistake answered would break the bound.
    assert (wrong.sum() + 2) / (n + 1) > error


def test_the_promise_holds_on_average_for_new_pictures() -> None:
    logits, labels = overconfident(40_000)
    probabilities = softmax(logits / 3, axis=1)
    risks = []
    for start in range(0, 40_000, 2000):
        fitted, fresh = slice(start, start + 1000), slice(start + 1000, start + 2000)
        threshold = calibration.close_call(probabilities[fitted], labels[fitted], 0.02)
        answered = probabilities[fresh].max(1) >= threshold
        risks.append((answered & (probabilities[fresh].argmax(1) != labels[fresh])).mean())
    assert np.mean(risks) <= 0.02 + 2 * np.std(risks) / np.sqrt(len(risks))


def test_a_model_that_is_always_right_always_answers() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]] * 500)
    assert calibration.close_call(probabilities, np.array([0, 1] * 500), 0.003) == 0.5


def test_too_few_pictures_to_promise_anything() -> None:
    assert calibration.close_call(np.array([[0.9, 0.1]] * 10), np.zeros(10, int), 0.003) == 1.0


def test_familiarity_is_high_for_more_of_the_same_and_low_for_something_else() -> None:
    random = torch.Generator().manual_seed(0)
    # Training varies along 5 of 40 directions, and a little along all of them.
    basis = torch.linalg.qr(torch.randn(40, 40, generator=random))[0]

    def along(directions: torch.Tensor, n: int) -> torch.Tensor:
        noise = 0.1 * torch.randn(n, 40, generator=random)
        return torch.ones(40) + torch.randn(n, 5, generator=random) @ directions + noise

    familiarity = Familiarity(along(basis[:5], 500), along(basis[:5], 1000), dimensions=5)
    known, strange = familiarity(along(basis[:5], 1000)), familiarity(along(basis[5:10], 1000))
    assert float(known.median()) == pytest.approx(0.9, abs=0.03)
    assert 0.002 < float((known < 0.5).float().mean()) < 0.03
    assert float((strange < 0.5).float().mean()) > 0.97
    assert float(torch.cat([known, strange]).min()) >= 0
    assert float(torch.cat([known, strange]).max()) <= 1


def test_familiarity_with_fewer_pictures_than_features() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 100, generator=random)
    familiarity = Familiarity(rows, torch.randn(10, 100, generator=random), dimensions=64)
    assert torch.isfinite(familiarity(rows)).all()
