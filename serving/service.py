"""The service behind the routes: what has a lifetime, and whether it is ready."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from serving.engine.budget import Pool
from serving.engine.cores import usable_cores
from serving.engine.engine import Done, Engine, LaneDiedError
from serving.engine.memory import EASE_ABOVE, fitted, memory_limit, resident_memory, trim
from serving.errors import ProblemError
from serving.ids import Ids
from serving.messages import Prediction
from serving.model.classify import classify, explain
from serving.model.manager import Slot
from serving.model.session import Model, ModelFailedError
from serving.settings import Settings
from serving.telemetry.feedback import Ledger
from serving.telemetry.logs import SERVICE
from serving.telemetry.metrics import Metrics

T = TypeVar("T")

HEARTBEAT_SECONDS: Final = 1.0
# Longest that the door stays closed for the first model; /health must answer even if it never comes.
DOOR_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What one request wants of its pictures: the evidence map, and whether it still wants anything at all.

    No two are equal, so it is also what takes turns with other requests; their ids may be the clients' own.
    """

    wanted: Callable[[], bool]
    explain: bool = False


class Service:
    """One service, from :meth:`start` to :meth:`stop`, on one event loop."""

    def __init__(self, settings: Settings, loading: "Future[Model] | None" = None) -> None:
        """Make it; nothing runs yet. ``loading`` is a load of the model that has begun already."""
        self.lanes = settings.lanes or usable_cores()
        self._memory_limit = memory_limit()
        settings, self.limits = fitted(settings, self.lanes, self._memory_limit)
        self.settings = settings
        self.metrics = Metrics(self._readings)
        self.ledger = Ledger(settings)
        self.pool = Pool(settings.max_memory_bytes, settings.deadline_seconds)
        self.slot = Slot(lambda: settings.model_path, lambda model: self.metrics.set_model(model.contract))
        self.ids = Ids()
        self.engine: Engine | None = None
        self._loading = loading
        self.leaving = False
        self.short_of_descriptors = False
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the lanes and load the model; returns once it serves or is refused, or takes too long.

        So the door stays closed until there is something to say. A balancer that has found a new replica by its name,
        and not yet asked whether it is ready, would otherwise have requests refused there.
        """
        self.engine = Engine(self.lanes, self.settings.max_queue, self.settings.deadline_seconds)
        fields = {
            "lanes": self.lanes,
            "model_file": self.settings.model_path.name,
            "max_decode_bytes": self.limits.max_bytes,
            "max_batch_bytes": self.settings.max_batch_bytes,
        }
        SERVICE.info("started", extra={"fields": fields})
        self.ledger.start()
        self._begin(self.slot.load(self._loading))
        self._begin(self._beat())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DOOR_SECONDS):
                await self.slot.decided.wait()

    async def stop(self) -> None:
        """Finish what was accepted."""
        self.drain()
        assert self.engine is not None
        await self.engine.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.ledger.close()
        SERVICE.info("stopped")

    def reload(self) -> None:
        """Load the model file again, beside the one that serves; call on the event loop."""
        if not self._draining:
            self._begin(self.slot.load())

    def leave(self) -> None:
        """Be not ready and yet answer, so that a balancer sends what comes next elsewhere; safe in a signal handler."""
        self.leaving = True

    def drain(self) -> None:
        """Be not ready and accept nothing new; safe in a signal handler."""
        self.leaving = self._draining = True
        if self.engine is not None:
            self.engine.close_admission()

    @property
    def model(self) -> Model:
        """The model in service.

        Raises:
            ProblemError: ``not_ready`` or ``draining``.
        """
        if self._draining:
            raise _draining()
        if self.engine is not None and self.engine.exhausted:
            raise ProblemError("not_ready", "too many lanes are stuck; the process must be replaced")
        return self.slot.model

    @property
    def ready(self) -> Model:
        """The model in service, while new requests should come here.

        Raises:
            ProblemError: ``not_ready`` or ``draining``.
        """
        if self.leaving:
            raise _draining()
        if self.short_of_descriptors:
            raise ProblemError("not_ready", "no file descriptor is left for another connection")
        return self.model

    def admit(self) -> tuple[Model, Engine]:
        """What a request for predictions works with, if there is room for it.

        Raises:
            ProblemError: ``not_ready``, ``draining`` or ``overloaded``.
        """
        model = self.model
        assert self.engine is not None
        self.engine.admit()
        return model, self.engine

    async def predict(self, model: Model, data: bytes, asked: Asked, prediction_id: str | None = None) -> Prediction:
        """Have a lane answer one picture, and count it.

        Raises:
            RefusedImageError: the file is no picture that can be decoded within the limits.
            ProblemError: ``deadline_exceeded``, or ``not_ready`` if the model fails.
        """
        done = await self._run(model, partial(classify, model, data, self.limits), asked, len(data))
        classified = done.result
        self.metrics.time_stages(queue=done.queued, decode=classified.decode, infer=classified.infer)
        message = classified.message(prediction_id or self.ids.new(), explain=asked.explain)
        self.metrics.count_prediction(
            classified.verdict, classified.confidence, message.familiarity, classified.brightness
        )
        self.ledger.record(message, classified, len(data), done.queued, ours=not prediction_id)
        return message

    async def explain(self, model: Model, data: bytes, asked: Asked) -> bytes:
        """Have a lane draw one picture's evidence over it; returns a PNG file.

        It is timed but not counted as a prediction: whoever wants to see why has usually asked what before, and the
        same picture twice would bend the shares of labels and the drift.

        Raises:
            RefusedImageError: the file is no picture that can be decoded within the limits.
            ProblemError: ``deadline_exceeded``, or ``not_ready`` if the model fails.
        """
        done = await self._run(model, partial(explain, model, data, self.limits), asked, len(data))
        explained = done.result
        classified = explained.classified
        self.metrics.time_stages(
            queue=done.queued, decode=classified.decode, infer=classified.infer, draw=explained.draw
        )
        return explained.png

    async def work(self, work: Callable[[bool], T], asked: Asked) -> T:
        """Have a lane do what needs no model.

        Raises:
            ProblemError: ``deadline_exceeded``, ``not_ready``, or what ``work`` raises.
        """
        return (await self._in_a_lane(work, asked)).result

    async def _run(self, model: Model, work: Callable[[bool], T], asked: Asked, size: int) -> Done[T]:
        try:
            done = await self._in_a_lane(work, asked, size)
        except ModelFailedError as error:
            raise self.slot.failed(model, error) from error
        self.slot.answered()
        return done

    async def _in_a_lane(self, work: Callable[[bool], T], asked: Asked, size: int = 0) -> Done[T]:
        assert self.engine is not None
        try:
            return await self.engine.run(work, asked, asked.wanted, size)
        except LaneDiedError as error:
            raise ProblemError("not_ready", "a lane ended over this request", retry_after=1) from error

    async def _beat(self) -> None:
        """See to what may have gone wrong, every second."""
        assert self.engine is not None
        beats_to_watch = max(1, round(self.settings.watch_seconds / HEARTBEAT_SECONDS))
        beat = 0
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            beat += 1
            try:
                self.engine.check()
                self.pool.check()
                if self._memory_limit and (resident_memory() or 0) > EASE_ABOVE * self._memory_limit:
                    await asyncio.to_thread(trim)
                await self.slot.heal()
                if self.settings.watch_seconds and beat % beats_to_watch == 0:
                    await self.slot.watch()
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
            served: Model | None = self.ready
        except ProblemError:
            served = None
        readings = self.ledger.readings() | {
            "ready": float(served is not None),
            "descriptors_exhausted": float(self.short_of_descriptors),
            "model_refused": float(self.slot.refused),
            "model_fallback": float(served is not None and served.fallback is not None),
            "lanes_busy": 0,
            "queue_depth": 0,
            "queue_limit": self.settings.max_queue,
            "body_bytes": self.pool.granted,
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
