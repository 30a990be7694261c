"""The service as a process: how it is installed, starts, talks and stops."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, blobs, encoded, measured
from tests.waiting import until

CAT = (ROOT / "tests/cat.jpg").read_bytes()


class Process:
    """`catsdogs serve` on a free port, or whatever command starts it."""

    def __init__(self, command: list[str], cwd: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={k: v for k, v in os.environ.items() if not k.startswith("CATSDOGS_")} | measured() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            found = re.search(r"http://localhost:(\d+)/", line)
            if found:
                break
        else:
            pytest.fail(f"{command} did not start: {''.join(said)}")
        self.url = found[0].rstrip("/")
        # If nobody reads, the writer blocks once the pipe is full.
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout or ()))
        self.reader.start()

    def ready(self) -> "Process":
        until(lambda: httpx.get(f"{self.url}/health/ready").status_code == 200, "not ready")
        return self

    def lanes(self) -> list[int]:
        """Process ids of what decodes: grandchildren of the front process."""
        return [lane for zygote in children(self.process.pid) for lane in children(zygote)]

    def family(self) -> list[int]:
        """Process ids of all that it is made of."""
        return [self.process.pid, *children(self.process.pid), *self.lanes()]

    def send(self, sig: int) -> None:
        """Signal its process group, as a terminal does."""
        os.killpg(self.process.pid, sig)

    def stop(self, sig: int = signal.SIGTERM) -> int:
        self.send(sig)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(30)
        self.reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def lives(pid: int) -> bool:
    """A process that is there, and is more than a zombie that nobody has waited for."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


def serve(tmp_path: Path, **environment: str) -> Process:
    program = str(Path(sys.executable).parent / "catsdogs")
    return Process([program, "serve", "--port", "0"], tmp_path, **environment)


def test_it_starts_anywhere_says_where_and_stops_with_exit_code_0(tmp_path: Path) -> None:
    process = serve(tmp_path).ready()
    answer = httpx.post(f"{process.url}/predict", files={"file": CAT}).json()
    assert answer["verdict"] == "cats"
    assert process.stop() == 0
    logged = [json.loads(line) for line in process.lines]
    assert {"time", "level", "message"} <= set(logged[0])
    assert [line["route"] for line in logged if line["message"] == "request"] == ["/predict"] or len(logged) > 3
    assert logged[-1]["level"] == "info"


def in_the_house(process: Process, count: int, side: int) -> list[socket.socket]:
    """Connections that have each sent a picture so large that one lane is busy with all of them for a while."""
    large = encoded(blobs(1, (side, side)), "PNG", compress_level=1)
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n%s\r\n--x--\r\n' % large
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    port = int(process.url.rsplit(":", 1)[1])
    connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(count)]
    for connection in connections:
        connection.sendall(f"{head}Content-Length: {len(form)}\r\n\r\n".encode() + form)
    accepted = 0.0
    while accepted < count:
        page = httpx.get(f"{process.url}/metrics").text
        depth, answered = (
            sum(float(value) for value in re.findall(pattern, page, re.MULTILINE))
            for pattern in (r"^catsdogs_queue_depth (\S+)", r'^http_requests_total\{.*route="/predict".*\} (\S+)')
        )
        accepted = depth + answered + 1
    return connections


def answers(connections: list[socket.socket]) -> list[bytes]:
    """What came back on each connection."""
    received = [connection.recv(2000) for connection in connections]
    for connection in connections:
        connection.close()
    return received


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("each", [False, True], ids=["the group", "each process"])
def test_every_accepted_request_is_answered_when_it_is_told_to_stop(tmp_path: Path, sig: int, each: bool) -> None:
    process = serve(tmp_path, CATSDOGS_LANES="1").ready()
    connections = in_the_house(process, 12, 3000)
    if each:  # as systemd does
        for pid in reversed(process.family()):
            os.kill(pid, sig)
    else:
        process.send(sig)
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers(connections))
    assert process.wait() == 0


