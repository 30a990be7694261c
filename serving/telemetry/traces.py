"""The trace that a request belongs to (W3C Trace Context), and how long its stages took."""

import re
import time
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

# Version ff is invalid; later versions than 00 may have more fields. An id of zeros is none.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
SAMPLED: Final = 1


class Trace:
    """One request's part of a trace. ``stages`` has name, start and end, in nanoseconds since 1970."""

    def __init__(self, trace_id: str, parent: str = "", flags: int = SAMPLED) -> None:
        """Take part in a trace; ``parent`` is the span that the request belongs to, if any."""
        self.trace_id = trace_id
        self.parent = parent
        self.flags = flags
        self.span = parent  # of this request, once it is recorded
        self.stages: list[tuple[str, int, int]] = []

    @classmethod
    def of(cls, header: bytes) -> Self | None:
        """Read the header ``traceparent``; None if it is not valid."""
        found = _TRACEPARENT.fullmatch(header)
        if found is None or (found[1] == b"00" and found[5]):
            return None
        return cls(found[2].decode(), found[3].decode(), int(found[4], 16))

    def time_stages(self, **seconds: float) -> None:
        """Add stages that followed each other, the last of which ends now."""
        end = time.time_ns()
        for name, lasted in reversed(seconds.items()):
            start = end - round(lasted * 1e9)
            self.stages.append((name, start, end))
            end = start

    @property
    def header(self) -> bytes:
        """The header ``traceparent`` for whom the trace is given on to."""
        return f"00-{self.trace_id}-{self.span}-{self.flags & SAMPLED:02x}".encode()


class Span(NamedTuple):
    """A request that was answered; times in nanoseconds since 1970."""

    trace: Trace
    method: str
    route: str
    status: int
    start: int
    end: int


def endpoint(environment: Mapping[str, str]) -> str:
    """Where spans are to be sent, by OpenTelemetry's variables; empty for nowhere."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return ""
    if base := environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""):
        base = base.rstrip("/") + "/v1/traces"
    return environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "") or base
