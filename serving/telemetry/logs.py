"""Logs: one JSON object per line on stdout, written by a thread of its own, since a pipe may be full."""

import contextlib
import logging
import sys
import threading
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

ACCESS: Final = logging.getLogger("catsdogs.access")
SERVICE: Final = logging.getLogger("catsdogs")
GROUP_SECONDS: Final = 0.2
MAX_RECORDS: Final = 10_000
CLOSE_SECONDS: Final = 5.0


class JsonFormatter(logging.Formatter):
    """Time, level, message, and what a record carries in ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class _Writer(logging.Handler):
    """Takes records where they are made, and formats and writes them in groups in a thread of its own.

    Waking a thread for each record is what logging costs; a group wakes it once. Records are dropped, and counted in
    the next line, when nobody reads what is written.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._records: deque[logging.LogRecord] = deque()
        self._dropped = 0
        self._waiting = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._records) >= MAX_RECORDS:
            self._dropped += 1
            return
        self._records.append(record)
        if not self._waiting.is_set():
            self._waiting.set()

    def close(self) -> None:
        self._closing.set()
        self._waiting.set()
        self._thread.join(CLOSE_SECONDS)
        super().close()

    def _write(self) -> None:
        closing = False
        while not closing:
            self._waiting.wait()
            self._closing.wait(GROUP_SECONDS)
            closing = self._closing.is_set()  # asked before the last group, which so has all there is
            self._waiting.clear()
            lines = [self._line(self._records.popleft()) for _ in range(len(self._records))]
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                lines.append(msgspec.json.encode({"level": "warning", "message": f"{dropped} lines lost"}).decode())
            # Without a reader there is nobody to tell, and requests are answered all the same.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write("".join(line + "\n" for line in lines))
                self._stream.flush()

    def _line(self, record: logging.LogRecord) -> str:
        """The record as a line; one that cannot be formatted must not end the thread, and with it all logs."""
        try:
            return self.format(record)
        except Exception as error:
            told = {"level": "error", "message": "a record could not be formatted", "logger": record.name}
            return msgspec.json.encode(told | {"reason": type(error).__name__}).decode()


@contextlib.contextmanager
def to_stdout(level: str) -> Iterator[None]:
    """Send every record of ``level`` and above to stdout as JSON, until the block ends."""
    root, writer = logging.getLogger(), _Writer(sys.stdout)
    writer.setFormatter(JsonFormatter())
    root.addHandler(writer)
    root.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(writer)
        writer.close()
