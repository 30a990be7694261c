"""What comes out of a socket when anything at all goes in: documented answers or a closed connection, and no waiting.

Single cases, each with its own claim, are in ``tests/serving/http/test_connections.py``.
"""

import json
import re
import socket
from collections.abc import Iterator
from itertools import permutations, product
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import CODES
from serving.settings import Settings
from tests.fuzz import SECONDS, examples
from tests.serving.conftest import PHOTO, Running, start_server

# Sent at once, since a request that is not complete has its answer only when its time is up.
AT_ONCE = 12
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")

FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + PHOTO + b"\r\n--x--\r\n"
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"get", b"G\x00T", b""])
TARGETS = st.sampled_from([
    b"/", b"/health", b"/predict", b"/predict/batch", b"/feedback", b"/assets/app.js",
    b"/v2/models/cats-dogs/infer", b"/model", b"*", b"",
    b"http://example.org/health", b"//example.org//", b"/assets/%2e%2e/%2e%2e/etc/passwd", b"/assets/../routes.py",
    b"/assets/..%2f..%2fsettings.py", b"/assets/%00", b"/%", b"/%zz", b"/health%0d%0aX:%20y", b"/health?" + b"a" * 9000,
    b"/health#x", b"/predict?explain=%ff", b"/predict?explain=true&explain=maybe",
    b"/\xf0\x9f\x90\xb1", b"/a\tb", b"/a b",
])  # fmt: skip
VERSIONS = st.sampled_from(
    [b" HTTP/1.1", b" HTTP/1.1", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b" HTTP/9", b"", b" x"]
)
FIELDS = st.sampled_from([
    b"Host: localhost", b"Host: a\r\nHost: b", b"Host: evil.example", b"Host: \xff", b"Host: [::1", b"Host:",
    b"Origin: https://evil.example", b"Origin: null", b"Origin: \xff://", b"Origin: ://:80:443", b"Origin:",
    b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: \xff", b"Access-Control-Request-Method: \xff",
    b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: 999999999999",
    b"Content-Length: +5", b"Content-Length: -1", b"Content-Length: 0x5", b"Content-Length: 5, 5",
    b"Content-Length: 5 5", b"Content-Length: " + b"0" * 4300 + b"5", b"Content-Length: " + b"9" * 5000, b"Host: x/y",
    b"Content-Length: %d" % len(FORM), b"Content-Length: %d" % (len(FORM) - 9), b"Content-Length: %d" % (len(FORM) + 9),
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding:\tchunked\r\nTransfer-Encoding: identity",
    b"Content-Type: multipart/form-data; boundary=x", b"Content-Type: application/json", b"Content-Type: \xff\xfe",
    b"Content-Encoding: gzip", b"Content-Encoding: \xff",
    b"Inference-Header-Content-Length: 5",
    b"Inference-Header-Content-Length: -1", b"Inference-Header-Content-Length: " + b"9" * 5000,
    b"Traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"Traceparent: \xff", b"X-Forwarded-Prefix: /health",
    b"Connection: close", b"Connection: keep-alive, upgrade", b"Upgrade: h2c",
    b"Expect: 100-continue", b"Expect: the unexpected", b"X-Request-Id: " + b"a" * 500, b"X-Request-Id: <script>",
    b"A: \x00", b"A: b\rc", b"A: b\nC: d", b" folded", b": empty", b"no colon", b"A" * 3000 + b": b",
    b"Range: bytes=0-1,5-2", b"Range: bytes=" + b"0" * 5000 + b"-1", b"Accept: text/plain;q=" + b"0" * 5000 + b"1",
    b"Content-Type: multipart/form-data; boundary*" + b"0" * 5000 + b"=x", b"Keep-Alive: timeout=" + b"9" * 5000,
    b"If-None-Match: *", b"Accept: text/plain;q=2;q=x", b"Authorization: Basic \xff",
])  # fmt: skip
BODIES = st.sampled_from([
    b"", b"hello", FORM, FORM[:-9], b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhel", b"-1\r\n", b"fffffffffffffffff\r\n",
    b"0\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"5;" + b"x" * 999 + b"\r\nhello\r\n0\r\nA: b\r\n\r\n",
    b'{"images": []}', b'{"id": "x", "label": "cats"}',
]) | st.binary(max_size=100)  # fmt: skip


