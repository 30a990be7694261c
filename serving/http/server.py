"""The server process: uvicorn around the application, signals, and the line printed at start."""

import asyncio
import contextlib
import errno
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final, Literal

import uvicorn
from starlette.applications import Starlette

from serving.engine.lane import Zygote
from serving.http.app import create_app, create_metrics_app
from serving.http.connections import ConnectionLimits
from serving.http.descriptors import affordable, log_exception
from serving.http.origins import on_loopback
from serving.service import Service
from serving.settings import PREFIX, Settings, unknown
from serving.telemetry import logs
from serving.telemetry.logs import SERVICE

DRAIN_SECONDS: Final = 10
METRICS_CONNECTIONS: Final = 32
# The exit code of a service that cannot start as it is set.
MISTAKE: Final = 2


class StartError(Exception):
    """The service cannot start as it is set; the message says why."""


class Listener(uvicorn.Server):
    """uvicorn's server with connection limits."""

    def __init__(
        self, app: Starlette, port: int, max_connections: int, lifespan: Literal["on", "off"], drain_seconds: int
    ) -> None:
        """Serve ``app`` on a port of the service's address."""
        self.service: Service = app.state.service
        settings = self.service.settings
        self.limits = ConnectionLimits(max_connections, settings.body_seconds, self.service.metrics)
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=port,
                http=self.limits.protocol,
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
            self.limits.sweep(self.server_state.connections, asyncio.get_running_loop().time())
            self.service.short_of_descriptors = self.limits.short
        return await super().on_tick(counter)


class Server(Listener):
    """The service's server. It stops gracefully: first refuse new work, then drain, then exit with code 0."""

    def __init__(self, app: Starlette, *, needs_model: bool = False) -> None:
        """Serve an app made by `create_app`, and its metrics on a separate port if the settings name one.

        With ``needs_model`` it ends if the first model is refused; otherwise it waits for another file.
        """
        settings = app.state.service.settings
        super().__init__(app, settings.port, settings.max_connections, "on", DRAIN_SECONDS)
        self._closes_at: float | None = None
        self._needs_model = needs_model
        self.code = 0  # the process's exit code
        self.metrics: Listener | None = None
        self._metrics_task: asyncio.Task[None] | None = None
        if settings.metrics_port:
            self.metrics = Listener(
                create_metrics_app(self.service), settings.metrics_port, METRICS_CONNECTIONS, "off", drain_seconds=1
            )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Stop taking requests and drain on the first signal, stop at once on the second.

        uvicorn's own handler raises the signal again after it has stopped, and the process would look killed.
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
        """Close the port when the drain delay for load balancers is over."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
            self.service.drain()
        if self.service.engine.lost and not self.should_exit:
            SERVICE.error("no worker can be started; the process ends, for a supervisor to start another")
            self.should_exit, self.code = True, 1
        self._end_if_refused()
        return await super().on_tick(counter)

    def _end_if_refused(self) -> None:
        if self._needs_model and self.service.manager.decided.is_set():
            self._needs_model = False
            if self.service.manager.model is None:
                self.should_exit, self.code = True, MISTAKE

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the ports and print the page's address.

        Raises:
            StartError: a port cannot be opened.
        """
        asyncio.get_running_loop().set_exception_handler(log_exception)
        self.limits.max_connections = affordable(self.limits.max_connections)
        metrics_socket = None
        if self.metrics is not None:
            with _explained(self.metrics.config, "METRICS_PORT"):
                metrics_socket = _listen(self.metrics.config)
        with _explained(self.config, "PORT"):
            await _probe(self.config)
        if not self.service.settings.api_keys and not on_loopback(self.config.host):
            SERVICE.info("no API keys are set: any client that reaches the service may use it")
        await super().startup(sockets)
        self._end_if_refused()
        if self.should_exit or not self.started:
            return
        if threading.current_thread() is threading.main_thread():  # only it can have signal handlers
            loop = asyncio.get_running_loop()
            # Not the loop's own handler, which is removed when the loop closes: a late SIGHUP would end the process.
            signal.signal(signal.SIGHUP, lambda *_: loop.is_closed() or loop.call_soon_threadsafe(self.service.reload))
        if self.metrics is not None and metrics_socket is not None:
            # Not `serve`, which would install signal handlers too.
            self._metrics_task = asyncio.create_task(self.metrics._serve([metrics_socket]))
        port = self.servers[0].sockets[0].getsockname()[1]
        host = "localhost" if self.config.host in ("127.0.0.1", "0.0.0.0", "::") else self.config.host  # noqa: S104  # compared with, not bound to
        print(f"Cats or dogs? http://{host}:{port}/  (API: /docs, stop: Ctrl-C)", file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; the metrics' port stays open until the last request is answered."""
        await super().shutdown(sockets)
        if self.metrics is not None and self._metrics_task is not None:
            self.metrics.should_exit = True
            self.metrics.force_exit = self.force_exit
            await self._metrics_task


def _listen(config: uvicorn.Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    return socket.create_server((config.host, config.port), family=family, backlog=METRICS_CONNECTIONS)


async def _probe(config: uvicorn.Config) -> None:
    """Raise OSError if the port cannot be opened: uvicorn finds out only when the model is loaded."""
    loop = asyncio.get_running_loop()
    (await loop.create_server(asyncio.Protocol, config.host, config.port, start_serving=False)).close()


@contextlib.contextmanager
def _explained(config: uvicorn.Config, name: str) -> Iterator[None]:
    """Raise a `StartError` for an OSError; ``name`` is the setting's that the port comes from."""
    try:
        yield
    except OSError as error:
        port = config.port
        if error.errno == errno.EADDRINUSE:
            another = port + 1 if port < 65_535 else 8000
            raise StartError(f"port {port} is taken: try {PREFIX}{name}={another}") from error
        raise StartError(f"{config.host}, port {port}, cannot be opened: {error.strerror}") from error


def run(settings: Settings, zygote: Zygote | None = None) -> int:
    """Serve until a signal; ``zygote`` is already running. Returns the exit code.

    On a terminal somebody is there to put another model in the place of one that is refused; elsewhere that may happen
    while the service runs.
    """
    with logs.to_stdout(settings.log_level):
        for line in unknown():
            SERVICE.warning(line)
        server = Server(create_app(settings, zygote), needs_model=sys.stdout.isatty())
        try:
            server.run()
        except StartError as error:
            SERVICE.error(str(error))
            return MISTAKE
        finally:  # also where it did not come to start the service
            if zygote is not None:
                zygote.kill()
    return server.code if server.started else 1
