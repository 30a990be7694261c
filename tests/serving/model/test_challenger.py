"""A challenger in shadow: it answers the same pictures, and nobody notices but metrics, journal and samples."""

import json
import os
import shutil
import subprocess
from base64 import b64encode
from pathlib import Path

import onnx
import pytest

from serving.engine.engine import Engine
from serving.engine.lane import yield_to_others
from serving.model import challenger
from serving.model.challenger import LOOKS, MAX_WAITING, TRIES, Challenger
from serving.model.classify import classify
from serving.model.session import load
from serving.settings import SHIPPED_INT8, SHIPPED_MODEL
from shared import journal
from shared.journal import ChallengerLine, PredictionLine
from shared.pixels import LIMITS, pixels
from tests.conftest import blobs, encoded
from tests.serving.conftest import PHOTO, Running, Start
from tests.serving.model import odd
from tests.serving.model.test_manager import precision
from tests.serving.telemetry.test_samples import OTHER, kept
from tests.waiting import until

GIVEN_UP = "the challenger is given up"


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of processes that should give way to others; they don't, the machine is busy, nor wait for long."""
    found: list[int] = []
    monkeypatch.setattr("serving.engine.lane.yield_to_others", found.append)
    monkeypatch.setattr(challenger, "LOOK_SECONDS", 0.001)  # less than a client's pause between two pictures
    return found


def named(folder: Path, name: str) -> str:
    """The shipped model under a name that tells the worker `odd` what to do."""
    return str(shutil.copy(SHIPPED_INT8, folder / f"{name}.onnx"))


def ready(server: Running) -> None:
    until(lambda: server.metric("catsdogs_challenger_ready") == 1)


def answers(server: Running) -> float:
    return sum(server.metric(f'catsdogs_challenger_answers_total{{agreed="{agreed}"}}') for agreed in ("true", "false"))


def challenger_of(server: Running) -> Challenger:
    assert server.service.challenger
    return server.service.challenger


def test_it_answers_what_was_answered_and_no_client_sees_it(start: Start, tmp_path: Path) -> None:
    server = start(challenger=str(SHIPPED_MODEL), journal=str(tmp_path))
    ready(server)
    photos = [PHOTO, encoded(blobs(2), "PNG")]
    given = [server.predict(photo).json() for photo in photos]
    images = [{"data": b64encode(photo).decode()} for photo in photos]
    given += server.http.post("/predict/batch", json={"images": images}).json()["results"]
    until(lambda: answers(server) == len(given))
    assert all("int8" in each["model"] for each in given)
    assert precision(server) == "int8"
    assert server.metric("catsdogs_predictions_total") == 0, "it is counted by label"
    assert server.metric("catsdogs_prediction_confidence_count") == len(given)
    assert server.metric("catsdogs_challenger_seconds_count") == len(given)

    fp32 = load(SHIPPED_MODEL)
    alone = [classify(fp32, pixels(photo), LIMITS) for photo in photos]
    expected = {each["id"]: answer for each, answer in zip(given, alone * 2, strict=True)}
    until(lambda: server.metric("catsdogs_journal_lines_total") == 2 * len(given))
    lines = list(journal.read(journal.gather([tmp_path])))
    for line in lines:
        if isinstance(line, ChallengerLine):
            answer = expected.pop(line.id)
            assert (line.model, line.label, line.verdict) == (fp32.contract.version, answer.label, answer.verdict)
            assert line.probabilities == pytest.approx({"cats": answer.cats, "dogs": answer.dogs}, abs=1e-5)
            assert line.again == answer.again
        else:
            assert isinstance(line, PredictionLine)
            assert "int8" in line.model
    assert not expected


def test_its_processes_alone_give_way_to_all_others(start: Start, slow: list[int]) -> None:
    server = start(challenger=str(SHIPPED_MODEL))
    ready(server)
    assert slow == challenger_of(server).pids[:1]


def test_a_process_that_gives_way_runs_when_nothing_else_does_and_is_killed_first() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True) as process:
        yield_to_others(process.pid)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n"
        if (group := Path(f"/proc/{process.pid}/autogroup")).exists():
            assert group.read_text().endswith("nice 19\n")


def test_after_a_quiet_time_a_core_must_stay_idle_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(Engine, "idle", property(lambda _: not looks.append(1)))  # type: ignore[func-returns-value]
    server = start(challenger=str(SHIPPED_MODEL))
    ready(server)
    for number in (1, 2):
        server.predict()
        until(lambda number=number: answers(server) == number)  # type: ignore[misc]
        assert len(looks) == number * LOOKS


