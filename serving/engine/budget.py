"""How many bytes of request bodies may be in memory at once, whoever sends them.

A thousand clients may each send twenty megabytes. A body has its first bytes free, as many as an ordinary photo has;
one that is larger is left in the socket, where its sender waits, until there is room for the whole of it. So those that
are let in are not kept waiting by halves of others.
"""

import asyncio
from collections import OrderedDict, deque
from types import TracebackType
from typing import Final

from serving.errors import ProblemError

FREE_BYTES: Final = 128_000
# A body of unknown length is given so much at a time.
STEP_BYTES: Final = 1_000_000
# While others wait for room, a client that sends nothing for so long is cut off; otherwise it has its full time.
STALL_SECONDS: Final = 2.0


class Pool:
    """Memory for bodies, on one event loop. ``granted`` is what bodies have or may still send.

    Args:
        size: bytes, which one body at a time may exceed.
        seconds: longest that a body waits for room.
    """

    def __init__(self, size: int, seconds: float) -> None:
        """Make it empty."""
        self.granted = 0
        self._size = size
        self._seconds = seconds
        self._leases: OrderedDict[Lease, None] = OrderedDict()  # those with a grant, oldest first
        self._line: deque[tuple[Lease, int, asyncio.Future[None]]] = deque()

    def lease(self, copies: int = 1) -> "Lease":
        """Make the share of one body that is kept so many times; use it in a ``with`` block as long as the body."""
        return Lease(self, copies)

    async def grant(self, lease: "Lease", size: int, time_left: asyncio.Timeout) -> None:
        """Give a body ``size`` more bytes once there is room; the client's ``time_left`` stands still meanwhile.

        Raises:
            ProblemError: ``overloaded``: there was none in time.
        """
        if self._may(lease, size) and (lease in self._leases or not self._line):
            self._give(lease, size)
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        place = (lease, size, waiter)
        # Whoever has something goes first, so that it can be done with it.
        (self._line.appendleft if lease in self._leases else self._line.append)(place)
        started, ends = loop.time(), time_left.when()
        time_left.reschedule(None)
        lease.sending = False
        try:
            async with asyncio.timeout(self._seconds):
                await waiter
        except TimeoutError as error:
            raise ProblemError("overloaded", "too many large bodies are under way", retry_after=1) from error
        finally:
            if place in self._line:
                self._line.remove(place)
        lease.sending = True
        if ends is not None:
            time_left.reschedule(ends + loop.time() - started)

    def give_back(self, lease: "Lease", size: int) -> None:
        """Take back ``size`` bytes of a body's, and let others in."""
        self.granted -= size
        lease.granted -= size
        if not lease.granted:
            self._leases.pop(lease, None)
        while self._line and self._may(*self._first()[:2]):
            place = self._first()
            self._line.remove(place)
            if not place[2].done():
                self._give(place[0], place[1])
                place[2].set_result(None)

    def check(self) -> None:
        """Cut off clients that have stopped sending, if others wait for what they hold; call every second or so."""
        now = asyncio.get_running_loop().time()
        for lease in self._leases if self._line else ():
            if lease.sending and lease.time_left is not None and now - lease.last_piece > STALL_SECONDS:
                lease.sending = False
                lease.time_left.reschedule(now)

    def _first(self) -> tuple["Lease", int, asyncio.Future[None]]:
        """Whose turn it is: the oldest body's, if it waits."""
        oldest = next(iter(self._leases), None)
        return next((place for place in self._line if place[0] is oldest), self._line[0])

    def _may(self, lease: "Lease", size: int) -> bool:
        # The oldest may always go on, or bodies of unknown length could wait for each other.
        oldest = next(iter(self._leases), lease)
        return oldest is lease or self.granted + size <= self._size

    def _give(self, lease: "Lease", size: int) -> None:
        self.granted += size
        lease.granted += size
        self._leases.setdefault(lease)


class Lease:
    """One body's share of the pool."""

    def __init__(self, pool: Pool, copies: int) -> None:
        """Hold nothing yet."""
        self.granted = 0
        self.sending = False
        self.last_piece = 0.0
        self.time_left: asyncio.Timeout | None = None
        self._pool = pool
        self._copies = copies
        self._held = 0

    async def take(self, size: int, declared: int, time_left: asyncio.Timeout) -> None:
        """Count ``size`` more bytes of a body of ``declared`` bytes (0: unknown), once there is room for them.

        Raises:
            ProblemError: ``overloaded``: there was none in time.
        """
        self._held += size * self._copies
        missing = self._held - FREE_BYTES - self.granted
        if missing <= 0 and not self.granted:
            return
        self.time_left = time_left
        self.sending = True
        if missing > 0:
            rest = declared * self._copies - FREE_BYTES - self.granted if declared else STEP_BYTES
            await self._pool.grant(self, max(missing, rest), time_left)
        self.last_piece = asyncio.get_running_loop().time()

    def complete(self) -> None:
        """Say that the body is there: what it may still have sent is free again."""
        self.sending = False
        spare = self.granted - max(0, self._held - FREE_BYTES)
        if spare > 0:
            self._pool.give_back(self, spare)

    def __enter__(self) -> "Lease":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back what was granted."""
        self.time_left = None
        if self.granted:
            self._pool.give_back(self, self.granted)
