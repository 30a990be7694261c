"""Error codes, and the exception that carries one; `serving.http.problems` turns it into an answer."""

from typing import Final

from msgspec import UNSET

from serving.messages import Problem
from serving.telemetry.traces import Trace

# code: (status, title)
CODES: Final[dict[str, tuple[int, str]]] = {
    "malformed_request": (400, "The request is not in the documented form"),
    "unauthorized": (401, "The request has no valid API key"),
    "foreign_origin": (403, "The request comes from a web page of another origin"),
    "not_found": (404, "There is nothing at this address"),
    "unknown_prediction": (404, "No prediction of this service has this id"),
    "method_not_allowed": (405, "This address does not take that method"),
    "slow_request": (408, "The request took too long to arrive"),
    "body_too_large": (413, "The body is too large"),
    "image_too_large": (413, "The picture has too many pixels"),
    "unsupported_format": (415, "The file is not a picture in an accepted format"),
    "unsupported_encoding": (415, "The body is compressed in a way that the service does not know"),
    "misdirected_request": (421, "The service does not answer to this host name"),
    "undecodable_image": (422, "The picture cannot be decoded"),
    "too_costly": (422, "The picture takes too much work to decode"),
    "internal_error": (500, "The service failed on this request"),
    "overloaded": (503, "Too many pictures or connections are waiting"),
    "deadline_exceeded": (503, "The picture waited too long"),
    "draining": (503, "The service is shutting down"),
    "not_ready": (503, "No model is ready to answer"),
}
# A URN, since there is no page to fetch (RFC 9457, section 3.1.1, allows any URI).
TYPE: Final = "urn:cats-dogs:problem:"


class ProblemError(Exception):
    """A request that is refused or has failed."""

    def __init__(self, code: str, detail: str, retry_after: int | None = None) -> None:
        """Keep a code of ``CODES``, a sentence for people, and seconds for the Retry-After header."""
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after = retry_after


def problem(code: str, detail: str, request_id: str, trace: Trace | None = None, *, error: bool = False) -> Problem:
    """Make the document for one error; ``error``: with the field that clients of the Open Inference Protocol read."""
    status, title = CODES[code]
    return Problem(
        type=TYPE + code.replace("_", "-"),
        title=title,
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
        trace_id=trace.trace_id if trace else UNSET,
        error=detail if error else UNSET,
    )
