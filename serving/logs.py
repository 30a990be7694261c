"""Logs: one JSON object per line on stdout, written by a thread of its own, since a pipe may be full."""

import contextlib
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

ACCESS: Final = logging.getLogger("catsdogs.access")
SERVICE: Final = logging.getLogger("catsdogs")


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


class _Hand(logging.handlers.QueueHandler):
    """Hands records over as they are: the writer formats them, in the same process."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


@contextlib.contextmanager
def to_stdout(level: str) -> Iterator[None]:
    """Send every record of ``level`` and above to stdout as JSON, until the block ends."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    writer = logging.StreamHandler(sys.stdout)
    writer.setFormatter(JsonFormatter())
    listener = logging.handlers.QueueListener(records, writer)
    root, hand = logging.getLogger(), _Hand(records)
    root.addHandler(hand)
    root.setLevel(level.upper())
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(hand)
        listener.stop()
