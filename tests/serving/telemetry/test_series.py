"""Counters and histograms by label values: the page is the one that aioprometheus' own would give."""

import random

from aioprometheus.collectors import Counter, Histogram, Registry
from aioprometheus.renderer import render

from serving.telemetry.series import Bins, Counts

ENDS = (0.1, 0.5, 1.0, float("inf"))


def test_the_page_is_that_of_aioprometheus_own() -> None:
    chance, registries = random.Random(1), (Registry(), Registry())
    counts, bins = Counts("c", "C.", registries[0], ("b", "a")), Bins("h", "H.", registries[0], ENDS, ("a",))
    counter = Counter("c", "C.", registry=registries[1])
    histogram = Histogram("h", "H.", registry=registries[1], buckets=ENDS)
    for value in (*ENDS, -1.0, 0.0, *(chance.uniform(-0.5, 2) for _ in range(100))):
        a, b = chance.choice("xy"), chance.choice("xyz")
        counts.count(b, a)
        counter.inc({"a": a, "b": b})
        bins.record(value, a)
        histogram.observe({"a": a}, value)
    pages = [render(registry, [])[0].decode() for registry in registries]
    assert sorted(pages[0].splitlines()) == sorted(pages[1].splitlines())


def test_a_series_is_there_from_0_where_it_is_expected_and_goes_on_where_it_is() -> None:
    registry = Registry()
    counts = Counts("c", "C.", registry, ("a",))
    counts.count("x")
    counts.expect("x")
    counts.expect("y")
    assert set(render(registry, [])[0].decode().splitlines()[2:]) == {'c{a="x"} 1', 'c{a="y"} 0'}


def test_without_labels_there_is_one_series() -> None:
    registry = Registry()
    bins = Bins("h", "H.", registry, ENDS)
    assert "h_count" not in render(registry, [])[0].decode()
    bins.record(0.3)
    assert {"h_count 1.0", 'h_bucket{le="0.1"} 0.0', 'h_bucket{le="0.5"} 1.0'} <= set(
        render(registry, [])[0].decode().splitlines()
    )