def test_a_picture_of_which_it_says_otherwise_is_a_sample(start: Start, tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    server = start(
        worker=odd.__name__, challenger=named(tmp_path, "contrary"), samples=str(samples), sample="disagreed,random:1"
    )
    ready(server)
    answer = server.predict().json()
    until(lambda: {sample.why for sample in kept(samples).values()} == {("random", "disagreed")})
    server.http.post("/feedback", json={"id": answer["id"], "label": OTHER[answer["predicted_label"]]})
    until(lambda: kept(samples)[answer["id"]].feedback == OTHER[answer["predicted_label"]])
    assert kept(samples)[answer["id"]].why == ("random", "disagreed"), "disputes are not asked for"
    assert server.metric('catsdogs_challenger_answers_total{agreed="false"}') == 1


def test_a_picture_of_which_it_says_the_same_is_no_sample(start: Start, tmp_path: Path) -> None:
    server = start(challenger=str(SHIPPED_INT8), samples=str(tmp_path), sample="disagreed")
    ready(server)
    server.predict()
    until(lambda: server.metric('catsdogs_challenger_answers_total{agreed="true"}') == 1)
    assert server.metric("catsdogs_samples_written_total") == 0


@pytest.mark.parametrize(
    ("deed", "kind"), [("crash", "crash"), ("garbage", "crash"), ("hang", "hang"), ("fail", "model")]
)
def test_one_that_fails_on_pictures_is_given_up_unseen(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    deed: str,
    kind: str,
) -> None:
    monkeypatch.setattr(challenger, "RETRY_SECONDS", 0.01)
    server = start(worker=odd.__name__, challenger=named(tmp_path, deed))
    ready(server)
    if deed == "hang":
        monkeypatch.setattr(challenger, "PATIENCE_SECONDS", 0.3)

    def asked() -> bool:
        assert server.predict().status_code == 200
        assert server.http.get("/health/ready").status_code == 200
        return GIVEN_UP in caplog.text

    until(asked)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [GIVEN_UP]
    assert server.metric(f'catsdogs_challenger_failures_total{{reason="{kind}"}}') == TRIES
    assert (server.metric("catsdogs_challenger_ready"), answers(server)) == (0, 0)
    assert server.metric(f'catsdogs_lane_restarts_total{{reason="{kind}"}}') == 0
    assert challenger_of(server).pids == []


def broken(path: Path, how: str) -> None:
    match how:
        case "no model":
            path.write_text("not a model")
        case "another exam":
            file = onnx.load(SHIPPED_INT8)
            (entry,) = file.metadata_props
            contract = json.loads(entry.value)
            for question in contract["exam"]["questions"]:
                question["probabilities"].reverse()
            entry.value = json.dumps(contract)
            onnx.save(file, path)
        case "a FIFO":
            os.mkfifo(path)


@pytest.mark.parametrize(
    ("how", "kind", "tries"),
    [
        ("no model", "refused", 1),
        ("another exam", "refused", 1),
        ("a FIFO", "hang", TRIES),
    ],
)
def test_one_that_cannot_be_loaded_is_given_up_unseen(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    how: str, kind: str, tries: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(challenger, "RETRY_SECONDS", 0.01)
    if kind == "hang":
        monkeypatch.setattr(challenger, "PATIENCE_SECONDS", 1.0)
    path = tmp_path / "challenger.onnx"
    broken(path, how)
    server = start(challenger=str(path))
    assert server.predict().status_code == 200
    until(lambda: GIVEN_UP in caplog.text)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [GIVEN_UP]
    assert server.metric(f'catsdogs_challenger_failures_total{{reason="{kind}"}}') == tries
    assert server.metric("catsdogs_model_refused") == 0


def test_a_reload_loads_it_anew_also_after_it_was_given_up(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(challenger, "RETRY_SECONDS", 0.01)
    path = tmp_path / "challenger.onnx"
    server = start(challenger=str(path))
    until(lambda: GIVEN_UP in caplog.text)
    shutil.copy(SHIPPED_INT8, path)
    server.reload()
    ready(server)
    server.predict()
    until(lambda: answers(server) == 1)


def test_when_too_many_pictures_wait_for_it_more_are_dropped_and_counted(start: Start, tmp_path: Path) -> None:
    server = start(worker=odd.__name__, challenger=named(tmp_path, "hang"))
    ready(server)
    for _ in range(MAX_WAITING + 4):
        assert server.predict().status_code == 200
    until(lambda: server.metric("catsdogs_challenger_dropped_total") >= 3)  # one is asked about, the others wait
    zygote, _ = challenger_of(server).pids
    server.reload()  # a picture that hangs does not keep it from being replaced
    until(lambda: zygote not in challenger_of(server).pids)
