"""The endpoints' handlers: each reads a request, has the service do the work, and encodes the result."""

from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from serving import errors
from serving.engine.wire import PLAIN, Flags
from serving.errors import ProblemError
from serving.http import forms, uploads
from serving.messages import MAX_BATCH, BatchError, BatchResponse, Health, ModelInService, Prediction, Ready
from serving.service import Picture, Service, Work
from serving.settings import Settings
from serving.telemetry import feedback as feedbacks

JSON: Final = "application/json"
# Query values that clients of many languages send for a boolean. A name without a value is true.
BOOLEANS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on", ""), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


async def predict(request: Request) -> Response:
    """POST /predict: one picture, in the field ``file`` of a form or as the body."""
    flags = _explain(request)
    async with _picture(request) as (work, (data,)):
        answer = await work.predict(data, flags)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def explain(request: Request) -> Response:
    """POST /explain: one picture, as for /predict; its evidence drawn over it."""
    async with _picture(request) as (work, (data,)):
        png = await work.explain(data)
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


async def predict_batch(request: Request) -> Response:
    """POST /predict/batch: up to 64 pictures, as fields ``file`` of a form or as base64 in JSON."""
    flags = _explain(request)
    form = uploads.kind(request) == forms.FORM
    body = forms.Form(request.headers["content-type"], MAX_BATCH) if form else uploads.BatchJson()
    async with uploads.received(request, _settings(request).max_batch_bytes, body) as (work, received):
        if form:
            pictures = [Picture(file, flags, refused=forms.mistake(file)) for file in received]
        else:
            pictures = await work.take_apart(received[0], flags)
        answers = await work.predict_all(pictures)
    results = [
        answer if isinstance(answer, Prediction) else _batch_error(picture, answer, request)
        for picture, answer in zip(pictures, answers, strict=True)
    ]
    answer = BatchResponse(results=results, model=work.model.contract.version)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def feedback(request: Request) -> Response:
    """POST /feedback: what the picture of an earlier prediction really showed."""
    service = _service(request)
    service.model  # noqa: B018 - raises if the service is not ready or draining
    with service.budget.lease() as lease:
        (body,) = await uploads.read(request, feedbacks.MAX_BYTES, lease, uploads.Whole())
    answer = service.ledger.feedback(feedbacks.parse(body))
    service.metrics.count_feedback(answer.predicted_label, answer.label)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def health(request: Request) -> Response:
    """GET /health: the process is alive."""
    if not _service(request).alive:
        raise ProblemError("not_ready", "no worker can be started; the process must be replaced")
    return Response(msgspec.json.encode(Health()), media_type=JSON)


async def ready(request: Request) -> Response:
    """GET /health/ready: the model has passed its exam and new work is accepted."""
    version = _service(request).ready.contract.version
    return Response(msgspec.json.encode(Ready(model=version)), media_type=JSON)


async def model(request: Request) -> Response:
    """GET /model: the contract without the golden pictures' files, and the name of the model file."""
    served = _service(request).model
    answer = ModelInService(**msgspec.structs.asdict(served.contract), file=served.file, fallback=served.fallback)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def metrics(request: Request) -> Response:
    """GET /metrics: for Prometheus."""
    body, headers = _service(request).metrics.page(request.headers.getlist("accept"))
    return Response(body, headers=headers)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _settings(request: Request) -> Settings:
    return _service(request).settings


def _picture(request: Request) -> AbstractAsyncContextManager[tuple[Work, list[bytearray]]]:
    return uploads.received(request, _settings(request).max_body_bytes, uploads.picture(request))


def _batch_error(picture: Picture, error: ProblemError, request: Request) -> BatchError:
    _service(request).metrics.rejected.count(error.code)
    return BatchError(
        client_id=UNSET if picture.client_id is None else picture.client_id,
        error=errors.problem(error.code, error.detail, request.state.id, request.state.trace),
    )


def _explain(request: Request) -> Flags:
    value = request.query_params.get("explain", "false")
    explained = BOOLEANS.get(value.lower())
    if explained is None:
        allowed = ", ".join(filter(None, BOOLEANS))
        raise ProblemError("malformed_request", f"explain is {value[:40]!r}; allowed are {allowed}")
    return Flags.EXPLAIN if explained else PLAIN
