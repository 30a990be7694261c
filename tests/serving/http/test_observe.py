"""What is seen of the service from outside: metrics, logs, request ids, and the OpenAPI document."""

import json
import logging
import re
from pathlib import Path

import httpx
import pytest
from openapi_spec_validator import validate

from serving.http import pages
from serving.http.endpoints import ENDPOINTS
from serving.http.openapi import document
from serving.messages import BatchResponse, Prediction
from serving.telemetry.logs import JsonFormatter, to_stdout
from tests.serving.conftest import PHOTO, Running, Start

METRICS = {
    "http_requests_total": "counter",
    "http_request_duration_seconds": "histogram",
    "catsdogs_prediction_stage_seconds": "histogram",
    "catsdogs_predictions_total": "counter",
    "catsdogs_second_looks_total": "counter",
    "catsdogs_prediction_confidence": "histogram",
    "catsdogs_prediction_familiarity": "histogram",
    "catsdogs_rejected_total": "counter",
    "catsdogs_feedback_total": "counter",
    "catsdogs_live_accuracy": "gauge",
    "catsdogs_live_accuracy_low": "gauge",
    "catsdogs_live_accuracy_high": "gauge",
    "catsdogs_live_feedback": "gauge",
    "catsdogs_test_accuracy": "gauge",
    "catsdogs_test_accuracy_low": "gauge",
    "catsdogs_test_accuracy_high": "gauge",
    "catsdogs_test_answered_accuracy": "gauge",
    "catsdogs_test_answered_accuracy_low": "gauge",
    "catsdogs_test_answered_accuracy_high": "gauge",
    "catsdogs_drift_psi": "gauge",
    "catsdogs_lane_restarts_total": "counter",
    "catsdogs_lane_cpu_seconds": "histogram",
    "catsdogs_journal_lines_total": "counter",
    "catsdogs_journal_dropped_total": "counter",
    "catsdogs_journal_failing": "gauge",
    "catsdogs_journal_skipped_total": "counter",
    "catsdogs_samples_written_total": "counter",
    "catsdogs_samples_dropped_total": "counter",
    "catsdogs_samples_failing": "gauge",
    "catsdogs_samples_stored": "gauge",
    "catsdogs_samples_stored_bytes": "gauge",
    "catsdogs_challenger_answers_total": "counter",
    "catsdogs_challenger_seconds": "histogram",
    "catsdogs_challenger_failures_total": "counter",
    "catsdogs_challenger_dropped_total": "counter",
    "catsdogs_challenger_ready": "gauge",
    "catsdogs_ready": "gauge",
    "catsdogs_lanes": "gauge",
    "catsdogs_lanes_busy": "gauge",
    "catsdogs_queue_depth": "gauge",
    "catsdogs_queue_limit": "gauge",
    "catsdogs_model_info": "gauge",
    "catsdogs_descriptors_exhausted": "gauge",
    "catsdogs_model_refused": "gauge",
    "catsdogs_model_fallback": "gauge",
    "catsdogs_memory_bytes": "gauge",
    "catsdogs_memory_limit_bytes": "gauge",
    "process_resident_memory_bytes": "gauge",
}


def test_every_documented_metric_is_there_with_its_type(server: Running) -> None:
    server.predict()
    server.predict(b"nothing")
    page = server.http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name, kind in METRICS.items():
        assert f"# TYPE {name} {kind}" in page.text


def test_predictions_are_counted_by_stage_label_and_verdict(start: Start) -> None:
    server = start()
    answer = server.predict().json()
    labels = f'{{label="{answer["predicted_label"]}",verdict="{answer["verdict"]}"}}'
    assert server.metric(f"catsdogs_predictions_total{labels}") == 1
    for stage in ("queue", "decode", "infer"):
        assert server.metric(f'catsdogs_prediction_stage_seconds_count{{stage="{stage}"}}') == 1
    assert server.metric("catsdogs_prediction_confidence_count") == 1
    assert server.metric('http_request_duration_seconds_count{route="/predict"}') == 1
    assert 'catsdogs_model_info{architecture="efficientnet_lite0"' in server.http.get("/metrics").text


def test_limits_and_the_test_photos_figures_are_told_for_alerts_to_be_held_against(start: Start) -> None:
    server = start(lanes=2, max_queue=7)
    assert [server.metric(f"catsdogs_{name}") for name in ("lanes", "queue_limit", "ready")] == [2, 7, 1]
    assert server.metric("process_resident_memory_bytes") < server.metric("catsdogs_memory_limit_bytes")
    accuracy = server.http.get("/model").json()["test"]["accuracy"]
    told = [server.metric(f"catsdogs_test_accuracy{end}") for end in ("", "_low", "_high")]
    assert told == [accuracy[end] for end in ("value", "low", "high")]


