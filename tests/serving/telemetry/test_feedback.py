"""Feedback over HTTP: which prediction it is about, what is counted, and what a restart keeps."""

import json
import re
import threading
import uuid
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from serving.ids import FORM, Predicted
from serving.telemetry import feedback as feedbacks
from serving.telemetry.feedback import LiveAccuracy
from shared import journal
from shared.drift import SIGNALS
from shared.journal import FeedbackLine, Line, PredictionLine, Unreadable
from tests.conftest import ROOT, blobs, encoded
from tests.serving.conftest import PHOTO, Running, Start
from tests.waiting import until

CAT = (ROOT / "tests/cat.jpg").read_bytes()  # plainly a cat, so that the answer is not "unsure"
KEY = "a key of the replicas"
CATS = Predicted(datetime.now(UTC), "cats", unsure=False, model=b"")


def tell(server: Running, id_: str, label: str) -> httpx.Response:
    return server.http.post("/feedback", json={"id": id_, "label": label})


def batch(server: Running, *ids: str | None, data: bytes = PHOTO) -> list[dict[str, object]]:
    images = [{"data": b64encode(data).decode()} | ({"id": id_} if id_ is not None else {}) for id_ in ids]
    answer = server.http.post("/predict/batch", json={"images": images})
    results: list[dict[str, object]] = answer.json()["results"]
    return results


def noted(folder: Path) -> list[Line]:
    lines = list(journal.read(journal.gather([folder])))
    assert not [line for line in lines if isinstance(line, Unreadable)]
    return [line for line in lines if not isinstance(line, Unreadable)]


def written(server: Running, lines: int) -> None:
    until(lambda: server.metric("catsdogs_journal_lines_total") >= lines)


def test_feedback_says_whether_the_answer_was_right_without_any_journal(server: Running) -> None:
    prediction = server.predict().json()
    said, other = prediction["predicted_label"], {"cats": "dogs", "dogs": "cats"}[prediction["predicted_label"]]
    for label, correct in ((said, True), (other, False)):
        answer = tell(server, prediction["id"], label)
        assert answer.status_code == 200
        expected = {"id": prediction["id"], "label": label, "predicted_label": said, "correct": correct}
        assert answer.json() == expected
        # As some clients write it.
        written_so = f'\ufeff{{"id": "{prediction["id"]}", "label": "{label.title()}"}}'
        assert server.http.post("/feedback", content=written_so.encode()).json() == expected


