"""The application: settings in, an ASGI app out, with no state outside it."""

import contextlib
from collections.abc import AsyncIterator

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving import problems
from serving.observe import Observe
from serving.openapi import document
from serving.routes import ROUTES
from serving.service import Service
from serving.settings import Settings


def create_app(settings: Settings) -> Starlette:
    """Make the application; its lifespan starts and stops the service."""
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = Starlette(
        routes=list(ROUTES),
        middleware=[Middleware(Observe, metrics=service.metrics)],
        exception_handlers={**problems.HANDLERS, ClientDisconnect: _nobody_listens},
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.openapi = msgspec.json.encode(document())
    return app


async def _nobody_listens(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
