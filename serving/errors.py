"""Errors: raised where the fact is known, turned into an answer here and nowhere else."""

from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.messages import Problem

# code: (status, title)
CODES: Final[dict[str, tuple[int, str]]] = {
    "malformed_request": (400, "The request is not in the documented form"),
    "unauthorized": (401, "The request has no valid API key"),
    "not_found": (404, "There is nothing at this address"),
    "unknown_prediction": (404, "No prediction with this id is remembered"),
    "method_not_allowed": (405, "This address does not take that method"),
    "slow_request": (408, "The request took too long to arrive"),
    "body_too_large": (413, "The body is too large"),
    "image_too_large": (413, "The picture has too many pixels"),
    "unsupported_format": (415, "The file is not a picture in an accepted format"),
    "too_costly": (422, "The picture takes too much work to decode"),
    "undecodable_image": (422, "The picture cannot be decoded"),
    "internal_error": (500, "Something went wrong here"),
    "overloaded": (503, "Too many pictures or connections are waiting"),
    "deadline_exceeded": (503, "The picture waited too long"),
    "draining": (503, "The service is shutting down"),
    "not_ready": (503, "No model is ready to answer"),
}
# Named so that it can be told from a URL to fetch (RFC 9457, section 3.1.1, allows any URI).
TYPE: Final = "urn:cats-dogs:problem:"


class ProblemError(Exception):
    """A request that cannot be answered as asked."""

    def __init__(self, code: str, detail: str, retry_after: int | None = None) -> None:
        """Give a code of ``CODES``, a sentence for people, and seconds for the Retry-After header."""
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after = retry_after


def problem(code: str, detail: str, request_id: str) -> Problem:
    """Make the document for one error."""
    status, title = CODES[code]
    return Problem(
        type=TYPE + code.replace("_", "-"), title=title, status=status, detail=detail, code=code, request_id=request_id
    )


def response(code: str, detail: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """Make the HTTP answer for one error."""
    document = problem(code, detail, request_id)
    return Response(msgspec.json.encode(document), document.status, headers, "application/problem+json")


async def answer(request: Request, error: Exception) -> Response:
    """Starlette's exception handler: the HTTP answer to an error that a request raised."""
    if isinstance(error, ProblemError):
        request.app.state.service.metrics.rejected.inc({"code": error.code})
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed_request")
        error_headers = dict(error.headers or {})
        return response(code, CODES[code][1].lower(), request.state.id, error_headers)
    assert isinstance(error, ProblemError)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return response(error.code, error.detail, request.state.id, headers)


HANDLERS: Final = dict.fromkeys((HTTPException, ProblemError), answer)
