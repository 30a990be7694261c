"""The endpoints' handlers: each reads a request, has the service do the work, and encodes the result."""

import asyncio
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serving import errors
from serving.engine.budget import Lease
from serving.engine.engine import Engine
from serving.errors import ProblemError
from serving.http import uploads
from serving.http.uploads import BodyLimits
from serving.messages import (
    BatchError,
    BatchImage,
    BatchRequest,
    BatchResponse,
    Health,
    ModelInService,
    Prediction,
    Ready,
)
from serving.model.session import Model
from serving.service import Asked, Service
from serving.telemetry import feedback as feedbacks
from shared.pixels import RefusedImageError

JSON: Final = "application/json"
# Query values that clients of many languages send for a boolean. A name without a value is true.
BOOLEANS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on", ""), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


async def predict(request: Request) -> Response:
    """POST /predict: one picture, in the field ``file`` of a form."""
    service = _service(request)
    asked = _asked(request)
    with service.pool.lease() as lease:
        model, data = await _picture(request, service, lease)
        answer = await service.predict(model, data, asked)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def explain(request: Request) -> Response:
    """POST /explain: one picture, as for /predict; its evidence drawn over it."""
    service = _service(request)
    asked = _asked(request)
    with service.pool.lease() as lease:
        model, data = await _picture(request, service, lease)
        png = await service.explain(model, data, asked)
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


async def predict_batch(request: Request) -> Response:
    """POST /predict/batch: up to 64 pictures as base64 in JSON."""
    service = _service(request)
    asked = _asked(request)
    with service.pool.lease(copies=2) as lease:  # as it comes, and without its base64
        model, engine, batch = await _batch(request, service, asked, lease)
        # Its deadline runs from when a picture is in the queue, so no more are there than keep the lanes busy.
        turns = asyncio.Semaphore(engine.lanes + 1)

        async def one(image: BatchImage) -> Prediction | BatchError:
            async with turns:
                try:
                    return await service.predict(model, image.data, asked, image.id)
                except (ProblemError, RefusedImageError) as error:
                    service.metrics.rejected.inc({"code": error.code})
                    return BatchError(id=image.id, error=errors.problem(error.code, str(error), request.state.id))

        results = await asyncio.gather(*(one(image) for image in batch.images))
    return Response(
        msgspec.json.encode(BatchResponse(results=list(results), model=model.contract.version)), media_type=JSON
    )


async def feedback(request: Request) -> Response:
    """POST /feedback: what the picture of an earlier prediction showed."""
    service = _service(request)
    service.model  # noqa: B018 - for what it raises: taken while pictures are, and no longer
    with service.pool.lease() as lease:
        body = await uploads.body(request, BodyLimits(feedbacks.MAX_BYTES, service.settings.body_seconds), lease)
    answer = await service.ledger.feedback(feedbacks.parse(body))
    service.metrics.count_feedback(answer.predicted_label, answer.label)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def health(_: Request) -> Response:
    """GET /health: the process can answer."""
    return Response(msgspec.json.encode(Health()), media_type=JSON)


async def ready(request: Request) -> Response:
    """GET /health/ready: the model has passed its exam and new work is accepted."""
    version = _service(request).ready.contract.version
    return Response(msgspec.json.encode(Ready(model=version)), media_type=JSON)


async def model(request: Request) -> Response:
    """GET /model: the contract, all but the files of the golden pictures, and which file keeps it."""
    served = _service(request).model
    questions = tuple(msgspec.structs.replace(question, picture=b"") for question in served.contract.exam.questions)
    fields = msgspec.structs.asdict(served.contract)
    fields["exam"] = msgspec.structs.replace(served.contract.exam, questions=questions)
    answer = ModelInService(**fields, file=served.path.name, fallback=served.fallback)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def metrics(request: Request) -> Response:
    """GET /metrics: for Prometheus."""
    body, headers = _service(request).metrics.page(request.headers.getlist("accept"))
    return Response(body, headers=headers)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _picture(request: Request, service: Service, lease: Lease) -> tuple[Model, bytes]:
    """Read the one picture of a form, and say which model answers it."""
    service.admit()
    settings = service.settings
    data = await uploads.file(request, BodyLimits(settings.max_body_bytes, settings.body_seconds), lease)
    model, _ = service.admit()  # again: the queue may have filled while the body came in
    return model, data


async def _batch(request: Request, service: Service, asked: Asked, lease: Lease) -> tuple[Model, Engine, BatchRequest]:
    """Read the pictures of a batch, and say what answers them."""
    service.admit()
    limits = BodyLimits(service.settings.max_batch_bytes, service.settings.body_seconds)
    body = await uploads.body(request, limits, lease)
    model, engine = service.admit()
    return model, engine, await service.work(lambda _: _parsed(body), asked)


def _asked(request: Request) -> Asked:
    value = request.query_params.get("explain", "false")
    explained = BOOLEANS.get(value.lower())
    if explained is None:
        allowed = ", ".join(filter(None, BOOLEANS))
        raise ProblemError("malformed_request", f"explain is {value[:40]!r}; allowed are {allowed}")
    # The connection tells whether the client is still there; without it, as in a test, it is.
    wanted = request.scope.get("extensions", {}).get("catsdogs.wanted", _always)
    return Asked(wanted, explain=explained)


def _always() -> bool:
    return True


def _parsed(body: bytes) -> BatchRequest:
    try:
        return msgspec.json.decode(body, type=BatchRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("malformed_request", f"invalid batch: {error}") from error
