"""The journal's one writer: lines come from the event loop, a thread of its own brings them to disk in groups.

The event loop never waits for a file: it appends to a bounded buffer. A disk that is full or gone costs lines once the
buffer is, and they are counted; the writer tries again by itself, and no group is ever left half-written in a file.
"""

import contextlib
import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from serving.telemetry.logs import SERVICE
from shared import journal
from shared.journal import Line

FLUSH_SECONDS: Final = 0.5
MAX_LINES: Final = 10_000
RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
CLOSE_SECONDS: Final = 5.0
TAIL: Final = 65_536


class Journal:
    """Appends lines to the files of one folder, from :meth:`start` to :meth:`close`.

    Several services may share a folder: each holds a lock on the file it writes, and takes a new file where another
    holds the last one.

    ``lines``, ``dropped`` and ``failing`` say how many lines are safely on disk, how many were lost, and whether the
    last attempt to write failed.
    """

    def __init__(
        self, folder: Path, max_bytes: int, max_files: int = 0, first: Callable[[], None] = lambda: None
    ) -> None:
        """Make it; nothing runs yet.

        Args:
            folder: made if it is not there.
            max_bytes: a file that has grown so large is followed by the next.
            max_files: so many are kept, the newest; 0 for all.
            first: what the writer's thread does before it touches the folder, such as reading what is there.
        """
        self.lines = 0
        self.dropped = 0
        self.failing = False
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._first = first
        self._buffer: deque[Line] = deque()
        self._waiting = threading.Event()
        self._closing = threading.Event()
        self._encoder = msgspec.json.Encoder()
        self._file: _File | None = None
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)

    def start(self) -> None:
        """Start the writer."""
        self._thread.start()

    def append(self, line: Line) -> None:
        """Have a line written within about half a second; it is dropped, and counted, if too many wait already."""
        if len(self._buffer) >= MAX_LINES:
            self.dropped += 1
            return
        self._buffer.append(line)
        # Waking a thread costs more than the rest of this; it is done once for a group.
        if not self._waiting.is_set():
            self._waiting.set()

    def close(self) -> None:
        """Write what waits and stop; a disk that does not answer is waited for no longer than ``CLOSE_SECONDS``."""
        self._closing.set()
        self._waiting.set()
        self._thread.join(CLOSE_SECONDS)
        if self._buffer:
            self.dropped += len(self._buffer)
            SERVICE.error("lines of the journal are lost", extra={"fields": {"lines": len(self._buffer)}})

    def _write(self) -> None:
        self._first()
        failures = 0 if self._attempt() else 1
        closing = False
        while not closing:
            if failures:
                self._closing.wait(RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1])
            else:
                self._waiting.wait()
                self._closing.wait(FLUSH_SECONDS)
            closing = self._closing.is_set()  # asked before the last attempt, which so writes all there is
            failures = 0 if self._attempt() else failures + 1
        if self._file is not None:
            self._file.close()

    def _attempt(self) -> bool:
        """Write the lines that wait, and make sure that they are on disk."""
        self._waiting.clear()
        group = [self._buffer.popleft() for _ in range(len(self._buffer))]
        try:
            self._append(group)
        except OSError as error:
            # In one step, so that whatever the event loop appends meanwhile stays behind them.
            self._buffer.extendleft(reversed(group))
            if self._file is not None:
                self._file.close()
                self._file = None
            if not self.failing:
                self.failing = True
                SERVICE.error("the journal cannot be written", extra={"fields": {"reason": error.strerror}})
            return False
        self.lines += len(group)
        if self.failing:
            self.failing = False
            SERVICE.info("the journal is written again", extra={"fields": {"dropped_lines": self.dropped}})
        return True

    def _append(self, group: list[Line]) -> None:
        if group and self._file is not None and (self._file.size >= self._max_bytes or self._file.gone()):
            self._file.close()
            self._file = None
        if self._file is None:
            self._file = _File(self._folder, self._max_bytes)
            if self._max_files:
                _delete_all_but(self._max_files, self._folder)
        self._file.append(self._encoder.encode_lines(group))


def _delete_all_but(newest: int, folder: Path) -> None:
    """Delete the oldest files, but for those that a service writes; one that cannot be deleted is left."""
    for _, path in journal.files(folder)[:-newest]:
        with contextlib.suppress(OSError):
            fd = _locked(path, os.O_RDWR)
            if fd < 0:
                continue
            try:
                path.unlink()
            finally:
                os.close(fd)


class _File:
    """The file that is written to, open and locked."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Go on with the last file of ``folder``; begin the next where it is full, or another process writes it.

        Raises:
            OSError: neither can be had.
        """
        folder.mkdir(parents=True, exist_ok=True)
        there = journal.files(folder)
        last, self.path = there[-1] if there else (0, folder)
        self._fd = -1
        if there and self.path.stat().st_size < max_bytes:
            self._fd = _locked(self.path, os.O_RDWR)
        while self._fd < 0:
            # Another process may be quicker than this one to any number.
            last += 1
            self.path = folder / journal.name(last)
            self._fd = _locked(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self.size = _whole(self._fd)
            os.ftruncate(self._fd, self.size)
            os.lseek(self._fd, self.size, os.SEEK_SET)
            # The name of a new file is an entry of the folder, which has a sync of its own.
            entry = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(entry)
            finally:
                os.close(entry)
        except OSError:
            self.close()
            raise

    def gone(self) -> bool:
        """Whether the name leads elsewhere by now: somebody deleted the file, or mounted something over the folder."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except OSError:
            return True

    def append(self, data: bytes) -> None:
        """Write all of ``data`` to disk, or nothing of it.

        Raises:
            OSError: nothing; what was written of it is cut off again.
        """
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._fd, left) :]
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        """Close it, which ends the lock."""
        os.close(self._fd)


def _locked(path: Path, flags: int) -> int:
    """A descriptor of the file with a lock on it, or -1 where another process has one or has just made the file.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        fd = os.open(path, flags, 0o640)
    except FileExistsError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def _whole(fd: int) -> int:
    """Size of the file without what follows its last newline: half a line that a crash left."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - TAIL)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
