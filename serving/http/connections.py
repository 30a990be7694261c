"""Connection limits, enforced before a request reaches a handler.

uvicorn's protocol does not limit a head's size or time, pipelined requests, the framing of a chunked body, or how long
an answer may stay unread. It does not check Host, drops clients that half-close, and refuses excess connections in
another error form than ours while idle ones stay. A connection holds at most what it reads ahead (64 kB and one read of
64 kB), a head (`MAX_HEAD_BYTES`, `MAX_HEADERS`) for each request that it pipelines (`MAX_PIPELINED`), and the answer
being sent.
"""

import asyncio
import enum
import re
import sys
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, cast

import httptools
from starlette.responses import Response
from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serving.http import descriptors, problems
from serving.http.headers import API
from serving.http.transport import ClientTransport
from serving.telemetry.logs import ACCESS, SERVICE
from serving.telemetry.metrics import Metrics

MAX_HEAD_BYTES: Final = 32_768
MAX_HEADERS: Final = 100
MAX_PIPELINED: Final = 8
# The most that one read of a socket takes.
READ_BYTES: Final = 65_536
# Chunk sizes, chunk extensions and trailers of one body: each chunk, however small, is a call into Python.
MAX_FRAMING_BYTES: Final = 262_144
# How long a client with its answer may go on sending: closing at once would reset the connection and lose the answer.
LINGER_SECONDS: Final = 3.0
MAX_LINGERING: Final = 64
# A client that reads slower than this for `body_seconds` is disconnected.
READ_BYTES_PER_SECOND: Final = 1000
RETRY_AFTER_SECONDS: Final = "2"
NEVER: Final = float("inf")
# A host and port (RFC 9110, section 7.2), or nothing.
HOST: Final = re.compile(rb"[\w.~!$&'()*+,;=:%\[\]-]*", re.ASCII)
# Discards the trailers of a chunked body. uvicorn only appends to its list of headers and iterates over it.
_NOWHERE: Final = cast("list[tuple[bytes, bytes]]", deque[tuple[bytes, bytes]](maxlen=0))


class Input(enum.Enum):
    """What a connection expects of its client next."""

    REQUEST = enum.auto()
    HEAD = enum.auto()  # the rest of it
    BODY = enum.auto()  # the rest of it
    NOTHING = enum.auto()  # what comes is discarded
    END = enum.auto()  # nothing comes: the client has half-closed the connection


