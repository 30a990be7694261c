"""Where a search's trials run: one after the other in processes of this machine, or side by side on a Ray cluster."""

import os
import subprocess
import sys
from collections.abc import Generator, Hashable
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

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

    def stop(self, handle: Hashable) -> None:
        """End a trial. Its last checkpoint stays."""


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

    def stop(self, handle: Hashable) -> None:
        """See `Machines`."""
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
        takes: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": min(cores)}
        self._trained = ray.remote(trained).options(num_returns="streaming", **takes)
        self._running: list[Any] = []

    def start(self, folder: str, environment: dict[str, str]) -> Hashable:
        """See `Machines`."""
        self._running.append(self._trained.remote(folder, environment, subprocess.STDOUT))
        handle: Hashable = self._running[-1]
        return handle

    def heard(self) -> tuple[Hashable, str | Ended]:
        """See `Machines`."""
        (lines,), _ = self._ray.wait(self._running, num_returns=1)
        try:
            return lines, self._ray.get(next(lines))
        except StopIteration:
            why = None
        except self._ray.exceptions.RayError as error:
            why = str(getattr(error, "cause", error)).splitlines()[0]
        self._running.remove(lines)
        return lines, Ended(why)

    def stop(self, handle: Hashable) -> None:
        """See `Machines`."""
        self._running.remove(handle)
        self._ray.cancel(handle)
        with suppress(self._ray.exceptions.RayError, StopIteration):  # until its process has ended, it may write
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
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:  # noqa: UP028 - Ray sends values, which a file does not take
                yield line
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise StageError(f"training ended with exit code {process.returncode}")
