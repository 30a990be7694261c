"""How far the work is, on stderr."""

import asyncio
import sys
import time
from collections import deque
from typing import Final

from scoring.score import Tally

TERMINAL_SECONDS: Final = 0.5
LOG_SECONDS: Final = 30.0
RATE_SECONDS: Final = 30.0  # over which the rate is taken


class Progress:
    """A line that is written again and again on a terminal, and now and then to a file."""

    def __init__(self, tally: Tally) -> None:
        """Show this one."""
        self._tally = tally
        self._marks = deque([(time.monotonic(), 0)])
        self._terminal = sys.stderr.isatty()

    async def show(self) -> None:
        """Show it until cancelled."""
        try:
            while True:
                await asyncio.sleep(TERMINAL_SECONDS if self._terminal else LOG_SECONDS)
                self._print(self.line())
        finally:
            if self._terminal:
                print(file=sys.stderr)

    def line(self) -> str:
        """Pictures, rate, time left, errors."""
        tally, now = self._tally, time.monotonic()
        self._marks.append((now, tally.done))
        while now - self._marks[0][0] > RATE_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        then, done = self._marks[0]
        rate = (tally.done - done) / max(now - then, 1e-9)
        finished = tally.before + tally.done
        parts = [f"{finished:,} pictures" if tally.total is None else f"{finished:,} of {tally.total:,} pictures"]
        parts.append(f"{rate:.0f} a second")
        if tally.total is not None and rate:
            parts.append(f"{_duration((tally.total - finished) / rate)} left")
        if errors := tally.errors.total():
            parts.append(f"{errors:,} errors")
        return " · ".join(parts)

    def _print(self, line: str) -> None:
        print(f"\r{line}\x1b[K" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
