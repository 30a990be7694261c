"""Containers as they are run in production: hardened, small, on a port of this machine's alone."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Final

import httpx

from tests.conftest import ROOT
from tests.containers.engine import Docker
from tests.waiting import PATIENCE, until

CAT: Final = (ROOT / "tests/cat.jpg").read_bytes()
MEMORY: Final = 256
HARDENED: Final = (
    "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", f"{MEMORY}m",
    "--memory-swap", f"{MEMORY}m", "--cpus", "1", "--pids-limit", "128",
)  # fmt: skip


class Container:
    """One running container of the service."""

    def __init__(self, docker: Docker, image: str, *options: str) -> None:
        self.docker = docker
        self.started = time.perf_counter()
        self.id = docker.run("--publish", "127.0.0.1::8000", *options, image)
        self.url = "http://" + docker("port", self.id, "8000/tcp").splitlines()[0]

    def ready(self) -> float:
        """Wait until it is ready; returns the seconds since it was asked for."""

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/health/ready").status_code == 200
            return False

        give_up = time.monotonic() + PATIENCE
        while not answers():
            assert time.monotonic() < give_up and self.state()["Running"], self.said()
            time.sleep(0.01)
        return time.perf_counter() - self.started

    def predict(self, data: bytes = CAT) -> httpx.Response:
        """Ask about one picture."""
        return httpx.post(f"{self.url}/predict", files={"file": data}, timeout=PATIENCE)

    def state(self) -> dict[str, object]:
        """What the engine says of it: Running, ExitCode, OOMKilled, Health, Pid."""
        return dict(self.docker.inspect(self.id)["State"])

    def said(self) -> str:
        """Its log."""
        return self.docker("logs", self.id)

    def logged(self, message: str) -> dict[str, object]:
        """The first line of its log with that message, once it is there."""
        found: list[dict[str, object]] = []

        def there() -> bool:
            lines = (json.loads(line) for line in self.said().splitlines() if line.startswith("{"))
            found.extend(line for line in lines if line["message"] == message)
            return bool(found)

        until(there)
        return found[0]


@contextlib.contextmanager
def running(docker: Docker, image: str, *options: str) -> Iterator[Container]:
    """Run a container, and remove it."""
    container = Container(docker, image, *options)
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container.id)
