"""A real server on a real port, in a thread, with the shipped model."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import msgspec
import pytest

from serving.engine.lane import WORKER, Zygote
from serving.http.app import create_app
from serving.http.server import Server
from serving.service import Service
from serving.settings import Settings
from tests.conftest import blobs, encoded

PHOTO = encoded(blobs(1), "JPEG")


@dataclass
class Running:
    """A started server."""

    http: httpx.Client
    service: Service
    port: int
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    def reload(self) -> None:
        """What SIGHUP does."""
        self.loop.call_soon_threadsafe(self.service.reload)

    def predict(self, data: bytes = PHOTO, **options: object) -> httpx.Response:
        return self.http.post("/predict", files={"file": data}, **options)  # type: ignore[arg-type]

    def explain(self, data: bytes = PHOTO) -> httpx.Response:
        return self.http.post("/explain", files={"file": data})

    def metric(self, line: str) -> float:
        """Value of the metric line that starts so, or 0."""
        found = [text for text in self.http.get("/metrics").text.splitlines() if text.startswith(line + " ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


Start = Callable[..., Running]


def start_server(
    settings: Settings, *, wait_ready: bool = True, worker: str = WORKER
) -> tuple[Running, Callable[[], None]]:
    server = Server(create_app(msgspec.structs.replace(settings, port=0), Zygote(worker)))
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def stop() -> None:
        http.close()
        server.should_exit = True
        thread.join()

    if wait_ready:
        for _ in range(2000):
            if http.get("/health/ready").status_code == 200:
                break
            time.sleep(0.01)
        else:
            stop()
            pytest.fail("the server did not become ready")
    return Running(http, server.service, port, loops[0], thread), stop


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server with settings of one's own."""
    stops: list[Callable[[], None]] = []

    def begin(wait_ready: bool = True, worker: str = WORKER, **settings: object) -> Running:
        running, stop = start_server(Settings(**settings), wait_ready=wait_ready, worker=worker)  # type: ignore[arg-type]
        stops.append(stop)
        return running

    yield begin
    for stop in stops:
        stop()


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """The server with its default settings."""
    running, stop = start_server(Settings())
    yield running
    stop()
