"""What a connection may do before and after its request: real sockets, a real server, clients that mean no good."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from serving.errors import CODES
from serving.http.connections import MAX_HEAD_BYTES, MAX_HEADERS, Connection
from serving.http.descriptors import SPARE_DESCRIPTORS, affordable, log_exception
from serving.http.server import METRICS_CONNECTIONS
from tests.conftest import measured
from tests.serving.conftest import PHOTO, Running, Start
from tests.waiting import until

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = HEALTH[:-2] + b"Connection: close\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
FORM = PART + PHOTO + b"\r\n--x--\r\n"
PREDICT = POST + b"Content-Length: %d\r\n\r\n" % len(FORM) + FORM
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(PART), PART)


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def until_closed(client: socket.socket) -> bytes:
    """Everything the server says until it closes the connection, which it must within the socket's timeout."""
    said = b""
    while data := client.recv(1 << 16):
        said += data
    return said


def tell(server: Running, *pieces: bytes) -> bytes:
    """What the server answers to these bytes, however many of them it takes, until it closes."""
    with connect(server) as client:
        for piece in pieces:
            try:
                client.sendall(piece)
            except OSError:
                break
        return until_closed(client)


def assert_refused(said: bytes, code: str) -> dict[str, str]:
    """The bytes are one whole answer with the problem ``code``, after which the connection closes."""
    head, _, body = said.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert status.startswith(f"HTTP/1.1 {CODES[code][0]} ")
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
    problem = json.loads(body)
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (problem["code"], problem["status"]) == (code, CODES[code][0])
    assert problem["request_id"] == headers["x-request-id"]
    return headers


def statuses(said: bytes) -> list[int]:
    return [int(piece[:3]) for piece in said.split(b"HTTP/1.1 ")[1:]]


MALFORMED: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a field without a colon": b"GET /health HTTP/1.1\r\nHost x\r\n\r\n",
    "a space before the colon": b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and chunks": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a length below zero": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length beyond counting": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /health HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "two Hosts of an old client": b"GET /health HTTP/1.0\r\nHost: x\r\nhost: y\r\n\r\n",
    "a Host that is no host": b"GET /health HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "an upgrade without Host": b"GET /health HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + HEALTH,
    "a coding beside chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path that is no path": b"GET \xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "a chunk of size zz": CHUNKED + b"zz\r\n",
    "a head without end": HEALTH[:-2] + b"A: " + b"a" * 10 * MAX_HEAD_BYTES,
    "an address without end": b"GET /" + b"a" * 10 * MAX_HEAD_BYTES,
    "a head one byte too large": HEALTH[:-2] + b"A: " + b"a" * (MAX_HEAD_BYTES - len(HEALTH) - 4) + b"\r\n\r\n",
    "too many fields": HEALTH[:-2] + b"a:b\r\n" * MAX_HEADERS + b"\r\n",
    "fields without end": HEALTH[:-2] + b"a:\r\n" * 10_000,
    "chunks of one byte without end": CHUNKED + b"1\r\na\r\n" * 500_000,
    "a chunk extension without end": CHUNKED + b"1;" + b"a" * 1_000_000,
    "a trailer without end": CHUNKED + b"1\r\na\r\n0\r\n" + b"a: b\r\n" * 200_000,
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_request_is_refused_in_the_one_form_of_all_errors(server: Running, case: str) -> None:
    before = server.metric('catsdogs_rejected_total{code="malformed_request"}')
    assert_refused(tell(server, MALFORMED[case]), "malformed_request")
    assert server.metric('catsdogs_rejected_total{code="malformed_request"}') == before + 1
    assert server.http.get("/health").status_code == 200


def test_a_head_as_large_as_may_be_is_read_in_one_piece_or_many(server: Running) -> None:
    head = HEALTH[:-2] + b"Connection: close\r\nA: " + b"a" * (MAX_HEAD_BYTES - 60) + b"\r\n\r\n"
    assert len(head) < MAX_HEAD_BYTES
    assert statuses(tell(server, head)) == [200]
    assert statuses(tell(server, *(head[start : start + 1000] for start in range(0, len(head), 1000)))) == [200]


