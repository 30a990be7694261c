"""Two models on the same photos: is one better, or is the difference chance?

The verdict depends only on the photos on which the two differ: those on which both are right, or both wrong, do not
say which is better.
"""

from math import sqrt
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from shared.intervals import Z95, Interval, wilson

SIGNIFICANT: Final = 0.05
RESAMPLES: Final = 2000
FLIPS: Final = 20_000
SEED: Final = 20261123

Rights = npt.NDArray[np.bool_]


class Difference(msgspec.Struct, frozen=True):
    """The second model's figure less the first's, with its 95 % interval; below zero where the second has less."""

    value: float
    low: float
    high: float


class Comparison(msgspec.Struct, frozen=True):
    """Two models' right answers on the same ``n`` photos; ``difference`` is of accuracies, second less first."""

    n: int
    only_first_right: int
    only_second_right: int
    p_value: float
    first: Interval
    second: Interval
    difference: Difference

    @property
    def significant(self) -> bool:
        """Whether a difference this large has a probability below 5 % by chance."""
        return self.p_value < SIGNIFICANT

    @property
    def verdict(self) -> str:
        """The result in a sentence that calls the models the first and the second."""
        return self.describe("the first", "the second")

    def describe(self, first: str, second: str) -> str:
        """The verdict with other names for the models."""
        counts = (
            f"{self.only_first_right} of {self.n:,} photos only {first} has right, "
            f"{self.only_second_right} only {second}; p = {self.p_value:.2g}"
        )
        if not self.significant:
            return f"no significant difference ({counts})"
        better = second if self.only_second_right > self.only_first_right else first
        return f"{better} is significantly better ({counts})"


def compare(first_right: Rights, second_right: Rights) -> Comparison:
    """Compare two models by McNemar's test, in its exact form, two-sided.

    If neither model is better, each photo that only one of them has right is a fair coin's toss, so the count is
    binomial with one half (McNemar 1947, https://doi.org/10.1007/BF02295996; exact since the counts are small). The
    interval of the difference adds half a photo to each of the four cells of the table, so that it does not vanish
    where the two always agree (Agresti and Min 2005, https://doi.org/10.1002/sim.1781, "Wald+2").

    Args:
        first_right: bool [n], whether the first model has each photo right.
        second_right: bool [n], the second model, photos in the same order.

    Raises:
        ValueError: no photos, or not the same number.
    """
    if first_right.shape != second_right.shape or first_right.ndim != 1 or not len(first_right):
        raise ValueError(f"photos of shapes {first_right.shape} and {second_right.shape} cannot be compared")
    n = len(first_right)
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differing = only_first + only_second
    centre = (only_second - only_first) / (n + 2)
    half = Z95 * sqrt(differing + 1 - (only_second - only_first) ** 2 / (n + 2)) / (n + 2)
    return Comparison(
        n=n,
        only_first_right=only_first,
        only_second_right=only_second,
        p_value=float(binomtest(only_first, differing).pvalue) if differing else 1.0,
        first=wilson(int(first_right.sum()), n),
        second=wilson(int(second_right.sum()), n),
        difference=Difference((only_second - only_first) / n, max(-1.0, centre - half), min(1.0, centre + half)),
    )


def compare_means(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> Difference:
    """Difference of two models' mean losses, second less first, with its paired bootstrap interval.

    Photos are drawn with replacement, each with both of its losses (Efron 1979,
    https://doi.org/10.1214/aos/1176344552); the interval is from the 2.5 % to the 97.5 % quantile of the mean
    difference. The same losses give the same interval.

    Args:
        first: float [n], the first model's loss on each photo.
        second: float [n], the second model's, photos in the same order.
    """
    differences = second - first
    n = len(differences)
    drawn = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    low, high = np.quantile(drawn @ differences / n, [0.025, 0.975])
    return Difference(float(differences.mean()), float(low), float(high))


def sign_flip_test(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Two-sided p-value of the difference of two models' mean losses.

    If neither model is better, each photo's difference might as well have the other sign. The p-value is the share of
    random signs whose mean is as far from zero as the one found, which counts as one of them (Fisher 1935; Phipson and
    Smyth 2010, https://doi.org/10.2202/1544-6115.1585). So it is never below 1 / 20,001.

    Args:
        first: float [n], the first model's loss on each photo.
        second: float [n], the second model's, photos in the same order.
    """
    differences = second - first
    total, n = differences.sum(), len(differences)
    least = abs(total) * (1 - 1e-9)  # sums of the same numbers in another order differ in their last digits
    random = np.random.default_rng(SEED)
    as_far = 0
    for _ in range(0, FLIPS, 1000):
        bits = np.unpackbits(random.integers(0, 256, (1000, -(-n // 8)), np.uint8), axis=1, count=n)
        as_far += int((np.abs(total - 2 * (bits @ differences)) >= least).sum())
    return (1 + as_far) / (1 + FLIPS)
