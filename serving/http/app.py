"""The application factory: settings in, an ASGI app out, no state outside it."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.engine.lane import ClientGoneError, Zygote
from serving.http import auth, pages, problems
from serving.http.endpoints import ENDPOINTS, Endpoint
from serving.http.observe import PROBES, Observe
from serving.http.openapi import document
from serving.http.origins import Origins
from serving.http.prefix import Prefix
from serving.service import Service
from serving.settings import Settings


def create_app(
    settings: Settings, zygote: Zygote | None = None, endpoints: Sequence[Endpoint] = ENDPOINTS
) -> Starlette:
    """Make the application; its lifespan starts and stops the service.

    ``zygote`` is already running: it was started while this module was imported.
    """
    if settings.metrics_port:
        endpoints = [endpoint for endpoint in endpoints if endpoint.path != "/metrics"]
    routes = [*(endpoint.route for endpoint in endpoints), *pages.ROUTES]
    service = Service(settings, zygote)
    service.metrics.expect(routes)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    middleware = _outer(service)
    if settings.api_keys:
        middleware.append(Middleware(auth.Keys, known=auth.digests(settings.api_keys), metrics=service.metrics))
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={**problems.HANDLERS, ClientDisconnect: _nobody_listens, ClientGoneError: _nobody_listens},
        lifespan=lifespan,
    )
    # A redirect to add or remove a slash would repeat the Host that the client sent.
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.openapi = msgspec.json.encode(document(endpoints, keys=bool(settings.api_keys)))
    return app


def create_metrics_app(service: Service) -> Starlette:
    """Make the application of the metrics' port: metrics and health, without keys."""
    app = Starlette(
        routes=[endpoint.route for endpoint in ENDPOINTS if endpoint.path in PROBES],
        middleware=_outer(service),
        exception_handlers={**problems.HANDLERS, ClientDisconnect: _nobody_listens},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _outer(service: Service) -> list[Middleware]:
    settings = service.settings
    return [
        Middleware(Observe, metrics=service.metrics, exporter=service.exporter),
        Middleware(Prefix, root_path=settings.root_path),
        Middleware(Origins, allowed=settings.origins, host=settings.host, metrics=service.metrics),
    ]


async def _nobody_listens(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
