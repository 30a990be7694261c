"""The engine: a bounded queue before a few lanes, each a thread that decodes and infers a picture in one go.

Measured on two cores: a CPU convnet gains nothing from batching, and two single-threaded runs beat one two-threaded run
by about 15 %. So there is one lane per usable core, and the event loop never decodes, computes or waits for a file.

Everything but the lanes' own loop runs on the event loop, so no state here is locked.
"""

import asyncio
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from serving.problems import ProblemError

T = TypeVar("T")

# How much of the mean service time is the latest picture's: about the last 20 count.
SMOOTHING = 0.05


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a piece of work returned, and its seconds in the queue."""

    result: T
    queued: float


@dataclass(slots=True)
class _Job:
    work: Callable[[], Any]
    future: "asyncio.Future[Done[Any]]"
    submitted: float
    abandoned: bool = False


class Engine:
    """Runs pieces of work in lanes, in the order they came.

    Args:
        lanes: worker threads.
        max_queue: pieces that may wait, beyond those being worked on.
        deadline: seconds after which a piece that was not finished is given up.
    """

    def __init__(self, lanes: int, max_queue: int, deadline: float) -> None:
        """Start the lanes; call on the event loop."""
        self.lanes = lanes
        self._max_queue = max_queue
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pending = 0
        self._mean_seconds = 0.02
        self._closed = False
        self._threads = [
            threading.Thread(target=self._lane, name=f"lane-{number}", daemon=True) for number in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> int:
        """Lanes at work."""
        return min(self._pending, self.lanes)

    @property
    def depth(self) -> int:
        """Pieces that wait."""
        return self._pending - self.busy

    def close_admission(self) -> None:
        """Refuse new work from now on; what was accepted is finished."""
        self._closed = True

    def admit(self) -> None:
        """Refuse a request while there is no room for it.

        Raises:
            ProblemError: ``draining``, or ``overloaded`` with the seconds after which there should be room again.
        """
        if self._closed:
            raise ProblemError("draining", "the service is shutting down; another one will answer")
        if self.depth >= self._max_queue:
            seconds = math.ceil(self._pending * self._mean_seconds / self.lanes)
            raise ProblemError("overloaded", f"{self.depth} pictures are waiting already", retry_after=max(1, seconds))

    async def run(self, work: Callable[[], T]) -> Done[T]:
        """Have a lane do ``work``, which must touch nothing of the event loop's; its exceptions are raised here.

        A caller that is cancelled while its work waits leaves nothing behind: the lane skips it.

        Raises:
            ProblemError: ``deadline_exceeded``.
        """
        job = _Job(work, self._loop.create_future(), time.perf_counter())
        self._pending += 1
        self._queue.put(job)
        try:
            async with asyncio.timeout(self._deadline):
                return await job.future
        except TimeoutError as error:
            raise ProblemError(
                "deadline_exceeded",
                f"no answer within {self._deadline:g} seconds",
                retry_after=max(1, math.ceil(self._pending * self._mean_seconds / self.lanes)),
            ) from error
        finally:
            job.abandoned = True

    async def close(self) -> None:
        """Finish what was accepted and end the lanes."""
        self.close_admission()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _lane(self) -> None:
        while (job := self._queue.get()) is not None:
            started = time.perf_counter()
            result, error = None, None
            if not job.abandoned:
                try:
                    result = job.work()
                # Whatever the work raised belongs to whoever asked for it; the lane goes on.
                except Exception as raised:
                    error = raised
            seconds = time.perf_counter() - started
            self._loop.call_soon_threadsafe(self._finish, job, result, error, started, seconds)

    def _finish(self, job: _Job, result: object, error: Exception | None, started: float, seconds: float) -> None:
        self._pending -= 1
        if job.future.done():
            return
        self._mean_seconds += SMOOTHING * (seconds - self._mean_seconds)
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(Done(result, started - job.submitted))


def usable_cores() -> int:
    """Cores this process may use: its affinity, or a container's quota if that is less; at least 1.

    The host's cores are what onnxruntime and os.cpu_count() see, and a container's share of them may be one.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup"))
    return max(1, min(affinity, math.ceil(quota) if quota else affinity))


def _quota(cgroup: Path) -> float | None:
    """Cores granted by control groups (version 2, then 1), or None without a limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(limit) / int(period) if limit.lstrip("-").isdecimal() and int(limit) > 0 else None
