import numpy as np
import pytest
from scipy.stats import binom, ttest_rel

from shared.intervals import wilson
from training.comparison import compare, compare_means, sign_flip_test


def rights(both: int, only_first: int, only_second: int, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return first, second


def test_the_p_value_is_that_of_a_fair_coin() -> None:
    found = compare(*rights(90, 1, 9))
    assert found.p_value == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert (found.n, found.only_first_right, found.only_second_right) == (100, 1, 9)
    assert (found.first, found.second) == (wilson(91, 100), wilson(99, 100))


def test_photos_on_which_both_agree_do_not_count() -> None:
    assert compare(*rights(10, 2, 9)).p_value == compare(*rights(5000, 2, 9, 70)).p_value


@pytest.mark.parametrize(
    ("only_first", "only_second", "said"),
    [
        (1, 9, "the second is significantly better"),
        (9, 1, "the first is significantly better"),
        (4, 9, "no significant"),
    ],
)
def test_the_verdict_says_who_is_better_or_that_nobody_is(only_first: int, only_second: int, said: str) -> None:
    found = compare(*rights(500, only_first, only_second))
    assert found.verdict.startswith(said)
    assert f"only the second; p = {found.p_value:.2g}" in found.verdict
    assert found.significant == ("significantly better" in found.verdict)


def test_two_equal_models_differ_by_no_more_than_the_photos_can_tell() -> None:
    few, many = compare(*rights(20, 0, 0, 4)), compare(*rights(2000, 0, 0, 4))
    assert few.p_value == many.p_value == 1
    assert few.verdict.startswith("no significant difference")
    assert few.difference.value == 0
    assert few.difference.low < -0.05
    assert -0.002 < many.difference.low < 0 < many.difference.high < 0.002


def test_the_interval_of_the_difference_holds_the_truth_19_times_in_20() -> None:
    random = np.random.default_rng(0)
    outcomes = random.multinomial(600, [0.95, 0.01, 0.02, 0.02], size=2000)
    found = [compare(*rights(*map(int, counts))).difference for counts in outcomes]
    assert np.mean([one.low <= 0.01 <= one.high for one in found]) == pytest.approx(0.95, abs=0.015)


def test_mcnemar_cries_wolf_at_most_once_in_twenty() -> None:
    random = np.random.default_rng(1)
    outcomes = random.multinomial(600, [0.95, 0.02, 0.02, 0.01], size=1000)
    assert np.mean([compare(*rights(*map(int, counts))).significant for counts in outcomes]) < 0.05


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_what_is_not_the_same_photos_is_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(*(np.ones(shape, bool) for shape in shapes))


def test_the_bootstrap_is_paired_and_repeatable() -> None:
    random = np.random.default_rng(2)
    first = random.exponential(0.5, 800)
    second = first + random.normal(0.02, 0.05, 800)  # far less than the spread between photos
    found = compare_means(first, second)
    assert found == compare_means(first, second)
    assert found.low < 0.02 < found.high
    error = np.std(second - first) / np.sqrt(800)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert compare_means(first, first) == type(found)(0, 0, 0)


def test_flipped_signs_say_the_same_as_a_t_test_where_that_holds() -> None:
    random = np.random.default_rng(3)
    first = random.exponential(0.5, 800)
    for shift in (0.002, 0.004):
        second = first + random.normal(shift, 0.05, 800)
        assert sign_flip_test(first, second) == pytest.approx(ttest_rel(first, second).pvalue, abs=0.01)


def test_flipped_signs_count_the_mean_and_not_how_many_photos_gain() -> None:
    first = np.full(1000, 0.1)
    second = np.where(np.arange(1000) < 990, 0.09, 1.5)  # a little better on most, much worse on ten
    assert sign_flip_test(first, second) < 0.5
    assert second.mean() > first.mean()
    assert sign_flip_test(first, first) == 1
    assert sign_flip_test(first, first + 0.1) == pytest.approx(1 / 20_001)
