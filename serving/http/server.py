"""The process: uvicorn around the application, signals, and what a person sees when it starts."""

import asyncio
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Final, Literal

import uvicorn
from starlette.applications import Starlette

from serving.engine.supervisor import Forker
from serving.http.app import create_app, create_metrics_app
from serving.http.connections import Door, affordable
from serving.service import Service
from serving.settings import Settings
from serving.telemetry import logs
from serving.telemetry.logs import SERVICE

DRAIN_SECONDS: Final = 10
METRICS_CONNECTIONS: Final = 32


class Listener(uvicorn.Server):
    """uvicorn's server behind a door."""

    def __init__(
        self, app: Starlette, port: int, max_connections: int, lifespan: Literal["on", "off"], drain_seconds: int
    ) -> None:
        """Serve ``app`` on a port of the service's address."""
        self.service: Service = app.state.service
        settings = self.service.settings
        self.door = Door(max_connections, settings.body_seconds, self.service.metrics)
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=port,
                http=self.door.protocol,
                loop="asyncio",
                ws="none",
                lifespan=lifespan,
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=drain_seconds,
            )
        )

    async def on_tick(self, counter: int) -> bool:
        """Sweep twice a second: uvicorn ticks ten times."""
        if counter % 5 == 0:
            self.door.sweep(self.server_state.connections, asyncio.get_running_loop().time())
            self.service.short_of_descriptors = self.door.short
        return await super().on_tick(counter)


class Server(Listener):
    """The service's server, with a graceful stop that ends in exit code 0 and starts by refusing new work."""

    def __init__(self, app: Starlette) -> None:
        """Serve what `create_app` made, and its metrics on a port of their own if the settings name one."""
        settings = app.state.service.settings
        super().__init__(app, settings.port, settings.max_connections, "on", DRAIN_SECONDS)
        self._closes_at: float | None = None
        self.metrics: Listener | None = None
        self._metrics_task: asyncio.Task[None] | None = None
        if settings.metrics_port:
            self.metrics = Listener(
                create_metrics_app(self.service), settings.metrics_port, METRICS_CONNECTIONS, "off", drain_seconds=1
            )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Leave and then drain at the first signal, stop at once at the second.

        uvicorn's own handler raises the signal again once it has stopped, which would end the process as if killed.
        """
        delay = self.service.settings.drain_delay_seconds
        if self.service.leaving:
            self.force_exit = True
        elif delay and self.started:
            self.service.leave()
            self._closes_at = time.monotonic() + delay
            SERVICE.info("leaving", extra={"fields": {"seconds": delay}})
            return
        self.should_exit = True
        self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        """Close the door once balancers have had their time."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
            self.service.drain()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the ports, and say where the page is."""
        self.door.max_connections = affordable(self.door.max_connections)
        metrics_socket = None if self.metrics is None else _listen(self.metrics.config)
        if not self.service.settings.api_keys:
            SERVICE.info("no API keys are set: every client that reaches the service may use it")
        await super().startup(sockets)
        if not self.started:
            return
        if threading.current_thread() is threading.main_thread():  # signals are nobody else's
            loop = asyncio.get_running_loop()
            # Not the loop's own handler, which ends with the loop: a late SIGHUP would end the process.
            signal.signal(signal.SIGHUP, lambda *_: loop.is_closed() or loop.call_soon_threadsafe(self.service.reload))
        if self.metrics is not None and metrics_socket is not None:
            # Not `serve`, which would take the signals for itself.
            self._metrics_task = asyncio.create_task(self.metrics._serve([metrics_socket]))
        port = self.servers[0].sockets[0].getsockname()[1]
        host = "localhost" if self.config.host in ("127.0.0.1", "0.0.0.0", "::") else self.config.host  # noqa: S104  # compared with, not bound to
        print(f"Cats or dogs? http://{host}:{port}/  (API: /docs, stop: Ctrl-C)", file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; the metrics can be read until the last request is answered."""
        await super().shutdown(sockets)
        if self.metrics is not None and self._metrics_task is not None:
            self.metrics.should_exit = True
            self.metrics.force_exit = self.force_exit
            await self._metrics_task


def _listen(config: uvicorn.Config) -> socket.socket:
    """Open the metrics' port before anything runs, so that a port in use ends the process and leaves nothing behind."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=METRICS_CONNECTIONS)
    except OSError as error:
        SERVICE.error("the metrics' port cannot be opened", extra={"fields": {"reason": str(error)}})
        sys.exit(1)


def run(settings: Settings, forker: Forker | None = None) -> int:
    """Serve until a signal, with lanes from a ``forker`` that has been started already; returns the exit code."""
    with logs.to_stdout(settings.log_level):
        server = Server(create_app(settings, forker))
        server.run()
    return 0 if server.started else 1
