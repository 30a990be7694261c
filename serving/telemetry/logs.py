"""Logs on stdout: a JSON object per line, plain text on a terminal; written in a thread, since a pipe may be full."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

from serving.telemetry.writer import LineWriter

ACCESS: Final = logging.getLogger("catsdogs.access")
SERVICE: Final = logging.getLogger("catsdogs")


class JsonFormatter(logging.Formatter):
    """Formats time, level, message and the record's ``fields``."""

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


class PlainFormatter(logging.Formatter):
    """Formats for people: the time of day, the message, and what the record's ``fields`` say."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        fields: dict[str, object] = getattr(record, "fields", {})
        if record.name == ACCESS.name:
            said = "{method} {route}: {status}, {duration_ms} ms".format_map(fields)
        else:
            told = [
                str(value) if name == "reason" else f"{name.replace('_', ' ')} {value}"
                for name, value in fields.items()
                if value is not None
            ]
            said = ": ".join(filter(None, (record.getMessage(), ", ".join(told))))
        if record.levelno >= logging.WARNING:
            said = f"{record.levelname.lower()}: {said}"
        traced = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{datetime.fromtimestamp(record.created):%H:%M:%S} {said}{traced}"


class Handler(logging.Handler):
    """Formats and writes records in a thread; a line tells how many were dropped while the stream was blocked."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream`` until :meth:`close`."""
        super().__init__()
        if stream.isatty():
            self.setFormatter(PlainFormatter())
            # uvicorn's own tell where it listens once more.
            self.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(SERVICE.name))
        else:
            self.setFormatter(JsonFormatter())
        self._stream = stream
        self._told = 0
        self._writer = LineWriter("logs", self._write)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record to be written."""
        self._writer.append(record)

    def close(self) -> None:
        """Write the queued records and stop."""
        self._writer.close()
        super().close()

    def _write(self, records: list[logging.LogRecord]) -> None:
        lines = [self._line(record) for record in records]
        if dropped := self._writer.dropped - self._told:
            self._told += dropped
            lines.append(self._line(_record(logging.WARNING, f"{dropped} lines lost")))
        # A closed stream must not end the thread.
        with contextlib.suppress(OSError, ValueError):
            self._stream.writelines(line + "\n" for line in lines)
            self._stream.flush()

    def _line(self, record: logging.LogRecord) -> str:
        """Format a record; one that cannot be formatted must not end the thread."""
        try:
            return self.format(record)
        except Exception as error:
            fields = {"logger": record.name, "reason": type(error).__name__}
            return self.format(_record(logging.ERROR, "a record could not be formatted", fields))


def _record(level: int, message: str, fields: Mapping[str, object] | None = None) -> logging.LogRecord:
    return SERVICE.makeRecord(SERVICE.name, level, "", 0, message, (), None, extra={"fields": fields or {}})


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Make records without what no line shows: thread, process, task, and the call's place in the code.

    Source: https://docs.python.org/3/howto/logging.html#optimization
    """
    unused = ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks", "_srcfile")
    before = {name: getattr(logging, name, None) for name in unused}
    try:
        vars(logging).update(dict.fromkeys(unused))
        yield
    finally:
        vars(logging).update(before)


@contextlib.contextmanager
def to_stdout(level: str) -> Iterator[None]:
    """Send every record of ``level`` and above to stdout, until the block ends."""
    root, handler = logging.getLogger(), Handler(sys.stdout)
    root.addHandler(handler)
    root.setLevel(level.upper())
    try:
        with _lean():
            yield
    finally:
        root.removeHandler(handler)
        handler.close()
