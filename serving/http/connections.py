"""Connections: what may be held against the service before a request reaches a handler, and for how long.

uvicorn's own protocol bounds neither the number of connections (in our error form), nor a head's size or time, nor
pipelined requests, nor the framing of a chunked body, nor how long an answer may lie unread. At most a connection costs
what it reads ahead (64 kB and one read of 64 kB), a head (`MAX_HEAD_BYTES`, `MAX_HEADERS`) for each request that it
pipelines (`MAX_PIPELINED`), and the answer on its way out.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import sys
import termios
import uuid
import weakref
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, cast

import httptools
from starlette.responses import Response
from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serving.http import problems
from serving.http.headers import API
from serving.telemetry.logs import ACCESS, SERVICE
from serving.telemetry.metrics import Metrics

MAX_HEAD_BYTES: Final = 32_768
MAX_HEADERS: Final = 100
MAX_PIPELINED: Final = 8
# Of one read of a socket.
READ_BYTES: Final = 65_536
# Chunk sizes, chunk extensions and trailers of one body: each chunk, however small, is a call into Python.
MAX_FRAMING_BYTES: Final = 262_144
# How long a client that has its answer may still send: closing at once would reset the connection and lose the answer.
LINGER_SECONDS: Final = 3.0
MAX_LINGERING: Final = 64
# A client that reads slower than this for as long as a body may take is not reading.
READ_BYTES_PER_SECOND: Final = 1000
# Descriptors for everything else: lingering connections, the model, the journal, assets on their way out.
SPARE_DESCRIPTORS: Final = 2 * MAX_LINGERING
RETRY_AFTER_SECONDS: Final = "2"
NEVER: Final = float("inf")
# Where the trailers of a chunked body go. Not a list, but it takes what uvicorn does with one: appending and iterating.
_NOWHERE: Final = cast("list[tuple[bytes, bytes]]", deque[tuple[bytes, bytes]](maxlen=0))


def affordable(connections: int) -> int:
    """Raise the limit of file descriptors as far as ``connections`` need; returns how many there may be."""
    wanted = connections + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most == wanted:
        return connections
    allowed = max(most // 2, most - SPARE_DESCRIPTORS)
    SERVICE.warning(
        "fewer connections than the setting allows: the limit of file descriptors is too low",
        extra={"fields": {"max_connections": connections, "allowed": allowed, "descriptors": most}},
    )
    return allowed


class Door:
    """What the connections of one server share: their limits, and the clock that ends those that overstay."""

    def __init__(self, max_connections: int, seconds: float, metrics: Metrics) -> None:
        """Allow so many connections, ``seconds`` for a head to arrive, and as long for an answer to be read."""
        self.max_connections = max_connections
        self.seconds = seconds
        self.metrics = metrics
        self.lingering: set[Connection] = set()
        self.short = False  # of file descriptors, when last looked

    @property
    def protocol(self) -> type[asyncio.Protocol]:
        """What uvicorn makes for each connection."""
        return cast("type[asyncio.Protocol]", partial(Connection, self))

    def sweep(self, connections: Iterable[object], now: float) -> None:
        """End what has overstayed. One sweep over all twice a second costs less than a timer for each request."""
        short = _out_of_descriptors()
        if short != self.short:
            self.short = short
            if short:
                SERVICE.error("no file descriptor is left; idle connections are closed")
            else:
                SERVICE.info("file descriptors are available again")
        for connection in (*connections, *self.lingering):
            assert isinstance(connection, Connection)
            # What is odd about one of them must not end the server.
            try:
                connection.check(now)
                if short:
                    connection.close_if_idle()
            except Exception:
                SERVICE.exception("checking a connection failed")

    def problem(self, code: str, detail: str, headers: dict[str, str] | None) -> bytes:
        """Count and log one refusal; returns the whole answer as bytes."""
        request_id = uuid.uuid4().hex
        answer: Response = problems.response(code, detail, request_id, headers)
        self.metrics.rejected.inc({"code": code})
        self.metrics.requests.inc({"method": "other", "route": "unmatched", "status": str(answer.status_code)})
        fields = {"request_id": request_id, "code": code, "status": answer.status_code}
        ACCESS.info("refused", extra={"fields": fields})
        lines = [*answer.raw_headers, *API, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        head = b"".join(b"%b: %b\r\n" % line for line in lines)
        return STATUS_LINE[answer.status_code] + head + b"\r\n" + bytes(answer.body)


class JoinedWrites:
    """A transport that sends an answer's head together with its body: two sends wake the client twice."""

    def __init__(self, transport: asyncio.Transport) -> None:
        """Wrap ``transport``; all but writing and closing is its own."""
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, or wait for what follows a head."""
        if data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1" and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        head, self._head = self._head, b""
        self._transport.write(head + data if head else data)

    def close(self) -> None:
        """Write what waits and close."""
        self.write(b"")
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """Anything else is the transport's."""
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1 connection within the limits of a door.

    It adds to uvicorn's state: ``in_body``, the head of a message is complete and the message is not; ``overhead``,
    bytes of the message that are not its content; ``deaf``, whatever else arrives is thrown away; ``read_by`` and
    ``written_by``, when the client must have sent or read what it is sending or reading now.
    """

    def __init__(
        self,
        door: Door,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Make one for a connection that ``door`` may yet refuse."""
        super().__init__(config, server_state, app_state, _loop)
        self.door = door
        self.in_body = False
        self.overhead = 0
        self.deaf = False
        self.read_by = NEVER
        self.written_by = NEVER
        self.unwritten = 0
        self.unparsed: bytes | memoryview = b""
        self.wishes = False
        self.answering: RequestResponseCycle | None = None
        self.reason = "invalid HTTP request"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Welcome the client, or tell it that the house is full."""
        super().connection_made(cast("asyncio.Transport", JoinedWrites(transport)))
        # Its 256 kB for each of a thousand connections would be 256 MB.
        cast("Any", transport).max_size = READ_BYTES
        self.read_by = self.loop.time() + self.door.seconds
        if len(self.connections) > self.door.max_connections:
            headers = {"Retry-After": RETRY_AFTER_SECONDS}
            self.refuse("overloaded", "too many connections", headers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.door.lingering.discard(self)
        super().connection_lost(exc)
        if self.answering is not None:  # uvicorn thinks of the latest request alone, which may wait behind this one
            self.answering.disconnected = True
            self.answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, a head no further than it may go."""
        if self.deaf:
            return
        if self.read_by == NEVER and (self.cycle is None or self.cycle.response_complete):
            self.read_by = self.loop.time() + self.door.seconds
        if self.in_body or self.overhead + len(data) < MAX_HEAD_BYTES:
            self._parse(data)
            return
        rest = memoryview(data)
        while rest and not self.deaf:
            room = len(rest) if self.in_body else MAX_HEAD_BYTES - self.overhead
            self._parse(rest[:room])
            rest = rest[room:]

    def _parse(self, data: bytes | memoryview) -> None:
        self.overhead += len(data)
        self.unparsed = data
        super().data_received(cast("bytes", data))
        self.unparsed = b""
        if self.overhead < MAX_HEAD_BYTES and (self.headers is None or len(self.headers) <= MAX_HEADERS):
            return
        if not self.in_body:
            self.refuse("malformed_request", f"the head exceeds {MAX_HEAD_BYTES:,} bytes or {MAX_HEADERS} fields")
        elif self.overhead > MAX_FRAMING_BYTES:
            self.refuse("malformed_request", "the body has too many chunks or too long a trailer")

    def on_headers_complete(self) -> None:
        """Start the request, unless it is one too many."""
        if len(self.headers) > MAX_HEADERS:
            self.reason = f"the head exceeds {MAX_HEADERS} fields"
            raise ValueError(self.reason)
        if len(self.pipeline) >= MAX_PIPELINED:
            self.reason = "too many pipelined requests"
            raise ValueError(self.reason)
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self.wishes = True
            return
        super().on_headers_complete()
        # Weakly, since what a request refers to refers to it, and its body should go when it does.
        wanted = partial(_still_there, weakref.ref(self.cycle))
        cast("dict[str, Any]", self.scope)["extensions"] = {"catsdogs.wanted": wanted}
        self.headers = _NOWHERE  # a trailer is appended like a header, and nobody wants it
        self.in_body = True
        self.read_by = NEVER

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _in_head(self) -> bool:
        return self.headers is not None and self.headers is not _NOWHERE

    def on_body(self, body: bytes) -> None:
        """Tell content from what is around it."""
        self.overhead -= len(body)
        self.expect_100_continue = False  # it did not wait for leave, or had it
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Be ready for the next head."""
        if self.wishes:
            return
        self.in_body = False
        self.overhead = 0
        if self.cycle.response_complete:  # the rest of a body that nobody wanted; uvicorn's timer is off by now
            self.read_by = self.loop.time() + self.timeout_keep_alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See to the part of a body that the answer did not wait for."""
        if self.in_body and not self.pipeline:
            if self.expect_100_continue:
                # It got an answer instead of leave to send: whether a body or a request comes next, nobody knows.
                self.transport.close()
            self.read_by = self.loop.time() + LINGER_SECONDS
        super().on_response_complete()
        if self.deaf and not self.pipeline and not self.transport.is_closing():
            self._linger()
        elif self._in_head and not self.pipeline:
            self._unset_keepalive_if_required()
            self.read_by = self.loop.time() + self.door.seconds

    def pause_writing(self) -> None:
        """Start the time that a client has for reading."""
        super().pause_writing()
        self._watch_writing(self.loop.time())

    def resume_writing(self) -> None:
        """Stop it."""
        super().resume_writing()
        self.written_by = NEVER

    def _watch_writing(self, now: float) -> None:
        self.unwritten = self._unread()
        self.written_by = now + self.door.seconds

    def _unread(self) -> int:
        """Bytes of the answer that the client has yet to take, of which the system may hold megabytes."""
        size: int = self.transport.get_write_buffer_size()
        with contextlib.suppress(OSError, ValueError):  # not every system tells, nor a connection that is gone
            told = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
            size += int.from_bytes(told, sys.byteorder)
        return size

    def check(self, now: float) -> None:
        """End the connection if its client has overstayed."""
        if now > self.written_by:
            if self.unwritten - self._unread() < READ_BYTES_PER_SECOND * self.door.seconds:
                SERVICE.info("a client that does not read its answer was dropped")
                self.transport.abort()
            else:
                self._watch_writing(now)
        elif self.transport.is_closing():
            if self.written_by == NEVER:  # it closes once all is written
                self._watch_writing(now)
        elif now > self.read_by:
            if self._in_head and not self.deaf:
                self.refuse("slow_request", f"the head did not arrive within {self.door.seconds:g} seconds")
            else:
                self.transport.close()

    def close_if_idle(self) -> None:
        """Give a descriptor back if no request is under way."""
        if not self._in_head and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def refuse(self, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        """Answer in place of a handler, and listen no more.

        What was asked before the fault is answered first.
        """
        if self.deaf:
            return
        self.deaf = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and (cycle.response_started or not self.in_body):
            return
        if cycle is not None and not cycle.response_complete:  # the fault is in the body that a handler waits for
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(self.door.problem(code, detail, headers))
        self._linger()

    def _linger(self) -> None:
        """Say no more, and close once the client has had its time to read what was said."""
        self.connections.discard(self)
        if len(self.door.lingering) < MAX_LINGERING:
            self.door.lingering.add(self)
            self.transport.write_eof()
            self.read_by = self.loop.time() + LINGER_SECONDS
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's own words
        """Answer what is not HTTP in our form."""
        self.refuse("malformed_request", self.reason)

    def _should_upgrade(self) -> bool:
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Read a request again without its wish for another protocol, which HTTP allows to pass over.

        Java's client has that wish with every request; the parser takes the body for the other protocol.
        """
        error = sys.exc_info()[1]
        assert isinstance(error, httptools.HttpParserUpgrade)
        rest = memoryview(self.unparsed)[error.args[0] :]
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.wishes = False
        self.overhead = 0
        self._parse(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines)))
        self._parse(rest)


def _still_there(cycle: weakref.ref[RequestResponseCycle]) -> bool:
    """Whether the client of a request is: asked by the lane that is about to decode its picture."""
    request = cycle()
    return request is not None and not request.disconnected


def _out_of_descriptors() -> bool:
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False
