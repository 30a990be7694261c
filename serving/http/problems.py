"""HTTP answers to errors, all in one form (RFC 9457)."""

from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from serving.errors import CODES, ProblemError, problem


def response(code: str, detail: str, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    """Make the HTTP answer for one error of a request."""
    path = scope["path"]
    protocol = path == "/v2" or path.startswith("/v2/")
    document = problem(code, detail, scope["state"]["id"], scope["state"].get("trace"), error=protocol)
    return Response(msgspec.json.encode(document), document.status, headers, "application/problem+json")


async def answer(request: Request, error: Exception) -> Response:
    """Starlette's exception handler: count and answer the error that a request raised."""
    rejected = request.app.state.service.metrics.rejected
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "malformed_request")
        rejected.count(code)
        return response(code, CODES[code][1], request.scope, dict(error.headers or {}))
    assert isinstance(error, ProblemError)
    rejected.count(error.code)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return response(error.code, error.detail, request.scope, headers)


HANDLERS: Final = dict.fromkeys((HTTPException, ProblemError), answer)
