import numpy as np
import pytest

from shared.contract import Unsure
from shared.intervals import Interval
from shared.second_look import Outputs
from tests.training.conftest import contract
from training import measure


def answers(dogs: list[float], familiarity: float = 1.0) -> Outputs:
    shares = np.array(dogs, np.float32)
    count = len(dogs)
    return Outputs(
        np.stack([1 - shares, shares], 1), np.zeros((count, 7, 7), np.float32), np.full(count, familiarity, np.float32)
    )


def test_answering_fewer_leaves_the_surest() -> None:
    coverage, risk = measure.risk_coverage_curve(np.array([0.6, 0.9, 0.8]), np.array([False, True, True]))
    np.testing.assert_allclose(coverage, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3])


def test_a_bootstrap_interval_holds_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        values = random.exponential(1.0, 200)
        interval = measure.bootstrap(lambda rows, values=values: float(values[rows].mean()), 200)  # type: ignore[misc]  # mypy does not infer a lambda's default
        assert interval.low <= interval.value <= interval.high
        held += interval.low <= 1.0 <= interval.high
    assert held >= 50


def test_quality_counts_what_is_right_answered_and_unsure() -> None:
    document = contract(Unsure(close_call=0.9, unfamiliar=0.3))
    surely, barely = 0.99999, 0.5001
    outputs = answers([1 - surely, surely, surely, barely])
    outputs.familiarity[2] = 0.0
    found = measure.quality(outputs, np.array([0, 1, 0, 1]), document)
    assert found.accuracy.value == 0.75
    assert found.confusion == ((1, 1), (0, 2))
    assert found.unsure == {"close_call": 1, "unfamiliar": 1}
    assert found.answered.value == 0.5
    assert found.answered_wrong.value == 0
    assert found.accuracy_when_answered is not None and found.accuracy_when_answered.value == 1
    assert found.log_loss.value == pytest.approx(
        (2 * -np.log(surely) - np.log(1 - surely) - np.log(barely)) / 4, rel=1e-2
    )


def test_a_model_that_answers_nothing_has_no_accuracy_where_it_answers() -> None:
    document = contract(Unsure(close_call=0.9, unfamiliar=0.3))
    assert (
        measure.quality(answers([0.9, 0.1], familiarity=0.0), np.array([1, 0]), document).accuracy_when_answered is None
    )


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    assert measure.auroc(np.array([0.9, 0.8]), np.array([0.1, 0.85])) == 0.75


def test_a_share_of_nothing_says_that_it_may_be_anything() -> None:
    none, some = np.zeros(4, bool), np.array([True, False, False, True])
    assert measure.share_of(none, none) == Interval(0.0, 0.0, 1.0)
    assert measure.share_of(some & [True, False, False, False], some).value == 0.5


def test_a_pause_of_the_machine_hardly_counts_as_time_of_a_photo() -> None:
    seconds = np.array([1.0, 1.0, 1.0, 60.0, 5.0, 5.0, 5.0])
    again = np.array([False, False, False, False, True, True, True])
    assert measure.typical_seconds(seconds, again, share=0.1) == pytest.approx(0.9 * 1 + 0.1 * 5)
    assert measure.typical_seconds(seconds[:3], again[:3], share=0.0) == 1
