"""A queue in which requests take turns, so that a single picture never waits for the whole of somebody's batch."""

import heapq
import itertools
import queue
import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items of several owners: an owner's in the order they came, one of each owner's in turn. Any thread may use it.

    An owner is any hashable object; owners with one item each are served first come, first served, but for their head
    starts: who has one goes before those that came less than that earlier and have none. Only an owner's first turn has
    it, or one that has many would take others' turns again and again.
    """

    def __init__(self) -> None:
        """Make it empty."""
        # One entry for each item, so that waiting for one is the C queue's and takes the lock of neither side.
        self._there: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._items: dict[object, deque[T]] = {}
        # A heap of when each owner is due; the count keeps those that are due at once in order.
        self._turns: list[tuple[float, int, object]] = []
        self._count = itertools.count()

    def put(self, item: T, owner: object, head_start: float = 0.0) -> None:
        """Append an item of ``owner``'s; its turn, if it has none yet, comes ``head_start`` seconds early."""
        with self._lock:
            if (items := self._items.get(owner)) is None:
                items = self._items[owner] = deque()
                self._line_up(owner, head_start)
            items.append(item)
        self._there.put(True)

    def get(self) -> T | None:
        """Wait for an item and take it; None once the queue has ended and is empty."""
        if not self._there.get():
            return None
        with self._lock:
            _, _, owner = heapq.heappop(self._turns)
            items = self._items[owner]
            item = items.popleft()
            if items:
                self._line_up(owner, 0.0)
            else:
                del self._items[owner]
        return item

    def end(self, times: int) -> None:
        """Have ``times`` calls of ``get`` return None after what is there now."""
        for _ in range(times):
            self._there.put(False)

    def _line_up(self, owner: object, head_start: float) -> None:
        heapq.heappush(self._turns, (time.monotonic() - head_start, next(self._count), owner))
