import base64
import json
import math

import httpx
import pytest

from serving.ids import FORM
from serving.messages import MAX_BATCH
from serving.settings import Settings
from shared.pixels import heif_reader
from tests.conftest import blobs, encoded
from tests.serving.conftest import PHOTO, Running, Start
from tests.waiting import until


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def batch(server: Running, *images: dict[str, str], query: str = "") -> httpx.Response:
    return server.http.post(f"/predict/batch{query}", json={"images": list(images)})


def test_a_prediction_has_the_documented_form(server: Running) -> None:
    answer = server.predict()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {
        "id", "predicted_label", "probabilities", "verdict", "unsure_because", "familiarity", "model",
    }  # fmt: skip
    assert set(body["probabilities"]) == {"cats", "dogs"}
    assert math.isclose(sum(body["probabilities"].values()), 1, abs_tol=1e-6)
    assert body["predicted_label"] == max(body["probabilities"], key=body["probabilities"].get)
    assert (body["verdict"] == "unsure") == (body["unsure_because"] is not None)
    assert 0 <= body["familiarity"] <= 1
    assert body["model"] == server.http.get("/model").json()["version"]


def test_every_prediction_has_an_id_of_its_own_and_a_client_s_beside_it(server: Running) -> None:
    ours = server.predict().json()["id"]
    sent = ("p", "p", ours, "", None)
    results = batch(server, *({"data": b64(PHOTO)} | ({"id": id_} if id_ is not None else {}) for id_ in sent))
    made = {ours, *(result["id"] for result in results.json()["results"])}
    assert len(made) == 1 + len(sent)
    assert all(map(FORM.fullmatch, made))
    assert [result.get("client_id") for result in results.json()["results"]] == list(sent)
    assert "client_id" not in results.json()["results"][-1]


def test_evidence_comes_on_request(server: Running) -> None:
    assert "evidence" not in server.predict().json()
    body = server.predict(params={"explain": "true"}).json()
    assert [len(row) for row in body["evidence"]] == [7] * 7


def test_a_heif_is_decoded_in_a_lane(server: Running) -> None:
    assert heif_reader()
    heif = server.predict(encoded(blobs(1), "HEIF", quality=-1, chroma=444)).json()  # as near to lossless as it gets
    png = server.predict(encoded(blobs(1), "PNG")).json()
    assert heif["probabilities"]["cats"] == pytest.approx(png["probabilities"]["cats"], abs=0.1)


def test_any_file_name_and_content_type_will_do(server: Running) -> None:
    for name, kind in (("x.txt", "text/plain"), ("katze.jpg", "image/png"), ("../../etc/passwd", "x/y"), ("", "a/b")):
        assert server.http.post("/predict", files={"file": (name or "f", PHOTO, kind)}).status_code == 200


def test_other_fields_are_passed_over(server: Running) -> None:
    answer = server.http.post("/predict", files={"file": PHOTO}, data={"comment": "my cat", "tags": "x" * 5000})
    assert answer.status_code == 200


def test_the_answer_does_not_depend_on_the_container_of_the_pixels(server: Running) -> None:
    answers = [server.predict(encoded(blobs(2), name)).json()["probabilities"]["dogs"] for name in ("PNG", "BMP")]
    assert answers[0] == answers[1]


def test_a_batch_answers_in_order_and_like_single_requests(server: Running) -> None:
    pictures = [encoded(blobs(seed), "PNG") for seed in range(5)]
    answer = batch(server, *({"id": f"p{n}", "data": b64(data)} for n, data in enumerate(pictures)))
    body = answer.json()
    assert [result["client_id"] for result in body["results"]] == ["p0", "p1", "p2", "p3", "p4"]
    for data, result in zip(pictures, body["results"], strict=True):
        assert server.predict(data).json()["probabilities"] == result["probabilities"]


def test_one_bad_picture_does_not_spoil_the_others(server: Running) -> None:
    answer = batch(
        server,
        {"id": "good", "data": b64(PHOTO)},
        {"id": "bad", "data": b64(b"not a picture")},
        {"data": b64(PHOTO[:500])},
        {"data": b64(PHOTO)},
    )
    assert answer.status_code == 200
    good, bad, cut, also_good = answer.json()["results"]
    assert good["predicted_label"] == also_good["predicted_label"]
    assert (bad["client_id"], bad["error"]["code"], bad["error"]["status"]) == ("bad", "unsupported_format", 415)
    assert set(cut) == {"error"}
    assert cut["error"]["code"] == "undecodable_image"


