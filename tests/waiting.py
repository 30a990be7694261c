"""Waiting for a condition, not for a time."""

import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 120  # seconds that a condition may take to come true on a machine that is busy


def until(condition: Callable[[], object], otherwise: object = None) -> None:
    """Wait for the condition; after ``PATIENCE``, fail and say ``otherwise``."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, otherwise
        time.sleep(0.02)
