"""Traces: taken over, given on, told in logs and errors, and sent to a collector where there is one."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from serving.telemetry.traces import Trace, endpoint
from tests.conftest import ROOT
from tests.serving.conftest import Running, Start
from tests.waiting import until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (HEADER, True),
        (f"00-{TRACE}-{PARENT}-00", True),
        (f"01-{TRACE}-{PARENT}-01-more", True),
        (f"01-{TRACE}-{PARENT}-01", True),
        (f"01-{TRACE}-{PARENT}-01more", False),
        (f"00-{TRACE}-{PARENT}-01-more", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (HEADER.upper(), False),
        (HEADER + " ", False),
        ("", False),
        ("00-" + "a" * 5000, False),
    ],
)
def test_a_header_is_taken_as_the_standard_says(header: str, valid: bool) -> None:
    trace = Trace.of(header.encode())
    assert (trace is not None) == valid
    assert trace is None or (trace.trace_id, trace.parent) == (TRACE, PARENT)


def test_a_trace_is_in_errors_logs_and_answers(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "catsdogs.access")
    answer = server.http.post("/predict", headers={"traceparent": HEADER})
    assert answer.json()["trace_id"] == TRACE
    assert answer.headers["traceparent"] == HEADER  # nothing is recorded here, so the caller's span stays the parent
    until(lambda: any(getattr(record, "fields", {}).get("trace_id") == TRACE for record in caplog.records))
    images = {"images": [{"data": "aGk="}]}
    batch = server.http.post("/predict/batch", json=images, headers={"traceparent": HEADER})
    assert batch.json()["results"][0]["error"]["trace_id"] == TRACE


@pytest.mark.parametrize("headers", [[], [("traceparent", "nonsense")], [("traceparent", HEADER)] * 2])
def test_without_one_valid_header_nothing_is_told(server: Running, headers: list[tuple[str, str]]) -> None:
    answer = server.http.post("/predict", headers=headers)
    assert "trace_id" not in answer.json()
    assert "traceparent" not in answer.headers


class Collector(HTTPServer):
    """Takes what an OpenTelemetry collector takes."""

    def __init__(self) -> None:
        self.documents: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str | None, str | None]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.documents.append(json.loads(body))
                collector.asked.append((self.path, self.headers["content-type"], self.headers["x-team"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def spans(self) -> list[dict[str, Any]]:
        resources = [resource for document in self.documents for resource in document["resourceSpans"]]
        return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def traced(collector: Collector, start: Start, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=cats%20and%20dogs")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pets")
    return start()


def test_a_request_is_a_span_with_queue_decode_and_infer_as_its_children(traced: Running, collector: Collector) -> None:
    answer = traced.predict(headers={"traceparent": HEADER})
    until(lambda: any(span["name"] == "POST /predict" for span in collector.spans()))
    (request,) = [span for span in collector.spans() if span["name"] == "POST /predict"]
    assert (request["traceId"], request["parentSpanId"], request["kind"]) == (TRACE, PARENT, 2)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{request['spanId']}-01"
    children = [span for span in collector.spans() if span["parentSpanId"] == request["spanId"]]
    assert {span["name"] for span in children} == {"queue", "decode", "infer"}
    assert {span["traceId"] for span in children} == {TRACE}
    spans = [request, *children]
    assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans)
    assert len({span["spanId"] for span in spans}) == 4
    attributes = {attribute["key"]: attribute["value"] for attribute in request["attributes"]}
    assert attributes["http.response.status_code"] == {"intValue": "200"}
    resource = collector.documents[0]["resourceSpans"][0]["resource"]["attributes"]
    assert {"key": "service.name", "value": {"stringValue": "pets"}} in resource
    assert set(collector.asked) == {("/v1/traces", "application/json", "cats and dogs")}


def test_a_request_without_a_trace_begins_one_and_one_that_is_not_sampled_is_not_sent(
    traced: Running, collector: Collector
) -> None:
    unsampled = traced.predict(headers={"traceparent": HEADER[:-1] + "0"})
    assert unsampled.headers["traceparent"] == HEADER[:-1] + "0"
    begun = traced.http.post("/predict/batch", json={"images": "no"})
    until(lambda: any(span["name"] == "POST /predict/batch" for span in collector.spans()))
    (span,) = [span for span in collector.spans() if span["name"].startswith("POST")]
    assert (span["traceId"], span["parentSpanId"]) == (begun.json()["trace_id"], "")


def test_a_collector_that_is_down_costs_one_line_of_the_log(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.telemetry.writer.GROUP_SECONDS", 0.01)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    server = start()

    def told() -> int:
        return sum("spans cannot be sent" in record.message for record in caplog.records)

    assert server.predict().status_code == 200
    until(lambda: told() == 1)
    assert [server.predict().status_code for _ in range(5)] == [200] * 5
    server.service.exporter.close()  # type: ignore[union-attr]  # what is left is sent
    assert told() == 1


BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, ""),
        (BASE, "http://collector:4318/v1/traces"),
        (BASE | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://other:4318/x"}, "http://other:4318/x"),
        (BASE | {"OTEL_SDK_DISABLED": "TRUE"}, ""),
        (BASE | {"OTEL_TRACES_EXPORTER": "none"}, ""),
    ],
)
def test_where_spans_go_is_what_opentelemetry_s_variables_say(environment: dict[str, str], address: str) -> None:
    assert endpoint(environment) == address


def test_without_a_collector_nothing_is_imported() -> None:
    code = (
        "import sys; from serving.http.app import create_app; from serving.settings import Settings; "
        "create_app(Settings()); sys.exit('serving.telemetry.otlp' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment)
    off = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment | off)
