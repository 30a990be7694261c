import numpy as np
import pytest

from shared.metrics import BINS, calibration_error, confusion_counts, log_losses, reliability_bins


def test_the_loss_of_an_impossible_answer_is_finite() -> None:
    losses = log_losses(np.array([[1.0, 0.0], [0.25, 0.75]]), np.array([1, 1]))
    assert np.isfinite(losses).all()
    assert losses[1] == pytest.approx(-np.log(0.75))


def test_the_loss_of_float32_probabilities_is_taken_in_float64() -> None:
    losses = log_losses(np.array([[0.25, 0.75]], np.float32), np.array([0]))
    assert losses.dtype == np.float64
    assert losses[0] == -np.log(0.25)


def test_confusion_is_counted_by_true_class_and_then_by_predicted() -> None:
    assert confusion_counts(np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1])) == ((1, 1), (0, 2))


def test_answers_that_are_as_sure_as_right_have_no_calibration_error() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 60_000)
    right = random.random(60_000) < confidence
    assert calibration_error(reliability_bins(confidence, right)) < 0.01
    assert calibration_error(reliability_bins(np.minimum(1, confidence + 0.2), right)) > 0.1


def test_the_bins_have_equal_mass_and_hold_every_photo() -> None:
    bins = reliability_bins(np.linspace(0.5, 1, 100), np.ones(100, bool))
    assert len(bins) == BINS
    assert sum(each.count for each in bins) == 100
    assert {each.count for each in bins} <= {6, 7}
    assert [each.confidence for each in bins] == sorted(each.confidence for each in bins)


def test_fewer_answers_than_bins_have_a_bin_each() -> None:
    assert [each.count for each in reliability_bins(np.array([0.9, 0.6]), np.array([True, False]))] == [1, 1]