def test_an_unknown_id_is_404_and_costs_nothing_however_many_there_are(start: Start, tmp_path: Path) -> None:
    server = start(journal=str(tmp_path))
    server.predict()
    written(server, 1)
    for _ in range(3000):
        answer = tell(server, uuid.uuid4().hex, "cats")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_prediction")
    assert answer.headers["content-type"] == "application/problem+json"
    assert server.metric('catsdogs_rejected_total{code="unknown_prediction"}') == 3000
    assert server.metric("catsdogs_journal_lines_total") == 1
    page = server.http.get("/metrics").text
    assert set(re.findall(r"^catsdogs_feedback_total\{.* (\S+)$", page, re.MULTILINE)) == {"0"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"id": "x"}',
        b'{"label": "cats"}',
        b'{"id": "x", "label": "cat"}',
        b'{"id": "x", "label": null}',
        b'{"id": 7, "label": "cats"}',
        b'{"id": ["x"], "label": "cats"}',
        b'{"id": "%s", "label": "cats"}' % (b"x" * 201),
        b'{"id": "\xff", "label": "cats"}',
        b'{"id": "\\ud800", "label": "cats"}',
        b'{"id": ' * 8_000,
        b"[" * 60_000,
    ],
)
def test_what_is_no_feedback_is_malformed(server: Running, body: bytes) -> None:
    answer = server.http.post("/feedback", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


def test_a_body_larger_than_feedback_needs_is_refused(server: Running) -> None:
    answer = server.http.post("/feedback", content=b" " * (feedbacks.MAX_BYTES + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_feedback_is_counted_by_what_was_answered_and_live_accuracy_has_its_interval(start: Start) -> None:
    server = start()
    assert "catsdogs_live_accuracy 0" not in server.http.get("/metrics").text
    predictions = [server.predict(CAT).json() for _ in range(4)]
    said = predictions[0]["predicted_label"]
    other = {"cats": "dogs", "dogs": "cats"}[said]
    for prediction, label in zip(predictions, (said, said, said, other), strict=True):
        tell(server, prediction["id"], label)
    assert server.metric(f'catsdogs_feedback_total{{actual="{said}",predicted="{said}"}}') == 3
    assert server.metric(f'catsdogs_feedback_total{{actual="{other}",predicted="{said}"}}') == 1
    assert server.metric("catsdogs_live_accuracy") == 0.75
    assert server.metric("catsdogs_live_feedback") == 4
    assert server.metric("catsdogs_live_accuracy_low") == pytest.approx(0.3006, abs=1e-4)
    assert server.metric("catsdogs_live_accuracy_high") == pytest.approx(0.9544, abs=1e-4)
    tell(server, predictions[3]["id"], said)
    assert server.metric("catsdogs_live_accuracy") == 1


def test_the_journal_has_a_line_for_each_prediction_and_feedback(start: Start, tmp_path: Path) -> None:
    server = start(journal=str(tmp_path))
    prediction = server.predict().json()
    tell(server, prediction["id"], "cats")
    written(server, 2)
    first, second = noted(tmp_path)
    assert isinstance(first, PredictionLine)
    assert isinstance(second, FeedbackLine)
    assert (first.id, first.label, first.model) == (
        prediction["id"],
        prediction["predicted_label"],
        prediction["model"],
    )
    assert (first.verdict, first.unsure_because) == (prediction["verdict"], prediction["unsure_because"])
    assert first.probabilities == prediction["probabilities"]
    assert first.familiarity == prediction["familiarity"]
    assert first.bytes == len(PHOTO)
    assert 0 < first.brightness < 1
    assert min(first.decode_ms, first.infer_ms) > 0.05
    assert first.queue_ms >= 0
    assert first.time.utcoffset() is not None
    assert (second.id, second.label) == (prediction["id"], "cats")


def test_brightness_is_the_mean_pixel_as_the_reference_has_it(start: Start, tmp_path: Path) -> None:
    server = start(journal=str(tmp_path))
    for grey in (0, 51, 255):
        server.predict(encoded(blobs(1).point([grey] * 768), "PNG"))
    written(server, 3)
    found = [line.brightness for line in noted(tmp_path) if isinstance(line, PredictionLine)]
    assert found == [0, 0.2, 1]


def test_neither_file_names_nor_ids_of_clients_get_into_the_journal(start: Start, tmp_path: Path) -> None:
    server = start(journal=str(tmp_path))
    server.http.post("/predict", files={"file": ("secret-name.jpg", PHOTO)}, headers={"x-request-id": "secret-id"})
    first, *_ = batch(server, "secret/my cat.jpg", None, "")
    assert tell(server, str(first["id"]), "cats").status_code == 200
    written(server, 5)
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "secret" not in text
    assert "my cat" not in text
    assert "127.0.0.1" not in text
    assert all(FORM.fullmatch(line.id) for line in noted(tmp_path))


def test_feedback_is_about_the_service_s_id_whatever_ids_clients_send(start: Start, tmp_path: Path) -> None:
    server = start(journal=str(tmp_path))
    ours = server.predict(CAT).json()
    results = [*batch(server, "1", ours["id"], data=CAT), *batch(server, "1", data=encoded(blobs(2), "PNG"))]
    written(server, 4)
    for id_ in ("1", str(results[0]["client_id"])):
        assert tell(server, id_, "cats").json()["code"] == "unknown_prediction"
    for prediction in (ours, *results):
        answer = tell(server, str(prediction["id"]), "cats").json()
        assert answer["predicted_label"] == prediction["predicted_label"]
    assert server.metric("catsdogs_live_feedback") == 3  # of blobs it is not sure


def test_another_replica_and_a_restarted_one_take_feedback_if_they_share_the_key(start: Start) -> None:
    first, second, stranger = start(id_key=KEY), start(id_key=KEY), start(id_key=KEY[::-1])
    ours = first.predict(CAT).json()
    for replica in (first, second, start(id_key=KEY)):
        answer = tell(replica, ours["id"], ours["predicted_label"])
        assert (answer.status_code, answer.json()["correct"]) == (200, True)
        assert replica.metric("catsdogs_live_feedback") == 1
    for replica in (stranger, start()):
        assert tell(replica, ours["id"], "cats").json()["code"] == "unknown_prediction"
        assert replica.metric("catsdogs_live_feedback") == 0


def test_replicas_with_one_journal_count_a_prediction_once_after_a_restart(start: Start, tmp_path: Path) -> None:
    first, second = (start(journal=str(tmp_path), id_key=KEY) for _ in range(2))
    one, other = first.predict(CAT).json(), second.predict(CAT).json()
    said = one["predicted_label"]
    for replica in (second, first):
        for each in (one, other):
            tell(replica, each["id"], said)
    written(first, 3)
    written(second, 3)
    assert start(journal=str(tmp_path), id_key=KEY).metric("catsdogs_live_feedback") == 2


def test_a_forged_id_is_refused_and_counts_for_nothing(start: Start) -> None:
    server = start()
    id_ = server.predict().json()["id"]
    forged = f"{int(id_, 16) ^ 1 << 90:0{len(id_)}x}"  # the answer in it, say
    for wrong in (forged, id_.upper()):
        assert tell(server, wrong, "cats").json()["code"] == "unknown_prediction"
    assert server.metric("catsdogs_live_feedback") == 0


def test_a_restart_counts_a_second_feedback_in_place_of_the_first(start: Start, tmp_path: Path) -> None:
    first = start(journal=str(tmp_path), id_key=KEY)
    ours = first.predict(CAT).json()
    theirs = str(batch(first, "theirs", data=CAT)[0]["id"])
    said = ours["predicted_label"]
    other = {"cats": "dogs", "dogs": "cats"}[said]
    tell(first, ours["id"], said)
    tell(first, theirs, other)
    written(first, 4)
    second = start(journal=str(tmp_path), id_key=KEY)
    until(lambda: second.metric("catsdogs_live_accuracy") == 0.5)
    assert tell(second, theirs, said).json()["correct"] is True
    assert tell(second, ours["id"], said).status_code == 200
    assert second.metric("catsdogs_live_accuracy") == 1


def test_lines_of_the_journal_that_cannot_be_read_are_passed_over(start: Start, tmp_path: Path) -> None:
    first = start(journal=str(tmp_path))
    ours = first.predict(CAT).json()
    tell(first, ours["id"], ours["predicted_label"])
    written(first, 2)
    with (tmp_path / journal.name(1)).open("ab") as file:
        file.write(b'{"type": "prediction"}\nnot JSON\n')
    second = start(journal=str(tmp_path))
    until(lambda: second.metric("catsdogs_live_feedback") == 1)


def test_a_journal_that_hangs_keeps_nobody_from_an_answer_or_from_feedback_on_it(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()  # the network's disk

    def recent(folder: Path, max_bytes: int) -> Iterator[journal.Line | journal.Unreadable]:
        answers.wait()
        return iter(())

    monkeypatch.setattr(journal, "recent", recent)
    server = start(journal=str(tmp_path))
    prediction = server.predict(CAT).json()
    assert tell(server, prediction["id"], "cats").status_code == 200
    assert tell(server, "from before the start, perhaps", "cats").status_code == 404
    answers.set()
    written(server, 2)
    assert server.metric("catsdogs_live_feedback") == 1


def test_a_journal_that_cannot_be_read_back_is_said_and_written_all_the_same(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journal").write_text("a file where the folder should be")
    server = start(journal=str(tmp_path / "journal"))
    until(lambda: "the journal cannot be read back" in caplog.messages)
    (tmp_path / "journal").unlink()
    server.predict()
    written(server, 1)


def test_a_journal_that_cannot_be_written_keeps_nobody_from_an_answer(start: Start, tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file where the folder should be")
    server = start(journal=str(tmp_path / "journal"))
    prediction = server.predict().json()
    assert tell(server, prediction["id"], "cats").status_code == 200
    assert tell(server, "unknown", "cats").status_code == 404
    until(lambda: server.metric("catsdogs_journal_failing") == 1)
    (tmp_path / "journal").unlink()
    until(lambda: server.metric("catsdogs_journal_failing") == 0)
    written(server, 2)
    assert len(noted(tmp_path / "journal")) == 2


def test_without_a_journal_nothing_is_said_of_one(server: Running) -> None:
    page = server.http.get("/metrics").text
    assert "\ncatsdogs_journal_failing " not in page
    assert "\ncatsdogs_journal_lines_total " not in page


def test_feedback_is_not_taken_while_draining(start: Start) -> None:
    server = start()
    id_ = server.predict().json()["id"]
    server.service.drain()
    answer = tell(server, id_, "cats")
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


def test_drift_is_told_once_there_are_enough_pictures_and_begins_anew_with_a_model(start: Start) -> None:
    server = start()
    black = encoded(blobs(1, (32, 32)).point([0] * 768), "PNG")
    data = b64encode(black).decode()
    for _ in range(3):
        server.http.post("/predict/batch", json={"images": [{"data": data}] * 64})
    assert "catsdogs_drift_psi{" not in server.http.get("/metrics").text
    server.http.post("/predict/batch", json={"images": [{"data": data}] * 8})
    for signal in SIGNALS:
        assert server.metric(f'catsdogs_drift_psi{{signal="{signal}"}}') > 0.25
    server.service.metrics.set_model(server.service.model.contract)
    assert "catsdogs_drift_psi{" not in server.http.get("/metrics").text


def test_the_live_accuracy_is_of_the_last_feedbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedbacks, "LIVE", 10)
    live = LiveAccuracy()
    assert live.share() is None
    for number in range(1000):
        live.tell(str(number), CATS, "cats" if number >= 990 else "dogs")
    accuracy = live.share()
    assert accuracy is not None
    assert (accuracy.value, live.feedback) == (1, 10)


def test_what_came_while_the_journal_was_read_is_later_than_what_was_in_it() -> None:
    before, later = LiveAccuracy(), LiveAccuracy()
    before.tell("a", CATS, "dogs")
    before.tell("b", CATS, "dogs")
    later.tell("b", CATS, "cats")
    before.follow(later)
    accuracy = before.share()
    assert accuracy is not None
    assert (accuracy.value, before.feedback) == (0.5, 2)
    withdrawn = LiveAccuracy()
    withdrawn.tell("b", CATS, "both")
    before.follow(withdrawn)
    assert before.feedback == 1


def test_live_accuracy_is_of_answers_to_pictures_of_one_animal() -> None:
    live = LiveAccuracy()
    live.tell("answered", CATS, "cats")
    live.tell("unsure", CATS._replace(unsure=True), "cats")
    live.tell("changed", CATS, "cats")
    assert live.feedback == 2
    live.tell("changed", CATS, "neither")
    assert live.feedback == 1
    live.tell("changed", CATS, "dogs")
    accuracy = live.share()
    assert accuracy is not None
    assert accuracy.value == 0.5


def test_neither_and_both_are_counted_and_were_neither_right_nor_wrong(start: Start, tmp_path: Path) -> None:
    server = start(journal=str(tmp_path))
    for label in ("neither", "both"):
        prediction = server.predict(CAT).json()
        answer = tell(server, prediction["id"], label.upper()).json()
        assert (answer["label"], answer["predicted_label"], answer["correct"]) == (label, "cats", None)
        assert server.metric(f'catsdogs_feedback_total{{actual="{label}",predicted="cats"}}') == 1
    assert server.metric("catsdogs_live_feedback") == 0
    written(server, 4)
    assert [line.label for line in noted(tmp_path) if isinstance(line, FeedbackLine)] == ["neither", "both"]


def test_the_example_of_the_documentation_is_what_is_answered(server: Running) -> None:
    spec = server.http.get("/openapi.json").json()
    operation = spec["paths"]["/feedback"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert set(example) == {"id", "label"}
    assert {"200", "400", "404", "408", "413", "503"} <= set(operation["responses"])
    assert json.dumps(spec).count("unknown_prediction")
