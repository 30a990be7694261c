"""How much memory there is, and limits that fit it: a service in a small container refuses rather than be killed."""

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
# Version 1 says "no limit" with the largest number of whole pages.
NO_LIMIT: Final = 1 << 60
# The front process and the zygote, with what they share and what malloc keeps; each lane. After 1,000 photos of all
# sizes from 8 clients, one lane on one core and two on two took 133 and 203 MB; another 37 are of files (libraries),
# which the system can read again.
RESIDENT_BYTES: Final = 75_000_000
LANE_BYTES: Final = 66_000_000
# Pictures that are written, that wait for it, and that wait for feedback: two times `telemetry.samples.MAX_UNWRITTEN`,
# and `MAX_HELD`.
SAMPLES_BYTES: Final = 70_000_000
# A connection whose body is not admitted yet: what uvicorn reads ahead, one read, and its objects.
CONNECTION_BYTES: Final = 140_000
LEAST_CONNECTIONS: Final = 50
# Shares of a container's memory that those leave.
CONNECTIONS_SHARE: Final = 0.35
BODIES_SHARE: Final = 0.3
# Above this share of a container's memory, free memory is given back to the system every second. That takes
# milliseconds, and saved 30 MB under load in a container of 256 MB.
EASE_ABOVE: Final = 0.6
# A body is in the front process and in a lane.
BODY_COPIES: Final = 2
# Enough for a phone's photo.
LEAST_BODY_BYTES: Final = 10_000_000
# Enough for 108 megapixels of JPEG as a camera writes it: decoded at an eighth of its size.
LEAST_DECODE_BYTES: Final = 8_000_000
# Enough for 50 megapixels in any format, and for 108 of most.
MOST_DECODE_BYTES: Final = 1_500_000_000


def usable_memory(cgroup: Path = CGROUP) -> int | None:
    """Bytes that this process may use: the container's limit or the machine's memory, if less; None if unknown."""
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
    """Resident bytes of this process; None without /proc."""
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 - on the event loop, but a virtual file does not block
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
    """Give free memory inside the heap back to the system, with glibc."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def fitted(settings: Settings, lanes: int, limit: int | None) -> tuple[Settings, Limits]:
    """Fit the settings, and what decoding a picture may cost, into a container's memory of ``limit`` bytes.

    What the processes leave is divided between connections, bodies (a batch is the largest) and decoding in all lanes
    at once. Without a limit, settings stay as they are.
    """
    if limit is None:
        return settings, Limits(settings.max_pixels, settings.max_decode_bytes or MOST_DECODE_BYTES)
    spare = max(0, limit - RESIDENT_BYTES - LANE_BYTES * lanes - (SAMPLES_BYTES if settings.samples else 0))
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
