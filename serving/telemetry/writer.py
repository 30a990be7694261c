"""A bounded buffer and a thread that writes it, so that the event loop never waits for a file or a pipe."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MAX_LINES: Final = 10_000
GROUP_SECONDS: Final = 0.5
RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
CLOSE_SECONDS: Final = 5.0


class LineWriter(Generic[T]):
    """Passes lines to ``write`` in groups, in a daemon thread; the first group, which may be empty, at once.

    If ``write`` raises OSError, the group is tried again. ``dropped`` counts lines that were never written;
    ``failures`` the attempts that failed since the last success.
    """

    def __init__(
        self, name: str, write: Callable[[list[T]], None], most: int | None = None, pause: float | None = None
    ) -> None:
        """Make it; :meth:`start` starts it.

        Args:
            name: the thread's.
            write: writes a group.
            most: how many lines may wait; ``MAX_LINES`` if None.
            pause: seconds in which lines make a group; ``GROUP_SECONDS`` if None.
        """
        self.dropped = self.failures = 0
        self._most = MAX_LINES if most is None else most
        self._pause = GROUP_SECONDS if pause is None else pause
        self._write = write
        self._buffer: deque[T] = deque()
        self._waiting, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.start = self._thread.start

    def append(self, line: T) -> bool:
        """Queue a line; returns False if too many are waiting, and it is dropped."""
        if len(self._buffer) >= self._most:
            self.dropped += 1
            return False
        self._buffer.append(line)
        # Waking a thread costs more than the rest of this method, so it is done once per group.
        if not self._waiting.is_set():
            self._waiting.set()
        return True

    def wake(self) -> None:
        """Have ``write`` called, with an empty group if nothing waits."""
        self._waiting.set()

    def close(self) -> int:
        """Write the waiting lines, for ``CLOSE_SECONDS`` at most; returns how many are lost."""
        self._closing.set()
        self._waiting.set()
        self._thread.join(CLOSE_SECONDS)
        self.dropped += len(self._buffer)
        return len(self._buffer)

    def _run(self) -> None:
        while True:
            self._waiting.clear()
            closing = self._closing.is_set()  # read first, so that the last group has all lines
            group = [self._buffer.popleft() for _ in range(len(self._buffer))]
            try:
                self._write(group)
                self.failures = 0
            except OSError:
                # In one atomic call, so that lines appended meanwhile stay behind these.
                self._buffer.extendleft(reversed(group))
                self.failures += 1
            if closing:
                return
            if self.failures:
                self._closing.wait(RETRY_SECONDS[min(self.failures, len(RETRY_SECONDS)) - 1])
            else:
                self._waiting.wait()
                self._closing.wait(self._pause)