class ConnectionLimits:
    """The limits that one server's connections share, and the sweep that closes those over their time."""

    def __init__(self, max_connections: int, seconds: float, metrics: Metrics) -> None:
        """Allow ``max_connections``, and ``seconds`` each for a head to arrive and an answer to be read."""
        self.max_connections = max_connections
        self.seconds = seconds
        self.metrics = metrics
        self.idle: OrderedDict[Connection, None] = OrderedDict()  # those without a request, longest idle first
        self.lingering: set[Connection] = set()
        self.short = False  # of file descriptors, at the last sweep

    @property
    def protocol(self) -> type[asyncio.Protocol]:
        """The protocol that uvicorn makes for each connection."""
        return cast("type[asyncio.Protocol]", partial(Connection, self))

    def sweep(self, connections: Iterable[object], now: float) -> None:
        """Close connections over their time. Two sweeps a second cost less than a timer for each request."""
        short = descriptors.exhausted()
        if short != self.short:
            self.short = short
            if short:
                SERVICE.error("no file descriptor is left; idle connections are closed")
            else:
                SERVICE.info("file descriptors are available again")
        for connection in (*connections, *self.lingering):
            assert isinstance(connection, Connection)
            # A fault in one connection must not end the server.
            try:
                connection.check(now)
            except Exception:
                SERVICE.exception("checking a connection failed")
        while short and self.make_room():
            pass

    def make_room(self) -> bool:
        """Close the connection that has been idle longest; returns whether there was one."""
        while self.idle:
            connection, _ = self.idle.popitem(last=False)
            if connection.close_if_quiet():
                return True
        return False

    def problem(self, code: str, detail: str, headers: dict[str, str] | None) -> tuple[bytes, bytes]:
        """Count and log one refusal; returns the answer's head and body."""
        request_id = uuid.uuid4().hex
        answer: Response = problems.response(code, detail, {"state": {"id": request_id}, "path": ""}, headers)
        self.metrics.rejected.count(code)
        self.metrics.requests.count("other", "unmatched", str(answer.status_code))
        fields = {"request_id": request_id, "code": code, "status": answer.status_code}
        ACCESS.info("refused", extra={"fields": fields})
        lines = [*answer.raw_headers, *API, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        head = b"".join(b"%b: %b\r\n" % line for line in lines)
        return STATUS_LINE[answer.status_code] + head + b"\r\n", bytes(answer.body)


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1 connection within the limits of a `ConnectionLimits`.

    It adds to uvicorn's state: ``input``; ``answering``, the request being answered or answered last; ``overhead``,
    bytes of the message that are not content; ``read_by`` and ``written_by``, the times by which the client must have
    sent its input and read its answer.
    """

    transport: ClientTransport  # type: ignore[assignment]  # uvicorn's is asyncio's own

    def __init__(
        self,
        limits: ConnectionLimits,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Make one; ``limits`` may still refuse it."""
        super().__init__(config, server_state, app_state, _loop)
        self.limits = limits
        self.input = Input.REQUEST
        self.answering: RequestResponseCycle | None = None
        self.overhead = 0
        self.read_by = NEVER
        self.written_by = NEVER
        self.unwritten = 0
        self.unparsed: bytes | memoryview = b""
        self.reason = "invalid HTTP request"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Refuse the connection if there are too many and none is idle."""
        super().connection_made(cast("asyncio.Transport", ClientTransport(transport, READ_BYTES)))
        self.read_by = self.loop.time() + self.limits.seconds
        if len(self.connections) <= self.limits.max_connections or self.limits.make_room():
            self.limits.idle[self] = None
        else:
            self.refuse("overloaded", "too many connections", {"Retry-After": RETRY_AFTER_SECONDS})

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request being answered that its client is gone."""
        self.limits.idle.pop(self, None)
        self.limits.lingering.discard(self)
        super().connection_lost(exc)
        if self.answering is not None:  # uvicorn tells only the latest request, which may wait behind this one
            self.answering.disconnected = True
            self.answering.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn always closes
        """Keep the connection if the client is owed an answer.

        A client that has left looks the same. The start of an answer tells them apart: one that has left resets the
        connection.
        """
        if self.input is not Input.END:
            self._give_up_input(Input.END)
            if self._unanswered:
                self.cycle.keep_alive = False
                if not self._unanswered.response_started:
                    self.transport.begin()
        return self._unanswered is not None

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        """The request whose answer the client waits for."""
        cycle = self.answering
        return None if cycle is None or cycle.response_complete or cycle.disconnected else cycle

    def data_received(self, data: bytes) -> None:
        """Parse the data, in pieces where a head could exceed its limit."""
        if self.read_by == NEVER and not self._unanswered:
            self.read_by = self.loop.time() + self.limits.seconds
        rest = memoryview(data)
        while rest and (room := self._room):
            self._parse(rest[:room])
            rest = rest[room:]

    @property
    def _room(self) -> int:
        """How many bytes may be parsed at once."""
        if self.input is Input.NOTHING:
            return 0
        return READ_BYTES if self.input is Input.BODY else MAX_HEAD_BYTES - self.overhead

    def _parse(self, data: bytes | memoryview) -> None:
        self.overhead += len(data)
        self.unparsed = data
        super().data_received(cast("bytes", data))
        self.unparsed = b""
        if self.overhead < MAX_HEAD_BYTES and (self.headers is None or len(self.headers) <= MAX_HEADERS):
            return
        if self.input is not Input.BODY:
            self.refuse("malformed_request", f"the head exceeds {MAX_HEAD_BYTES:,} bytes or {MAX_HEADERS} fields")
        elif self.overhead > MAX_FRAMING_BYTES:
            self.refuse("malformed_request", "the body has too many chunks or too long a trailer")

    def on_message_begin(self) -> None:
        """Prepare for a head."""
        self.input = Input.HEAD
        self.limits.idle.pop(self, None)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is refused."""
        if fault := self._fault():
            self.reason = fault
            raise ValueError(fault)
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return
        if b"://" in self.url and not self.url.startswith(b"/"):
            self._take_absolute()
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        super().on_headers_complete()
        # Weakly, since they refer to each other, and a body should not wait for the garbage collector.
        wanted = partial(_still_there, weakref.ref(self))
        cast("dict[str, Any]", self.scope)["extensions"] = {"catsdogs.wanted": wanted}
        self.headers = _NOWHERE  # trailers, which uvicorn would append to the headers, are not used
        self.input = Input.BODY
        self.read_by = NEVER

    def _take_absolute(self) -> None:
        """Take the target's host in place of Host (RFC 9112, section 3.2.2), and "/" for no path."""
        target = httptools.parse_url(self.url)
        host = self.url.split(b"/", 3)[2].partition(b"?")[0].rpartition(b"@")[2]
        self.headers[:] = [(name, host if name == b"host" else value) for name, value in self.headers]
        if target.path is None:
            self.url = b"/" + (b"?" + target.query if target.query else b"")

    def _fault(self) -> str:
        """Why the head is refused, if it is."""
        if len(self.headers) > MAX_HEADERS:
            return f"the head exceeds {MAX_HEADERS} fields"
        if len(self.pipeline) >= MAX_PIPELINED:
            return "too many pipelined requests"
        # RFC 9112, section 3.2.
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or not all(map(HOST.fullmatch, hosts)):
            return "Host is sent twice or is no host"
        if not hosts and self.parser.get_http_version() > "1.0":
            return "Host is missing"
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers):
            return "a Transfer-Encoding other than chunked is not supported"
        return ""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Count content apart from framing."""
        self.overhead -= len(body)
        self.expect_100_continue = False  # it did not wait for "100 Continue", or had it
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Prepare for the next head."""
        if self.input is Input.HEAD:  # of a request with an Upgrade header, which is parsed again
            return
        self.input = Input.REQUEST
        self.overhead = 0
        if self.cycle.response_complete:  # the body went on after its answer; uvicorn's timer has been cancelled
            self.read_by = self.loop.time() + self.timeout_keep_alive
        super().on_message_complete()
        self._note_idle()

    def on_response_complete(self) -> None:
        """Handle a body that is still arriving after its answer."""
        self.transport.flush()
        if self.input is Input.BODY and not self.pipeline:
            if self.expect_100_continue:
                # It got an answer instead of "100 Continue": we cannot tell whether a body or a request comes next.
                self.transport.close()
            self.read_by = self.loop.time() + LINGER_SECONDS
        super().on_response_complete()
        if self._unanswered or self.transport.is_closing():
            return
        if self.input in (Input.NOTHING, Input.END):
            self._linger()
        elif self.input is Input.HEAD:
            self._unset_keepalive_if_required()
            self.read_by = self.loop.time() + self.limits.seconds
        self._note_idle()

    def _note_idle(self) -> None:
        if self.input is Input.REQUEST and not self._unanswered:
            self.limits.idle[self] = None

    def pause_writing(self) -> None:
        """Start the client's time to read."""
        super().pause_writing()
        self._watch_writing(self.loop.time())

    def resume_writing(self) -> None:
        """Stop the client's time to read."""
        super().resume_writing()
        self.written_by = NEVER

    def _watch_writing(self, now: float) -> None:
        self.unwritten = self.transport.unread()
        self.written_by = now + self.limits.seconds

    @property
    def gone(self) -> bool:
        """Whether the client has left; after its half-close, asyncio does not notice."""
        if self.input is Input.END and self.transport.was_reset():
            self.transport.abort()
        closing: bool = self.transport.is_closing()
        return closing

    def check(self, now: float) -> None:
        """Close the connection if its client is over its time to send or to read."""
        if now > self.written_by:
            if self.unwritten - self.transport.unread() < READ_BYTES_PER_SECOND * self.limits.seconds:
                SERVICE.info("a client that does not read its answer was dropped")
                self.transport.abort()
            else:
                self._watch_writing(now)
        elif self.gone:
            if self.written_by == NEVER:  # it closes when everything is written
                self._watch_writing(now)
        elif now > self.read_by:
            if self.input is Input.HEAD:
                self.refuse("slow_request", f"the head did not arrive within {self.limits.seconds:g} seconds")
            else:
                self.transport.close()

    def close_if_quiet(self) -> bool:
        """Close an idle connection, unless its answer is being sent or its next request has come but is not read."""
        if self.transport.get_write_buffer_size() or self.transport.received():
            return False
        self.connections.discard(self)
        self.transport.close()
        return True

    def refuse(self, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        """Answer in place of a handler, and discard further input.

        Requests that came before the fault are answered first.
        """
        if self.input is Input.NOTHING:
            return
        answered = self.input is Input.BODY and self.cycle.response_complete
        bodiless = self.input in (Input.HEAD, Input.BODY) and self.parser.get_method() == b"HEAD"
        self._give_up_input(Input.NOTHING)
        if self._unanswered:
            return
        if not answered:
            head, body = self.limits.problem(code, detail, headers)
            self.transport.write(head)
            self.transport.write(b"" if bodiless else body)
        self._linger()

    def _give_up_input(self, instead: Input) -> None:
        """Expect no more input, and drop a request whose body is incomplete, unless it is being answered."""
        incomplete, self.input = self.input is Input.BODY and not self.cycle.response_started, instead
        self.limits.idle.pop(self, None)
        if incomplete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.pipeline:
                self.pipeline.popleft()

    def _linger(self) -> None:
        """Send no more, and close when the client has had time to read the answer."""
        self.connections.discard(self)
        if len(self.limits.lingering) < MAX_LINGERING:
            self.limits.lingering.add(self)
            self.transport.write_eof()
            self.read_by = self.loop.time() + LINGER_SECONDS
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's own text
        """Answer invalid HTTP in our error form."""
        self.refuse("malformed_request", self.reason)

    def _should_upgrade(self) -> bool:
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Parse a request again without its Upgrade header, which HTTP allows a server to ignore.

        Java's client sends one with every request; the parser takes the body for the other protocol.
        """
        error = sys.exc_info()[1]
        assert isinstance(error, httptools.HttpParserUpgrade)
        rest = memoryview(self.unparsed)[error.args[0] :]
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.overhead = 0
        self._parse(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines)))
        self.data_received(cast("bytes", rest))


def _still_there(connection: weakref.ref[Connection]) -> bool:
    """Whether the client is still connected; asked before its picture goes to a lane."""
    open_one = connection()
    return open_one is not None and not open_one.gone
