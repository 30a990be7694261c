"""The application: settings in, an ASGI app out, with no state outside it."""

import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import Future

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving import errors
from serving.engine.engine import ClientGoneError
from serving.http import auth
from serving.http.observe import Observe
from serving.http.openapi import document
from serving.http.routes import METRICS_ROUTES, ROUTES
from serving.model.session import Model
from serving.service import Service
from serving.settings import Settings


def create_app(settings: Settings, loading: Future[Model] | None = None) -> Starlette:
    """Make the application; its lifespan starts and stops the service.

    ``loading`` is a load of the model that has begun already, beside the imports of this module.
    """
    service = Service(settings, loading)
    service.metrics.expect(ROUTES)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    middleware = [Middleware(Observe, metrics=service.metrics)]
    if settings.api_keys:
        middleware.append(Middleware(auth.Keys, known=auth.digests(settings.api_keys), metrics=service.metrics))
    elsewhere = "/metrics" if settings.metrics_port else None
    app = Starlette(
        routes=[route for route in ROUTES if route.path != elsewhere],
        middleware=middleware,
        exception_handlers={**errors.HANDLERS, ClientDisconnect: _nobody_listens, ClientGoneError: _nobody_listens},
        lifespan=lifespan,
    )
    # A redirect to an address without its slash would repeat whatever Host the client named.
    app.router.redirect_slashes = False
    app.state.service = service
    described = document()
    described["paths"].pop(elsewhere, None)
    if settings.api_keys:
        described["security"].remove({})  # which says that none is needed, and now is so for these alone
        for path in auth.OPEN:
            described["paths"][path]["get"]["security"] = []
    app.state.openapi = msgspec.json.encode(described)
    return app


def create_metrics_app(service: Service) -> Starlette:
    """Make the application of the metrics' own port: no keys, nothing but metrics and health."""
    app = Starlette(
        routes=list(METRICS_ROUTES),
        middleware=[Middleware(Observe, metrics=service.metrics)],
        exception_handlers={**errors.HANDLERS, ClientDisconnect: _nobody_listens},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _nobody_listens(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
