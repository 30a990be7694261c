from math import inf, log

import numpy as np
import pytest

from shared import drift
from shared.contract import Histogram, Reference

UNIT = tuple(np.linspace(0, 1, 21).tolist())


def histogram(values: "np.typing.NDArray[np.float64]") -> Histogram:
    return Histogram(edges=UNIT, counts=tuple(np.histogram(values, UNIT)[0].tolist()))


def test_the_index_is_the_textbook_s() -> None:
    reference, actual = (100_000, 300_000, 600_000), (200_000, 300_000, 500_000)
    expected = (0.2 - 0.1) * log(0.2 / 0.1) + (0.5 - 0.6) * log(0.5 / 0.6)
    assert drift.psi(reference, actual) == pytest.approx(expected, abs=1e-5)
    assert drift.psi(actual, reference) == pytest.approx(drift.psi(reference, actual))
    assert drift.psi(reference, reference) == 0


def test_an_empty_bin_makes_it_large_and_not_infinite() -> None:
    assert 1 < drift.psi((500, 500), (0, 1000)) < inf
    assert drift.psi((10, 10), (0, 0)) == 0


def test_merged_bins_each_hold_a_twentieth_and_lose_nothing() -> None:
    random = np.random.default_rng(1)
    reference = histogram(random.beta(20, 3, 1283))
    merged = drift.merged(reference)
    assert sum(merged.counts) == sum(reference.counts)
    assert min(merged.counts) >= drift.LEAST_SHARE * 1283
    assert (merged.edges[0], merged.edges[-1]) == (0.0, 1.0)
    assert set(merged.edges) <= set(reference.edges)
    assert len(merged.edges) == len(merged.counts) + 1


@pytest.mark.parametrize("counts", [(0, 0, 0), (5, 0, 0), (0, 0, 5), (0, 1, 0)])
def test_a_reference_in_one_place_or_none_has_one_bin_and_no_drift(counts: tuple[int, ...]) -> None:
    merged = drift.merged(Histogram(edges=(0.0, 0.1, 0.2, 1.0), counts=counts))
    assert (merged.edges, merged.counts) == ((0.0, 1.0), (sum(counts),))
    assert drift.psi(merged.counts, (7,)) == 0
    assert drift.by_chance(1, 10, 10) == 0


def test_values_fall_where_numpy_puts_them_and_those_outside_into_the_outermost_bin() -> None:
    values = np.concatenate([np.random.default_rng(2).random(500), UNIT])
    counts = [0] * 20
    for value in values.tolist():
        counts[drift.place(UNIT, value)] += 1
    assert counts == np.histogram(values, UNIT)[0].tolist()
    assert drift.place(UNIT, -1.0) == 0
    assert drift.place(UNIT, 2.0) == 19


def test_chance_alone_stays_below_its_bound_in_about_95_of_100_cases() -> None:
    random = np.random.default_rng(3)
    shares = np.array([0.05, 0.1, 0.15, 0.2, 0.2, 0.15, 0.1, 0.05])
    bound = drift.by_chance(8, 1283, 1000)
    indices = [
        drift.psi(random.multinomial(1283, shares).tolist(), random.multinomial(1000, shares).tolist())
        for _ in range(1000)
    ]
    assert 0.92 < np.mean(np.array(indices) < bound) < 0.98


def test_the_window_forgets_what_has_left_it() -> None:
    random = np.random.default_rng(4)
    good = random.beta(20, 3, 1283)
    reference = Reference(confidence=histogram(good), brightness=histogram(good), familiarity=histogram(good))
    window = drift.Window(reference, size=1000, least=200)
    for _ in range(199):
        window.add(0.1, 0.1, 0.1)
    assert window.psi() == {}
    window.add(0.1, 0.1, 0.1)
    assert set(window.psi()) == set(drift.SIGNALS)
    assert min(window.psi().values()) > 1
    for value in random.beta(20, 3, 1000).tolist():
        window.add(value, value, 0.1)
    assert window.psi()["confidence"] == window.psi()["brightness"] < 0.1
    assert window.psi()["familiarity"] > 1