@pytest.mark.parametrize("host", [b"x:8000", b"[::1]:8000", b"a_b-c.localhost.", b"127.0.0.1"])
def test_a_host_may_have_a_port_and_be_an_address(server: Running, host: bytes) -> None:
    said = tell(server, b"GET /health HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n")
    assert statuses(said) == [200]


def test_a_refused_head_has_no_body(server: Running) -> None:
    head, _, body = tell(server, b"HEAD /health HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert body == b""


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost", 200),
        (b"http://localhost?a", 200),
        (b"http://me@localhost:1/health", 200),
        (b"http://localhost/a", 404),
        (b"http://evil.example/health", 421),
    ],
)
def test_an_address_may_be_absolute_and_its_host_counts(server: Running, target: bytes, status: int) -> None:
    host = b"localhost" if status == 421 else b"evil.example"
    said = tell(server, b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
    assert statuses(said) == [status]


@pytest.mark.parametrize("zeros", [1, 20, 4300, 20_000])
def test_a_length_with_leading_zeros_is_the_number_that_it_says(server: Running, zeros: int) -> None:
    head = POST + b"Connection: close\r\nContent-Length: " + b"0" * zeros
    assert statuses(tell(server, head + b"%d\r\n\r\n" % len(FORM) + FORM)) == [200]
    assert statuses(tell(server, head + b"20000001\r\n\r\n")) == [413]


def test_what_was_asked_before_the_nonsense_is_answered(server: Running) -> None:
    assert statuses(tell(server, HEALTH + b"nonsense\r\n\r\n")) == [200]


def test_a_fault_in_a_body_costs_no_answer_to_an_earlier_request(server: Running) -> None:
    assert statuses(tell(server, PREDICT + CHUNKED + b"zz\r\n")) == [200]


def test_a_fault_in_a_body_that_has_had_its_answer_is_not_answered_too(server: Running) -> None:
    with connect(server) as client:
        client.sendall(CHUNKED.replace(b"/predict", b"/nowhere"))
        assert statuses(client.recv(1 << 16)) == [404]
        client.sendall(b"zz\r\n")
        assert until_closed(client) == b""


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (HEALTH, [200]),
        (PREDICT, [200]),
        (PREDICT.replace(b"HTTP/1.1", b"HTTP/1.0"), [200]),
        (CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(FORM) - len(PART), FORM[len(PART) :]), [200]),
        (PREDICT + HEALTH + PREDICT, [200, 200, 200]),
        (b"GET /assets/swagger_bundle.js HTTP/1.1\r\nHost: x\r\n\r\n", [200]),
        (PREDICT + HEALTH[:-2], [200]),
        (PREDICT + PREDICT[:-2], [200]),
        (PREDICT.replace(b"/predict", b"/nowhere")[:-2], [404]),
        (HEALTH[:-2], []),
        (PREDICT[:-2], []),
        (b"", []),
    ],
)
def test_a_client_that_half_closes_is_answered_what_it_asked_whole(
    server: Running, sent: bytes, answers: list[int]
) -> None:
    with connect(server) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        said = until_closed(client)
    assert statuses(said) == answers
    assert server.http.get("/health").status_code == 200


def test_requests_may_be_sent_ahead_but_not_without_end(server: Running) -> None:
    with connect(server) as client:
        client.sendall(HEALTH * 5)
        said = b""
        while said.count(b'{"status":"ok"}') < 5:
            said += client.recv(1 << 16)
    assert statuses(said) == [200] * 5
    answered = statuses(tell(server, HEALTH * 100_000))
    assert set(answered) == {200}
    assert len(answered) < 20


def test_a_head_without_a_body_is_sent_at_once(server: Running) -> None:
    head = HEALTH.replace(b"GET", b"HEAD")
    with connect(server) as client:
        client.settimeout(3)  # of the five seconds after which an idle connection is closed
        client.sendall(head + HEALTH)
        said = b""
        while b'{"status":"ok"}' not in said:
            said += client.recv(1 << 16)
        assert statuses(said) == [200, 200]
        client.sendall(head)
        assert statuses(client.recv(1 << 16)) == [200]


