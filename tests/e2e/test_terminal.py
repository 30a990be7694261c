"""`catsdogs serve` on a terminal speaks to people."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, measured


class Terminal:
    """A terminal in which the service was started."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.screen, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("catsdogs"), "serve", *arguments],
            env={k: v for k, v in os.environ.items() if not k.startswith("CATSDOGS_")} | measured() | environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.said = ""

    def read(self, pattern: str = "$.") -> re.Match[str] | None:
        """Read until the pattern comes, or the end; by default to the end."""
        while (found := re.search(pattern, self.said)) is None:
            try:
                self.said += os.read(self.screen, 4096).decode()
            except OSError:  # the end, on Linux
                break
        return found

    def ended(self) -> int:
        self.read()
        return self.process.wait(30)


@pytest.fixture
def serve() -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def start(*arguments: str, **environment: str) -> Terminal:
        terminals.append(Terminal(*arguments, **environment))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)


def test_requests_and_mistakes_are_plain_lines(serve: Callable[..., Terminal]) -> None:
    terminal = serve("--port", "0", CATSDOGS_MAX_QEUE="3")
    address = terminal.read(r"http://localhost:\d+")
    assert address
    assert httpx.get(f"{address[0]}/docs").status_code == 200
    assert terminal.read(r"\d\d:\d\d:\d\d GET /docs: 200, [\d.]+ ms")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 0
    assert (
        "warning: CATSDOGS_MAX_QEUE is no setting and has no effect; did you mean CATSDOGS_MAX_QUEUE?" in terminal.said
    )
    assert "{" not in terminal.said
    assert "any client" not in terminal.said  # it listens on loopback
    assert "uvicorn" not in terminal.said.lower()


def test_a_port_that_is_taken_is_named_with_another(serve: Callable[..., Terminal]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        terminal = serve(CATSDOGS_PORT=str(port))
        assert terminal.ended() == 2
    assert f"error: port {port} is taken: try CATSDOGS_PORT={port + 1}" in terminal.said


def test_a_host_that_is_none_of_this_machine_s_is_named(serve: Callable[..., Terminal]) -> None:
    terminal = serve("--host", "192.0.2.1")
    assert terminal.ended() == 2
    assert "error: 192.0.2.1, port 8000, cannot be opened: " in terminal.said


def test_a_model_that_is_refused_ends_it(serve: Callable[..., Terminal]) -> None:
    terminal = serve("--port", "0", "--model", str(ROOT / "tests/cat.jpg"))
    assert terminal.ended() == 2
    assert "error: the model is refused: cat.jpg: not a model" in terminal.said
