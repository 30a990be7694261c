"""The edge, a real HAProxy before real replicas: what it passes, what it says itself, what it does not lose."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import httpx
import msgspec
import numpy as np
import pytest
import uvicorn
from PIL import Image

from serving import errors
from serving.engine.budget import BYTES_PER_SECOND
from serving.engine.memory import fitted
from serving.http import headers
from serving.http.connections import MAX_HEAD_BYTES, MAX_HEADERS
from serving.settings import Settings
from tests.conftest import ROOT, encoded
from tests.e2e.test_process import CAT, Process, serve
from tests.ops.edge import CLIENTS, CONFIG, Edge, Load, Names
from tests.waiting import PATIENCE, until

PROBLEM: Final = {"type", "title", "status", "detail", "code", "request_id"}


@pytest.fixture(scope="module")
def haproxy() -> str:
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no HAProxy, and CI must not pass without the edge's tests")
        pytest.skip("no HAProxy on this machine")
    return found


Build = Callable[..., Edge]


@pytest.fixture
def edge(haproxy: str, tmp_path: Path) -> Iterator[Build]:
    """Put an edge in front of replicas."""
    started: list[Edge] = []

    def build(replicas: list[Process] | None, **settings: str) -> Edge:
        started.append(Edge(haproxy, tmp_path, replicas, **settings))
        started[-1].wait()
        return started[-1]

    yield build
    for each in started:
        each.stop()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a replica, ready, with settings of its own."""
    started: list[Process] = []

    def begin(**settings: str) -> Process:
        started.append(serve(tmp_path, **{f"CATSDOGS_{name.upper()}": value for name, value in settings.items()}))
        return started[-1].ready()

    yield begin
    for each in started:
        if each.process.poll() is None:
            each.stop(signal.SIGKILL)


