"""Drift: how far what a service sees now lies from what its model was validated on."""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from math import log, sqrt
from typing import Final

from shared.contract import Histogram, Reference

SIGNALS: Final = ("confidence", "brightness", "familiarity")
# Bins of the reference are put together until each has this share: the customary thresholds (0.1: look, 0.25: act) are
# for about ten bins with something in each, and a bin that is all but empty contributes noise.
LEAST_SHARE: Final = 0.05
# What is added to every count, so that an empty bin does not make the index infinite.
PSEUDOCOUNT: Final = 0.5
Z95_ONE_SIDED: Final = 1.6448536269514722  # the standard normal distribution's 95 % quantile


def merged(reference: Histogram) -> Histogram:
    """The reference with neighbouring bins put together until each holds ``LEAST_SHARE`` of its counts."""
    least = LEAST_SHARE * sum(reference.counts)
    edges, counts, count = [reference.edges[0]], [], 0
    for edge, more in zip(reference.edges[1:], reference.counts, strict=True):
        count += more
        if count >= least and count > 0:
            edges.append(edge)
            counts.append(count)
            count = 0
    if not counts:
        return Histogram(edges=(reference.edges[0], reference.edges[-1]), counts=(count,))
    # What is left over at the upper end belongs to the last bin.
    edges[-1] = reference.edges[-1]
    counts[-1] += count
    return Histogram(edges=tuple(edges), counts=tuple(counts))


def place(edges: Sequence[float], value: float) -> int:
    """Index of the bin that holds ``value``: half open as numpy's are, and what lies outside is in the outermost."""
    return min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)


def psi(reference: Sequence[int], actual: Sequence[int]) -> float:
    """Population stability index of two histograms over the same bins.

    The sum over bins of (a - r) ln(a / r) with shares a and r: the symmetric divergence of Jeffreys (1946,
    https://doi.org/10.1098/rspa.1946.0056); the name, and the thresholds 0.1 and 0.25, are those of credit scoring
    (Siddiqi, Credit Risk Scorecards, 2006). Every count is raised by ``PSEUDOCOUNT``.

    Args:
        reference: counts of each bin.
        actual: counts of each bin.
    """
    bins = len(reference)
    total, actual_total = (sum(counts) + bins * PSEUDOCOUNT for counts in (reference, actual))
    index = 0.0
    for expected, found in zip(reference, actual, strict=True):
        r, a = (expected + PSEUDOCOUNT) / total, (found + PSEUDOCOUNT) / actual_total
        index += (a - r) * log(a / r)
    return index


def by_chance(bins: int, reference: int, actual: int) -> float:
    """The index that samples of one and the same population stay below in 95 of 100 cases.

    It is distributed as (1/n + 1/m) times chi-squared with ``bins`` - 1 degrees of freedom (Yurdakul and Naranjo,
    Journal of Risk Model Validation 14(4), 2020), whose quantile is taken by Wilson and Hilferty's approximation.

    Args:
        bins: how many.
        reference: values in the reference.
        actual: values compared with it.
    """
    freedom = bins - 1
    if freedom == 0:
        return 0.0
    spread = 2 / (9 * freedom)
    return (1 / reference + 1 / actual) * freedom * (1 - spread + Z95_ONE_SIDED * sqrt(spread)) ** 3


class Window:
    """The drift of the last ``size`` values of every signal; nothing is said before there are ``least``."""

    def __init__(self, reference: Reference, size: int, least: int) -> None:
        """Compare with ``reference``."""
        self._least = least
        self._references = [merged(getattr(reference, signal)) for signal in SIGNALS]
        self._counts = [[0] * len(histogram.counts) for histogram in self._references]
        self._places: deque[list[int]] = deque(maxlen=size)

    def add(self, confidence: float, brightness: float, familiarity: float) -> None:
        """Take the values of one picture."""
        if len(self._places) == self._places.maxlen:
            for counts, bin_ in zip(self._counts, self._places[0], strict=True):
                counts[bin_] -= 1
        values = (confidence, brightness, familiarity)
        places = [place(reference.edges, value) for reference, value in zip(self._references, values, strict=True)]
        for counts, bin_ in zip(self._counts, places, strict=True):
            counts[bin_] += 1
        self._places.append(places)

    def psi(self) -> dict[str, float]:
        """The index of each signal; empty before there are enough pictures."""
        if len(self._places) < self._least:
            return {}
        pairs = zip(self._references, self._counts, strict=True)
        return dict(zip(SIGNALS, (psi(reference.counts, counts) for reference, counts in pairs), strict=True))
