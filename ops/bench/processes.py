"""A server as a tree of processes: started, stopped while others are measured, and what it costs."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from ops.bench.errors import BenchError

ROOT: Final = Path(__file__).parents[2]
TICKS: Final = os.sysconf("SC_CLK_TCK")
START_SECONDS: Final = 90
END_SECONDS: Final = 15
# A server at rest uses less than this share of a core (worker processes that look after each other use some).
IDLE_SHARE: Final = 0.1


def cores() -> int:
    """Cores that this process, and so whatever it starts, may use."""
    return len(os.sched_getaffinity(0))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ServerProcess:
    """A server process, with what it starts itself.

    Args:
        command: what to run.
        environment: variables to set for it beside the ones there are.
        port: where it will listen.
        ready: a path that answers 200 once it is ready; None where only a prediction tells.
        folder: where to run it.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        port: int,
        ready: str | None = None,
        folder: Path = ROOT,
    ) -> None:
        """Start it; see :meth:`wait`."""
        self.port = port
        self._ready = ready
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed in stop()
        self.started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the signals below go to the group, and Ctrl-C to this process alone
            )
        except OSError as error:
            self._log.close()
            raise BenchError(f"{command[0]} cannot be started: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def wait(self, request: bytes) -> tuple[float, float]:
        """Wait for it; returns the seconds from its start until it was ready, and until it had answered ``request``.

        Raises:
            BenchError: it ended, or took too long.
        """
        ready = self._poll(self._says_ready) if self._ready else None
        answered = self._poll(lambda: self.ask(request)[0] == 200)
        return ready or answered, answered

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request as it stands, on a connection of its own; returns status and body."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, response.read()

    def _says_ready(self) -> bool:
        assert self._ready is not None
        head = f"GET {self._ready} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        return self.ask(head.encode())[0] == 200

    def _poll(self, condition: Callable[[], bool]) -> float:
        while time.monotonic() < self.started + START_SECONDS:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if condition():
                    return time.monotonic() - self.started
            if self._process.poll() is not None:
                raise BenchError(f"the server ended with exit code {self._process.returncode}:\n{self.log()}")
            time.sleep(0.005)
        raise BenchError(f"the server did not answer within {START_SECONDS} s:\n{self.log()}")

    def log(self) -> str:
        """The end of what it wrote."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]

    def pids(self) -> list[int]:
        """The processes of the tree."""
        return tree(self.pid)

    def cpu(self) -> float:
        """Seconds of processor time that the tree has used."""
        return sum(map(cpu_of, self.pids()))

    def pause(self) -> None:
        """Have it stand still, so that it takes no time from others."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def settle(self, seconds: float = 5.0) -> None:
        """Wait until it has nothing to do: requests whose clients are gone are work for some servers."""
        end, before = time.monotonic() + seconds, self.cpu()
        while time.monotonic() < end:
            time.sleep(0.2)
            now = self.cpu()
            if now - before < 0.2 * IDLE_SHARE:
                return
            before = now

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End it and everything it started."""
        left = self.pids()
        self._signal(signal.SIGCONT)
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        for pid in {*left, *self.pids()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        end = time.monotonic() + END_SECONDS
        while any(map(_lives, left)) and time.monotonic() < end:
            time.sleep(0.01)
        self._log.close()

    def __enter__(self) -> "ServerProcess":
        """Use it in a block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it."""
        self.stop()


class Watch:
    """The most memory that a server used while a block ran, looked at five times a second."""

    def __init__(self, server: ServerProcess) -> None:
        """Watch ``server``."""
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_mb = 0.0

    def _look(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, memory_mb(self._server.pids()))
            if self._end.wait(0.2):
                return

    def __enter__(self) -> "Watch":
        """Start to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look once more, and no longer."""
        self._end.set()
        self._thread.join()


def tree(root: int) -> list[int]:
    """``root`` and all that descend from it."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += map(int, (task / "children").read_text().split())
    return found


def busy() -> float:
    """Seconds of processor time that this machine has worked for anybody, or was kept from working by its host."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS


def memory_mb(pids: list[int]) -> float:
    """Megabytes (10⁶) of the processes: what they share with others counts by its share (PSS), so the sum is right."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total * 1024 / 1e6


def _lives(pid: int) -> bool:
    """Whether a process has neither ended nor waits for its parent to notice (it has no command any more then)."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def cpu_of(pid: int) -> float:
    """Seconds of a process and of those of its children that have ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # The name, in brackets, may hold anything; the fields after it are numbers. utime, stime, cutime, cstime.
    return sum(map(int, text.rpartition(")")[2].split()[11:15])) / TICKS
