"""The engine: a bounded queue before a few lanes, each a thread that decodes and infers a picture in one go.

Measured on two cores: a CPU convnet gains nothing from batching, and two single-threaded runs beat one two-threaded run
by about 15 %. So there is one lane per usable core, and the event loop never decodes, computes or waits for a file.

Everything but the lanes' own loop runs on the event loop, so no state here is locked but the queue's.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from serving.engine.cores import Place
from serving.engine.pace import Pace
from serving.engine.turns import Turns
from serving.errors import ProblemError
from serving.telemetry.logs import SERVICE

T = TypeVar("T")

# Most answers that are handed to the event loop together.
MAX_GROUP: Final = 4
# A lane that has been at one picture for so many deadlines is stuck in a decoder: its caller has long been answered.
STUCK_DEADLINES: Final = 3
# Stuck threads cannot be ended, only replaced, and each holds its memory: so many, in lanes, and the service gives up.
MAX_STUCK: Final = 2


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a piece of work returned, and its seconds in the queue."""

    result: T
    queued: float


class LaneDiedError(Exception):
    """The lane that had this piece of work came to an end with it."""


class ClientGoneError(Exception):
    """Nobody waits for this piece of work any more, so it was not done."""


def _always() -> bool:
    return True


class _Job:
    """A piece of work and who waits for it."""

    __slots__ = ("counted", "future", "size", "submitted", "wanted", "work")

    def __init__(
        self, work: Callable[[bool], Any], future: "asyncio.Future[Done[Any]]", wanted: Callable[[], bool], size: int
    ) -> None:
        self.work = work
        self.future = future
        self.wanted = wanted
        self.size = size
        self.submitted = time.perf_counter()
        self.counted = True  # among the pending


class _Lane:
    """One worker thread, and what it is at."""

    def __init__(self, number: int, work: "Callable[[_Lane], None]") -> None:
        self.number = number
        self.job: _Job | None = None
        self.since = 0.0
        self.replaced = False
        self.thread = threading.Thread(target=work, args=(self,), name=f"lane-{number}", daemon=True)
        self.thread.start()


