"""The outermost middleware: request ids, metrics, the access log, and answers to unhandled errors."""

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http import problems
from serving.http.auth import OPEN
from serving.http.headers import NO_PAGE, PAGES, SAME_ORIGIN
from serving.ids import Ids
from serving.telemetry.logs import ACCESS, SERVICE
from serving.telemetry.metrics import Metrics
from serving.telemetry.traces import SAMPLED, Span, Trace

if TYPE_CHECKING:
    from serving.telemetry.otlp import Exporter

GOOD_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# Polled every few seconds, so not logged if they succeed; the metrics' port answers only these.
PROBES: Final = (*OPEN, "/metrics")


class Observe:
    """ASGI middleware; it makes an object for each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, exporter: "Exporter | None") -> None:
        """Wrap ``app``; spans of requests go to the ``exporter``, if there is one."""
        self.app = app
        self.metrics = metrics
        self.exporter = exporter
        self.ids = Ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is not HTTP; observe what is."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Observation(self, scope, send).run(self.app, receive)


class _Observation:
    def __init__(self, layer: Observe, scope: Scope, send: Send) -> None:
        self.metrics = layer.metrics
        self.scope = scope
        self.inner_send = send
        self.status = 0
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self.id = given.decode() if GOOD_ID.fullmatch(given) else layer.ids.new()
        self.exporter = layer.exporter
        self.trace = self.traced(layer)
        scope.setdefault("state", {}).update(id=self.id, trace=self.trace)

    def traced(self, layer: Observe) -> Trace | None:
        """The trace that the request is part of, or that begins with it."""
        given = [value for name, value in self.scope["headers"] if name == b"traceparent"]
        trace = Trace.of(given[0]) if len(given) == 1 else None
        if self.exporter is None:
            return trace
        trace = trace or Trace(layer.ids.new())
        if trace.flags & SAMPLED:
            trace.span = layer.ids.new()[:16]
        return trace

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        started = time.perf_counter()
        try:
            await app(self.scope, receive, self.send)
        # Nothing else handled it: log the traceback and answer in the usual form.
        except Exception:
            traced = {"trace_id": self.trace.trace_id} if self.trace else {}
            SERVICE.exception("a request failed", extra={"fields": {"request_id": self.id, **traced}})
            await self.give_up("internal_error", "the fault is logged under the request id", receive)
        # The server cancels requests at a second signal, or when draining takes too long.
        except asyncio.CancelledError:
            await self.give_up("draining", "the service was stopped", receive)
        finally:
            self.observe(time.perf_counter() - started)

    async def give_up(self, code: str, detail: str, receive: Receive) -> None:
        if not self.status:
            self.metrics.rejected.count(code)
            await problems.response(code, detail, self.scope)(self.scope, receive, self.send)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            protection = PAGES.get(self.scope["path"], NO_PAGE)
            sharing = self.scope["state"].get("sharing", SAME_ORIGIN)
            service = self.scope["app"].state.service
            named = (b"x-request-id", self.id.encode()), (b"x-replica", service.ledger.ids.replica.encode())
            headers = [*message["headers"], *named, *protection, *sharing]
            if self.trace:
                headers.append((b"traceparent", self.trace.header))
            if service.leaving:
                headers.append((b"connection", b"close"))  # the client will connect again, to another replica
            message["headers"] = headers
        await self.inner_send(message)

    def observe(self, seconds: float) -> None:
        route = self.scope.get("route")
        path = route.path if isinstance(route, Route) else "unmatched"
        method = self.scope["method"] if self.scope["method"] in METHODS else "other"
        # The client left before its answer: nginx's status for that.
        status = self.status or 499
        self.metrics.count_request(method, path, status, seconds)
        if path in PROBES and status < 400:
            return
        if self.exporter and self.trace and self.trace.flags & SAMPLED:
            end = time.time_ns()
            self.exporter.append(Span(self.trace, method, path, status, end - round(seconds * 1e9), end))
        fields = {
            "request_id": self.id,
            **({"trace_id": self.trace.trace_id} if self.trace else {}),
            "method": method,
            "route": path,
            "status": status,
            "duration_ms": round(seconds * 1000, 2),
        }
        ACCESS.info("request", extra={"fields": fields})
