"""The journal's writer. A disk that is full or gone costs lines only once the buffer is full, and they are counted.

The writer tries again by itself, and no group is ever left half-written in a file.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from serving.telemetry.logs import SERVICE
from serving.telemetry.writer import LineWriter
from shared import journal
from shared.journal import Line

TAIL: Final = 65_536


class Journal(LineWriter[Line]):
    """Appends lines to the files of one folder.

    Several services may share a folder: each holds a lock on the file it writes, and takes a new file where another
    holds the last one. ``lines`` counts those that are safely on disk.
    """

    def __init__(
        self, folder: Path, max_bytes: int, max_files: int = 0, first: Callable[[], None] = lambda: None
    ) -> None:
        """Make it; nothing runs yet.

        Args:
            folder: made if it is not there.
            max_bytes: a file that has reached this size is followed by the next.
            max_files: how many files are kept, the newest; 0 for all.
            first: what the thread does before it touches the folder, such as reading what is there.
        """
        super().__init__("journal", self._write_group)
        self.lines = 0
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._first = first
        self._encoder = msgspec.json.Encoder()
        self._file: _File | None = None

    def close(self) -> int:
        """Write what waits and stop; returns how many lines are lost."""
        if lost := super().close():
            SERVICE.error("lines of the journal are lost", extra={"fields": {"lines": lost}})
        return lost

    def _run(self) -> None:
        self._first()
        super()._run()
        self._release()

    def _write_group(self, group: list[Line]) -> None:
        try:
            self._append(group)
        except OSError as error:
            self._release()
            if not self.failures:
                SERVICE.error("the journal cannot be written", extra={"fields": {"reason": error.strerror}})
            raise
        self.lines += len(group)
        if self.failures:
            SERVICE.info("the journal is written again", extra={"fields": {"dropped_lines": self.dropped}})

    def _append(self, group: list[Line]) -> None:
        if group and self._file is not None and (self._file.size >= self._max_bytes or self._file.gone()):
            self._release()
        if self._file is None:
            self._file = _File(self._folder, self._max_bytes)
            if self._max_files:
                _delete_all_but(self._max_files, self._folder)
        self._file.append(self._encoder.encode_lines(group))

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _delete_all_but(newest: int, folder: Path) -> None:
    """Delete the oldest files, but for those that a service writes; one that cannot be deleted is left."""
    for _, path in journal.files(folder)[:-newest]:
        with contextlib.suppress(OSError):
            if (fd := _locked(path, os.O_RDWR)) >= 0:
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
