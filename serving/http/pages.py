"""The web page, the API's documentation, and the files of both."""

import asyncio
import functools
import importlib.util
import os
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.staticfiles import NotModifiedResponse
from starlette.types import Receive, Scope, Send

from serving.errors import ProblemError

WEB: Final = Path(__file__).parent.parent / "web"
# What the page says of photos, and what it says where `CATSDOGS_SAMPLES` is set.
NOT_KEPT: Final = "classified, and not kept."
KEPT: Final = (
    "classified, and some are kept to train later models: reduced to 224×224 pixels, without their names or EXIF."
)
METRICS: Final = ' · <a href="metrics">Metrics</a>'


class WholeFile(FileResponse):
    """A file that is always sent whole: Starlette would answer invalid ranges in another error form.

    Browsers must revalidate it before each use, so that a new page never runs with an old script.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or 304 if the client has it."""
        self.headers["accept-ranges"] = "none"
        self.headers["cache-control"] = "no-cache"
        self.stat_result = await asyncio.to_thread(os.stat, self.path)
        self.set_stat_headers(self.stat_result)
        known = Headers(scope=scope).get("if-none-match", "")
        if self.headers["etag"] in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            await NotModifiedResponse(self.headers)(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


async def page(request: Request) -> Response:
    """GET /: the web page, which says whether photos are kept, and links to metrics where they are on this port."""
    settings = request.app.state.service.settings
    if not settings.samples and not settings.metrics_port:
        return WholeFile(WEB / "index.html")
    html = await asyncio.to_thread((WEB / "index.html").read_text)
    if settings.samples:
        html = html.replace(NOT_KEPT, KEPT)
    if settings.metrics_port:
        html = html.replace(METRICS, "")
    # Not stored, or a browser could take it for the file, or the file for it, once the setting has changed.
    return Response(html, media_type="text/html", headers={"cache-control": "no-store"})


async def docs(_: Request) -> Response:
    """GET /docs: Swagger UI for /openapi.json, without files from other sites."""
    return WholeFile(WEB / "docs.html")


async def asset(request: Request) -> Response:
    """GET /assets/NAME: scripts, styles and the icon of the pages."""
    path = _assets().get(request.path_params["name"])
    if path is None:
        raise ProblemError("not_found", "there is no such file")
    return WholeFile(path)


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return Response(request.app.state.openapi, media_type="application/json")


ROUTES: Final = (
    Route("/", page),
    Route("/docs", docs),
    Route("/assets/{name}", asset),
    Route("/openapi.json", openapi),
)


@functools.cache
def _assets() -> dict[str, Path]:
    """Files by name: the page's own, and Swagger UI's from the package offapi."""
    # Importing offapi would read eight megabytes of scripts into memory; only its path is needed.
    spec = importlib.util.find_spec("offapi")
    assert spec is not None and spec.origin is not None
    swagger = Path(spec.origin).parent
    return {
        **{path.name: path for path in WEB.iterdir() if path.suffix in (".js", ".css", ".svg", ".jpg")},
        **{path.name: path for path in swagger.glob("swagger_*") if path.suffix in (".js", ".css")},
    }