# Of what is right, so that a request with one thing wrong in it is often what is sent.
RIGHT = [
    (b"GET /health HTTP/1.1", [b"Host: localhost"], b""),
    (b"GET /assets/app.js HTTP/1.1", [b"Host: localhost", b"Connection: close"], b""),
    (
        b"POST /predict HTTP/1.1",
        [b"Host: x", b"Content-Type: multipart/form-data; boundary=x", b"Content-Length: %d" % len(FORM)],
        FORM,
    ),
    (b"POST /predict/batch HTTP/1.1", [b"Host: x", b"Transfer-Encoding: chunked"], b'e\r\n{"images": []}\r\n0\r\n\r\n'),
    (b"POST /v2/models/cats-dogs/infer HTTP/1.1", [b"Host: x", b"Content-Length: 14"], b'{"inputs": []}'),
    (b"POST /predict HTTP/1.1", [b"Host: x", b"Content-Type: image/jpeg", b"Content-Length: %d" % len(PHOTO)], PHOTO),
    (b"POST /feedback HTTP/1.1", [b"Host: x", b"Content-Length: 28"], b'{"id": "x", "label": "cats"}'),
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    line, fields, body = draw(st.sampled_from(RIGHT))
    fault = draw(st.integers(0, 6))
    if fault == 0:
        line = draw(METHODS) + b" " + draw(TARGETS) + draw(VERSIONS)
    elif fault == 1:
        line = line.split()[0] + b" " + draw(TARGETS) + b" HTTP/1.1"
    elif fault == 2:
        body = draw(BODIES)
    elif fault <= 4:
        fields = draw(st.permutations([*fields, *draw(st.lists(FIELDS, min_size=1, max_size=fault - 2))]))
    end = b"\n" if fault == 5 else b"\r\n"
    request = end.join([line, *fields]) + end + end + body
    return request[: draw(st.integers(0, len(request)))] if fault == 6 else request


# What a client sends, and whether it half-closes the connection after it.
SENT = st.lists(
    st.tuples(requests() | requests() | st.binary(min_size=1, max_size=200), st.booleans()),
    min_size=AT_ONCE,
    max_size=AT_ONCE,
)


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    """A server that waits half a second for what is not complete."""
    running, stop = start_server(Settings(body_seconds=0.5))
    yield running
    stop()


def hear(client: socket.socket) -> bytes:
    """All that the server says. It must say or do something in time, and close once the client sends no more."""
    said = b""
    try:
        while data := client.recv(1 << 16):
            said += data
            if b"100 Continue" not in data:
                client.shutdown(socket.SHUT_WR)
    except ConnectionError:
        pass
    except OSError as error:  # shutting down what the server has closed
        assert not isinstance(error, TimeoutError), said
    return said


def assert_documented(said: bytes) -> None:
    """Nothing, or answers; each of them that is an error is a whole problem."""
    assert not said or STATUS.match(said), said[:200]
    for answer in re.split(rb"(?=HTTP/1\.1 \d{3} )", said)[1:]:
        status = int(answer[9:12])
        head, _, body = answer.partition(b"\r\n\r\n")
        assert status < 500, answer
        assert b"server:" not in head.lower()
        if status < 400:
            continue
        assert b"content-type: application/problem+json" in head.lower()
        problem = json.loads(body)
        assert CODES[problem["code"]][0] == problem["status"] == status


@pytest.mark.slow
@examples(60)
@given(SENT)
def test_whatever_is_sent_is_answered_as_documented_or_hung_up_on(
    hasty: Running, sent: list[tuple[bytes, bool]]
) -> None:
    clients = [socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) for _ in sent]
    try:
        for client, (data, half_closes) in zip(clients, sent, strict=True):
            client.sendall(data)
            if half_closes:
                client.shutdown(socket.SHUT_WR)
        for client in clients:
            assert_documented(hear(client))
    finally:
        for client in clients:
            client.close()
    assert hasty.http.get("/health").status_code == 200


@pytest.mark.parametrize(("line", "fields", "body"), RIGHT)
def test_a_good_request_has_the_same_answer_for_a_client_that_closes_at_once(
    hasty: Running, line: bytes, fields: list[bytes], body: bytes
) -> None:
    statuses = []
    for half_closes in (False, True):
        with socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) as client:
            client.sendall(b"\r\n".join([line, *fields, b"", body]))
            if half_closes:
                client.shutdown(socket.SHUT_WR)
            statuses.append(STATUS.findall(hear(client)))
    assert statuses[0] == statuses[1] != []


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


