"""What each address does. Handlers read, hand the work to the service, and say the result."""

import asyncio
import importlib.util
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from serving import problems, uploads
from serving.messages import BatchError, BatchImage, BatchRequest, BatchResponse, Health, ModelInService, Prediction
from serving.model import Model
from serving.problems import ProblemError
from serving.service import Service
from shared.pixels import RefusedImageError

T = TypeVar("T")

WEB: Final = Path(__file__).parent / "web"
JSON: Final = "application/json"


async def predict(request: Request) -> Response:
    """POST /predict: one picture, in the field ``file`` of a form."""
    service = _service(request)
    with_evidence = _with_evidence(request)
    model, data = await _picture(request, service)
    answer = await _unless_gone(request, service.predict(model, data, None, explain=with_evidence))
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def explain(request: Request) -> Response:
    """POST /explain: one picture, as for /predict; its evidence drawn over it."""
    service = _service(request)
    model, data = await _picture(request, service)
    png = await _unless_gone(request, service.explain(model, data))
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


async def predict_batch(request: Request) -> Response:
    """POST /predict/batch: up to 64 pictures as base64 in JSON."""
    service = _service(request)
    with_evidence = _with_evidence(request)
    service.admit()
    settings = service.settings
    body = await uploads.body(request, settings.max_batch_bytes, settings.body_seconds)
    model, engine = service.admit()

    # No more of a batch are in the queue than keep the lanes busy, so a single picture never waits behind all of it.
    turns = asyncio.Semaphore(engine.lanes + 1)

    async def one(image: BatchImage) -> Prediction | BatchError:
        async with turns:
            try:
                return await service.predict(model, image.data, image.id, explain=with_evidence)
            except (ProblemError, RefusedImageError) as error:
                service.metrics.rejected.inc({"code": error.code})
                return BatchError(id=image.id, error=problems.problem(error.code, str(error), request.state.id))

    async def whole() -> bytes:
        batch = (await engine.run(lambda: _batch(body))).result
        results = await asyncio.gather(*(one(image) for image in batch.images))
        return msgspec.json.encode(BatchResponse(results=list(results), model=model.contract.version))

    return Response(await _unless_gone(request, whole()), media_type=JSON)


async def health(_: Request) -> Response:
    """GET /health: the process can answer."""
    return Response(msgspec.json.encode(Health()), media_type=JSON)


async def ready(request: Request) -> Response:
    """GET /health/ready: the model has passed its exam and new work is accepted."""
    version = _service(request).model.contract.version
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
    return FileResponse(WEB / "index.html")


async def docs(_: Request) -> Response:
    """GET /docs: Swagger UI on /openapi.json, from files on this machine."""
    return FileResponse(WEB / "docs.html")


async def asset(request: Request) -> Response:
    """GET /assets/NAME: scripts and styles of the pages."""
    path = _assets().get(request.path_params["name"])
    if path is None:
        raise ProblemError("not_found", "there is no such file")
    return FileResponse(path)


ROUTES: Final = (
    Route("/", page),
    Route("/assets/{name}", asset),
    Route("/docs", docs),
    Route("/explain", explain, methods=["POST"]),
    Route("/health", health),
    Route("/health/ready", ready),
    Route("/metrics", metrics),
    Route("/model", model),
    Route("/openapi.json", openapi),
    Route("/predict", predict, methods=["POST"]),
    Route("/predict/batch", predict_batch, methods=["POST"]),
)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _picture(request: Request, service: Service) -> tuple[Model, bytes]:
    """Read the one picture of a form, and say which model answers it."""
    service.admit()
    settings = service.settings
    data = await uploads.file(request, settings.max_body_bytes, settings.body_seconds)
    model, _ = service.admit()  # again: the queue may have filled while the body came in
    return model, data


def _with_evidence(request: Request) -> bool:
    value = request.query_params.get("explain", "false")
    if value not in ("true", "false"):
        raise ProblemError("malformed_request", f"explain is true or false, not {value[:40]!r}")
    return value == "true"


def _batch(body: bytes) -> BatchRequest:
    try:
        return msgspec.json.decode(body, type=BatchRequest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProblemError("malformed_request", f"the body is not a batch: {error}") from error


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but cancel it if the client leaves, so that its pictures are not decoded for nobody."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    # The body has been read, so whatever comes next is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
