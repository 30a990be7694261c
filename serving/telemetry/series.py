"""Counters and histograms whose series are found by their label values, in the order of the labels.

aioprometheus finds a series by a dictionary of labels, whose names it checks and which it makes JSON of, at each event,
and counts a value in each bin at or above it. That took a tenth of the front process's time for a request.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

from aioprometheus.collectors import Counter, Histogram, Registry


class Counts(Counter):
    """A counter. Its series appear with their first event, or at 0 with :meth:`expect`."""

    def __init__(self, name: str, doc: str, registry: Registry, labels: Sequence[str] = ()) -> None:
        """Make it without series."""
        super().__init__(name, doc, registry=registry)
        self._labels = labels
        self._counts: defaultdict[tuple[str, ...], int] = defaultdict(int)

    def expect(self, *values: str) -> None:
        """Show a series from 0: Prometheus sees no increase in one that appears with its first event."""
        self._counts[values] += 0

    def count(self, *values: str) -> None:
        """Count one event."""
        self._counts[values] += 1

    def get_all(self) -> list[tuple[dict[str, str], int]]:  # type: ignore[override]  # a list of narrower types
        """Labels and count of each series, for aioprometheus."""
        return [(dict(zip(self._labels, values, strict=True)), count) for values, count in self._counts.items()]


class Bins(Histogram):
    """A histogram, with the upper ends of its bins, the last of which is infinite."""

    def __init__(
        self, name: str, doc: str, registry: Registry, ends: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        """Make it without series."""
        super().__init__(name, doc, registry=registry, buckets=ends)
        self._labels = labels
        self._ends = ends
        # The count of each bin, and the sum of the values.
        self._series = defaultdict[tuple[str, ...], list[float]](lambda: [0] * len(ends) + [0.0])

    def record(self, value: float, *values: str) -> None:
        """Count one value."""
        series = self._series[values]
        series[bisect_left(self._ends, value)] += 1
        series[-1] += value

    def get_all(self) -> list[tuple[dict[str, str], dict[float | str, float]]]:  # type: ignore[override]  # its own has no type
        """Labels and cumulative counts of each series, for aioprometheus."""
        return [
            (
                dict(zip(self._labels, values, strict=True)),
                {
                    **dict(zip(self._ends, accumulate(bins), strict=True)),
                    self.COUNT_KEY: sum(bins),
                    self.SUM_KEY: total,
                },
            )
            for values, (*bins, total) in self._series.items()
        ]
