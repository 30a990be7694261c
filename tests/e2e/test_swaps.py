"""Thirty model changes under load, by signal, as a deployment makes them: no request is lost and none is answered
by anything but one of the two models. CATSDOGS_TEST_SWAPS=100 makes more."""

import os
import shutil
import signal
import threading
from pathlib import Path

import httpx
import pytest

from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from tests.e2e.test_process import CAT, Process, serve
from tests.waiting import until

pytestmark = pytest.mark.slow

SWAPS = int(os.environ.get("CATSDOGS_TEST_SWAPS", "30"))
CLIENTS = 3


@pytest.fixture
def process(tmp_path: Path) -> Process:
    shutil.copy(SHIPPED_INT8, tmp_path / "model.onnx")
    return serve(tmp_path, CATSDOGS_MODEL=str(tmp_path / "model.onnx")).ready()


def test_swaps_under_load_lose_no_request(process: Process, tmp_path: Path) -> None:
    until(lambda: len(process.lanes()) == len(os.sched_getaffinity(0)))
    family, descriptors = len(process.family()), open_files(process)
    # What `pkill -HUP -x catsdogs` looks for.
    assert Path(f"/proc/{process.process.pid}/comm").read_text().strip() == "catsdogs"
    stop = threading.Event()
    answers: list[tuple[int, str, str]] = []

    def ask() -> None:
        with httpx.Client(base_url=process.url, timeout=60) as http:
            while not stop.is_set():
                answer = http.post("/predict", files={"file": CAT})
                body = answer.json()
                answers.append((answer.status_code, body.get("model", ""), body.get("verdict", "")))

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    memory = []
    with httpx.Client(base_url=process.url, timeout=60) as http:
        for swap in range(SWAPS):
            precision = "int8" if swap % 2 else "fp32"
            shutil.copy(SHIPPED_INT8 if swap % 2 else SHIPPED_MODEL, tmp_path / "aside")
            (tmp_path / "aside").replace(tmp_path / "model.onnx")
            os.kill(process.process.pid, signal.SIGHUP)
            until(lambda: http.get("/model").json()["precision"] == precision)  # noqa: B023  # called at once
            memory.append(resident(process))
    stop.set()
    for client in clients:
        client.join()
    assert {(status, verdict) for status, _, verdict in answers} == {(200, "cats")}
    assert {model.split("-")[-2] for _, model, _ in answers} == {"int8", "fp32"}
    assert len(answers) > SWAPS
    # The lanes of an old model end with its last request, and leave nothing.
    until(lambda: len(process.family()) == family)
    until(lambda: open_files(process) <= descriptors)
    assert memory[-1] < memory[9] + 30_000_000
    assert process.stop() == 0


def open_files(process: Process) -> int:
    return len(list(Path(f"/proc/{process.process.pid}/fd").iterdir()))


def resident(process: Process) -> int:
    return int(Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]) * 4096