def test_a_reload_ends_no_lane_that_is_at_work(tmp_path: Path) -> None:
    process = serve(tmp_path, CATSDOGS_LANES="1").ready()
    connections, before = in_the_house(process, 12, 3000), process.lanes()
    for pid in (*before, process.process.pid):
        os.kill(pid, signal.SIGHUP)
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers(connections))
    until(lambda: len(process.lanes()) == 1 and process.lanes() != before)
    assert process.stop() == 0


def test_a_lane_that_is_killed_costs_one_request(tmp_path: Path) -> None:
    process = serve(tmp_path, CATSDOGS_LANES="1", CATSDOGS_DEADLINE_SECONDS="60").ready()
    connections = in_the_house(process, 12, 3000)
    (lane,) = process.lanes()
    os.kill(lane, signal.SIGKILL)
    assert sum(answer.startswith(b"HTTP/1.1 200") for answer in answers(connections)) >= 11
    assert 'catsdogs_lane_restarts_total{reason="memory"} 1' in httpx.get(f"{process.url}/metrics").text
    assert process.lanes() not in ([], [lane])
    assert process.stop() == 0


def test_nothing_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    process = serve(tmp_path, CATSDOGS_LANES="2").ready()
    until(lambda: len(process.lanes()) == 2)
    family, connections = process.family(), in_the_house(process, 4, 3000)
    os.kill(process.process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    until(lambda: not any(map(lives, family)))
    for connection in connections:
        connection.close()


def test_what_decodes_and_computes_is_not_in_the_process_that_talks(tmp_path: Path) -> None:
    process = serve(tmp_path, CATSDOGS_LANES="1").ready()
    assert httpx.post(f"{process.url}/predict", files={"file": CAT}).status_code == 200
    assert httpx.post(f"{process.url}/explain", files={"file": CAT}).status_code == 200
    images = {"images": [{"data": b64encode(CAT).decode()}]}
    assert "error" not in httpx.post(f"{process.url}/predict/batch", json=images).json()["results"][0]
    libraries = ("numpy", "PIL", "onnxruntime")
    assert [resource.prlimit(pid, resource.RLIMIT_CORE) for pid in process.family()] == [(0, 0)] * 3, "pictures on disk"
    front, lane = (Path(f"/proc/{pid}/maps").read_text() for pid in (process.process.pid, *process.lanes()))
    assert [name for name in libraries if f"/{name}/" in front] == []
    assert [name for name in libraries if f"/{name}/" in lane] == list(libraries)
    assert process.stop() == 0


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    process = serve(tmp_path, CATSDOGS_LANES="1", CATSDOGS_DEADLINE_SECONDS="60").ready()
    connections = in_the_house(process, 40, 4000)
    process.send(signal.SIGTERM)
    assert connections[0].recv(100).startswith(b"HTTP/1.1 200")
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    received = answers(connections[1:])
    assert sum(b"HTTP/1.1 503" in answer and b'"code":"draining"' in answer for answer in received) > 10
    assert all(answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")) for answer in received)
    connections[0].close()


def test_with_a_drain_delay_it_leaves_the_balancer_before_it_closes_its_door(tmp_path: Path) -> None:
    process = serve(tmp_path, CATSDOGS_DRAIN_DELAY_SECONDS="3").ready()
    cat = (ROOT / "tests" / "cat.jpg").read_bytes()
    process.send(signal.SIGTERM)
    while (ready := httpx.get(f"{process.url}/health/ready")).status_code == 200:
        pass
    assert ready.json()["code"] == "draining"
    answer = httpx.post(f"{process.url}/predict", files={"file": cat})
    assert (answer.status_code, answer.json()["verdict"]) == (200, "cats")
    assert answer.headers["connection"] == "close"
    assert "\ncatsdogs_ready 0.0" in httpx.get(f"{process.url}/metrics").text
    assert process.wait() == 0


def test_a_second_signal_ends_the_drain_delay(tmp_path: Path) -> None:
    process = serve(tmp_path, CATSDOGS_DRAIN_DELAY_SECONDS="500").ready()
    process.send(signal.SIGTERM)
    while httpx.get(f"{process.url}/health/ready").status_code == 200:
        pass
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_the_health_check_of_the_image_tells_ready_from_not(tmp_path: Path) -> None:
    process = serve(tmp_path, CATSDOGS_DRAIN_DELAY_SECONDS="500").ready()
    port = process.url.rsplit(":", 1)[1]
    check = [sys.executable, "-IS", str(ROOT / "serving" / "ready.py")]
    environment = os.environ | {"CATSDOGS_PORT": port}
    assert subprocess.run(check, env=environment, check=False, timeout=30).returncode == 0
    process.send(signal.SIGTERM)
    while httpx.get(f"{process.url}/health/ready").status_code == 200:
        pass
    assert subprocess.run(check, env=environment, check=False, timeout=30).returncode == 1
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert subprocess.run(check, env=environment, check=False, timeout=30).returncode == 1


def test_a_signal_before_it_serves_ends_it_as_well(tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "catsdogs")
    for seconds in (0.15, 0.3, 0.45):
        with subprocess.Popen([program, "serve", "--port", "0"], stdout=-1, stderr=-1, cwd=tmp_path) as process:
            time.sleep(seconds)
            process.terminate()
            process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGTERM)  # the latter before Python has come to ours


def test_interrupt_stops_it_too(tmp_path: Path) -> None:
    assert serve(tmp_path).ready().stop(signal.SIGINT) == 0


def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    first = serve(tmp_path)
    port = first.url.rsplit(":", 1)[1]
    program = str(Path(sys.executable).parent / "catsdogs")
    second = subprocess.run([program, "serve", "--port", port], capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 2
    told = [json.loads(line)["message"] for line in second.stdout.splitlines()]
    assert told[-1] == f"port {port} is taken: try CATSDOGS_PORT={int(port) + 1}"
    first.stop()


def clone(folder: Path) -> Path:
    """What a fresh clone of the working tree would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def packages(venv: Path) -> set[str]:
    listed = subprocess.run([venv / "bin/pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    return {package["name"] for package in json.loads(listed.stdout)}


def test_make_serve_in_a_fresh_clone_answers_without_torch(tmp_path: Path) -> None:
    fresh = clone(tmp_path / "clone")
    process = Process(["make", "--silent", "serve"], fresh, CATSDOGS_PORT="0").ready()
    assert httpx.post(f"{process.url}/predict", files={"file": CAT}).json()["verdict"] == "cats"
    assert "Cats" in httpx.get(process.url).text
    process.stop()
    assert not packages(fresh / ".venv") & {
        "torch",
        "torchvision",
        "onnx",
        "mlflow",
        "dvc",
        "matplotlib",
        "scikit-learn",
    }


@pytest.mark.slow
def test_pip_install_into_an_empty_environment_serves_and_predicts_from_anywhere(tmp_path: Path) -> None:
    fresh = clone(tmp_path / "clone")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", fresh], check=True, capture_output=True)
    shutil.rmtree(fresh)
    program = str(tmp_path / "venv/bin/catsdogs")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    process = Process([program, "serve", "--host", "127.0.0.1", "--port", "0"], elsewhere).ready()
    assert httpx.post(f"{process.url}/predict", files={"file": CAT}).json()["verdict"] == "cats"
    assert httpx.get(f"{process.url}/assets/app.js").status_code == 200
    process.stop()
    (elsewhere / "cat.jpg").write_bytes(CAT)
    done = subprocess.run([program, "predict", "cat.jpg"], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("cats")
    trained = subprocess.run([program, "train"], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert trained.returncode == 2
    hint = f"{tmp_path}/venv/bin/pip install '.[train]', in a checkout"
    assert hint in trained.stderr
    listed = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    assert listed.returncode == 0
    _, absent = listed.stdout.split("Not installed:")
    assert "fetch, audit, split, …" in absent
    assert hint.replace(" ", "") in "".join(absent.split())  # in as many lines as it takes
