import pytest

from serving.engine.pace import MAX_HEAD_START, Pace


def test_a_suspended_machine_is_not_a_slow_one() -> None:
    pace = Pace()
    for _ in range(400):
        pace.add(50_000, 0.005, 0.006)
    before = pace.seconds
    pace.add(50_000, 0.005, 3600)
    assert pace.seconds < 1.2 * before


def test_the_head_start_is_what_a_size_costs_beyond_the_rest_and_has_an_end() -> None:
    pace = Pace()
    assert pace.head_start(20_000_000) == 0  # it knows nothing yet
    for size in [10_000, 50_000, 2_000_000] * 100:
        pace.add(size, 0.003 + 1e-8 * size, 0.004 + 1e-8 * size)
    assert pace.head_start(2_000_000) == pytest.approx(0.02, rel=0.2)
    assert pace.head_start(0) == 0
    assert pace.head_start(10**12) == MAX_HEAD_START
    alike = Pace()
    for size in range(40_000, 40_300):  # sizes that say nothing, at costs that vary by themselves
        alike.add(size, 0.002 + 0.002 * (size % 2), 0.004)
    assert alike.head_start(2_000_000) < 0.05
