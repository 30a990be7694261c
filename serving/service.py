"""The service behind the routes: what has a lifetime, and whether it is ready."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from serving.engine.budget import BodyBudget
from serving.engine.cores import usable_cores
from serving.engine.engine import Engine
from serving.engine.memory import EASE_ABOVE, fitted, memory_limit, proportional_memory, resident_memory, trim
from serving.engine.supervisor import Forker, Lanes
from serving.engine.wire import Answer, Batch, Flags, Loaded, Outcome
from serving.errors import ProblemError
from serving.ids import Ids
from serving.messages import Prediction
from serving.model.manager import ModelManager
from serving.settings import Settings
from serving.telemetry.feedback import Ledger
from serving.telemetry.logs import SERVICE
from serving.telemetry.metrics import Metrics

HEARTBEAT_SECONDS: Final = 1.0
# Asking for the memory of a process takes it a millisecond.
BEATS_TO_MEMORY: Final = 5
# Longest that the door stays closed for the first model; /health must answer even if it never comes.
DOOR_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Work:
    """What one request works with, to its end: the lanes of one model, and whether its client is still there."""

    service: "Service"
    lanes: Lanes
    wanted: Callable[[], bool]

    @property
    def model(self) -> Loaded:
        """The model that answers."""
        assert self.lanes.model is not None
        return self.lanes.model

    async def predict(self, data: bytes | memoryview, flags: Flags, prediction_id: str | None = None) -> Prediction:
        """Have a lane answer one picture, and count it.

        Raises:
            ProblemError: the picture is refused or could not be answered.
        """
        answer, queued = await self._answer(data, flags)
        metrics = self.service.metrics
        metrics.time_stages(queue=queued, decode=answer.decode, infer=answer.infer)
        message = Prediction.of(answer, prediction_id or self.service.ids.new(), self.model.contract.version)
        metrics.count_prediction(answer)
        self.service.ledger.record(message, answer, queued, ours=not prediction_id)
        return message

    async def explain(self, data: bytes) -> bytes:
        """Have a lane draw one picture's evidence over it; returns a PNG file.

        It is timed but not counted as a prediction: most who want to see why have asked what before, and the same
        picture twice would bend the shares of labels and the drift.

        Raises:
            ProblemError: the picture is refused or could not be answered.
        """
        answer, queued = await self._answer(data, Flags.DRAW)
        self.service.metrics.time_stages(queue=queued, decode=answer.decode, infer=answer.infer, draw=answer.draw)
        assert answer.png is not None
        return answer.png

    async def take_apart(self, body: bytes) -> Batch:
        """Have a lane find the pictures of a batch.

        Raises:
            ProblemError: it is no batch.
        """
        batch, _ = await self._run(body, Flags.BATCH)
        assert isinstance(batch, Batch)
        return batch

    async def _answer(self, data: bytes | memoryview, flags: Flags) -> tuple[Answer, float]:
        answer, queued = await self._run(data, flags)
        assert isinstance(answer, Answer)
        self.service.metrics.observe_lane(answer.cpu)
        return answer, queued

    async def _run(self, data: bytes | memoryview, flags: Flags) -> tuple[Outcome, float]:
        return await self.lanes.run(data, flags, self.wanted)


class Service:
    """One service, from :meth:`start` to :meth:`stop`, on one event loop."""

    def __init__(self, settings: Settings, forker: Forker | None = None) -> None:
        """Make it; no lane runs yet. ``forker`` is one that has been started already."""
        self.lanes = settings.lanes or usable_cores()
        self._memory_limit = memory_limit()
        self._memory = 0
        settings, limits = fitted(settings, self.lanes, self._memory_limit)
        self.settings = settings
        self.limits = limits
        self.metrics = Metrics(self._readings)
        self.ledger = Ledger(settings)
        self.budget = BodyBudget(settings.max_memory_bytes, settings.body_seconds, settings.deadline_seconds)
        self.ids = Ids()
        # Of all batches, no more pictures are in the queue than keep the lanes busy: a single one that comes waits for
        # 1.0 pictures beside four batches, where taking turns by request took 3.1 (ops/bench/NOTES.md), and a picture's
        # deadline runs from when it is in the queue.
        self.batch_turns = asyncio.Semaphore(self.lanes + 1)
        self._forker = forker
        self.engine: Engine | None = None
        self.manager: ModelManager | None = None
        self.leaving = False
        self.short_of_descriptors = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the lanes with the model; returns once it serves or is refused, or takes too long.

        So the door stays closed until there is something to say. A balancer that has found a new replica by its name,
        and not yet asked whether it is ready, would otherwise have requests refused there.
        """
        settings = self.settings
        self.engine = Engine(self._forker or Forker(), settings, self.limits, self.metrics.restarted)
        self.manager = ModelManager(
            self.engine, lambda: settings.model_path, lambda model: self.metrics.set_model(model.contract)
        )
        fields = {
            "lanes": self.lanes,
            "model_file": settings.model_path.name,
            "max_decode_bytes": self.limits.max_bytes,
            "max_batch_bytes": settings.max_batch_bytes,
        }
        SERVICE.info("started", extra={"fields": fields})
        self.ledger.start()
        self._begin(self.manager.load())
        self._begin(self._beat())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DOOR_SECONDS):
                await self.manager.decided.wait()

    async def stop(self) -> None:
        """Finish what was accepted."""
        self.drain()
        assert self.engine is not None and self.manager is not None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.manager.close()
        await self.engine.close()
        await self.ledger.close()
        SERVICE.info("stopped")

    def reload(self) -> None:
        """Load the model file again, beside the one that serves; call on the event loop."""
        if self.manager is not None and not (self.engine and self.engine.closed):
            self._begin(self.manager.load())

    def leave(self) -> None:
        """Be not ready and yet answer, so that a balancer sends what comes next elsewhere; safe in a signal handler."""
        self.leaving = True

    def drain(self) -> None:
        """Be not ready and accept nothing new; safe in a signal handler."""
        self.leaving = True
        if self.engine is not None:
            self.engine.close_admission()

    def admit(self) -> Lanes:
        """Let a request in, if there is a model and room; returns the lanes that answer it.

        Raises:
            ProblemError: ``not_ready``, ``draining`` or ``overloaded``.
        """
        if self.engine is None or self.manager is None or self.engine.current is None:
            raise ProblemError("not_ready", self.manager.reason if self.manager else "the service is starting")
        return self.engine.admit()

    @property
    def model(self) -> Loaded:
        """The model in service.

        Raises:
            ProblemError: ``not_ready`` or ``draining``.
        """
        if self.engine is not None and self.engine.closed:
            raise _draining()
        if self.manager is None or (model := self.manager.model) is None:
            raise ProblemError("not_ready", self.manager.reason if self.manager else "the service is starting")
        return model

    @property
    def ready(self) -> Loaded:
        """The model in service, while new requests should come here.

        Raises:
            ProblemError: ``not_ready`` or ``draining``.
        """
        if self.leaving:
            raise _draining()
        if self.short_of_descriptors:
            raise ProblemError("not_ready", "no file descriptor is left for another connection")
        model = self.model
        if self.engine is not None and self.engine.down:
            raise ProblemError("not_ready", "no worker is ready")
        return model

    @property
    def alive(self) -> bool:
        """False once no lane can be started any more: only a new process helps."""
        return self.engine is None or not self.engine.dead

    async def _beat(self) -> None:
        """See to what may have gone wrong, every second."""
        assert self.engine is not None and self.manager is not None
        beats_to_watch = max(1, round(self.settings.watch_seconds / HEARTBEAT_SECONDS))
        beat = 0
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            beat += 1
            try:
                self.engine.check()
                self.budget.check()
                if beat % BEATS_TO_MEMORY == 1:
                    pids = [os.getpid(), *self.engine.pids]
                    self._memory = await asyncio.to_thread(proportional_memory, pids)
                if self._memory_limit and (resident_memory() or 0) > EASE_ABOVE * self._memory_limit:
                    await asyncio.to_thread(trim)
                await self.manager.heal()
                if self.settings.watch_seconds and beat % beats_to_watch == 0:
                    await self.manager.watch()
            # What sees to faults must outlive them: without threads or descriptors left, say, the next beat may do.
            except Exception:
                SERVICE.exception("a heartbeat failed")

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        # The event loop itself keeps no hold of its tasks.
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _readings(self) -> dict[str, float]:
        try:
            served: Loaded | None = self.ready
        except ProblemError:
            served = None
        readings = self.ledger.readings() | {
            "ready": float(served is not None),
            "descriptors_exhausted": float(self.short_of_descriptors),
            "model_refused": float(self.manager is not None and self.manager.refused),
            "model_fallback": float(served is not None and served.fallback is not None),
            "lanes_busy": 0,
            "queue_depth": 0,
            "queue_limit": self.settings.max_queue,
            "body_bytes": self.budget.granted,
            "memory_bytes": self._memory,
        }
        if self.engine is not None:
            readings |= {
                "lanes": self.engine.lanes,
                "lanes_busy": self.engine.busy,
                "queue_depth": self.engine.depth,
            }
        return readings


def _draining() -> ProblemError:
    return ProblemError("draining", "the service is shutting down; another one will answer")
