"""The model in service changes without a gap, and is taken out while it fails."""

import asyncio
import base64
import errno
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from tests.serving.conftest import Running, Start
from tests.waiting import until


def place(source: Path, target: Path) -> Path:
    """Put a model file in place as a deployment should: whole."""
    aside = target.with_suffix(".aside")
    shutil.copy(source, aside)
    return aside.replace(target)


def precision(server: Running) -> str:
    return str(server.http.get("/model").json()["precision"])


def test_another_file_in_its_place_serves_after_a_reload(start: Start, tmp_path: Path) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    assert precision(server) == "int8"
    place(SHIPPED_MODEL, path)
    assert precision(server) == "int8"
    server.reload()
    until(lambda: precision(server) == "fp32")
    assert "fp32" in server.predict().json()["model"]
    told = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith("catsdogs_model_info{")]
    assert len(told) == 1
    assert 'precision="fp32"' in told[0]


def test_a_file_that_is_refused_leaves_the_old_model_and_says_why(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    path.write_bytes(path.read_bytes()[:100_000])
    server.reload()
    until(lambda: "the model is refused" in caplog.text)
    reasons = [record.fields["reason"] for record in caplog.records if record.message == "the model is refused"]  # type: ignore[attr-defined]
    assert reasons == ["model.onnx: not a model that onnxruntime can load"]
    assert precision(server) == "int8"
    assert server.predict().status_code == 200
    assert (server.metric("catsdogs_model_refused"), server.metric("catsdogs_ready")) == (1, 1)
    place(SHIPPED_MODEL, path)
    server.reload()
    until(lambda: precision(server) == "fp32")
    assert server.metric("catsdogs_model_refused") == 0


def test_of_many_reloads_at_once_the_last_counts(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    for _ in range(50):
        server.reload()
    place(SHIPPED_MODEL, path)
    server.reload()
    until(lambda: precision(server) == "fp32")
    assert sum(record.message == "ready" for record in caplog.records) <= 4


def test_a_watched_file_is_loaded_when_it_changes_and_only_then(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path), watch_seconds=1)
    place(SHIPPED_MODEL, path)
    until(lambda: precision(server) == "fp32")
    path.unlink()
    time.sleep(2.5)
    assert server.predict().status_code == 200
    assert sum(record.message == "the model file has changed" for record in caplog.records) == 1


def test_the_service_ends_during_a_load_that_watching_began(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path), watch_seconds=1)
    os.mkfifo(tmp_path / "aside")  # loading it does not end
    (tmp_path / "aside").replace(path)
    until(lambda: "the model file has changed" in caplog.text)
    asyncio.run_coroutine_threadsafe(server.service.stop(), server.loop).result(20)


def test_a_watched_file_that_could_not_be_loaded_for_the_moment_is_tried_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path), watch_seconds=1)
    with monkeypatch.context() as patch:
        patch.setattr("serving.model.manager.LOAD_SECONDS", 0.0)
        place(SHIPPED_MODEL, path)
        until(lambda: "not loaded within 0 seconds" in str([vars(record) for record in caplog.records]))
    until(lambda: precision(server) == "fp32")


def test_a_model_that_fails_on_a_picture_costs_that_request_and_sits_its_exam_again(start: Start) -> None:
    server = start(worker="tests.serving.engine.hostile", lanes=1)
    answer = server.predict(b"fail")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) >= 1
    until(lambda: server.http.get("/health/ready").status_code == 200)
    assert server.predict().status_code == 200


def test_a_batch_that_began_with_one_model_ends_with_it(start: Start, tmp_path: Path) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(worker="tests.serving.engine.hostile", model=str(path), lanes=1)
    images = [{"data": base64.b64encode(b"sleep 0.15").decode()} for _ in range(40)]
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(lambda: server.http.post("/predict/batch", json={"images": images}).json())
        until(lambda: server.metric("catsdogs_lanes_busy") == 1)
        place(SHIPPED_MODEL, path)
        server.reload()
        until(lambda: precision(server) == "fp32")
        assert not batch.done()
        answer = batch.result()
    assert {result["model"] for result in answer["results"]} == {answer["model"]}
    assert "int8" in answer["model"]


