"""A queue in which requests take turns, so that a single picture never waits for the whole of somebody's batch."""

import queue
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items of several owners: an owner's in the order they came, one of each owner's in turn. Any thread may use it.

    An owner is any hashable object; owners with one item each are served first come, first served.
    """

    def __init__(self) -> None:
        """Make it empty."""
        # One entry for each item, so that waiting for one is the C queue's and takes the lock of neither side.
        self._there: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._items: dict[object, deque[T]] = {}
        self._turns: deque[object] = deque()

    def put(self, item: T, owner: object) -> None:
        """Append an item of ``owner``'s."""
        with self._lock:
            if (items := self._items.get(owner)) is None:
                items = self._items[owner] = deque()
                self._turns.append(owner)
            items.append(item)
        self._there.put(True)

    def get(self) -> T | None:
        """Wait for an item and take it; None once the queue has ended and is empty."""
        if not self._there.get():
            return None
        with self._lock:
            owner = self._turns.popleft()
            items = self._items[owner]
            item = items.popleft()
            if items:
                self._turns.append(owner)
            else:
                del self._items[owner]
        return item

    def end(self, times: int) -> None:
        """Have ``times`` calls of ``get`` return None after what is there now."""
        for _ in range(times):
            self._there.put(False)
