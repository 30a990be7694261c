"""Where a search's trials run: one after the other in processes of this machine, or side by side on a Ray cluster."""

import os
import subprocess
import sys
import threading
from collections.abc import Generator, Hashable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import IO, Any, Final, NamedTuple, Protocol

from shared.clusters import connect
from training.stage import StageError

COMMAND: Final = (sys.executable, "-P", "-u", "-m", "training.train")


class Ended(NamedTuple):
    """A trial has ended; ``why`` it failed, if it did."""

    why: str | None


class Machines(Protocol):
    """What runs trials."""

    at_once: int
    hosts: int

    def start(self, folder: str, environment: dict[str, str]) -> Hashable:
        """Start training in a folder; returns the trial's handle."""

    def heard(self) -> tuple[Hashable, str | Ended]:
        """Wait for a line that any trial prints, or its end; returns it with the trial's handle."""

    def stop(self, *handles: Hashable) -> None:
        """End trials; returns when their processes have ended. Their last checkpoints stay."""


class Here:
    """This machine, one trial at a time."""

    at_once = hosts = 1

    def __init__(self) -> None:
        """Make it; nothing runs yet."""
        self._running: dict[Hashable, Generator[str, None, None]] = {}

    def start(self, folder: str, environment: dict[str, str]) -> Hashable:
        """See `Machines`."""
        self._running[folder] = trained(folder, environment, None)
        return folder

    def heard(self) -> tuple[Hashable, str | Ended]:
        """See `Machines`."""
        ((handle, lines),) = self._running.items()
        try:
            return handle, next(lines)
        except StopIteration:
            why = None
        except StageError as error:
            why = str(error)
        del self._running[handle]
        return handle, Ended(why)

    def stop(self, *handles: Hashable) -> None:
        """See `Machines`."""
        for handle in handles:
            self._running.pop(handle).close()


class Cluster:
    """A Ray cluster: a trial for each GPU, or for each machine if there is none.

    Every machine needs the same checkout and environment, and the working folder under the same path.
    """

    def __init__(self, address: str) -> None:
        """Connect to it.

        Raises:
            StageError: there is no cluster at the address.
        """
        import ray  # noqa: PLC0415 - an extra

        try:
            connect(address)
        except ConnectionError as error:
            raise StageError(str(error)) from error
        self._ray = ray
        nodes = [node for node in ray.nodes() if node["Alive"]]
        cores = [node["Resources"]["CPU"] for node in nodes if "CPU" in node["Resources"]]
        self.hosts = len({node["NodeManagerAddress"] for node in nodes})
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self.at_once = gpus or len(cores)
        takes = {"num_gpus": 1, "num_cpus": sum(cores) // gpus} if gpus else {"num_cpus": min(cores)}
        # Not retried: lines that a second attempt prints would be taken for those of the first.
        self._trained = ray.remote(trained).options(
            num_returns="streaming", max_retries=0, scheduling_strategy="SPREAD", **takes
        )
        self._running: list[Any] = []

    def start(self, folder: str, environment: dict[str, str]) -> Hashable:
        """See `Machines`."""
        known = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        handle: Hashable = self._trained.remote(folder, known | environment, subprocess.STDOUT)
        self._running.append(handle)
        return handle

    def heard(self) -> tuple[Hashable, str | Ended]:
        """See `Machines`."""
        (lines,), _ = self._ray.wait(self._running, num_returns=1)
        self._running.remove(lines)
        try:
            line: str = self._ray.get(next(lines))
        except StopIteration:
            return lines, Ended(None)
        except self._ray.exceptions.RayTaskError as error:
            return lines, Ended(str(error.cause))
        except self._ray.exceptions.RayError as error:
            raise StageError(f"Ray: {str(error).splitlines()[0]}; the same command goes on") from error
        self._running.append(lines)  # last, so that no other waits for long
        return lines, line

    def stop(self, *handles: Hashable) -> None:
        """See `Machines`."""
        for handle in handles:
            self._ray.cancel(handle)
        for handle in handles:
            self._running = [lines for lines in self._running if lines is not handle]
            with suppress(self._ray.exceptions.RayError, StopIteration):
                while True:
                    self._ray.get(next(handle))  # type: ignore[call-overload]


def trained(folder: str, environment: dict[str, str], stderr: int | None) -> Generator[str, None, None]:
    """Train in a folder; yields the lines that are printed. Closing it, or an interrupt, ends the training.

    Raises:
        StageError: the training failed, or there is no such folder on this machine.
    """
    around = os.environ | environment
    try:
        process = subprocess.Popen(COMMAND, cwd=folder, env=around, stdout=subprocess.PIPE, stderr=stderr, text=True)
    except OSError as error:
        raise StageError(f"{folder}: {error.strerror}") from error
    lines = SimpleQueue[str | None]()
    with process:
        # In a thread, since Ray's interrupt would wait for the next line.
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        try:
            while (line := _next(lines)) is not None:
                yield line
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        raise StageError(f"training ended with exit code {process.returncode}")


def _read(printed: IO[str], lines: SimpleQueue[str | None]) -> None:
    for line in printed:
        lines.put(line)
    lines.put(None)


def _next(lines: SimpleQueue[str | None]) -> str | None:
    while True:
        with suppress(Empty):
            return lines.get(timeout=0.5)
