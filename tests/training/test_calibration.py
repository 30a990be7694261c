import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import expit

from training import calibration
from training.familiarity import Learned, Lesser, Residual
from training.packaging import log_loss

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def overconfident(n: int = 4000) -> tuple[Floats, Ints]:
    """Log-odds three times too large, and labels drawn from the honest ones."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, n)
    return honest * 3, (random.random(n) < expit(honest)).astype(np.int64)


def judged(odds: Floats, labels: Ints) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Confidence of each answer, and whether it is wrong."""
    return expit(np.abs(odds)), (odds > 0) != (labels == 1)


def test_the_temperature_undoes_overconfidence() -> None:
    odds, labels = overconfident()
    temperature = calibration.fit_temperature(odds, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    assert log_loss(odds / temperature, labels) < log_loss(odds, labels)


@pytest.mark.parametrize("n", [6, 36, 300])
def test_without_a_mistake_nobody_gets_surer_than_so_many_photos_can_show(n: int) -> None:
    labels = np.arange(n) % 2
    odds = np.where(labels == 1, 5.0, -5.0)
    surest = float(expit(5 / calibration.fit_temperature(odds, labels)))
    assert surest == pytest.approx(1 - 1 / (n + 2), abs=1e-3)


def test_a_photo_s_own_label_does_not_decide_its_temperature() -> None:
    odds, labels = overconfident(100)
    flipped = labels.copy()
    flipped[7] = 1 - flipped[7]
    one, other = (calibration.cross_fitted(odds, given) for given in (labels, flipped))
    assert one[7] == other[7]
    assert one[8] != other[8]


@pytest.mark.parametrize("error", [0.01, 0.03, 0.1])
def test_what_is_answered_keeps_the_promised_error(error: float) -> None:
    odds, labels = overconfident()
    confidence, wrong = judged(odds / 3, labels)
    threshold, bound = calibration.close_call(confidence, wrong, error)
    answered_wrong = int((wrong & (confidence >= threshold)).sum())
    n = len(labels)
    assert bound == error
    assert (answered_wrong + 1) / (n + 1) <= error
    # And it is the smallest such threshold: one more mistake answered would break the bound.
    assert (answered_wrong + 2) / (n + 1) > error


def test_the_promise_holds_on_average_for_new_pictures() -> None:
    odds, labels = overconfident(40_000)
    confidence, wrong = judged(odds / 3, labels)
    risks = []
    for start in range(0, 40_000, 2000):
        fitted, fresh = slice(start, start + 1000), slice(start + 1000, start + 2000)
        threshold, _ = calibration.close_call(confidence[fitted], wrong[fitted], 0.02)
        risks.append((wrong[fresh] & (confidence[fresh] >= threshold)).mean())
    assert np.mean(risks) <= 0.02 + 2 * np.std(risks) / np.sqrt(len(risks))


def test_a_model_that_is_always_right_always_answers() -> None:
    assert calibration.close_call(np.full(1000, 0.9), np.zeros(1000, bool), 0.003) == (0.5, 0.003)


def test_few_pictures_promise_no_more_than_they_can_show() -> None:
    confidence = np.linspace(0.6, 0.9, 10)
    threshold, bound = calibration.close_call(confidence, np.arange(10) == 4, 0.003)
    assert bound == pytest.approx(1 / 11)
    assert confidence[4] < threshold < confidence[5]  # it still answers what it is surer of than of its mistake
    assert calibration.photos_needed(0.003) == 333
    assert 1 / (calibration.photos_needed(0.003) + 1) <= 0.003


def test_a_surer_threshold_keeps_the_error_of_every_column() -> None:
    confidence = np.tile(np.linspace(0.5, 1.0, 101)[:100, np.newaxis], (1, 2))
    wrong = np.zeros((100, 2), bool)
    wrong[[10, 20, 30, 90], 1] = True  # 0.55, 0.6, 0.65 and 0.95
    assert calibration.surer(confidence, wrong, (0.5, 1.0), 0.05) == pytest.approx((0.5, 0.04))
    threshold, worst = calibration.surer(confidence, wrong, (0.5, 1.0), 0.025)
    assert confidence[30, 1] < threshold < confidence[31, 1]
    assert worst == pytest.approx(1 / 69)
    assert calibration.surer(confidence, wrong, (0.5, 0.62), 0.025) == pytest.approx((0.62, 2 / 76))
    assert calibration.surer(confidence, wrong, (0.7, 1.0), 0.0)[0] == 0.7  # one is always allowed


def test_what_is_not_answered_anyhow_counts_for_no_column() -> None:
    confidence, wrong = np.zeros((50, 3)), np.ones((50, 3), bool)
    assert calibration.surer(confidence, wrong, (0.6, 0.9), 0.01) == (0.6, 0.0)


def test_familiarity_is_high_for_more_of_the_same_and_low_for_something_else() -> None:
    random = torch.Generator().manual_seed(0)
    # Training varies along 5 of 40 directions, and a little along all of them.
    basis = torch.linalg.qr(torch.randn(40, 40, generator=random))[0]

    def along(directions: torch.Tensor, n: int) -> torch.Tensor:
        noise = 0.1 * torch.randn(n, 40, generator=random)
        return torch.ones(40) + torch.randn(n, 5, generator=random) @ directions + noise

    familiarity = Residual(along(basis[:5], 500), along(basis[:5], 1000), dimensions=5)
    known, strange = (familiarity(along(part, 1000)).sigmoid() for part in (basis[:5], basis[5:10]))
    assert float(known.median()) == pytest.approx(0.9, abs=0.03)
    assert 0.002 < float((known < 0.5).float().mean()) < 0.03
    assert float((strange < 0.5).float().mean()) > 0.97


def test_familiarity_with_fewer_pictures_than_features() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 100, generator=random)
    familiarity = Residual(rows, torch.randn(10, 100, generator=random), dimensions=64)
    assert torch.isfinite(familiarity(rows)).all()


def test_familiarity_learns_from_photos_of_other_things_where_there_are_some() -> None:
    random = torch.Generator().manual_seed(0)
    pets, others = (torch.randn(200, 30, generator=random) + shift for shift in (0.0, 1.0))
    found = Learned(pets[:100], others[:100])(torch.cat([pets[100:], others[100:]])).sigmoid()
    assert float((found[:100] > 0.5).float().mean()) > 0.95
    assert float((found[100:] < 0.5).float().mean()) > 0.95


def test_what_either_measure_finds_strange_is_strange() -> None:
    pooled = torch.tensor([[1.0, 5.0], [4.0, 2.0]])

    class Column(torch.nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows[:, self.index]

    assert Lesser(Column(0), Column(1))(pooled).tolist() == [1.0, 2.0]
