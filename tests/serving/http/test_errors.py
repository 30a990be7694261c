"""Each row of the error table, one form for all of them, and a service that goes on after each."""

import asyncio
import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from serving.engine.budget import BodyBudget
from serving.errors import CODES
from serving.model.manager import ModelManager
from tests.conftest import ROOT, blobs, encoded
from tests.serving.conftest import PHOTO, Running, Start
from tests.waiting import until

FORM = "multipart/form-data; boundary=x"
BOMB = encoded(Image.new("1", (16_000, 16_000)), "PNG", optimize=True)


def part(name: str, data: bytes = PHOTO) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n' % (name.encode(), data)


def batch_of(count: int, data: str = "aGk=") -> bytes:
    return json.dumps({"images": [{"data": data}] * count}).encode()


def assert_problem(answer: httpx.Response, code: str) -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (body["code"], body["status"]) == (code, CODES[code][0])
    assert answer.status_code == body["status"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["detail"]
    assert "Traceback" not in answer.text
    assert "/site-packages" not in answer.text


def post(path: str, content: bytes, kind: str = FORM) -> Callable[[Running], httpx.Response]:
    return lambda server: server.http.post(path, content=content, headers={"content-type": kind})


def form(data: bytes) -> bytes:
    return part("file", data) + b"--x--\r\n"


def file(data: bytes) -> Callable[[Running], httpx.Response]:
    return post("/predict", form(data))


# What is wrong with a form, for every address that takes one.
FORMS: dict[str, tuple[str, bytes, str]] = {
    "wrong field": ("malformed_request", part("photo") + b"--x--\r\n", FORM),
    "two files": ("malformed_request", part("file") * 2 + b"--x--\r\n", FORM),
    "no parts": ("malformed_request", b"--x--\r\n", FORM),
    "no body": ("malformed_request", b"", FORM),
    "no form and no picture": ("malformed_request", PHOTO, "text/plain"),
    "no picture in the body": ("unsupported_format", b"I am a cat", "image/jpeg"),
    "nothing in the body": ("undecodable_image", b"", "image/jpeg"),
    "no boundary": ("malformed_request", PHOTO, "multipart/form-data"),
    "long boundary": ("malformed_request", PHOTO, f"multipart/form-data; boundary={'x' * 300}"),
    "form cut short": ("malformed_request", part("file"), FORM),
    "broken form": ("malformed_request", b"--y\r\nnonsense", FORM),
    "endless part header": ("malformed_request", b"--x\r\nA: " + b"a" * 10_000 + b"\r\n\r\n", FORM),
    "many part headers": ("malformed_request", b"--x\r\n" + b"A: b\r\n" * 100 + b"\r\n", FORM),
    "many parts": ("malformed_request", part("other", b"") * 100 + b"--x--\r\n", FORM),
    "urlencoded": ("malformed_request", b"file=x", "application/x-www-form-urlencoded"),
    "empty file": ("undecodable_image", form(b""), FORM),
    "text named .jpg": ("unsupported_format", form(b"I am a cat"), FORM),
    "truncated JPEG": ("undecodable_image", form(PHOTO[: len(PHOTO) // 2]), FORM),
    "256 megapixels in 31 kB": ("image_too_large", form(BOMB), FORM),
    "TIFF": ("unsupported_format", form(encoded(Image.new("RGB", (9, 9)), "TIFF")), FORM),
}

CASES: dict[str, tuple[str, Callable[[Running], httpx.Response]]] = {
    **{
        f"{name} for {path}": (code, post(path, content, kind))
        for path in ("/predict", "/explain")
        for name, (code, content, kind) in FORMS.items()
    },
    "an unknown compression": (
        "unsupported_encoding",
        lambda server: server.http.post("/predict", content=form(PHOTO), headers={"content-encoding": "br"}),
    ),
    "explain=maybe": ("malformed_request", post("/predict?explain=maybe", form(PHOTO))),
    "broken JSON": ("malformed_request", post("/predict/batch", b'{"images": [')),
    "no JSON": ("malformed_request", post("/predict/batch", b"\xff\xfe")),
    "JSON of another shape": ("malformed_request", post("/predict/batch", b'["images"]')),
    "no images": ("malformed_request", post("/predict/batch", b"{}")),
    "65 images": ("malformed_request", post("/predict/batch", batch_of(65))),
    "JSON a million deep": ("malformed_request", post("/predict/batch", b"[" * 1_000_000)),
    "unknown fields, a million deep": (
        "malformed_request",
        post("/predict/batch", b'{"x": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
    ),
    "nothing there": ("not_found", lambda server: server.http.get("/nothing")),
    "no such asset": ("not_found", lambda server: server.http.get("/assets/passwd")),
    "a foreign page": (
        "foreign_origin",
        lambda server: server.http.post("/predict", headers={"origin": "https://evil.example"}),
    ),
    "a foreign host": (
        "misdirected_request",
        lambda server: server.http.get("/health", headers={"host": "evil.example"}),
    ),
    "wrong method": ("method_not_allowed", lambda server: server.http.get("/predict")),
    "wrong method for a drawing": ("method_not_allowed", lambda server: server.http.get("/explain")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_the_documented_problem_and_the_service_goes_on(server: Running, case: str) -> None:
    code, send = CASES[case]
    assert_problem(send(server), code)
    assert server.predict().status_code == 200


def test_every_documented_code_has_a_test() -> None:
    tested_below = {
        "body_too_large", "slow_request", "overloaded", "deadline_exceeded", "draining", "not_ready", "internal_error",
        "unauthorized", "unknown_prediction", "too_costly",  # test_auth.py, test_feedback.py, the engine's tests
    }  # fmt: skip
    assert {code for code, _ in CASES.values()} | tested_below == set(CODES)


def test_errors_are_known_to_processes_without_http() -> None:
    code = "import sys, serving.errors; assert not {'starlette', 'uvicorn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_was_refused_is_counted(server: Running) -> None:
    before = server.metric('catsdogs_rejected_total{code="unsupported_format"}')
    file(b"I am a cat")(server)
    server.http.post("/predict/batch", content=batch_of(2))
    assert server.metric('catsdogs_rejected_total{code="unsupported_format"}') == before + 3
    codes = [f'catsdogs_rejected_total{{code="{code}"}}' for code in ("not_found", "method_not_allowed")]
    counts = [server.metric(code) for code in codes]
    server.http.get("/nowhere")
    server.http.get("/predict")
    assert [server.metric(code) for code in codes] == [count + 1 for count in counts]


def hundred_megabytes(declared: bool, port: int) -> tuple[int, bytes]:
    """Send a form of 100 MB by hand; returns the status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(100):
            yield bytes(1_000_000)

    headers = {"Content-Type": FORM}
    if declared:
        headers["Content-Length"] = str(len(head) + 100_000_000)
    connection.request("POST", "/predict", pieces(), headers, encode_chunked=not declared)
    with connection.getresponse() as answer:
        result = answer.status, answer.read()
    connection.close()
    return result


@pytest.mark.parametrize("declared", [True, False], ids=["with Content-Length", "without"])
def test_a_body_of_a_hundred_megabytes_is_refused_and_not_kept(server: Running, declared: bool) -> None:
    def memory() -> float:
        return server.metric("process_resident_memory_bytes") / 1e6

    hundred_megabytes(declared, server.port)
    before = memory()
    for _ in range(3):
        status, body = hundred_megabytes(declared, server.port)
        assert (status, json.loads(body)["code"]) == (413, "body_too_large")
    assert memory() - before < 40
    assert server.predict().status_code == 200


def test_a_batch_has_a_limit_of_its_own(start: Start) -> None:
    server = start(max_body_bytes=1000, max_batch_bytes=50_000)
    assert_problem(server.predict(), "body_too_large")
    assert_problem(server.explain(), "body_too_large")
    image = base64.b64encode(PHOTO).decode()
    assert server.http.post("/predict/batch", content=batch_of(1, image)).status_code == 200
    assert_problem(server.http.post("/predict/batch", content=batch_of(60, image)), "body_too_large")


def test_bombs_leave_no_memory_behind(server: Running) -> None:
    file(BOMB)(server)
    before = server.metric("process_resident_memory_bytes")
    for _ in range(100):
        assert_problem(file(BOMB)(server), "image_too_large")
    assert server.metric("process_resident_memory_bytes") - before < 20e6


def test_a_body_that_does_not_arrive_is_given_up(start: Start) -> None:
    server = start(body_seconds=0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + FORM.encode())
        connection.sendall(b"\r\nContent-Length: 1000\r\n\r\n--x\r\n")
        answer = b""
        while b"}" not in answer:
            answer += connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"slow_request"' in answer
    assert server.predict().status_code == 200


class Gate:
    """Holds the lanes, where they are, until it is opened."""

    def __init__(self, server: Running) -> None:
        assert server.service.engine is not None and server.service.engine.current is not None
        self.lanes = server.service.engine.current
        for pid in self.lanes.pids:
            os.kill(pid, signal.SIGSTOP)

    def open(self) -> None:
        for pid in self.lanes.pids:
            os.kill(pid, signal.SIGCONT)


def decoded(server: Running) -> int:
    """How many pictures the lane has decoded, this one included."""
    return int(server.predict(b"count").json()["familiarity"])


def in_background(send: Callable[[], httpx.Response], count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_a_full_queue_refuses_and_says_when_to_come_back(start: Start) -> None:
    server = start(lanes=1, max_queue=3, deadline_seconds=30)
    gate = Gate(server)
    answers: list[int] = []
    url = f"http://127.0.0.1:{server.port}/predict"
    threads = in_background(
        lambda: answers.append(httpx.post(url, files={"file": PHOTO}, timeout=60).status_code),  # type: ignore[arg-type,return-value]
        4,
    )
    until(lambda: server.metric("catsdogs_queue_depth") == 3)
    assert server.metric("catsdogs_lanes_busy") == 1
    refused = server.predict()
    assert_problem(refused, "overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert_problem(server.http.post("/predict/batch", content=batch_of(1)), "overloaded")
    assert_problem(server.explain(), "overloaded")
    assert server.http.get("/health").status_code == 200
    gate.open()
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert server.predict().status_code == 200


def test_a_picture_that_waits_too_long_is_given_up_and_not_decoded(start: Start) -> None:
    server = start(worker="tests.serving.engine.hostile", lanes=1, deadline_seconds=1.5)
    Gate(server)
    answers: list[httpx.Response] = []
    url = f"http://127.0.0.1:{server.port}"
    threads = [
        *in_background(lambda: answers.append(httpx.post(f"{url}/predict", files={"file": PHOTO})), 2),  # type: ignore[arg-type,return-value]
        *in_background(lambda: answers.append(httpx.post(f"{url}/explain", files={"file": PHOTO})), 2),  # type: ignore[arg-type,return-value]
    ]
    for thread in threads:
        thread.join()
    for answer in answers:
        assert_problem(answer, "deadline_exceeded")
        assert int(answer.headers["retry-after"]) >= 1
    # The lane that did not come back was replaced, and those that waited were skipped.
    until(lambda: server.http.get("/health/ready").status_code == 200)
    assert decoded(server) == 1


@pytest.mark.parametrize("left", [True, False])
def test_a_client_that_left_is_skipped_and_one_that_only_sends_no_more_is_answered(start: Start, left: bool) -> None:
    server = start(worker="tests.serving.engine.hostile", lanes=1)
    gate = Gate(server)
    url = f"http://127.0.0.1:{server.port}/predict"
    thread = in_background(lambda: httpx.post(url, files={"file": PHOTO}, timeout=60), 1)[0]
    until(lambda: server.metric("catsdogs_lanes_busy") == 1)
    body = part("file") + b"--x--\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = (
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        until(lambda: server.metric("catsdogs_queue_depth") == 1)
        if left:
            connection.close()
        else:
            connection.shutdown(socket.SHUT_WR)
        assert server.http.get("/health").status_code == 200  # by when the service has seen it
        gate.open()
        thread.join()
        if not left:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert json.load(answer)["verdict"]
    status = 499 if left else 200
    until(lambda: server.metric(f'http_requests_total{{method="POST",route="/predict",status="{status}"}}') == 2 - left)
    assert decoded(server) == 3 - left


def test_while_draining_nothing_new_is_accepted(start: Start) -> None:
    server = start()
    server.service.drain()
    assert_problem(server.predict(), "draining")
    assert_problem(server.explain(), "draining")
    assert_problem(server.http.get("/health/ready"), "draining")
    assert server.http.get("/health").status_code == 200


def test_a_picture_that_arrives_while_it_drains_is_answered_if_it_was_begun_before(start: Start) -> None:
    server = start()
    body = form(PHOTO)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + body[:100])
        until(lambda: server.service.budget.granted > 0)
        server.service.drain()
        client.sendall(body[100:])
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_batches_are_refused_when_those_that_wait_would_take_too_long_and_single_pictures_are_not(
    server: Running,
) -> None:
    lanes = server.service.engine.current
    assert lanes is not None
    images = [{"data": base64.b64encode(PHOTO).decode()}] * 2
    with server.service.batched(int(40 * lanes.count / lanes.seconds), lanes):
        refused = server.http.post("/predict/batch", json={"images": images})
        assert_problem(refused, "overloaded")
        assert 30 < int(refused.headers["retry-after"]) < 50
        assert server.predict().status_code == 200
        assert "error" not in server.http.post("/predict/batch", json={"images": images[:1]}).json()["results"][0]
    assert "error" not in server.http.post("/predict/batch", json={"images": images}).json()["results"][1]


def test_of_a_batch_whose_client_has_left_nothing_is_held_once_its_memory_is_given_back(start: Start) -> None:
    server = start(lanes=1)
    slow = encoded(blobs(1, (3000, 2000)), "PNG", compress_level=1)
    body = batch_of(20, base64.b64encode(slow).decode())
    head = f"POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    def left() -> list[str]:
        return [str(task) for task in asyncio.all_tasks(server.loop) if "_predict_one" in str(task)]

    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + body)
        until(left)
        with ThreadPoolExecutor() as others:  # keep the lane busy, so that the batch cannot end of itself
            answers = [others.submit(server.predict, slow) for _ in range(8)]
            until(lambda: server.service.engine.depth > 4)
            client.close()
            until(lambda: server.service.budget.granted < len(body))
            assert left() == []
            assert {answer.result().status_code for answer in answers} == {200}


def test_a_model_that_takes_long_to_load_keeps_nothing_else_waiting(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: ModelManager) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(ModelManager, "heal", hang)
    checks: list[int] = []
    monkeypatch.setattr(BodyBudget, "check", lambda _: checks.append(1))
    start()
    until(lambda: len(checks) >= 3)


def test_a_file_that_is_no_model_is_never_ready(start: Start, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    server = start(wait_ready=False, model=str(tmp_path / "model.onnx"))
    until(lambda: "not a model" in server.http.get("/health/ready").text)
    for answer in (server.http.get("/health/ready"), server.predict(), server.explain(), server.http.get("/model")):
        assert_problem(answer, "not_ready")
    assert server.http.get("/health").status_code == 200


def test_a_fault_of_ours_is_a_problem_too_and_says_nothing_of_our_insides(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()

    async def run(*_: object) -> object:
        raise RuntimeError("secret of /site-packages")

    assert server.service.engine is not None
    with monkeypatch.context() as patch:
        patch.setattr(server.service.engine.current, "run", run)
        assert_problem(server.predict(), "internal_error")
        assert_problem(server.explain(), "internal_error")
    assert server.predict().status_code == 200