def test_a_batch_of_the_largest_size(server: Running) -> None:
    answer = batch(server, *({"data": b64(PHOTO)} for _ in range(MAX_BATCH)), query="?explain=true")
    assert len(answer.json()["results"]) == MAX_BATCH
    assert all("evidence" in result for result in answer.json()["results"])


def test_an_empty_batch(server: Running) -> None:
    assert batch(server).json()["results"] == []


def test_the_model_describes_itself_without_its_golden_pictures(server: Running) -> None:
    body = server.http.get("/model").json()
    assert body["classes"] == ["cats", "dogs"]
    assert body["file"] == Settings().model_path.name
    assert body["precision"] in body["file"]
    assert body["fallback"] is None
    assert 0.5 < body["second_look"]["sure"] < 1
    assert body["test"]["accuracy"]["low"] < body["test"]["accuracy"]["value"] < body["test"]["accuracy"]["high"]
    assert {question["picture"] for question in body["exam"]["questions"]} == {""}


def test_health(server: Running) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/health/ready").json()["status"] == "ready"


def test_real_photographs_get_their_animal(server: Running, photos: list[tuple[str, bytes]]) -> None:
    answers = [(label, server.predict(data).json()) for label, data in photos]
    right = sum(answer["predicted_label"] == label for label, answer in answers)
    assert right >= len(photos) - 3
    given = [(label, answer) for label, answer in answers if answer["verdict"] != "unsure"]
    assert len(given) >= 0.9 * len(photos)


def test_real_photographs_in_batches_answer_like_single_ones(server: Running, photos: list[tuple[str, bytes]]) -> None:
    results = batch(server, *({"data": b64(data)} for _, data in photos[:20])).json()["results"]
    for (_, data), result in zip(photos, results, strict=False):
        assert server.predict(data).json()["probabilities"] == result["probabilities"]


@pytest.mark.parametrize("data", [7, None, "%%%not base64%%%", "ü"])
def test_base64_that_is_none_costs_that_picture_only(server: Running, data: object) -> None:
    answer = server.http.post("/predict/batch", json={"images": [{"data": data}, {"data": b64(PHOTO)}]})
    bad, good = answer.json()["results"]
    assert bad["error"]["code"] == "malformed_request"
    assert good["verdict"] in ("cats", "dogs", "unsure")


@pytest.mark.parametrize("bad", [None, 7, {}, {"id": "no data"}, {"data": b64(PHOTO), "id": 7}])
def test_an_item_that_is_no_picture_costs_its_own_result_only(server: Running, bad: object) -> None:
    answer = server.http.post("/predict/batch", json={"images": [bad, {"data": b64(PHOTO), "id": "good"}]})
    refused, good = answer.json()["results"]
    assert (set(refused), refused["error"]["code"]) == ({"error"}, "malformed_request")
    assert (good["client_id"], "verdict" in good) == ("good", True)


def test_base64_is_taken_as_clients_send_it(server: Running) -> None:
    text = b64(PHOTO)
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    forms = [
        text, lines, text.rstrip("="), f"data:image/jpeg;base64,{text}", text.replace("+", "-").replace("/", "_"),
    ]  # fmt: skip
    body = json.dumps({"images": [{"data": form} for form in forms]}).replace("/", "\\/")  # as PHP escapes it
    results = server.http.post("/predict/batch", content=body).json()["results"]
    assert len({json.dumps(result["probabilities"]) for result in results}) == 1


def test_json_is_all_that_is_read_of_a_batch(server: Running) -> None:
    body = json.dumps({"images": [{"data": b64(PHOTO)}]})
    assert server.http.post("/predict/batch", content=body).status_code == 200


def test_a_lane_that_ends_over_a_picture_costs_that_one_answer(start: Start) -> None:
    server = start(worker="tests.serving.engine.hostile")
    answer = server.predict(b"crash")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) >= 1
    assert [server.predict().status_code for _ in range(4)] == [200] * 4
    assert server.metric('catsdogs_lane_restarts_total{reason="crash"}') == 1


def test_a_process_that_can_start_no_lane_asks_to_be_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.engine.DOWN_SECONDS", 0.3)
    monkeypatch.setattr("serving.engine.engine.DEAD_SECONDS", 1.0)
    server = start(worker="tests.serving.engine.dying", lanes=1)
    assert server.predict(b"crash").status_code == 503
    until(lambda: server.http.get("/health/ready").status_code == 503)
    assert server.predict().status_code == 503
    until(lambda: server.http.get("/health").status_code == 503)
    assert "must be replaced" in server.http.get("/health").json()["detail"]
    monkeypatch.setattr("serving.engine.engine.LOST_SECONDS", 1.0)
    until(lambda: not server.thread.is_alive())
