"""Sends spans to an OpenTelemetry collector as JSON over HTTP, in a thread; imported only where there is a collector.

https://opentelemetry.io/docs/specs/otlp; the variables are OpenTelemetry's own. Requests are sampled as their caller
says, and all that have none. The SDK with its exporter would add 3.6 MB to the image.
"""

import http.client
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from serving import __version__
from serving.telemetry.logs import SERVICE
from serving.telemetry.traces import Span
from serving.telemetry.writer import LineWriter

TIMEOUT_SECONDS: Final = 2.0
SERVER: Final = 2
INTERNAL: Final = 1
ERROR: Final = 2


class Exporter:
    """Sends what is appended, until it is closed; what cannot be sent is dropped."""

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        """Send to ``url``."""
        self._url = url
        self._headers = _pairs(
            environment.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environment.get("OTEL_EXPORTER_OTLP_HEADERS", "")
        )
        resource = {"service.version": __version__} | _pairs(environment.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        resource["service.name"] = environment.get("OTEL_SERVICE_NAME") or resource.get("service.name", "cats-dogs")
        self._resource = _attributes(resource)
        self._failing = False
        self._writer = LineWriter("traces", self._send)
        self.start = self._writer.start
        self.append = self._writer.append
        self.close = self._writer.close

    def _send(self, spans: list[Span]) -> None:
        if not spans:
            return
        scope = {"name": "catsdogs", "version": __version__}
        listed = [made for span in spans for made in _spans(span)]
        document = {
            "resourceSpans": [
                {"resource": {"attributes": self._resource}, "scopeSpans": [{"scope": scope, "spans": listed}]}
            ]
        }
        headers = {"Content-Type": "application/json", **self._headers}
        try:
            request = urllib.request.Request(self._url, msgspec.json.encode(document), headers)  # noqa: S310 - ours
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
                self._failing = False
        # ValueError: no address. The collector is no part of the service: it is told once, and nothing waits for it.
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._failing:
                SERVICE.warning("spans cannot be sent", extra={"fields": {"reason": type(error).__name__}})
            self._failing = True


def _spans(span: Span) -> list[dict[str, Any]]:
    trace = span.trace
    request = {
        "traceId": trace.trace_id,
        "spanId": trace.span,
        "parentSpanId": trace.parent,
        "name": f"{span.method} {span.route}",
        "kind": SERVER,
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _attributes(
            {"http.request.method": span.method, "http.route": span.route, "http.response.status_code": span.status}
        ),
        "status": {"code": ERROR} if span.status >= 500 else {},
    }
    stages = [
        {
            "traceId": trace.trace_id,
            "spanId": os.urandom(8).hex(),
            "parentSpanId": trace.span,
            "name": name,
            "kind": INTERNAL,
            "startTimeUnixNano": str(start),
            "endTimeUnixNano": str(end),
        }
        for name, start, end in trace.stages
    ]
    return [request, *stages]


def _attributes(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}}
        for key, value in values.items()
    ]


def _pairs(setting: str) -> dict[str, str]:
    """Read ``key=value,key=value``, percent-encoded."""
    pairs = (pair.partition("=") for pair in setting.split(",") if "=" in pair)
    return {key.strip(): urllib.parse.unquote(value.strip()) for key, _, value in pairs}
