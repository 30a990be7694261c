"""The endpoints' handlers: each reads a request, has the service do the work, and encodes the result."""

import asyncio
from typing import Final

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from serving import errors
from serving.engine.wire import PLAIN, Flags, Item
from serving.errors import ProblemError
from serving.http import uploads
from serving.messages import BatchError, BatchResponse, Health, ModelInService, Prediction, Ready
from serving.service import Service
from serving.settings import Settings
from serving.telemetry import feedback as feedbacks

JSON: Final = "application/json"
# Query values that clients of many languages send for a boolean. A name without a value is true.
BOOLEANS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on", ""), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


async def predict(request: Request) -> Response:
    """POST /predict: one picture, in the field ``file`` of a form."""
    flags = _explain(request)
    async with uploads.received(request, _settings(request).max_body_bytes) as (work, data):
        answer = await work.predict(data, flags)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def explain(request: Request) -> Response:
    """POST /explain: one picture, as for /predict; its evidence drawn over it."""
    async with uploads.received(request, _settings(request).max_body_bytes) as (work, data):
        png = await work.explain(data)
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


async def predict_batch(request: Request) -> Response:
    """POST /predict/batch: up to 64 pictures as base64 in JSON."""
    flags = _explain(request) | Flags.BASE64
    async with uploads.received(request, _settings(request).max_batch_bytes, form=False) as (work, body):
        batch = await work.take_apart(body)

        async def one(item: Item) -> Prediction | BatchError:
            async with work.service.batch_turns:
                try:
                    return await work.predict(memoryview(body)[item.start : item.end], flags, item.id)
                except ProblemError as error:
                    work.service.metrics.rejected.inc({"code": error.code})
                    problem = errors.problem(error.code, error.detail, request.state.id)
                    return BatchError(client_id=UNSET if item.id is None else item.id, error=problem)

        results = await asyncio.gather(*(one(item) for item in batch.items))
    answer = BatchResponse(results=list(results), model=work.model.contract.version)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def feedback(request: Request) -> Response:
    """POST /feedback: what the picture of an earlier prediction really showed."""
    service = _service(request)
    service.model  # noqa: B018 - raises if the service is not ready or draining
    with service.budget.lease() as lease:
        body = await uploads.body(request, feedbacks.MAX_BYTES, lease)
    answer = await service.ledger.feedback(feedbacks.parse(body))
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


def _explain(request: Request) -> Flags:
    value = request.query_params.get("explain", "false")
    explained = BOOLEANS.get(value.lower())
    if explained is None:
        allowed = ", ".join(filter(None, BOOLEANS))
        raise ProblemError("malformed_request", f"explain is {value[:40]!r}; allowed are {allowed}")
    return Flags.EXPLAIN if explained else PLAIN
