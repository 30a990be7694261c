"""How long pictures take, told from those before: what the queue promises and whom it lets start early."""

from typing import Final

# How much of a mean is the latest picture's: about the last 20 count for what pictures cost, 200 for how busy it is.
LATELY: Final = 0.05
LONG: Final = 0.005
FIRST_GUESS_SECONDS: Final = 0.01
# Sizes that differ by less say nothing about what files cost.
LEAST_SPREAD_BYTES: Final = 10_000
# A picture that took more times its processor time was there when the machine, or this process, was suspended.
MAX_STRETCH: Final = 20
# The most that a file may be taken before its turn, whatever its size seems to say.
MAX_HEAD_START: Final = 0.5


class Pace:
    """How long pictures keep a lane: to tell how long those that wait will, and which of them will take longer.

    A picture takes the processor time of the latest ones, times how much longer pictures take than that. The second
    changes slowly: while a burst arrives, lanes take up to four times their processor time, but no longer than that,
    whereas a container's quota or a neighbour slows them for good.
    """

    def __init__(self) -> None:
        """Know nothing yet, and guess."""
        self._pictures = 0
        self._cost = self._long_cost = self._long_time = FIRST_GUESS_SECONDS
        self._size = self._variance = self._covariance = 0.0

    @property
    def seconds(self) -> float:
        """How long the next picture will keep a lane."""
        return self._cost * self._long_time / self._long_cost

    def head_start(self, size: int) -> float:
        """How many seconds more a file of ``size`` bytes takes than the smallest, by the line of least squares."""
        slope = self._covariance / (self._variance + LEAST_SPREAD_BYTES**2)
        return min(MAX_HEAD_START, max(0.0, slope * size))

    def add(self, size: int, processor_seconds: float, seconds: float) -> None:
        """Learn from a picture of ``size`` bytes; 0 is work of another kind, which keeps a lane as well."""
        self._pictures += 1
        self._cost += max(LATELY, 1 / self._pictures) * (processor_seconds - self._cost)
        larger, dearer = size - self._size, processor_seconds - self._long_cost
        if size:
            self._size += LONG * larger
            self._variance += LONG * (larger**2 - self._variance)
            self._covariance += LONG * (larger * dearer - self._covariance)
        self._long_cost += LONG * dearer
        self._long_time += LONG * (min(seconds, MAX_STRETCH * processor_seconds) - self._long_time)