@pytest.fixture
def names() -> Iterator[str]:
    """The address of a DNS server that knows nobody yet."""
    Names.known = set()
    with socketserver.UDPServer(("127.0.0.1", 0), Names) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def noise(side: int) -> bytes:
    """A PNG that is about as large as its pixels."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "PNG", compress_level=0)


def protected(answer: httpx.Response) -> bool:
    return all(answer.headers.get_list(name.decode()) == [value.decode()] for name, value in headers.API)


def ask(front: Edge, head: bytes, host: bytes = b"Host: x\r\n", source: str = "127.0.0.1") -> bytes:
    """All that is answered to a head by hand."""
    with socket.create_connection(front.address, PATIENCE, source_address=(source, 0)) as connection:
        connection.sendall(head + b"\r\n" + host + b"Connection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(9000):
            answer += data
    return answer


def problem(answer: httpx.Response, code: str) -> dict[str, object]:
    """Check that an answer is an error as the API has them, and return it."""
    document: dict[str, object] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(document) == PROBLEM
    assert (document["code"], document["status"]) == (code, answer.status_code)
    assert document["request_id"] == answer.headers["x-request-id"]
    assert protected(answer)
    return document


def test_the_configuration_is_valid_without_a_warning(haproxy: str) -> None:
    done = subprocess.run([haproxy, "-c", "-dW", "-f", CONFIG], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_its_own_errors_are_the_services() -> None:
    documents = [json.loads(text) for text in re.findall(r"lf-string '(\{.*?\})'", CONFIG.read_text())]
    assert documents
    for document in documents:
        expected = errors.problem(document["code"], document["detail"], document["request_id"])
        assert document == msgspec.to_builtins(expected)


def said(pattern: str) -> int:
    """The number that the configuration gives for something, once."""
    (number,) = re.findall(rf"^\s+{pattern}", CONFIG.read_text(), re.MULTILINE)
    return int(number)


def test_its_limits_are_the_services() -> None:
    settings = Settings()
    assert said(r"tune\.bufsize (\d+)") == MAX_HEAD_BYTES
    assert said(r"tune\.http\.maxhdr (\d+)") == MAX_HEADERS
    assert said(r"maxconn (\d+)") == settings.max_connections
    assert said(r"tcp-request connection reject if \{ sc0_conn_cur gt (\d+) \}") == settings.max_connections / 2
    assert said(r"timeout http-request (\d+)s") == settings.body_seconds
    assert said(r"timeout http-keep-alive (\d+)s") == uvicorn.Config("").timeout_keep_alive
    assert said(r"timeout queue (\d+)s") == settings.deadline_seconds
    # The replica is to answer first.
    assert said(r"timeout client (\d+)s") > settings.body_seconds
    assert said(r"timeout server (\d+)s") > settings.body_seconds + settings.deadline_seconds
    # The largest batch at the lowest rate takes longer than both, and both are times without a byte.
    assert settings.max_batch_bytes / BYTES_PER_SECOND > said(r"timeout server (\d+)s")


def test_it_sends_a_replica_no_more_connections_than_its_memory_allows() -> None:
    (megabytes,) = re.findall(r"x-service:.*?memory: (\d+)M", (ROOT / "compose.yaml").read_text(), re.DOTALL)
    fitting, _ = fitted(Settings(), 1, int(megabytes) << 20)
    assert said(r"default-server check .*maxconn (\d+)") < fitting.max_connections


@pytest.mark.parametrize(("size", "fields", "status"), [(30_000, 0, 200), (0, 97, 200), (33_000, 0, 400), (0, 99, 400)])
def test_a_head_may_be_as_large_as_the_service_allows(
    edge: Build, replica: Callable[..., Process], size: int, fields: int, status: int
) -> None:
    front = edge([replica()])
    lines = [b"a: " + b"a" * size, *[b"a: b"] * fields]
    assert b"HTTP/1.1 %d " % status in ask(front, b"\r\n".join([b"GET /health HTTP/1.1", *lines]))


def test_a_request_without_host_and_one_with_two_are_refused(edge: Build, replica: Callable[..., Process]) -> None:
    front = edge([replica()])
    assert ask(front, b"GET /health HTTP/1.1", host=b"").startswith(b"HTTP/1.1 400")
    assert ask(front, b"GET /health HTTP/1.1\r\nHost: y").startswith(b"HTTP/1.1 400")


def test_one_clients_idle_connections_do_not_shut_others_out(edge: Build, replica: Callable[..., Process]) -> None:
    front = edge([replica()])
    silent = []
    for _ in range(said(r"maxconn (\d+)")):
        with contextlib.suppress(ConnectionResetError):  # those that are too many
            silent.append(socket.create_connection(front.address, timeout=PATIENCE))
    assert ask(front, b"GET /health HTTP/1.1", source="127.0.0.2").startswith(b"HTTP/1.1 200")
    silent[0].setblocking(False)
    with pytest.raises(BlockingIOError):  # it is still open: there is not even an end to read
        silent[0].recv(1)
    for connection in silent:
        connection.close()


@pytest.mark.slow
def test_four_megabytes_at_two_megabits_a_second_arrive(edge: Build, replica: Callable[..., Process]) -> None:
    front = edge([replica()])
    picture = noise(1160)
    assert len(picture) > 4_000_000

    def pieces() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for start in range(0, len(picture), 25_000):
            time.sleep(0.1)
            yield picture[start : start + 25_000]
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{front.url}/predict", content=pieces(), headers=headers, timeout=PATIENCE)
    assert answer.status_code == 200


def test_what_a_replica_answers_passes_unchanged(edge: Build, replica: Callable[..., Process]) -> None:
    behind = replica()
    front = edge([behind])
    direct, through = (
        httpx.post(f"{url}/predict", files={"file": CAT}, headers={"X-Request-Id": "my.id-1"})
        for url in (behind.url, front.url)
    )
    assert direct.status_code == through.status_code == 200
    # The date may have moved on, and the edge's own id is at another place; nothing is added, lost or doubled.
    assert sorted(k for k, _ in direct.headers.multi_items()) == sorted(k for k, _ in through.headers.multi_items())
    assert through.headers["x-request-id"] == "my.id-1"
    assert {**direct.json(), "id": ""} == {**through.json(), "id": ""}
    for path in ("/", "/docs", "/metrics", "/health", "/health/ready", "/model", "/nowhere"):
        direct, through = (httpx.get(url + path) for url in (behind.url, front.url))
        assert through.status_code == direct.status_code, path
        assert through.headers["content-security-policy"] == direct.headers["content-security-policy"], path
        assert through.headers["content-type"] == direct.headers["content-type"], path


def test_an_id_that_would_not_do_is_replaced(edge: Build, replica: Callable[..., Process]) -> None:
    front = edge([replica()])
    for given in ({}, {"X-Request-Id": "two words"}, {"X-Request-Id": "x" * 65}):
        answer = httpx.get(f"{front.url}/health", headers=given)
        assert re.fullmatch(r"[0-9a-f-]{32,36}", answer.headers["x-request-id"])


def test_large_bodies_pass_and_too_large_ones_are_the_replicas_to_refuse(
    edge: Build, replica: Callable[..., Process]
) -> None:
    front = edge([replica()])
    picture = noise(2250)
    assert len(picture) > 15_000_000
    with httpx.Client(base_url=front.url, timeout=PATIENCE) as http:
        assert http.post("/predict", files={"file": picture}).status_code == 200
        items = [{"id": str(n), "data": base64.b64encode(picture).decode()} for n in range(3)]
        batch = json.dumps({"images": items})
        assert len(batch) > 60_000_000
        results = http.post("/predict/batch", content=batch).json()["results"]
        assert ["verdict" in result for result in results] == [True] * 3
        # It is refused before it has arrived: the answer must come through all the same, each time.
        for number in range(20):
            answer = http.post("/predict", files={"file": bytes(25_000_000)}, headers={"X-Request-Id": str(number)})
            assert "20,000,000" in str(problem(answer, "body_too_large")["detail"])
            assert answer.headers["x-request-id"] == str(number)


def test_feedback_finds_the_replica_that_made_the_prediction(edge: Build, replica: Callable[..., Process]) -> None:
    front = edge([replica() for _ in range(3)])
    with httpx.Client(base_url=front.url, timeout=PATIENCE) as http:
        ids = [http.post("/predict", files={"file": CAT}).json()["id"] for _ in range(9)]
        for each in (*ids, *ids[1:]):  # both kinds of requests go round: in step, they would meet by chance
            answer = http.post("/feedback", json={"id": each, "label": "cats"})
            assert (answer.status_code, answer.json()["correct"]) == (200, True)
        problem(http.post("/feedback", json={"id": "nobody's", "label": "cats"}), "unknown_prediction")
    assert "request_id" not in front.said()


def test_a_disputed_picture_is_kept_whichever_replica_answered(
    edge: Build, replica: Callable[..., Process], tmp_path: Path
) -> None:
    settings = {"id_key": "of all the replicas", "samples": str(tmp_path / "samples"), "sample": "disputed"}
    front = edge([replica(**settings) for _ in range(3)])
    with httpx.Client(base_url=front.url, timeout=PATIENCE) as http:
        answers = [http.post("/predict", files={"file": CAT}) for _ in range(9)]
        ids = [answer.json()["id"] for answer in answers]
        assert len({answer.headers["x-replica"] for answer in answers}) == 3
        for each in reversed(ids):
            assert http.post("/feedback", json={"label": "dogs", "id": each}).status_code == 200
    until(lambda: {path.stem for path in (tmp_path / "samples").glob("*.png")} == set(ids))


def test_a_slow_body_is_the_replicas_to_refuse(edge: Build, replica: Callable[..., Process]) -> None:
    front = edge([replica(body_seconds="1")])
    with socket.create_connection(front.address, timeout=PATIENCE) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n"
        connection.sendall(head + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")
        answer = connection.recv(9000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"slow_request"' in answer
    assert b"the body arrived too slowly" in answer


def test_without_a_replica_the_edge_says_so_as_the_api_would(edge: Build, replica: Callable[..., Process]) -> None:
    behind = replica()
    assert behind.stop() == 0
    front = edge([behind])
    until(lambda: front.up() == 0)
    answer = httpx.post(f"{front.url}/predict", files={"file": CAT}, headers={"X-Request-Id": "mine"})
    assert problem(answer, "not_ready")["request_id"] == "mine"
    assert int(answer.headers["retry-after"]) > 0
    assert httpx.get(f"{front.watch}/healthz").status_code == 503


def test_replicas_are_found_by_their_name_and_forgotten_with_it(
    edge: Build, replica: Callable[..., Process], names: str
) -> None:
    port = replica().url.rsplit(":", 1)[1]
    front = edge(None, EDGE_DNS=names, EDGE_SERVICE=f"service:{port}")
    assert httpx.get(f"{front.watch}/healthz").status_code == 503
    Names.known = {"127.0.0.1"}
    until(lambda: front.up() == 1)
    assert httpx.post(f"{front.url}/predict", files={"file": CAT}).json()["verdict"] == "cats"
    Names.known = set()
    until(lambda: front.up() == 0)
    problem(httpx.post(f"{front.url}/predict", files={"file": CAT}), "not_ready")


def test_with_a_replica_the_edge_is_healthy_and_watched(edge: Build, replica: Callable[..., Process]) -> None:
    front = edge([replica(), replica()])
    until(lambda: front.up() == 2)
    assert httpx.get(f"{front.watch}/healthz").status_code == 200
    assert httpx.get(f"{front.watch}/stats").status_code == 404


def test_a_replica_that_stops_answering_is_a_missed_deadline(edge: Build, replica: Callable[..., Process]) -> None:
    behind = replica()
    front = edge([behind], timeout_server="1s")
    os.killpg(behind.process.pid, signal.SIGSTOP)
    try:
        answer = httpx.post(f"{front.url}/predict", files={"file": CAT}, timeout=PATIENCE)
    finally:
        os.killpg(behind.process.pid, signal.SIGCONT)
    assert answer.status_code == 503
    problem(answer, "deadline_exceeded")


def test_a_client_that_leaves_is_gone_for_the_replica_too(edge: Build, replica: Callable[..., Process]) -> None:
    behind = replica(lanes="1")
    front = edge([behind])

    def metric(pattern: str) -> float:
        page = httpx.get(f"{behind.url}/metrics").text
        return sum(map(float, re.findall(rf"^{pattern} (\S+)$", page, re.MULTILINE)))

    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n%s\r\n--x--\r\n' % noise(1000)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(form) + form
    connections = [socket.create_connection(front.address, timeout=PATIENCE) for _ in range(8)]
    for connection in connections:
        connection.sendall(request)
    for connection in connections:
        connection.close()
    until(lambda: metric(r'http_requests_total\{.*status="499"\}') > 0)


def test_a_replica_that_drains_leaves_before_it_stops_and_loses_no_request(
    edge: Build, replica: Callable[..., Process]
) -> None:
    replicas = [replica(drain_delay_seconds="5") for _ in range(2)]
    front = edge(replicas)
    until(lambda: front.up() == 2)
    with Load(front.url) as load:
        os.killpg(replicas[0].process.pid, signal.SIGTERM)
        until(lambda: front.up() == 1)
        assert replicas[0].process.poll() is None
        assert httpx.post(f"{replicas[0].url}/predict", files={"file": CAT}).status_code == 200
        assert replicas[0].wait() == 0
        load.more()
    assert set(load.answers) == {"cats"}


def test_a_killed_replica_costs_no_more_than_the_requests_it_had(edge: Build, replica: Callable[..., Process]) -> None:
    replicas = [replica() for _ in range(3)]
    front = edge(replicas)
    until(lambda: front.up() == 3)
    with Load(front.url) as load:
        replicas[0].stop(signal.SIGKILL)
        load.more()
        until(lambda: front.up() == 2)
        failed = load.failed()
        load.more()
        assert load.failed() == failed
    # On a connection that has had an answer before, HAProxy closes it instead: clients take that for leave to repeat.
    # So it does in the middle of an answer.
    cut = ("Server disconnected without sending a response.", "peer closed connection without sending complete message")
    assert all(answer in ("cats", "not_ready") or answer.startswith(cut) for answer in load.answers)
    assert failed <= CLIENTS


def test_what_died_with_a_replica_is_told_and_logged_without_an_address(
    edge: Build, replica: Callable[..., Process]
) -> None:
    behind = replica()
    front = edge([behind, replica()])
    # It is found out within seconds; until then half of the requests go there.
    os.killpg(behind.process.pid, signal.SIGSTOP)
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{front.url}/predict", files={"file": CAT}, timeout=PATIENCE))

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    until(lambda: len(answers) == 1)
    behind.stop(signal.SIGKILL)
    for client in clients:
        client.join()
    assert answers[0].json()["verdict"] == "cats"
    assert answers[1].status_code == 503
    died = problem(answers[1], "not_ready")
    assert "ask again" in str(died["detail"])
    assert int(answers[1].headers["retry-after"]) > 0
    until(lambda: "request_id" in front.said())
    logged = [json.loads(line) for line in front.said().splitlines() if line.startswith("{")]
    assert [(line["request_id"], line["status"], line["replica"]) for line in logged] == [
        (died["request_id"], 503, "r0")
    ]
    assert "127.0.0.1" not in json.dumps(logged)
