"""The lanes of a model: started, given work, watched, and replaced when they end."""

import asyncio
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Self

import msgspec

from serving.engine.lane import ClientGoneError, Job, Lane, LaneStartError, Zygote
from serving.engine.wire import Answer, Body, Flags, Loaded, ModelFailed, Outcome, PictureRefused, Ready, Start
from serving.errors import ProblemError
from serving.telemetry.logs import SERVICE

# Between attempts to start a lane that ended before it was ready; the last is repeated.
RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
# Weight of the latest picture in the moving average of times.
LATELY: Final = 0.05
FIRST_GUESS_SECONDS: Final = 0.01
# For a lane to start: it may read the model's file again, on a disk that hangs.
START_SECONDS: Final = 60.0


class Lanes:
    """The lanes of one model, and their queue, first in, first out.

    Args:
        zygote: loads the model and forks them.
        start: the model file and what a picture may cost.
        count: number of lanes.
        threads: of the wide session.
        deadline: seconds from a job's submission to its outcome; also the longest a lane may work on one job.
        restarted: called with the reason of each restart.
    """

    def __init__(
        self,
        zygote: Zygote,
        start: Start,
        count: int,
        threads: int,
        deadline: float,
        restarted: Callable[[str], None],
    ) -> None:
        """Make it; `load` starts it."""
        self.model: Loaded | None = None
        self.queue: deque[Job] = deque()
        self.seconds = FIRST_GUESS_SECONDS  # moving average of a picture's time in a lane
        self.down_since: float | None = None  # when the last ready lane ended
        self.zygote = zygote
        self.count = count
        self._start = start
        self._threads = threads
        self._deadline = deadline
        self._restarted = restarted
        self._lanes: dict[int, Lane] = {}  # that run, by their number
        self._idle: list[Lane] = []
        # Not the first lane, if there is another: its second session and exam would delay readiness.
        self._wide = min(1, count - 1)
        self._closed = False
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._starts: set[asyncio.Task[None]] = set()
        self._burials: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> list[int]:
        """Process ids of the lanes."""
        return [lane.pid for lane in self._lanes.values()]

    @property
    def busy(self) -> int:
        """Lanes at work."""
        return sum(lane.job is not None for lane in self._lanes.values())

    @property
    def usable(self) -> int:
        """Lanes that are ready."""
        return len(self._idle) + self.busy

    @property
    def pending(self) -> int:
        """Pieces of work that wait or are worked on."""
        return len(self.queue) + self.busy

    async def load(self) -> Loaded:
        """Load the model, and start a first lane; then start the others.

        Raises:
            LaneStartError: the model is refused, or a process ended.
        """
        self.zygote.start()
        self.model = model = await self.zygote.load(self._start)
        await self._fork(0)
        for number in range(1, self.count):
            self._keep_up(number)
        return model

    async def run(self, data: Body, flags: Flags, wanted: Callable[[], bool]) -> tuple[Outcome, float]:
        """Do a piece of work in a lane; returns the outcome, and the seconds spent in the queue.

        Args:
            data: a picture file, a batch, or an item of one.
            flags: what to do with it.
            wanted: called before it goes to a lane; if False, it is skipped.

        Raises:
            ProblemError: ``deadline_exceeded``, ``too_costly``, ``image_too_large``, or ``not_ready``: the lane or the
                model failed.
            ClientGoneError: ``wanted`` returned False.
        """
        if self.zygote.ended and not self._lanes:
            raise _PROBLEMS["crash"]()
        job = Job(data, flags, wanted)
        timer = asyncio.get_running_loop().call_later(self._deadline, self._give_up, job)
        self.queue.append(job)
        self._dispatch()
        try:
            with self:
                return await job.future, job.started - job.submitted
        finally:
            timer.cancel()
            job.data = b""  # it may still be in the queue

    def __enter__(self) -> Self:
        """Keep the lanes until the block ends, even if another model replaces them."""
        self._users += 1
        self._unused.clear()
        return self

    def __exit__(self, *_: object) -> None:
        """Allow `close` to end the lanes, if this was the last user."""
        self._users -= 1
        if not self._users:
            self._unused.set()

    def retry_after(self) -> int:
        """Seconds until everything waiting now is answered or past its deadline, rounded up; at least 1."""
        return max(1, math.ceil(min(self._deadline, self.pending * self.seconds / self.count)))

    def check(self) -> None:
        """Kill lanes that have worked on one job, or started, for too long; call about once a second."""
        now = time.perf_counter()
        for lane in self._lanes.values():
            starts = not lane.ready.done() and now - lane.forked > START_SECONDS
            if starts or (lane.job is not None and now - lane.job.started > self._deadline):
                lane.end("hang")

    async def close(self) -> None:
        """End the lanes after their last user."""
        await self._unused.wait()
        self._closed = True
        for task in self._starts:
            task.cancel()
        await self.zygote.close()
        for lane in self._lanes.values():
            lane.close()
        await asyncio.sleep(0)  # each loses its connection in the loop's next turn
        await asyncio.gather(*self._starts, *self._burials, return_exceptions=True)

    def _dispatch(self) -> None:
        while self.queue and self._idle:
            job = self.queue.popleft()
            if job.future.done():
                continue
            if not job.wanted():
                job.fail(ClientGoneError())
                continue
            alone = not self.queue and not self.busy
            wide = self._lanes.get(self._wide)
            # The wide lane is kept free for jobs that are alone, and taken last otherwise.
            lane = (
                wide if wide in self._idle and alone else next((idle for idle in self._idle if idle is not wide), wide)
            )
            assert lane is not None
            self._idle.remove(lane)
            lane.begin(job, job.flags | Flags.ALONE if alone else job.flags)

    def _give_up(self, job: Job) -> None:
        job.fail(ProblemError("deadline_exceeded", f"no answer within {self._deadline:g} seconds", self.retry_after()))

    async def _fork(self, number: int) -> None:
        """Fork a lane, and wait until it is ready."""
        pid, connection, shared = await self.zygote.fork(self._threads if number == self._wide else 1)
        try:
            _, lane = await asyncio.get_running_loop().create_connection(
                lambda: Lane(number, pid, shared, self._heard), sock=connection
            )
        except BaseException:
            connection.close()
            raise
        self._lanes[number] = lane
        await lane.ready

    async def _keep(self, number: int) -> None:
        """Start a lane, and try again until one is ready."""
        for attempt in range(sys.maxsize):
            try:
                await self._fork(number)
                return
            except (LaneStartError, OSError) as error:  # descriptors or memory may have run out
                SERVICE.error("a lane did not start", extra={"fields": {"lane": number, "reason": str(error)}})
            if self.zygote.ended:
                while self.queue:
                    self.queue.popleft().fail(_PROBLEMS["crash"]())
                return
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])

    def _heard(self, lane: Lane, message: Outcome | Ready | None) -> None:
        if message is None:
            task = asyncio.get_running_loop().create_task(self._bury(lane))
            self._burials.add(task)
            task.add_done_callback(self._burials.discard)
        elif isinstance(message, Ready):
            if message.refused:
                SERVICE.error("no picture can use all cores", extra={"fields": {"reason": message.refused}})
            self.down_since = None
            if not lane.ready.done():
                lane.ready.set_result(None)
            self._rest(lane)
        else:
            self._answer(lane, message)

    def _answer(self, lane: Lane, outcome: Outcome) -> None:
        job, lane.job = lane.job, None
        assert job is not None
        if isinstance(outcome, Answer):
            # As the lane measured it: in a burst, its answer waits while this process reads requests.
            self.seconds += LATELY * (outcome.decode + outcome.infer + outcome.draw - self.seconds)
            if outcome.kept:
                outcome = msgspec.structs.replace(outcome, pixels=lane.pixels())
        if isinstance(outcome, ModelFailed):
            SERVICE.error("the model failed on a picture", extra={"fields": {"reason": outcome.reason}})
            job.fail(_PROBLEMS["model"]())
            lane.end("model")
            return
        if isinstance(outcome, PictureRefused):
            job.fail(ProblemError(outcome.code, outcome.detail))
        elif not job.future.done():
            job.future.set_result(outcome)
        self._rest(lane)

    def _rest(self, lane: Lane) -> None:
        self._idle.append(lane)
        self._dispatch()

    async def _bury(self, lane: Lane) -> None:
        """Find out how a lane ended, answer its job, and start another in its place."""
        if lane in self._idle:
            self._idle.remove(lane)
        self._lanes.pop(lane.number, None)  # it is not there if its start was cancelled
        why = lane.ended_for
        lane.end("crash")  # the connection is lost, but the process may still run
        code = await self.zygote.reap(lane.pid)
        reason = why or _REASONS.get(code, "crash")
        job, lane.job = lane.job, None
        if not self.usable and self.down_since is None:
            self.down_since = time.monotonic()
        if not lane.ready.done():
            lane.ready.set_exception(LaneStartError(f"the lane ended as it started ({reason})", again=True))
        elif not self._closed and not lane.ready.cancelled() and lane.ready.exception() is None:
            SERVICE.error("a lane ended", extra={"fields": {"reason": reason, "exit_code": code}})
            self._restarted(reason)
            self._keep_up(lane.number)
        if job is not None:
            job.fail(_PROBLEMS.get(reason, _PROBLEMS["crash"])())

    def _keep_up(self, number: int) -> None:
        task = asyncio.get_running_loop().create_task(self._keep(number))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)


# Why a lane ended that we did not kill: SIGPROF from its own timer, SIGKILL from the system out of memory.
_REASONS: Final[dict[int | None, str]] = {-signal.SIGPROF: "cpu", -signal.SIGKILL: "memory"}
_PROBLEMS: Final[dict[str, Callable[[], ProblemError]]] = {
    "cpu": lambda: ProblemError("too_costly", "decoding it takes more processor time than is allowed"),
    "memory": lambda: ProblemError("image_too_large", "decoding it takes more memory than there is"),
    "crash": lambda: ProblemError("not_ready", "the worker crashed on this request; retry", retry_after=1),
    "model": lambda: ProblemError("not_ready", "the model failed on this picture; retry", retry_after=1),
}
