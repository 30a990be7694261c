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
from serving.engine.wire import PLAIN, Flags, Item
from serving.errors import ProblemError
from serving.http import uploads
from serving.messages import BatchError, BatchResponse, Health, ModelInService, Prediction
from serving.service import Service
from serving.settings import Settings
from serving.telemetry import feedback as feedbacks

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
        # A picture's deadline runs from when it is in the queue, so no more are there than keep the lanes busy.
        turns = asyncio.Semaphore(work.service.lanes + 1)

        async def one(item: Item) -> Prediction | BatchError:
            async with turns:
                try:
                    return await work.predict(memoryview(body)[item.start : item.end], flags, item.id)
                except ProblemError as error:
                    work.service.metrics.rejected.inc({"code": error.code})
                    return BatchError(id=item.id, error=errors.problem(error.code, error.detail, request.state.id))

        results = await asyncio.gather(*(one(item) for item in batch.items))
    answer = BatchResponse(results=list(results), model=work.model.contract.version)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def feedback(request: Request) -> Response:
    """POST /feedback: what the picture of an earlier prediction really showed."""
    service = _service(request)
    service.model  # noqa: B018 - for what it raises: taken while pictures are, and no longer
    with service.budget.lease() as lease:
        body = await uploads.body(request, feedbacks.MAX_BYTES, lease)
    answer = await service.ledger.feedback(feedbacks.parse(body))
    service.metrics.count_feedback(answer.predicted_label, answer.label)
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def health(request: Request) -> Response:
    """GET /health: the process can answer."""
    if not _service(request).alive:
        raise ProblemError("not_ready", "no worker can be started; the process must be replaced")
    return Response(msgspec.json.encode(Health()), media_type=JSON)


async def ready(request: Request) -> Response:
    """GET /health/ready: the model has passed its exam and new work is accepted."""
    version = _service(request).ready.contract.version
    return Response(msgspec.json.encode({"status": "ready", "model": version}), media_type=JSON)


async def model(request: Request) -> Response:
    """GET /model: the contract, all but the files of the golden pictures, and which file keeps it."""
    served = _service(request).model
    answer = ModelInService(**msgspec.structs.asdict(served.contract), file=served.file, fallback=served.fallback)
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


def _settings(request: Request) -> Settings:
    return _service(request).settings


def _explain(request: Request) -> Flags:
    value = request.query_params.get("explain", "false")
    if value not in ("true", "false"):
        raise ProblemError("malformed_request", f"explain is true or false, not {value[:40]!r}")
    return Flags.EXPLAIN if value == "true" else PLAIN


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
