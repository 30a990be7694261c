"""Shares measured on a sample, with their confidence intervals."""

from math import sqrt
from typing import Final

import msgspec

Z95: Final = 1.959963984540054  # the standard normal distribution's 97.5 % quantile


class Interval(msgspec.Struct, frozen=True):
    """A measured share with its 95 % interval, all in 0..1."""

    value: float
    low: float
    high: float

    def bounds(self, digits: int = 2) -> str:
        """The interval for a person: ``96.10% to 98.20%``."""
        return f"{percent(self.low, digits)} to {percent(self.high, digits)}"

    def text(self, digits: int = 2) -> str:
        """The share with its interval for a person: ``97.31% (96.10% to 98.20%)``."""
        return f"{percent(self.value, digits)} ({self.bounds(digits)})"


def percent(share: float, digits: int = 2) -> str:
    """A share 0..1 for a person: ``97.31%``."""
    return f"{share:.{digits}%}"


def wilson(successes: int, trials: int) -> Interval:
    """95 % Wilson score interval of a share (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).

    Raises:
        ValueError: there were no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is not a share")
    share, z2 = successes / trials, Z95 * Z95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return Interval(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))
