"""The challenger: a second model that answers, unseen, what the model in service has answered.

It gets the pixels that the lane decoded, once the client has its answer and while a core is idle. It runs in a process
of its own, with a lane, at the lowest priority: a session of its own in every lane would make lanes larger, slower to
start, and end with it. Whatever it does, clients and readiness notice nothing.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from serving.engine.engine import Engine
from serving.engine.lane import Job, Lane, LaneStartError
from serving.engine.wire import Answer, Flags, Loaded, ModelFailed, Outcome, Ready
from serving.telemetry.logs import SERVICE
from shared.journal import PredictionLine

# Pictures that wait for it: 2.4 MB.
MAX_WAITING: Final = 16
# A core must be idle at this number of looks in a row, and at another before each further picture that waits: a client
# that sends one picture after the other leaves cores idle for a moment only.
LOOKS: Final = 3
LOOK_SECONDS: Final = 0.02
# For loading and for an answer: at the lowest priority either takes long on a machine that has other things to do.
PATIENCE_SECONDS: Final = 300.0
# It is given up after this number of failures without `FORGIVEN` answers between two of them.
TRIES: Final = 3
FORGIVEN: Final = 1_000
RETRY_SECONDS: Final = 5.0


class ChallengerError(Exception):
    """It gives no answer; ``kind`` is one of ``telemetry.metrics.CHALLENGER_FAILURES``."""

    def __init__(self, kind: str, reason: str, *, again: bool = True) -> None:
        """Keep all three; ``again``: trying again may help."""
        super().__init__(reason)
        self.kind = kind
        self.again = again


class Asked(NamedTuple):
    """A picture, and what the model in service answered."""

    line: PredictionLine
    pixels: bytes


class Challenger:
    """Loads the challenger and asks it, from `load` to `close`, on one event loop.

    ``dropped`` counts pictures that it was not asked about, because too many waited, while it was ready.
    """

    def __init__(
        self,
        engine: Engine,
        path: str,
        answered: Callable[[PredictionLine, Answer, str], None],
        failed: Callable[[str], None],
    ) -> None:
        """Make it; nothing is loaded yet.

        Args:
            engine: makes its process, and says when a core is idle.
            path: the model file.
            answered: called with the prediction, the challenger's answer and its version.
            failed: called with the kind of each failure.
        """
        self.dropped = 0
        self.model: Loaded | None = None
        self.pids: list[int] = []
        self._engine = engine
        self._path = path
        self._answered = answered
        self._failed = failed
        self._count = 0
        self._waiting: asyncio.Queue[Asked] = asyncio.Queue(MAX_WAITING)
        self._task: asyncio.Task[None] | None = None

    @property
    def room(self) -> bool:
        """Whether it takes another picture."""
        return self.model is not None and not self._waiting.full()

    def load(self) -> None:
        """Load the file, in place of what was loaded before."""
        before = self._task
        self._task = asyncio.get_running_loop().create_task(self._run(before))

    async def close(self) -> None:
        """End it."""
        await _end(self._task)

    def offer(self, line: PredictionLine, pixels: bytes | None) -> None:
        """Ask it about a picture later, if it has room; ``pixels`` are None if it had none."""
        if self.room and pixels:
            self._waiting.put_nowait(Asked(line, pixels))
        elif self.model:
            self.dropped += 1

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        """Load it and ask it, again after a failure, until it is given up."""
        await _end(before)
        failures, error = 0, ChallengerError("", "")
        while failures < TRIES and error.again:
            if failures:
                await asyncio.sleep(RETRY_SECONDS)
            count = self._count
            try:
                await self._serve()
            except LaneStartError as refused:
                error = ChallengerError("refused", str(refused), again=refused.again)
            except TimeoutError:
                error = ChallengerError("hang", f"no answer within {PATIENCE_SECONDS:g} seconds")
            except OSError as without:  # processes or descriptors have run out
                error = ChallengerError("crash", str(without))
            except ChallengerError as failure:
                error = failure
            failures = 1 if self._count - count >= FORGIVEN else failures + 1
            self._failed(error.kind)
        while not self._waiting.empty():
            self._waiting.get_nowait()
        SERVICE.error("the challenger is given up", extra={"fields": {"reason": str(error), "failures": failures}})

    async def _serve(self) -> None:
        zygote, start = self._engine.beside(self._path)
        heard: asyncio.Queue[Outcome | Ready | None] = asyncio.Queue()
        lane: Lane | None = None
        try:
            zygote.start()
            async with asyncio.timeout(PATIENCE_SECONDS):
                model = await zygote.load(start)
                pid, connection, shared = await zygote.fork(1)
                _, lane = await asyncio.get_running_loop().create_connection(
                    lambda: Lane(0, pid, shared, lambda _, message: heard.put_nowait(message)), sock=connection
                )
                if not isinstance(await heard.get(), Ready):
                    raise ChallengerError("crash", "its process ended as it started")
            self.model, self.pids = model, [zygote.pid, pid]
            fields = {"model": model.contract.version, "model_file": model.file, "digest": model.digest}
            SERVICE.info("the challenger is ready", extra={"fields": fields})
            looks = 0
            while True:
                if self._waiting.empty():
                    looks = 0
                asked = await self._waiting.get()
                while looks < LOOKS:  # or each lane would have to tell, on the answer's path
                    await asyncio.sleep(LOOK_SECONDS)
                    looks = looks + 1 if self._engine.idle else 0
                lane.begin(Job(asked.pixels, Flags.PIXELS, lambda: True), Flags.PIXELS)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    outcome = await heard.get()
                if isinstance(outcome, ModelFailed):
                    raise ChallengerError("model", outcome.reason)
                if not isinstance(outcome, Answer):
                    raise ChallengerError("crash", "its process ended")
                looks = LOOKS - 1
                self._count += 1
                self._answered(asked.line, outcome, model.contract.version)
        finally:
            self.model, self.pids = None, []
            if lane:
                lane.close()
            await zygote.close()


async def _end(task: asyncio.Task[None] | None) -> None:
    if task:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