class Engine:
    """Runs pieces of work in lanes: a request's own in their order, the requests in turn.

    Args:
        lanes: worker threads.
        max_queue: pieces that may wait, beyond those being worked on.
        deadline: seconds after which a piece that was not finished is given up.
    """

    def __init__(self, lanes: int, max_queue: int, deadline: float) -> None:
        """Start the lanes; call on the event loop."""
        self.lanes = lanes
        self.replaced = 0
        self._max_queue = max_queue
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._queue: Turns[_Job] = Turns()
        self._pending = 0
        self._finished: deque[tuple[_Job, object, Exception | None, float, tuple[float, float] | None]] = deque()
        self._pace = Pace()
        self._closed = False
        self._crew = [_Lane(number, self._work) for number in range(lanes)]
        self._stuck: list[_Lane] = []

    @property
    def busy(self) -> int:
        """Lanes at work."""
        return min(self._pending, self.lanes)

    @property
    def depth(self) -> int:
        """Pieces that wait."""
        return self._pending - self.busy

    @property
    def stuck(self) -> int:
        """Threads that have not come back from their piece of work for several deadlines, and were replaced."""
        return len(self._stuck)

    @property
    def exhausted(self) -> bool:
        """Too many threads are stuck to replace any more: only a new process helps."""
        return self.stuck >= MAX_STUCK * self.lanes

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
            raise ProblemError("overloaded", f"{self.depth} pictures are waiting already", self.retry_after())

    def retry_after(self) -> int:
        """Whole seconds until what waits now has been worked off, at the lanes' pace, or given up; at least 1."""
        return max(1, math.ceil(min(self._deadline, self._pending * self._pace.seconds / self.lanes)))

    async def run(
        self, work: Callable[[bool], T], request: object = None, wanted: Callable[[], bool] = _always, size: int = 0
    ) -> Done[T]:
        """Have a lane do ``work``, which must touch nothing of the event loop's; its exceptions are raised here.

        Args:
            work: called in the lane with whether it is alone: nothing else to do, so that it may use every core.
            request: whose it is. Requests take turns, so none waits for all of another's; None stands by itself.
            wanted: asked in the lane before it starts; False skips the work.
            size: bytes of its picture. One that will take longer than others starts as much earlier, so that of those
                that came together none is answered much later: 12 megapixels take ten times as long as most photos,
                and would have to wait as long as these besides. 0 starts when its turn comes.

        A caller that is cancelled while its work waits leaves nothing behind: the lane skips it.

        Raises:
            ProblemError: ``deadline_exceeded``.
            ClientGoneError: it was not wanted.
            LaneDiedError: the lane ended over this work.
        """
        job = _Job(work, self._loop.create_future(), wanted, size)
        timer = self._loop.call_later(self._deadline, self._give_up, job)
        self._pending += 1
        self._queue.put(job, job if request is None else request, self._pace.head_start(size))
        try:
            return await job.future
        finally:
            timer.cancel()

    def check(self) -> None:
        """Replace lanes that have died or are stuck; call every second or so, on the event loop."""
        self._finish()
        self._stuck = [lane for lane in self._stuck if lane.thread.is_alive()]
        for place, lane in enumerate(self._crew):
            died = not lane.thread.is_alive()
            stuck = lane.job is not None and time.perf_counter() - lane.since > STUCK_DEADLINES * self._deadline
            if self._closed or not (died or stuck) or self.exhausted:
                continue
            SERVICE.error("a lane died" if died else "a lane is stuck", extra={"fields": {"lane": lane.number}})
            lane.replaced = True
            if stuck and lane.job is not None:
                self._stuck.append(lane)
                self._leave(lane.job)
            self._crew[place] = _Lane(lane.number, self._work)
            self.replaced += 1

    async def close(self) -> None:
        """Finish what was accepted and end the lanes; a stuck one is left behind."""
        self.close_admission()
        self._queue.end(len(self._crew))
        for lane in self._crew:
            await asyncio.to_thread(lane.thread.join, self._deadline)

    def _give_up(self, job: _Job) -> None:
        if not job.future.done():
            job.future.set_exception(
                ProblemError("deadline_exceeded", f"no answer within {self._deadline:g} seconds", self.retry_after())
            )

    def _work(self, lane: _Lane) -> None:
        place = Place(lane.number, self.lanes)
        while not lane.replaced and (job := self._queue.get()) is not None:
            lane.job, lane.since = job, time.perf_counter()
            result: object = None
            error: Exception | None = None
            # A stuck thread may keep a core busy for good; then the others had better go where there is room.
            place.keep(kept=self._pending >= self.lanes and not self._stuck)
            done = job.future.done()
            processor = time.thread_time()
            try:
                if not done and not job.wanted():
                    done, error = True, ClientGoneError()
                elif not done:
                    result = job.work(self._pending == 1)
            # Whatever the work raised belongs to whoever asked for it; the lane goes on.
            except Exception as raised:
                error = raised
            # SystemExit and the like end the lane; `check` sees to a new one.
            except BaseException:
                error = LaneDiedError(f"lane {lane.number} ended in the middle of this picture")
                lane.replaced = True
            took = None
            # What was refused, or given up, says nothing of what pictures cost.
            if not done and error is None and not job.future.done():
                took = (time.thread_time() - processor, time.perf_counter() - lane.since)
            queued = lane.since - job.submitted
            lane.job = None
            self._finished.append((job, result, error, queued, took))
            # While many wait, answers are handed over in groups: a lane leaves the caches to the network, and waking
            # the event loop on that core costs more than what it then does. They wait for less than they queued.
            finished = len(self._finished)
            if finished >= min(MAX_GROUP, 1 + (self.depth - finished) // 2):
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        while self._finished:
            self._answer(*self._finished.popleft())

    def _answer(
        self, job: _Job, result: object, error: Exception | None, queued: float, took: tuple[float, float] | None
    ) -> None:
        self._leave(job)
        if took is not None:
            self._pace.add(job.size, *took)
        if job.future.done():
            return
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(Done(result, queued))

    def _leave(self, job: _Job) -> None:
        self._pending -= job.counted
        job.counted = False
