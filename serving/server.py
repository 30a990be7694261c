"""The process: uvicorn around the application, signals, and what a person sees when it starts."""

import socket
import sys
from types import FrameType
from typing import Final

import uvicorn

from serving import logs
from serving.app import create_app
from serving.service import Service
from serving.settings import Settings

DRAIN_SECONDS: Final = 10


class Server(uvicorn.Server):
    """uvicorn's server, with a graceful stop that ends in exit code 0 and starts by refusing new work."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        """Serve ``config``; ``service`` is told first when it is time to stop."""
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Drain at the first signal, stop at once at the second.

        uvicorn's own handler raises the signal again once it has stopped, which would end the process as if killed.
        """
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self.service.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where the page is, once the port is open."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            host = "localhost" if self.config.host in ("127.0.0.1", "0.0.0.0", "::") else self.config.host  # noqa: S104  # compared with, not bound to
            print(f"Cats or dogs? http://{host}:{port}/  (API: /docs, stop: Ctrl-C)", file=sys.stderr, flush=True)


def run(settings: Settings) -> int:
    """Serve until a signal; returns the exit code."""
    # The default of 5 ms lets a lane that holds the interpreter keep the event loop waiting for as long.
    sys.setswitchinterval(0.001)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    with logs.to_stdout(settings.log_level):
        server = Server(config, app.state.service)
        server.run()
    return 0 if server.started else 1
