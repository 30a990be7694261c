"""The memory that request bodies share, and how slowly they may arrive.

A thousand clients may each send twenty megabytes. Memory is granted in steps before bytes are read; until then they
stay in the socket and their sender waits. The oldest body is always granted more, so bodies cannot deadlock.
"""

import asyncio
from collections import OrderedDict
from types import TracebackType
from typing import Final

from serving.errors import ProblemError

# Enough for most photos in one step, and the most that a stalled body holds in advance.
STEP_BYTES: Final = 256_000
# The most that arrives at once: what uvicorn reads ahead, and one read of the socket.
PIECE_BYTES: Final = 131_072
# The slowest rate at which a body may arrive: an uplink of 256 kbit/s.
BYTES_PER_SECOND: Final = 32_000
# How far a body may be behind while others wait for memory.
CONTENDED_SECONDS: Final = 4.0


class BodyBudget:
    """Memory for bodies, on one event loop. ``granted`` counts bytes received and those that may still be sent.

    Args:
        size: bytes for all bodies; the oldest may exceed it.
        seconds: how far a body may be behind.
        wait_seconds: longest that a body waits for memory.
    """

    def __init__(self, size: int, seconds: float, wait_seconds: float) -> None:
        """Make it empty."""
        self.granted = 0
        self.seconds = seconds
        self._size = size
        self._wait_seconds = wait_seconds
        self._leases: OrderedDict[Lease, None] = OrderedDict()  # oldest first
        self._waiting: OrderedDict[Lease, tuple[int, asyncio.Future[None]]] = OrderedDict()

    def lease(self) -> "Lease":
        """Make the share of one body; a ``with`` block holds it."""
        return Lease(self)

    def check(self) -> None:
        """Cut off bodies that arrive too slowly; call about once a second."""
        now = asyncio.get_running_loop().time()
        first = CONTENDED_SECONDS if self._waiting else self.seconds
        for lease in self._leases:
            if lease.time_left is not None and lease.behind(now) > first:
                lease.time_left.reschedule(now)

    async def grant(self, lease: "Lease", size: int) -> None:
        """Grant a body ``size`` more bytes, waiting for room.

        Raises:
            ProblemError: ``overloaded``: there was none in time.
        """
        # A small body is what its connection may have sent anyway, and need not wait for large ones.
        small = lease.granted + size <= PIECE_BYTES
        if small or (self._has_room(lease, size) and (lease.granted or not self._waiting)):
            self._give(lease, size)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[lease] = (size, waiter)
        try:
            async with asyncio.timeout(self._wait_seconds):
                await waiter
        except TimeoutError as error:
            raise ProblemError("overloaded", "too many large bodies are being sent", retry_after=1) from error
        finally:
            self._waiting.pop(lease, None)

    def enter(self, lease: "Lease") -> None:
        """Add a body, as the newest."""
        self._leases[lease] = None

    def leave(self, lease: "Lease") -> None:
        """Remove a body and take back what it holds."""
        del self._leases[lease]
        self.give_back(lease, lease.granted)

    def give_back(self, lease: "Lease", size: int) -> None:
        """Take back ``size`` bytes and grant them to waiting bodies, first to those already begun."""
        self.granted -= size
        lease.granted -= size
        for other in sorted(self._waiting, key=lambda other: not other.granted):
            wanted, waiter = self._waiting[other]
            if not self._has_room(other, wanted):
                return
            self._give(other, wanted)
            del self._waiting[other]
            if not waiter.done():
                waiter.set_result(None)

    def _has_room(self, lease: "Lease", size: int) -> bool:
        return self.granted + size <= self._size or next(iter(self._leases)) is lease

    def _give(self, lease: "Lease", size: int) -> None:
        self.granted += size
        lease.granted += size


class Lease:
    """One body's share of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        """Make it; nothing is granted yet."""
        self.granted = 0
        self.received = 0
        self._judged = 0
        self._paid_until = 0.0
        self.time_left: asyncio.Timeout | None = None
        self._budget = budget

    async def make_room(self, declared: int, time_left: asyncio.Timeout) -> None:
        """Wait for memory for the next piece of a body of ``declared`` bytes (0: unknown).

        Raises:
            ProblemError: ``overloaded``: there was none in time.
        """
        left = self.granted - self.received
        rest = declared - self.received if declared else STEP_BYTES
        if left >= min(rest, PIECE_BYTES):
            self.time_left = time_left
            return
        loop = asyncio.get_running_loop()
        self.time_left, asked = None, loop.time()
        await self._budget.grant(self, min(rest, STEP_BYTES) - left)
        self._paid_until += loop.time() - asked  # time spent waiting for memory is not the client's
        self.time_left = time_left

    def behind(self, now: float) -> float:
        """Seconds by which the body is slower than `BYTES_PER_SECOND`; speed before a stall is no credit for it."""
        arrived, self._judged = self.received - self._judged, self.received
        self._paid_until = min(now, self._paid_until + arrived / BYTES_PER_SECOND)
        return now - self._paid_until

    def complete(self) -> None:
        """The body has arrived: give back what was granted beyond it."""
        self.time_left = None
        spare = self.granted - self.received
        if spare > 0:
            self._budget.give_back(self, spare)

    def __enter__(self) -> "Lease":
        """Join the budget."""
        self._paid_until = asyncio.get_running_loop().time()
        self._budget.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back what was granted."""
        self.time_left = None
        self._budget.leave(self)
