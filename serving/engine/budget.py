"""How many bytes of request bodies may be in memory at once, and how slowly they may come.

A thousand clients may each send twenty megabytes. Every byte counts, and is granted in steps before it is read; until
then it is left in the socket, where its sender waits. The oldest body is always granted more, so bodies that wait for
each other's memory come to an end.
"""

import asyncio
from collections import OrderedDict
from types import TracebackType
from typing import Final

from serving.errors import ProblemError

# Most photos get all they need at once; a body that is hardly sent holds no more.
STEP_BYTES: Final = 256_000
# The most that one read brings: what uvicorn reads ahead, and one read of the socket.
PIECE_BYTES: Final = 131_072
# A body may take a first time and then as long as this rate allows: an uplink of 256 kbit/s passes.
BYTES_PER_SECOND: Final = 32_000
# The first time, while others wait for memory.
CONTENDED_SECONDS: Final = 2.0


class BodyBudget:
    """Memory for bodies, on one event loop. ``granted`` is what bodies hold or may still send.

    Args:
        size: bytes, which the oldest body may exceed.
        seconds: longest that a body waits for memory, and the first time that it has for coming in.
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

    def lease(self, copies: int = 1) -> "Lease":
        """Make the share of one body that is kept so many times; use it in a ``with`` block as long as the body."""
        return Lease(self, copies)

    def check(self) -> None:
        """Cut off bodies that come in too slowly; call every second or so."""
        now = asyncio.get_running_loop().time()
        first = CONTENDED_SECONDS if self._waiting else self.seconds
        for lease in self._leases:
            if lease.time_left is not None and now - lease.started > first + lease.received / BYTES_PER_SECOND:
                lease.time_left.reschedule(now)

    async def grant(self, lease: "Lease", size: int) -> None:
        """Give a body ``size`` more bytes once there is room.

        Raises:
            ProblemError: ``overloaded``: there was none in time.
        """
        if self._has_room(lease, size) and (lease.granted or not self._waiting):
            self._give(lease, size)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[lease] = (size, waiter)
        try:
            async with asyncio.timeout(self._wait_seconds):
                await waiter
        except TimeoutError as error:
            raise ProblemError("overloaded", "too many large bodies are under way", retry_after=1) from error
        finally:
            self._waiting.pop(lease, None)

    def enter(self, lease: "Lease") -> None:
        """Take note of a body that begins."""
        self._leases[lease] = None

    def leave(self, lease: "Lease") -> None:
        """Take back what a body holds, and let others in."""
        del self._leases[lease]
        self.give_back(lease, lease.granted)

    def give_back(self, lease: "Lease", size: int) -> None:
        """Take back ``size`` bytes, and let others in: who has something first, so that it can be done with it."""
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

    def __init__(self, budget: BodyBudget, copies: int) -> None:
        """Hold nothing yet."""
        self.granted = 0
        self.received = 0
        self.started = 0.0
        self.time_left: asyncio.Timeout | None = None
        self._budget = budget
        self._copies = copies

    async def make_room(self, declared: int, time_left: asyncio.Timeout) -> None:
        """Return once there is room for what may come next of a body of ``declared`` bytes (0: unknown).

        Raises:
            ProblemError: ``overloaded``: there was none in time.
        """
        left = self.granted - self.received * self._copies
        rest = (declared - self.received) * self._copies if declared else STEP_BYTES
        if left >= min(rest, PIECE_BYTES * self._copies):
            self.time_left = time_left
            return
        loop = asyncio.get_running_loop()
        self.time_left, asked = None, loop.time()
        await self._budget.grant(self, min(rest, STEP_BYTES * self._copies) - left)
        self.started += loop.time() - asked  # waiting for us is not the client's slowness
        self.time_left = time_left

    def complete(self) -> None:
        """Say that the body is there: what it may still have sent is free again."""
        self.time_left = None
        spare = self.granted - self.received * self._copies
        if spare > 0:
            self._budget.give_back(self, spare)

    def __enter__(self) -> "Lease":
        """Begin."""
        self.started = asyncio.get_running_loop().time()
        self._budget.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back what was granted."""
        self.time_left = None
        self._budget.leave(self)
