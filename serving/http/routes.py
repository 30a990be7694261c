"""What each address does. Handlers read, hand the work to the service, and say the result."""

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import Final

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving import errors
from serving.engine.budget import Lease
from serving.engine.engine import Engine
from serving.errors import ProblemError
from serving.http import uploads
from serving.http.uploads import BodyLimits
from serving.messages import BatchError, BatchImage, BatchRequest, BatchResponse, Health, ModelInService, Prediction
from serving.model.session import Model
from serving.service import Asked, Service
from serving.telemetry import feedback as feedbacks
from shared.pixels import RefusedImageError

WEB: Final = Path(__file__).parent.parent / "web"
JSON: Final = "application/json"


class WholeFile(FileResponse):
    """A file, whole whatever range is asked for: Starlette refuses senseless ones in a form of its own.

    Browsers ask for it each time, lest an old script meet a new page, and are told if what they have is still it.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or say that it has not changed."""
        self.headers["accept-ranges"] = "none"
        self.headers["cache-control"] = "no-cache"
        self.stat_result = await asyncio.to_thread(os.stat, self.path)
        self.set_stat_headers(self.stat_result)
        known = Headers(scope=scope).get("if-none-match", "")
        if self.headers["etag"] in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            kept = {name: self.headers[name] for name in ("cache-control", "etag", "last-modified")}
            await Response(status_code=304, headers=kept)(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


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
    return Response(msgspec.json.encode({"status": "ready", "model": version}), media_type=JSON)


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


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return Response(request.app.state.openapi, media_type=JSON)


async def page(_: Request) -> Response:
    """GET /: the web page."""
    return WholeFile(WEB / "index.html")


async def docs(_: Request) -> Response:
    """GET /docs: Swagger UI on /openapi.json, from files on this machine."""
    return WholeFile(WEB / "docs.html")


async def asset(request: Request) -> Response:
    """GET /assets/NAME: scripts and styles of the pages."""
    path = _assets().get(request.path_params["name"])
    if path is None:
        raise ProblemError("not_found", "there is no such file")
    return WholeFile(path)


# In the order in which they are tried, so the one that counts comes first.
ROUTES: Final = (
    Route("/predict", predict, methods=["POST"]),
    Route("/predict/batch", predict_batch, methods=["POST"]),
    Route("/", page),
    Route("/assets/{name}", asset),
    Route("/docs", docs),
    Route("/explain", explain, methods=["POST"]),
    Route("/feedback", feedback, methods=["POST"]),
    Route("/health", health),
    Route("/health/ready", ready),
    Route("/metrics", metrics),
    Route("/model", model),
    Route("/openapi.json", openapi),
)
# What the metrics' own port answers, if it has one.
METRICS_ROUTES: Final = tuple(route for route in ROUTES if route.path in ("/health", "/health/ready", "/metrics"))


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
    if value not in ("true", "false"):
        raise ProblemError("malformed_request", f"explain is true or false, not {value[:40]!r}")
    # The door says whether the client is still there; without it, in a test say, it is.
    wanted = request.scope.get("extensions", {}).get("catsdogs.wanted", _always)
    return Asked(wanted, explain=value == "true")


def _always() -> bool:
    return True


def _parsed(body: bytes) -> BatchRequest:
    try:
        return msgspec.json.decode(body, type=BatchRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError("malformed_request", f"the body is not a batch: {error}") from error


def _assets() -> dict[str, Path]:
    """Files by the name they are served under: the page's own, and Swagger UI's from the package that ships them."""
    # Importing offapi would read eight megabytes of scripts into memory; only its folder is wanted.
    spec = importlib.util.find_spec("offapi")
    assert spec is not None and spec.origin is not None
    swagger = Path(spec.origin).parent
    return {
        **{path.name: path for path in WEB.iterdir() if path.suffix in (".js", ".css", ".svg")},
        **{path.name: path for path in swagger.glob("swagger_*") if path.suffix in (".js", ".css")},
    }
