"""The service behind the routes: it starts and stops engine, model and journal, and knows whether it is ready."""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from serving.engine.budget import BodyBudget
from serving.engine.cores import usable_cores
from serving.engine.engine import Engine
from serving.engine.lane import Zygote, reap_orphans
from serving.engine.memory import EASE_ABOVE, fitted, memory_limit, proportional_memory, resident_memory, trim
from serving.engine.supervisor import Lanes
from serving.engine.wire import PLAIN, SOURCE, Answer, Batch, Body, Flags, Inference, Loaded, Outcome
from serving.errors import ProblemError
from serving.messages import Prediction
from serving.model.challenger import Challenger
from serving.model.manager import ModelManager
from serving.settings import Settings
from serving.telemetry import traces
from serving.telemetry.feedback import FeedbackStore
from serving.telemetry.logs import SERVICE
from serving.telemetry.metrics import Metrics
from serving.telemetry.samples import Seen
from serving.telemetry.traces import Trace
from shared.journal import PredictionLine

if TYPE_CHECKING:
    from serving.telemetry.otlp import Exporter

HEARTBEAT_SECONDS: Final = 1.0
# Reading the memory of a process takes a millisecond.
BEATS_TO_MEMORY: Final = 5
BEATS_TO_TIDY: Final = 60
# How long the port stays closed while the first model loads; then /health answers, with or without a model.
DOOR_SECONDS: Final = 3.0
# A batch is refused if those that wait take longer, at the time that a picture has taken lately.
BATCHES_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of several: where its bytes are, how to answer it, the client's id, or why it is refused already."""

    data: Body
    flags: Flags
    client_id: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What one request uses until it ends: the lanes of one model, whether its client is still there, its trace."""

    service: "Service"
    lanes: Lanes
    wanted: Callable[[], bool]
    trace: Trace | None

    @property
    def model(self) -> Loaded:
        """The model of these lanes."""
        assert self.lanes.model is not None
        return self.lanes.model

    async def predict(self, data: Body, flags: Flags, client_id: str | None = None) -> Prediction:
        """Classify one picture in a lane, and record the prediction.

        Raises:
            ProblemError: the picture is refused or could not be answered.
        """
        challenger, samples, metrics = self.service.challenger, self.service.ledger.samples, self.service.metrics
        keep, chosen = samples.wish(len(data)) if samples else (PLAIN, False)
        if challenger and challenger.room:
            keep = Flags.KEEP
        answer, queued = await self._answer(data, flags | keep)
        self._time_stages(queue=queued, decode=answer.decode, infer=answer.infer)
        version = self.model.contract.version
        id_ = self.service.ledger.ids.new(answer.label, answer.verdict, version)
        message = Prediction.of(answer, id_, client_id, version)
        metrics.count_prediction(answer)
        line = self.service.ledger.record(message, answer, queued)
        if samples:
            seen = Seen(answer.pixels) if answer.pixels else Seen(data, flags & SOURCE)
            samples.predicted(line, seen, chosen=chosen)
        if challenger:
            challenger.offer(line, answer.pixels)
        return message

    async def explain(self, data: Body) -> bytes:
        """Draw one picture's evidence over it in a lane; returns a PNG file.

        It is timed but not counted as a prediction: most clients have sent the picture to /predict before, and counting
        it twice would distort the shares of labels and the drift.

        Raises:
            ProblemError: the picture is refused or could not be answered.
        """
        answer, queued = await self._answer(data, Flags.DRAW)
        self._time_stages(queue=queued, decode=answer.decode, infer=answer.infer, draw=answer.draw)
        assert answer.png is not None
        return answer.png

    async def predict_all(self, pictures: Sequence[Picture]) -> list[Prediction | ProblemError]:
        """Classify several pictures, a few at a time; returns predictions and errors in their order.

        Raises:
            ProblemError: ``overloaded``: other batches would make it wait too long.
        """
        turns = self.service.batch_turns if len(pictures) > 1 else contextlib.nullcontext()
        with self.service.batched(len(pictures), self.lanes):
            tasks = [asyncio.create_task(self._predict_one(picture, turns)) for picture in pictures]
            try:
                return await asyncio.gather(*tasks)
            finally:
                # If the client has left, the others must not outlive the request, whose memory they hold.
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _predict_one(
        self, picture: Picture, turns: contextlib.AbstractAsyncContextManager[None]
    ) -> Prediction | ProblemError:
        async with turns:
            try:
                if picture.refused is not None:
                    raise ProblemError("malformed_request", picture.refused)
                return await self.predict(picture.data, picture.flags, picture.client_id)
            except ProblemError as error:
                return error

    async def infer(self, body: bytearray) -> Inference:
        """Find the pictures in the JSON of an inference request, in a lane.

        Raises:
            ProblemError: it is not one.
        """
        asked, _ = await self._run(body, Flags.INFER)
        assert isinstance(asked, Inference)
        return asked

    async def take_apart(self, body: bytearray, flags: Flags) -> list[Picture]:
        """Find the pictures of a batch in JSON, in a lane; ``flags`` say how to answer them.

        Raises:
            ProblemError: it is not a batch.
        """
        batch, _ = await self._run(body, Flags.BATCH)
        assert isinstance(batch, Batch)
        view, flags = memoryview(body), flags | Flags.BASE64
        return [Picture(view[item.start : item.end], flags, item.id, item.refused) for item in batch.items]

    def _time_stages(self, **seconds: float) -> None:
        self.service.metrics.time_stages(**seconds)
        if self.trace:
            self.trace.time_stages(**seconds)

    async def _answer(self, data: Body, flags: Flags) -> tuple[Answer, float]:
        answer, queued = await self._run(data, flags)
        assert isinstance(answer, Answer)
        self.service.metrics.observe_lane(answer.cpu)
        return answer, queued

    async def _run(self, data: Body, flags: Flags) -> tuple[Outcome, float]:
        return await self.lanes.run(data, flags, self.wanted)


class Service:
    """One service, from :meth:`start` to :meth:`stop`, on one event loop."""

    def __init__(self, settings: Settings, zygote: Zygote | None = None) -> None:
        """Make it; nothing runs yet, unless the ``zygote`` does already."""
        self._memory_limit = memory_limit()
        self._memory = 0
        processes = (settings.lanes or usable_cores()) + bool(settings.challenger)
        settings, limits = fitted(settings, processes, self._memory_limit)
        self.settings = settings
        self.limits = limits
        self.metrics = Metrics(self._readings)
        self.ledger = FeedbackStore(settings, self._decode)
        self.budget = BodyBudget(settings.max_memory_bytes, settings.body_seconds, settings.deadline_seconds)
        self.engine = Engine(zygote or Zygote(), settings, limits, self.metrics.restarted)
        self.manager = ModelManager(
            self.engine, lambda: settings.model_path, lambda model: self.metrics.set_model(model.contract)
        )
        self.challenger: Challenger | None = None
        if settings.challenger:
            path = str(Path(settings.challenger).expanduser())
            self.challenger = Challenger(self.engine, path, self._challenged, self.metrics.count_challenger_failure)
        # All batches together queue only enough pictures to keep the lanes busy. A single request then waits for few of
        # them (ops/bench/NOTES.md), and a picture's deadline, which starts in the queue, is not spent on its batch.
        self.batch_turns = asyncio.Semaphore(self.engine.lanes + 1)
        self._batched = 0
        self.exporter = _exporter()
        self.leaving = False
        self.short_of_descriptors = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the lanes; returns when the model serves or is refused, or after ``DOOR_SECONDS``.

        The port opens after that. Otherwise a balancer that finds a new replica by DNS, and has not yet checked that it
        is ready, would send requests to be refused.
        """
        fields = {
            "lanes": self.engine.lanes,
            "model_file": self.settings.model_path.name,
            "max_decode_bytes": self.limits.max_bytes,
            "max_batch_bytes": self.settings.max_batch_bytes,
            "max_connections": self.settings.max_connections,
        }
        SERVICE.info("started", extra={"fields": fields})
        self.ledger.start()
        if self.exporter:
            self.exporter.start()
        self._begin(self.manager.load())
        self._begin(self._challenge())
        self._begin(self._beat())
        self._begin(self._tend())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DOOR_SECONDS):
                await self.manager.decided.wait()

    async def stop(self) -> None:
        """Finish accepted requests, then end everything."""
        self.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.challenger:
            await self.challenger.close()
        await self.manager.close()
        if self.ledger.samples:
            await self.ledger.samples.decode_rest(self.settings.deadline_seconds)
        await self.engine.close()
        await self.ledger.close()
        if self.exporter:
            await asyncio.to_thread(self.exporter.close)
        SERVICE.info("stopped")

    def reload(self) -> None:
        """Load the model file again while the present model serves, and the challenger's; call on the event loop."""
        if not self.engine.closed:
            self._begin(self.manager.load())
            self._begin(self._challenge())

    def leave(self) -> None:
        """Report not ready but still answer, so that a balancer sends new requests elsewhere; signal-safe."""
        self.leaving = True

    def drain(self) -> None:
        """Report not ready and refuse new requests; signal-safe."""
        self.leaving = True
        self.engine.close_admission()

    def admit(self, *, begun: bool = False) -> Lanes:
        """Admit a request if there is a model and room in the queue; returns the lanes that answer it.

        Args:
            begun: it was admitted before, and its body has arrived since.

        Raises:
            ProblemError: ``not_ready``, ``draining`` or ``overloaded``.
        """
        if not begun:
            self.model  # noqa: B018  # for what it raises
        return self.engine.admit(begun=begun)

    @contextlib.contextmanager
    def batched(self, pictures: int, lanes: Lanes) -> Iterator[None]:
        """Count the pictures of a batch until the block ends; raises ``overloaded`` if others would take too long."""
        seconds = self._batched * lanes.seconds / lanes.count
        if pictures > 1 and seconds > BATCHES_SECONDS:
            raise ProblemError("overloaded", "too many batches are waiting", retry_after=math.ceil(seconds))
        self._batched += pictures
        try:
            yield
        finally:
            self._batched -= pictures

    @property
    def model(self) -> Loaded:
        """The model in service.

        Raises:
            ProblemError: ``not_ready`` or ``draining``.
        """
        if self.engine.closed:
            raise _draining()
        if (model := self.manager.model) is None:
            raise ProblemError("not_ready", self.manager.reason)
        return model

    @property
    def ready(self) -> Loaded:
        """The model in service, if this replica should get new requests.

        Raises:
            ProblemError: ``not_ready`` or ``draining``.
        """
        if self.leaving:
            raise _draining()
        if self.short_of_descriptors:
            raise ProblemError("not_ready", "no file descriptor is left for another connection")
        model = self.model
        if self.engine.down:
            raise ProblemError("not_ready", "no worker is ready")
        return model

    @property
    def alive(self) -> bool:
        """False when no lane has started for too long and the process should be replaced."""
        return not self.engine.dead

    async def _beat(self) -> None:
        """Run the periodic checks, every second."""
        beat = 0
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            beat += 1
            try:
                self.engine.check()
                self.budget.check()
                if os.getpid() == 1:
                    reap_orphans()
                if beat % BEATS_TO_MEMORY == 1:
                    pids = [os.getpid(), *self.engine.pids, *(self.challenger.pids if self.challenger else [])]
                    self._memory = await asyncio.to_thread(proportional_memory, pids)
                if self._memory_limit and (resident_memory() or 0) > EASE_ABOVE * self._memory_limit:
                    await asyncio.to_thread(trim)
                if self.ledger.samples and beat % BEATS_TO_TIDY == 0:
                    self.ledger.samples.tidy()
            # The checks must go on after a fault; if threads or descriptors have run out, say, the next may succeed.
            except Exception:
                SERVICE.exception("a heartbeat failed")

    async def _tend(self) -> None:
        """Look after the model; apart from the checks, since a load may take half a minute."""
        watched = time.monotonic()
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                await self.manager.heal()
                if self.settings.watch_seconds and time.monotonic() - watched >= self.settings.watch_seconds:
                    watched = time.monotonic()
                    await self.manager.watch()
            except Exception:
                SERVICE.exception("the model could not be looked after")

    async def _challenge(self) -> None:
        """Load the challenger, if there is one, once the model in service is decided on."""
        await self.manager.decided.wait()
        if self.challenger:
            self.challenger.load()

    async def _decode(self, data: Body, flags: Flags) -> bytes:
        """The pixels of a picture that was answered before; raises `ProblemError`."""
        lanes = self.engine.current  # also while requests are refused: nobody else waits for this
        assert lanes is not None
        answer, _ = await lanes.run(data, flags | Flags.KEEP, lambda: True)
        if isinstance(answer, Answer) and answer.pixels:
            return answer.pixels
        raise ProblemError("not_ready", "the worker answered something else")

    def _challenged(self, line: PredictionLine, answer: Answer, version: str) -> None:
        self.metrics.count_challenger(agreed=answer.verdict == line.verdict, seconds=answer.infer)
        self.ledger.challenged(line, answer, version)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        # The event loop keeps only weak references to tasks.
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _readings(self) -> dict[str, float]:
        try:
            served: Loaded | None = self.ready
        except ProblemError:
            served = None
        readings = self.ledger.readings()
        if self.challenger:
            readings["challenger_ready"] = float(self.challenger.model is not None)
            readings["challenger_dropped_total"] = self.challenger.dropped
        return readings | {
            "ready": float(served is not None),
            "descriptors_exhausted": float(self.short_of_descriptors),
            "model_refused": float(self.manager.refused),
            "model_fallback": float(served is not None and served.fallback is not None),
            "lanes": self.engine.lanes,
            "lanes_busy": self.engine.busy,
            "queue_depth": self.engine.depth,
            "queue_limit": self.settings.max_queue,
            "body_bytes": self.budget.granted,
            "memory_bytes": self._memory,
        }


def _exporter() -> "Exporter | None":
    if not (url := traces.endpoint(os.environ)):
        return None
    from serving.telemetry import otlp  # noqa: PLC0415 - it costs nothing where there is no collector

    return otlp.Exporter(url, os.environ)


def _draining() -> ProblemError:
    return ProblemError("draining", "the service is shutting down; another one will answer")