def test_the_metrics_say_ready_when_the_health_does(start: Start, tmp_path: Path) -> None:
    server = start()
    assert server.metric("catsdogs_ready") == 1
    server.service.drain()
    assert server.http.get("/health/ready").status_code == 503
    assert server.metric("catsdogs_ready") == 0
    without = start(wait_ready=False, model=str(tmp_path / "missing.onnx"))
    assert without.http.get("/health/ready").status_code == 503
    assert without.metric("catsdogs_ready") == 0
    assert not re.search("^catsdogs_test_accuracy", without.http.get("/metrics").text, re.MULTILINE)


def test_a_drawing_is_timed_and_is_no_prediction(start: Start) -> None:
    server = start()
    server.explain()
    for stage in ("queue", "decode", "infer", "draw"):
        assert server.metric(f'catsdogs_prediction_stage_seconds_count{{stage="{stage}"}}') == 1
    assert server.metric('http_requests_total{method="POST",route="/explain",status="200"}') == 1
    assert server.metric("catsdogs_prediction_confidence_count") == 0
    page = server.http.get("/metrics").text
    assert set(re.findall(r"^catsdogs_predictions_total\{.* (\S+)$", page, re.MULTILINE)) == {"0"}


def test_labels_are_bounded_whatever_is_asked(start: Start) -> None:
    server = start()
    for path in ("/a", "/b/c", "/predict/x", "/assets/x", "/assets/y"):
        server.http.get(path)
    server.http.request("PROPFIND", "/predict")
    page = server.http.get("/metrics").text
    routes = {route.path for route in [*(endpoint.route for endpoint in ENDPOINTS), *pages.ROUTES]} | {"unmatched"}
    assert set(re.findall(r'http_requests_total\{[^}]*route="([^"]*)"', page)) == routes
    assert 'method="other"' in page
    assert "PROPFIND" not in page


def test_a_request_id_comes_back_if_it_is_sane(server: Running) -> None:
    def given(value: str) -> str:
        return server.http.get("/health", headers={"x-request-id": value}).headers["x-request-id"]

    assert given("abc-123.x_Y") == "abc-123.x_Y"
    for bad in ("a b", "x" * 65, "<script>", '"', ""):
        assert re.fullmatch(r"[0-9a-f]{32}", given(bad))


def test_logs_are_json_with_what_one_looks_for_and_nothing_private(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    with to_stdout("info"):
        server.http.post(
            "/predict", files={"file": ("my private cat.jpg", PHOTO)}, headers={"x-request-id": "look-for-me"}
        )
        server.http.get("/health")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "look-for-me"]
    assert set(line) == {"time", "level", "message", "request_id", "method", "route", "status", "duration_ms"}
    assert (line["level"], line["method"], line["route"], line["status"]) == ("info", "POST", "/predict", 200)
    assert line["duration_ms"] > 0
    assert not any("private" in json.dumps(line) for line in lines)
    assert not any(line.get("route") == "/health" for line in lines)


def test_a_logged_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f", 1, "oh", (), exc_info=__import__("sys").exc_info()
        )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError: two" in json.loads(text)["exception"]


def test_the_openapi_document_is_valid_and_complete(server: Running) -> None:
    served = server.http.get("/openapi.json").json()
    assert served == json.loads(json.dumps(document()))
    validate(served)
    assert set(served["paths"]) == {
        "/predict", "/predict/batch", "/explain", "/feedback", "/health", "/health/ready", "/model", "/metrics",
        "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/cats-dogs", "/v2/models/cats-dogs/ready",
        "/v2/models/cats-dogs/infer",
    }  # fmt: skip


def test_a_drawing_is_documented_as_a_png_with_the_errors_of_a_prediction() -> None:
    paths = document()["paths"]
    explain, predict = paths["/explain"]["post"], paths["/predict"]["post"]
    assert list(explain["responses"]["200"]["content"]) == ["image/png"]
    assert explain["requestBody"] == predict["requestBody"]
    del explain["responses"]["200"], predict["responses"]["200"]
    assert explain["responses"] == predict["responses"]
    assert {"400", "401", "403", "408", "413", "415", "421", "422", "503"} == set(explain["responses"])


def test_the_openapi_schemas_are_those_of_the_types() -> None:
    schemas = document()["components"]["schemas"]
    assert set(schemas["Prediction"]["properties"]) == set(Prediction.__struct_fields__)
    assert set(schemas["BatchResponse"]["properties"]) == set(BatchResponse.__struct_fields__)
    assert schemas["ModelInService"]["properties"]["precision"]["enum"] == ["fp32", "int8"]


def test_the_pages_need_no_other_site(server: Running) -> None:
    for path in ("/", "/docs"):
        page = server.http.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert not re.search(r"(src|href)=.https?:", page.text)
        for asset in re.findall(r'(?:src|href)="(/assets/[^"]+)"', page.text):
            assert server.http.get(asset).status_code == 200


def test_head_is_answered_like_get(server: Running) -> None:
    answer: httpx.Response = server.http.head("/")
    assert answer.status_code == 200
