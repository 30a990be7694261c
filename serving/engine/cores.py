"""How many cores there are to use, which in a container is not what the host has, and which lane keeps to which."""

import contextlib
import math
import os
from pathlib import Path


def usable_cores() -> int:
    """Cores this process may use: its affinity, or a container's quota if that is less; at least 1.

    The host's cores are what onnxruntime and os.cpu_count() see, and a container's share of them may be one.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup"))
    return max(1, min(affinity, math.ceil(quota) if quota else affinity))


class Place:
    """The core of one lane, where there is one for each of the ``lanes``; make it in the lane's thread.

    Left to the scheduler, which likes to wake a thread on the core of the one that woke it, two busy lanes shared a
    core while the other stood idle, 12 % of the time: 272 requests a second rather than 315, on two cores. Lanes that
    are not all busy are free to go, since the core may be another process's: two services that were kept to theirs took
    twice as long for a picture each. Fewer lanes than cores are a quota's, which is not of particular ones, or the
    operator's.
    """

    def __init__(self, lane: int, lanes: int) -> None:
        """Choose it; the thread is still free."""
        self._everywhere = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set[int]()
        self._own = {sorted(self._everywhere)[lane]} if lanes == len(self._everywhere) else self._everywhere
        self._now = self._everywhere

    def keep(self, *, kept: bool) -> None:
        """Keep the calling thread to the core, or let it go anywhere."""
        wanted = self._own if kept else self._everywhere
        if wanted is not self._now:
            self._now = wanted
            # It is faster so, no more: a sandbox may forbid it, and a container's cores may be others by now.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, wanted)


def _quota(cgroup: Path) -> float | None:
    """Cores granted by control groups (version 2, then 1), or None without a limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(limit) / int(period) if limit.lstrip("-").isdecimal() and int(limit) > 0 else None
