"""What nobody means to send, and what somebody might: damaged pictures, bombs, and requests made up by machines.

The claim is one: whatever is sent, the answer is a documented one, in time, with bounded memory, and the next good
request is answered right.

The cases are the same in every run, and take some minutes. ``FUZZ_SCALE=20 pytest tests/fuzz`` tries twenty times as
many, other ones each time. ``python -m tests.fuzz.fuzz_pixels`` looks for new ones, guided by coverage, until stopped.
"""

import os
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, settings

SCALE: Final = int(os.environ.get("FUZZ_SCALE", "1"))
# Longest that a socket waits for an answer, on however busy a machine.
SECONDS: Final = 20.0


def examples(number: int) -> settings:
    """Hypothesis's settings for a number of examples, times the scale."""
    return settings(
        max_examples=number * SCALE,
        derandomize=SCALE == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


def most_memory(pid: int, field: str = "VmHWM") -> int:
    """Most bytes of memory that a process ever had; ``VmPeak``: of address space."""
    return 1024 * int(Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split()[0])
