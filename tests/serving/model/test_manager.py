"""The model in service changes without a gap, and is taken out while it fails."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.model.session import Model, ModelFailedError
from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from shared.pixels import pixels
from tests.serving.conftest import PHOTO, Running, Start
from tests.waiting import until


def place(source: Path, target: Path) -> Path:
    """Put a model file in place as a deployment should: whole."""
    aside = target.with_suffix(".aside")
    shutil.copy(source, aside)
    return aside.replace(target)


def reload(server: Running) -> None:
    assert server.service.engine is not None
    server.service.engine._loop.call_soon_threadsafe(server.service.reload)


def precision(server: Running) -> str:
    return str(server.http.get("/model").json()["precision"])


def test_another_file_in_its_place_serves_after_a_reload(start: Start, tmp_path: Path) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    assert precision(server) == "int8"
    place(SHIPPED_MODEL, path)
    assert precision(server) == "int8"
    reload(server)
    until(lambda: precision(server) == "fp32")
    assert server.predict().json()["model"].endswith("fp32")
    told = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith("catsdogs_model_info{")]
    assert len(told) == 1
    assert 'precision="fp32"' in told[0]


def test_a_file_that_is_refused_leaves_the_old_model_and_says_why(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    path.write_bytes(path.read_bytes()[:100_000])
    reload(server)
    until(lambda: "the model is refused" in caplog.text)
    reasons = [record.fields["reason"] for record in caplog.records if record.message == "the model is refused"]  # type: ignore[attr-defined]
    assert reasons == ["model.onnx: not a model that onnxruntime can load"]
    assert precision(server) == "int8"
    assert server.predict().status_code == 200
    assert (server.metric("catsdogs_model_refused"), server.metric("catsdogs_ready")) == (1, 1)
    place(SHIPPED_MODEL, path)
    reload(server)
    until(lambda: precision(server) == "fp32")
    assert server.metric("catsdogs_model_refused") == 0


def test_many_reloads_at_once_are_one_or_two(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    for _ in range(50):
        reload(server)
    place(SHIPPED_MODEL, path)
    reload(server)
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


class Broken:
    """A session that throws until it is mended."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.mended = False
        self.tried = 0

    def run(self, *arguments: Any) -> Any:
        self.tried += 1
        if not self.mended:
            raise RuntimeError("a kernel failed: /secret/path")
        return self.session.run(*arguments)


def break_session(server: Running) -> Broken:
    """Put a session that throws in place of those that serve."""
    model: Any = server.service.model
    until(lambda: model._wide is not None or os.cpu_count() == 1)
    broken = Broken(model._session)
    model._session, model._wide = broken, None
    return broken


def test_a_session_that_throws_is_taken_out_and_comes_back_once_it_answers(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = start()
    broken = break_session(server)
    for _ in range(3):
        answer = server.predict()
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "secret" not in answer.text
        assert int(answer.headers["retry-after"]) >= 1
    ready = server.http.get("/health/ready")
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert "secret" not in ready.text
    assert server.http.get("/health").status_code == 200
    assert server.metric('catsdogs_rejected_total{code="not_ready"}') >= 3
    assert "the model fails" in caplog.text
    broken.mended = True
    until(lambda: server.http.get("/health/ready").status_code == 200)
    assert server.predict().status_code == 200
    assert "the model answers again" in caplog.text


def test_a_session_that_goes_on_failing_stays_out(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.model.manager.EXAM_SECONDS", 0.0)
    server = start()
    broken = break_session(server)
    for _ in range(3):
        server.predict()
    tried = broken.tried
    until(lambda: broken.tried > tried + 2)  # its exam, again and again
    assert server.http.get("/health/ready").status_code == 503
    assert server.predict().status_code == 503


def test_a_single_failure_takes_nothing_out(start: Start) -> None:
    server = start()
    broken = break_session(server)
    assert server.predict().status_code == 503
    broken.mended = True
    for _ in range(4):
        assert server.predict().status_code == 200


def test_what_a_model_that_serves_no_more_fails_at_does_not_take_the_next_one_out(start: Start, tmp_path: Path) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    server = start(model=str(path))
    before = server.service.model
    place(SHIPPED_MODEL, path)
    reload(server)
    until(lambda: precision(server) == "fp32")
    for _ in range(5):
        answer = server.service.slot.failed(before, ModelFailedError("it failed"))
        assert answer.code == "not_ready"
    assert server.http.get("/health/ready").status_code == 200


def test_a_reload_while_draining_is_passed_over(start: Start) -> None:
    server = start()
    server.service.drain()
    tasks = set(server.service._tasks)
    reload(server)
    assert server.http.get("/health").status_code == 200  # by when the event loop has had its turn
    assert server.service._tasks <= tasks


def test_on_all_cores_the_model_answers_the_same() -> None:
    model = Model(SHIPPED_INT8)
    batch = pixels(PHOTO)[np.newaxis]
    narrow = model.run(batch, alone=True)
    model.widen(2)
    wide = model.run(batch, alone=True)
    assert model._wide is not None
    assert np.allclose(narrow.probabilities, wide.probabilities, atol=1e-4)


def test_a_file_that_changed_meanwhile_does_not_answer_for_lone_requests(tmp_path: Path) -> None:
    path = place(SHIPPED_INT8, tmp_path / "model.onnx")
    model = Model(path)
    place(SHIPPED_MODEL, path)
    model.widen(2)
    assert model._wide is None


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


def test_no_memory_to_load_the_model_with_is_said_and_got_over(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.model import session as models

    monkeypatch.setattr("serving.model.manager.RELOAD_SECONDS", 0.1)
    real = models.load

    def short(path: Path) -> Model:
        raise MemoryError

    monkeypatch.setattr(models, "load", short)
    server = start(wait_ready=False)
    until(lambda: server.metric("catsdogs_model_refused") == 1)
    answer = server.http.get("/health/ready")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the model could not be loaded")
    monkeypatch.setattr(models, "load", real)
    until(lambda: server.http.get("/health/ready").status_code == 200)
