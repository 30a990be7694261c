"""A server as a tree of processes: start it, stop it while others are measured, and read what it costs."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from types import TracebackType
from typing import Final

from ops.bench.errors import BenchError

ROOT: Final = Path(__file__).parents[2]
TICKS: Final = os.sysconf("SC_CLK_TCK")
START_SECONDS: Final = 90
END_SECONDS: Final = 15
LOG_CHARACTERS: Final = 2000
# A server at rest uses less than this share of a core (worker processes that look after each other use some).
IDLE_SHARE: Final = 0.1


@contextlib.contextmanager
def on_cores(wanted: Set[int]) -> Iterator[None]:
    """Keep this thread, and the processes that it starts in the block, to the cores ``wanted``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ServerProcess:
    """A server process and its descendants.

    Args:
        command: what to run.
        environment: variables to set beside those of this process.
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
        """Start it; :meth:`wait` waits until it answers."""
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
                start_new_session=True,  # Ctrl-C goes to this process only
            )
        except OSError as error:
            self._log.close()
            raise BenchError(f"{command[0]} cannot be started: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def wait(self, request: bytes) -> tuple[float, float]:
        """Wait until it answers; returns the seconds from its start to ready, and to the answer to ``request``.

        Raises:
            BenchError: it exited, or took too long.
        """
        ready = self._poll(self._says_ready) if self._ready else None
        answered = self._poll(lambda: self.ask(request)[0] == 200)
        return ready or answered, answered

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a raw request on a connection of its own; returns status and body."""
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
                raise BenchError(f"the server exited with code {self._process.returncode}:\n{self.log()}")
            time.sleep(0.005)
        raise BenchError(f"the server did not answer within {START_SECONDS} s:\n{self.log()}")

    def log(self) -> str:
        """Its output; of much, the beginning and the end."""
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        return text if len(text) <= 2 * LOG_CHARACTERS else f"{text[:LOG_CHARACTERS]}\n…\n{text[-LOG_CHARACTERS:]}"

    def pids(self) -> list[int]:
        """The processes of the tree."""
        return tree(self.pid)

    def cpu(self) -> float:
        """CPU seconds that the tree has used."""
        return sum(map(cpu_of, self.pids()))

    def pause(self) -> None:
        """Stop all its processes (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after :meth:`pause`."""
        self._signal(signal.SIGCONT)

    def settle(self, seconds: float = 5.0) -> None:
        """Wait until it is idle: some servers work on requests whose clients are gone."""
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
        """End the whole tree."""
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


class PeakMemory:
    """The most memory that a server used during a block, sampled five times a second."""

    def __init__(self, server: ServerProcess) -> None:
        """Sample ``server``."""
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.mb = 0.0

    def _sample(self) -> None:
        while True:
            self.mb = max(self.mb, memory_mb(self._server.pids()))
            if self._end.wait(0.2):
                return

    def __enter__(self) -> "PeakMemory":
        """Start to sample."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sampling."""
        self._end.set()
        self._thread.join()


def tree(root: int) -> list[int]:
    """``root`` and all its descendants."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += map(int, (task / "children").read_text().split())
    return found


def busy() -> float:
    """CPU seconds that this machine has spent so far, in all processes, or lost to its host (steal)."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS


def memory_mb(pids: list[int]) -> float:
    """Memory of the processes in megabytes (10⁶): PSS, so pages that they share are counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total * 1024 / 1e6


def _lives(pid: int) -> bool:
    """Whether a process is there and no zombie (which has no command line)."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended and been waited for."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # The name, in brackets, may hold anything; the fields after it are numbers. utime, stime, cutime, cstime.
    return sum(map(int, text.rpartition(")")[2].split()[11:15])) / TICKS