# A number, too long for `int`, wherever a client may send one.
LONG: Final = b"0" * 4300 + b"5"
FORMED: Final = b"Content-Type: multipart/form-data; boundary"
NUMBERS: Final = {
    "a length": (b"POST /predict", b"Content-Length: " + LONG, b"hello"),
    "a chunk": (b"POST /predict", b"Transfer-Encoding: chunked", LONG + b"\r\nhello\r\n0\r\n\r\n"),
    "a quality": (b"GET /metrics", b"Accept: text/plain;q=" + LONG, b""),
    "a range": (b"GET /", b"Range: bytes=" + LONG + b"-" + LONG, b""),
    "a continued parameter": (b"POST /predict", FORMED + b"*" + LONG + b"=x", b""),
    "a query": (b"POST /predict?explain=" + LONG, FORMED + b"=x", b""),
    "an item of a batch": (b"POST /predict/batch", b"Transfer-Encoding: chunked", chunk(b'{"images": [5%b]}' % LONG)),
    "no item of a batch": (b"POST /predict/batch", b"Transfer-Encoding: chunked", chunk(b'{"n": 5%b}' % LONG)),
    "an id": (b"POST /feedback", b"Transfer-Encoding: chunked", chunk(b'{"label": "cats", "id": 5%b}' % LONG)),
}


@pytest.mark.parametrize("where", NUMBERS)
def test_a_number_may_have_any_number_of_digits(hasty: Running, where: str) -> None:
    line, field, body = NUMBERS[where]
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) as client:
        client.sendall(b"\r\n".join([line + b" HTTP/1.1", b"Host: x", field, b"", body]))
        said = hear(client)
    assert said
    assert_documented(said)


def test_the_server_is_none_the_worse(hasty: Running) -> None:
    assert hasty.predict().status_code == 200


RANGES = [b"bytes=5-2", b"bytes=99999999-", b"bytes=0-1,0-2,0-3", b"bytes=a-b", b"cats=0-1", b"bytes=0-1", b"bytes=-0"]


@pytest.mark.parametrize("asked", RANGES)
@pytest.mark.parametrize("path", [b"/", b"/docs", b"/assets/app.js"])
def test_a_page_is_sent_whole_whatever_range_of_it_is_asked_for(hasty: Running, path: bytes, asked: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) as client:
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nRange: " + asked + b"\r\n\r\n")
        assert hear(client).startswith(b"HTTP/1.1 200")


LENGTHS = [b"Content-Length: 5", b"Content-Length: 6"]
CODINGS = [b"Transfer-Encoding: chunked", b"transfer-encoding:chunked", b"Transfer-Encoding: identity, chunked"]
CONTRADICTIONS = [*permutations(LENGTHS), *product(LENGTHS, CODINGS), *product(CODINGS, LENGTHS)]
SMUGGLED = b"0\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("said_twice", CONTRADICTIONS)
def test_no_second_request_hides_in_a_body_whose_length_is_said_twice(
    hasty: Running, said_twice: tuple[bytes, bytes]
) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) as client:
        client.sendall(b"\r\n".join([b"POST /predict HTTP/1.1", b"Host: localhost", *said_twice, b"", SMUGGLED]))
        said = hear(client)
    assert_documented(said)
    assert STATUS.findall(said) == [b"400"]


def test_each_byte_of_a_good_request_may_be_any_other(hasty: Running) -> None:
    good = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    good += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(FORM)
    for place in range(len(good)):
        spoilt = good[:place] + bytes((good[place] ^ (1 + place % 255),)) + good[place + 1 :]
        with socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) as client:
            client.sendall(spoilt)
            try:
                client.sendall(FORM)
            except ConnectionError:
                continue
            assert_documented(hear(client))
    assert hasty.predict().status_code == 200


HOSTS = st.sampled_from(
    ["localhost", "localhost:80", "127.0.0.1:8000", "[::1]", "evil.example", "localhost.evil.example"]
)
SCHEMES = st.sampled_from(["http", "https", "HTTP", "file", ""])
ENDS = st.sampled_from(["", ":80", ":443", "/", "@", "\t"])
ORIGINS = st.builds("{}://{}{}".format, SCHEMES, HOSTS, ENDS)
LATIN = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=40)


@examples(400)
@given(HOSTS | LATIN, ORIGINS | LATIN)
def test_a_post_is_only_answered_on_loopback_and_for_a_page_of_its_own_host(
    hasty: Running, host: str, origin: str
) -> None:
    head = f"POST /predict/batch HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=SECONDS) as client:
        client.sendall(head.encode("latin-1") + b'Content-Length: 14\r\n\r\n{"images": []}')
        said = hear(client)
    assert_documented(said)
    if STATUS.findall(said) == [b"200"]:
        assert re.match(r"(localhost|127\.0\.0\.1|\[::1\])", host)
        assert origin.lower().strip().partition("://")[2].startswith(host.lower().strip().removesuffix(":80"))
        assert "evil" not in host + origin
    assert b"evil" not in said
