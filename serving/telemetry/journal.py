"""The journal's writer.

While the disk is full or gone, it tries again, and lines wait in a buffer; when that is full, they are dropped and
counted. No group is ever left half-written in a file.
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

    Several services may share a folder: each locks the file it writes, and starts a new file if another service has
    locked the last one, or if the last one is a FIFO, a folder or anything else that is not a regular file. ``lines``
    counts lines that are synced to disk, ``skipped`` the entries that are not regular files.
    """

    def __init__(
        self, folder: Path, max_bytes: int, max_files: int = 0, first: Callable[[], None] = lambda: None
    ) -> None:
        """Make it; nothing runs yet.

        Args:
            folder: created if it does not exist.
            max_bytes: when a file has reached this size, the next is started.
            max_files: how many of the newest files to keep; 0 for all.
            first: called in the thread before it writes, to read the journal back.
        """
        super().__init__("journal", self._write_group)
        self.lines = self.skipped = 0
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._first = first
        self._encoder = msgspec.json.Encoder()
        self._file: _File | None = None

    def close(self) -> int:
        """Write the waiting lines and stop; returns how many are lost."""
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
            SERVICE.info("the journal can be written again", extra={"fields": {"dropped_lines": self.dropped}})

    def _append(self, group: list[Line]) -> None:
        if group and self._file is not None and (self._file.size >= self._max_bytes or self._file.gone()):
            self._release()
        if self._file is None:
            self._file = _File(self._folder, self._max_bytes)
            if self._file.skipped:
                self.skipped += 1
                SERVICE.warning(
                    "the journal's last entry is not a regular file and is skipped",
                    extra={"fields": {"entry": self._file.skipped}},
                )
            if self._max_files:
                _delete_all_but(self._max_files, self._folder)
        self._file.append(self._encoder.encode_lines(group))

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _delete_all_but(newest: int, folder: Path) -> None:
    """Delete all but the newest files; keep those that a service is writing or that cannot be deleted."""
    for _, path in journal.files(folder)[:-newest]:
        with contextlib.suppress(OSError):
            if (fd := _locked(path, os.O_RDWR)) >= 0:
                try:
                    path.unlink()
                finally:
                    os.close(fd)


class _File:
    """The file being written, open and locked."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Continue the last file of ``folder``, or start the next.

        The next is started if the last is full, is written by another process, or is not a regular file; in the latter
        case its name is ``skipped``.

        Raises:
            OSError: neither can be opened.
        """
        folder.mkdir(parents=True, exist_ok=True)
        there = journal.entries(folder)
        last, self.path = there[-1] if there else (0, folder)
        self._fd, self.skipped = -1, ""
        if there and not self.path.is_file():
            self.skipped = self.path.name
        elif there and self.path.stat().st_size < max_bytes:
            self._fd = _locked(self.path, os.O_RDWR)
        while self._fd < 0:
            # Another process may take a number first.
            last += 1
            self.path = folder / journal.name(last)
            self._fd = _locked(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self.size = _whole(self._fd)
            os.ftruncate(self._fd, self.size)
            os.lseek(self._fd, self.size, os.SEEK_SET)
            # The folder must be synced too, or a crash could lose the new file's name.
            entry = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(entry)
            finally:
                os.close(entry)
        except OSError:
            self.close()
            raise

    def gone(self) -> bool:
        """Whether the path no longer leads to this file: it was deleted, or the folder was mounted over."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except OSError:
            return True

    def append(self, data: bytes) -> None:
        """Write all of ``data`` to disk, or none of it.

        Raises:
            OSError: none of it was written.
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
        """Close the file and release its lock."""
        os.close(self._fd)


def _locked(path: Path, flags: int) -> int:
    """Open and lock the file; returns its descriptor, or -1 if another process has locked or just made it.

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
    """Size of the file up to its last newline: a crash may have left half a line after it."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - TAIL)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