def test_an_old_client_and_one_that_closes_are_answered(server: Running) -> None:
    assert statuses(tell(server, b"GET /health HTTP/1.0\r\n\r\n")) == [200]
    assert statuses(tell(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")) == [200]


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_a_wish_for_another_protocol_is_passed_over(server: Running, protocol: bytes) -> None:
    wish = (
        b"Connection: close, Upgrade\r\nUpgrade: "
        + protocol
        + b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    )
    assert statuses(tell(server, HEALTH[:-2] + wish + b"\r\n")) == [200]
    assert statuses(tell(server, POST + wish + b"Content-Length: %d\r\n\r\n" % len(FORM), FORM)) == [200]


def test_a_client_that_asks_for_leave_to_send_gets_it_where_its_body_is_wanted(server: Running) -> None:
    head = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(FORM)
    with connect(server) as client:
        client.sendall(head)
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(FORM)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    old = head.replace(b"HTTP/1.1", b"HTTP/1.0")  # does not know that answer
    assert tell(server, old, FORM).startswith(b"HTTP/1.1 200")
    # Nothing but the answer, and the end: the client sends no body, so the next request would be taken for one.
    assert statuses(tell(server, head.replace(b"/predict", b"/nowhere"))) == [404]


@pytest.mark.parametrize("request_line", [b"GET /health", b"POST /nowhere", b"GET /predict"])
def test_a_body_that_nobody_reads_holds_nothing(server: Running, request_line: bytes) -> None:
    head = request_line + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
    with connect(server) as client:
        client.sendall(head)
        started = time.monotonic()
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 ")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # whichever send meets the end
            while time.monotonic() - started < 20:
                client.sendall(b"drip")
                time.sleep(0.05)


def test_a_body_that_comes_after_its_answer_is_passed_over_and_the_next_request_answered(server: Running) -> None:
    with connect(server) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        said = client.recv(1 << 16)
        client.sendall(bytes(100_000) + HEALTH)
        while b'{"status":"ok"}' not in said:
            said += client.recv(1 << 16)
    assert statuses(said) == [404, 200]


def test_a_head_that_does_not_end_is_given_up(start: Start) -> None:
    server = start(body_seconds=0.5)
    assert_refused(tell(server, HEALTH[:-2]), "slow_request")
    assert_refused(tell(server, HEALTH + HEALTH[:5]).split(b'{"status":"ok"}')[1], "slow_request")
    assert_refused(tell(server, HEALTH, HEALTH[:5]).split(b'{"status":"ok"}')[1], "slow_request")
    # A connection on which nothing was asked is closed without a word: nobody would know what it is the answer to.
    assert tell(server) == b""
    assert tell(server, b"\r\n\r\n") == b""
    assert server.metric('catsdogs_rejected_total{code="slow_request"}') == 3


def asking_for_megabytes(server: Running, buffer: int) -> socket.socket:
    """A client that has asked for a large asset eight times, and whose system holds hardly more than ``buffer``."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(20)
    client.connect(("127.0.0.1", server.port))
    asset = b"GET /assets/swagger_bundle.js HTTP/1.1\r\nHost: localhost\r\n"
    client.sendall(7 * (asset + b"\r\n") + asset + b"Connection: close\r\n\r\n")
    return client


def test_a_client_that_does_not_read_its_answer_is_dropped(start: Start) -> None:
    server = start(body_seconds=0.5)
    with asking_for_megabytes(server, buffer=4096) as client:
        until(lambda: server.metric('http_requests_total{method="GET",route="/assets/{name}",status="200"}') >= 1)
        time.sleep(3)
        with contextlib.suppress(ConnectionResetError):
            assert len(until_closed(client)) < 8 * 1_000_000


def test_a_client_that_reads_slowly_but_reads_gets_all_of_it(start: Start) -> None:
    server = start(body_seconds=0.5)
    with asking_for_megabytes(server, buffer=65536) as client:
        said, began = 0, time.monotonic()
        while data := client.recv(1 << 16):
            said += len(data)
            if time.monotonic() < began + 4:
                time.sleep(0.05)
    asset = server.http.get("/assets/swagger_bundle.js").content
    assert said > 8 * len(asset)


def test_a_connection_that_cannot_be_looked_after_does_not_end_the_server(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("odd")

    server = start()
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "check", fail)
        until(lambda: "checking a connection failed" in caplog.text)
    assert server.predict().status_code == 200


def test_one_connection_too_many_is_told_so_and_the_next_after_one_left_is_welcome(start: Start) -> None:
    server = start(max_connections=10, body_seconds=30)
    clients = [connect(server) for _ in range(10)]  # the last closes `server.http`'s, which is idle
    for client in clients:
        client.sendall(HEALTH[:5])
    until(lambda: tell(server, LAST).startswith(b"HTTP/1.1 503"))
    headers = assert_refused(tell(server, LAST), "overloaded")
    assert int(headers["retry-after"]) >= 1
    for client in clients[:2]:
        client.close()
    until(lambda: tell(server, LAST).startswith(b"HTTP/1.1 200"))
    assert server.metric('catsdogs_rejected_total{code="overloaded"}') >= 2
    for client in clients[2:]:
        client.sendall(HEALTH[5:])
        assert statuses(client.recv(1 << 16)) == [200]
        client.close()


def test_the_connection_that_is_idle_longest_makes_room_for_a_new_one(start: Start) -> None:
    server = start(max_connections=10, body_seconds=30)
    silent, busy, *used = [connect(server) for _ in range(10)]
    busy.sendall(CHUNKED)
    for client in (*used, used[0]):
        client.sendall(HEALTH)
        assert statuses(client.recv(1 << 16)) == [200]
    first, *others = used
    for gone in (silent, *others):
        newcomer = connect(server)
        newcomer.sendall(HEALTH)
        assert statuses(newcomer.recv(1 << 16)) == [200]
        assert gone.recv(1) == b""
        others.append(newcomer)
    busy.sendall(b"zz\r\n")
    assert statuses(busy.recv(1 << 16)) == [400]
    first.sendall(HEALTH)
    assert statuses(first.recv(1 << 16)) == [200]
    for client in (silent, busy, *used, *others):
        client.close()


def test_a_request_that_has_come_but_is_not_read_keeps_its_connection(start: Start) -> None:
    server = start(max_connections=10)
    resume = threading.Event()
    server.loop.call_soon_threadsafe(resume.wait)
    clients = [connect(server) for _ in range(30)]
    for client in clients:
        client.sendall(LAST)
    resume.set()
    said = [until_closed(client) for client in clients]
    assert [statuses(each) for each in said] == [[200]] * 10 + [[503]] * 20
    for client in clients:
        client.close()


def test_silent_connections_keep_neither_probes_nor_scrapes_from_the_metrics_port(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start(metrics_port=port)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(3 * METRICS_CONNECTIONS)]
    for path in ("/health", "/health/ready", "/metrics"):
        assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200
    for client in silent:
        client.close()


def test_five_hundred_slow_clients_keep_nobody_from_an_answer_and_are_cut_off(start: Start) -> None:
    server = start(body_seconds=6)

    async def drip(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        # Half of them never end their head, half of them never end their body.
        said = POST + (b"A: " if number % 2 else b"Content-Length: 1000000\r\n\r\n" + PART)
        writer.write(said)
        answer = asyncio.ensure_future(reader.read())
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait((answer,), timeout=0.3)
        writer.close()
        try:
            return answer.result()
        except ConnectionResetError:  # it was cut off in the middle of a write, which may cost the answer
            return b"reset"

    async def ask() -> list[int]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as http:
            await asyncio.sleep(1)
            return [(await http.post("/predict", files={"file": PHOTO})).status_code for _ in range(10)]

    async def all_of_them() -> tuple[list[bytes], list[int]]:
        slow = asyncio.gather(*(drip(number) for number in range(500)))
        answers = await ask()
        assert not slow.done()
        return await slow, answers

    cut_off, answers = asyncio.run(asyncio.wait_for(all_of_them(), 60))
    assert answers == [200] * 10
    lines = [said.partition(b"\r\n")[0] for said in cut_off]
    assert set(lines) <= {b"HTTP/1.1 408 Request Timeout", b"HTTP/1.1 503 Service Unavailable", b"reset"}
    assert b"HTTP/1.1 408 Request Timeout" in lines
    refused = [server.metric(f'catsdogs_rejected_total{{code="{code}"}}') for code in ("slow_request", "overloaded")]
    assert sum(refused) == 500
    assert server.predict().status_code == 200


@pytest.fixture
def few_descriptors() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The service as a process that may have 200 descriptors, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from serving.cli import main; main()", "serve", "--port", "0"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)),  # noqa: PLW1509  # no threads here
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | measured(),
    )  # fmt: skip
    assert process.stderr is not None
    line = next(line for line in process.stderr if "http://" in line)
    yield process, int(line.split("localhost:")[1].split("/")[0])
    process.terminate()
    process.wait(20)
    process.stdout.close()  # type: ignore[union-attr]
    process.stderr.close()


def test_few_descriptors_mean_few_connections_and_having_none_left_passes(
    few_descriptors: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = few_descriptors
    url = f"http://127.0.0.1:{port}"
    page = httpx.get(f"{url}/metrics").text
    assert "process_max_fds 200" in page
    clients = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(150)]
    for client in clients:
        with contextlib.suppress(OSError):
            client.sendall(HEALTH[:5])
    until(lambda: answers(url) == 503)  # there are 100 already, in our form and not by a reset
    for client in clients:
        client.close()
    until(lambda: answers(url) == 200)

    # As if the rest of the process had them all: none is left even for the one connection that waits.
    asking = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
    for client, path in zip(asking, (b"/health/ready", b"/metrics"), strict=True):
        client.sendall(b"GET %b HTTP/1.1\r\n" % path)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(HEALTH)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (5, 200))
        assert until_closed(client) in (b"", b'{"status":"ok"}')  # idle connections give theirs back
    said_when_short = []
    for client in asking:
        with client:
            client.sendall(b"Host: localhost\r\nConnection: close\r\n\r\n")
            said_when_short.append(until_closed(client))
    ready, metrics = said_when_short
    assert ready.startswith(b"HTTP/1.1 503") and b"no file descriptor is left" in ready
    assert b"\ncatsdogs_descriptors_exhausted 1" in metrics and b"\ncatsdogs_ready 0" in metrics
    waiting = socket.create_connection(("127.0.0.1", port), timeout=20)
    waiting.sendall(HEALTH)
    time.sleep(2)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (200, 200))
    until(lambda: answers(url) == 200)
    waiting.close()
    until(lambda: httpx.get(f"{url}/health/ready").status_code == 200)  # the next sweep says so
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[0].splitlines()
    assert process.returncode == 0
    assert sum("fewer connections than max_connections" in line for line in said) == 1
    assert sum("no file descriptor is left" in line for line in said) == 1
    assert sum("file descriptors are available again" in line for line in said) == 1
    assert not any("out of system resource" in line for line in said)  # which asyncio says 2,048 times a second


def answers(url: str) -> int | None:
    try:
        return httpx.get(f"{url}/health").status_code
    except httpx.TransportError:
        return None


@pytest.mark.parametrize(
    ("context", "logged"),
    [
        ({"exception": OSError(errno.EMFILE, "x"), "socket": None}, False),
        ({"exception": OSError(errno.EMFILE, "x")}, True),  # of a task, perhaps
        ({"exception": OSError(errno.ENOMEM, "x"), "socket": None}, True),
        ({"message": "x"}, True),
    ],
)
def test_only_connections_that_find_no_descriptor_are_kept_from_the_log(context: dict[str, Any], logged: bool) -> None:
    loop = Mock()
    log_exception(loop, context)
    assert loop.default_exception_handler.called == logged


def test_the_limit_of_descriptors_is_raised_as_far_as_it_goes() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        assert affordable(1000) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000 + SPARE_DESCRIPTORS
        assert affordable(before[1]) == before[1] - SPARE_DESCRIPTORS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
