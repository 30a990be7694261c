"""How much memory there is, and what a service in a small container may take of it: better refuse than be killed."""

import contextlib
import ctypes
import os
import resource
from pathlib import Path
from typing import Final

import msgspec

from serving.settings import Settings
from shared.spec import Limits

CGROUP: Final = Path("/sys/fs/cgroup")
# Version 1 says that there is no limit with the largest number of whole pages.
NO_LIMIT: Final = 1 << 60
# The front process, the one that forks lanes, and what they share: measured in a container, and what malloc keeps.
RESIDENT_BYTES: Final = 75_000_000
LANE_BYTES: Final = 45_000_000
# A connection may have sent this much before its body is let in: what uvicorn reads ahead, one read, and its objects.
CONNECTION_BYTES: Final = 140_000
LEAST_CONNECTIONS: Final = 50
# Of what is left beside them in a container.
CONNECTIONS_SHARE: Final = 0.35
BODIES_SHARE: Final = 0.3
# Of a container's memory; above that what is free is given back every second. It takes milliseconds, and in a container
# of 256 MB it made 30 MB of difference under load.
EASE_ABOVE: Final = 0.6
# A body is in the front process and in a lane, or as it came and in a lane.
BODY_COPIES: Final = 2
# Enough for a photo of a telephone.
LEAST_BODY_BYTES: Final = 10_000_000
# Enough for 12 megapixels of JPEG as a camera writes it.
LEAST_DECODE_BYTES: Final = 8_000_000
# Enough for 50 megapixels in any format.
MOST_DECODE_BYTES: Final = 1_500_000_000


def usable_memory(cgroup: Path = CGROUP) -> int | None:
    """Bytes that this process may use: a container's limit, or all there is if that is less; None if unknown."""
    limits = [limit] if (limit := memory_limit(cgroup)) else []
    if "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Bytes granted by control groups (version 2, then 1), or None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((cgroup / name).read_text())
        except (OSError, ValueError):  # not this version, or "max"
            continue
        return limit if limit < NO_LIMIT else None
    return None


def resident_memory() -> int | None:
    """Bytes of memory that the process takes now; None where there is no /proc."""
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 - on the event loop, where a virtual file does not wait
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def proportional_memory(pids: list[int]) -> int:
    """Bytes of memory that processes take together, what several share counted once; 0 where there is no /proc."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    return total


def trim() -> None:
    """Give back to the system what lies free between what is in use, where the C library is glibc."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def fitted(settings: Settings, lanes: int, limit: int | None) -> tuple[Settings, Limits]:
    """Fit the settings, and what a picture may cost, into a container's memory of ``limit`` bytes.

    What the processes themselves leave is shared out to connections, to bodies, of which the largest is a batch, and to
    decoding, which every lane may do at once. Without a limit everything stays as set.
    """
    if limit is None:
        return settings, Limits(settings.max_pixels, settings.max_decode_bytes or MOST_DECODE_BYTES)
    spare = max(0, limit - RESIDENT_BYTES - LANE_BYTES * lanes)
    bodies = min(settings.max_memory_bytes, int(BODIES_SHARE * spare))
    body = min(settings.max_body_bytes, max(LEAST_BODY_BYTES, bodies // BODY_COPIES))
    decode = int((1 - CONNECTIONS_SHARE - BODIES_SHARE) * spare / lanes)
    fitting = msgspec.structs.replace(
        settings,
        max_connections=min(
            settings.max_connections, max(LEAST_CONNECTIONS, int(CONNECTIONS_SHARE * spare / CONNECTION_BYTES))
        ),
        max_memory_bytes=max(bodies, body),
        max_body_bytes=body,
        max_batch_bytes=max(body, min(settings.max_batch_bytes, bodies // BODY_COPIES)),
    )
    return fitting, Limits(
        settings.max_pixels, settings.max_decode_bytes or min(MOST_DECODE_BYTES, max(LEAST_DECODE_BYTES, decode))
    )