def looping(path: Path) -> None:
    """Make the model file one whose graph never ends, with a contract that can be kept."""
    file = onnx.load(SHIPPED_INT8)
    true = onnx.helper.make_tensor("true", onnx.TensorProto.BOOL, [], [True])
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["condition"], ["go on"]), onnx.helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("turn", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None),
        ],
        [
            onnx.helper.make_tensor_value_info("go on", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None),
        ],
    )
    for node in file.graph.node:
        node.output[:] = ["early" if name == "familiarity" else name for name in node.output]
    file.graph.node.append(onnx.helper.make_node("Constant", [], ["forever"], value=true))
    file.graph.node.append(onnx.helper.make_node("Loop", ["", "forever", "early"], ["familiarity"], body=body))
    onnx.save(file, path)


@pytest.mark.parametrize("what", ["an endless loop", "a FIFO"])
def test_a_load_that_never_ends_keeps_up_neither_requests_nor_the_next_load_nor_the_end(
    start: Start, tmp_path: Path, what: str
) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    aside = tmp_path / "aside"
    looping(aside) if what == "an endless loop" else os.mkfifo(aside)
    aside.replace(path)
    server.reload()
    for _ in range(20):
        assert server.predict().status_code == 200
    place(SHIPPED_MODEL, path)
    server.reload()
    until(lambda: precision(server) == "fp32")
    looping(aside) if what == "an endless loop" else os.mkfifo(aside)
    aside.replace(path)
    server.reload()
    assert server.predict().status_code == 200


def test_a_load_that_takes_too_long_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.model.manager.LOAD_SECONDS", 1.0)
    os.mkfifo(tmp_path / "model.onnx")
    server = start(wait_ready=False, model=str(tmp_path / "model.onnx"))
    until(lambda: server.metric("catsdogs_model_refused") == 1)
    assert "not loaded within 1 seconds" in server.http.get("/health/ready").json()["detail"]


def test_a_model_is_loaded_again_when_there_were_no_descriptors_for_its_lanes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model.manager.RELOAD_SECONDS", 0.0)
    left, memfd_create = threading.Event(), os.memfd_create

    def create(name: str) -> int:
        if not left.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        return memfd_create(name)

    monkeypatch.setattr(os, "memfd_create", create)
    server = start(wait_ready=False)
    until(lambda: "Too many open files" in server.http.get("/health/ready").text)
    left.set()
    until(lambda: server.predict().status_code == 200)


def test_no_weights_answer_that_did_not_sit_the_exam(start: Start, tmp_path: Path) -> None:
    """The same contract over other weights, put into the place of the good file while that is being loaded."""
    file = onnx.load(SHIPPED_INT8)
    for node in file.graph.node:
        node.output[:] = ["right" if name == "probabilities" else name for name in node.output]
        node.input[:] = ["right" if name == "probabilities" else name for name in node.input]
    file.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 0], np.int64), "swap"))
    file.graph.node.append(onnx.helper.make_node("Gather", ["right", "swap"], ["probabilities"], axis=1))
    onnx.save(file, tmp_path / "evil.onnx")
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    expected = server.predict().json()["probabilities"]
    for delay in range(0, 400, 40):
        place(SHIPPED_INT8, path)
        server.reload()
        time.sleep(delay / 1000)
        place(tmp_path / "evil.onnx", path)
        for _ in range(3):
            assert server.predict().json()["probabilities"]["cats"] == pytest.approx(expected["cats"], abs=0.01)


def test_a_service_whose_lanes_have_lost_their_parent_loads_the_model_again(start: Start) -> None:
    server = start()
    zygote, *lanes = server.service.engine.pids
    os.kill(zygote, signal.SIGKILL)
    until(lambda: zygote not in server.service.engine.pids)
    assert server.predict().status_code == 200
    assert {zygote, *lanes}.isdisjoint(server.service.engine.pids)


def test_a_reload_while_draining_is_passed_over(start: Start) -> None:
    server = start()
    server.service.drain()
    tasks = set(server.service._tasks)
    server.reload()
    assert server.http.get("/health").status_code == 200  # by when the event loop has had its turn
    assert server.service._tasks <= tasks


def test_a_file_that_could_not_be_read_at_the_start_is_tried_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model.manager.RELOAD_SECONDS", 0.1)
    path = tmp_path / "model.onnx"
    server = start(wait_ready=False, model=str(path))
    until(lambda: server.metric("catsdogs_model_refused") == 1)
    assert server.http.get("/health/ready").status_code == 503
    place(SHIPPED_INT8, path)
    until(lambda: server.http.get("/health/ready").status_code == 200)
    assert precision(server) == "int8"
