"""How many cores there are to use, which in a container is not what the host has."""

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
