"""The service behind the routes: what has a lifetime, and whether it is ready."""

import asyncio
import uuid
from functools import partial

from serving import model as models
from serving.classify import classify, explain
from serving.engine import Engine, usable_cores
from serving.logs import SERVICE
from serving.messages import Prediction
from serving.metrics import Metrics
from serving.model import Model, ModelRefusedError
from serving.problems import ProblemError
from serving.settings import Settings
from shared.pixels import Limits


class Service:
    """One service, from :meth:`start` to :meth:`stop`, on one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Make it; nothing runs yet."""
        self.settings = settings
        self.limits = Limits(max_pixels=settings.max_pixels)
        self.metrics = Metrics(self._readings)
        self.engine: Engine | None = None
        self._model: Model | None = None
        self._reason = "the model is being loaded"
        self._draining = False
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the lanes, and load the model beside them: the process answers before it is ready."""
        lanes = self.settings.lanes or usable_cores()
        self.engine = Engine(lanes, self.settings.max_queue, self.settings.deadline_seconds)
        SERVICE.info("started", extra={"fields": {"lanes": lanes, "model_file": self.settings.model_path.name}})
        self._loading = asyncio.create_task(self._load())

    async def stop(self) -> None:
        """Finish what was accepted."""
        self.drain()
        assert self._loading is not None and self.engine is not None
        await self._loading
        await self.engine.close()
        SERVICE.info("stopped")

    def drain(self) -> None:
        """Be not ready and accept nothing new; safe in a signal handler."""
        self._draining = True
        if self.engine is not None:
            self.engine.close_admission()

    @property
    def model(self) -> Model:
        """The model in service.

        Raises:
            ProblemError: ``not_ready`` or ``draining``.
        """
        if self._draining:
            raise ProblemError("draining", "the service is shutting down; another one will answer")
        if self._model is None:
            raise ProblemError("not_ready", self._reason)
        return self._model

    def admit(self) -> tuple[Model, Engine]:
        """What a request for predictions works with, if there is room for it.

        Raises:
            ProblemError: ``not_ready``, ``draining`` or ``overloaded``.
        """
        model = self.model
        assert self.engine is not None
        self.engine.admit()
        return model, self.engine

    async def predict(self, model: Model, data: bytes, prediction_id: str | None, *, explain: bool) -> Prediction:
        """Have a lane answer one picture, and count it.

        Raises:
            RefusedImageError: the file is no picture that can be decoded within the limits.
            ProblemError: ``deadline_exceeded``.
        """
        assert self.engine is not None
        done = await self.engine.run(partial(classify, model, data, self.limits))
        classified = done.result
        self.metrics.time_stages(queue=done.queued, decode=classified.decode, infer=classified.infer)
        message = classified.message(prediction_id or uuid.uuid4().hex, explain=explain)
        self.metrics.count_prediction(classified.verdict, classified.confidence, message.familiarity)
        return message

    async def explain(self, model: Model, data: bytes) -> bytes:
        """Have a lane draw one picture's evidence over it; returns a PNG file.

        It is timed but not counted as a prediction: whoever wants to see why has usually asked what before, and the
        same picture twice would bend the shares of labels and the drift.

        Raises:
            RefusedImageError: the file is no picture that can be decoded within the limits.
            ProblemError: ``deadline_exceeded``.
        """
        assert self.engine is not None
        done = await self.engine.run(partial(explain, model, data, self.limits))
        explained = done.result
        classified = explained.classified
        self.metrics.time_stages(
            queue=done.queued, decode=classified.decode, infer=classified.infer, draw=explained.draw
        )
        return explained.png

    async def _load(self) -> None:
        try:
            self._model = await asyncio.to_thread(models.load, self.settings.model_path)
        except ModelRefusedError as error:
            self._reason = str(error)
            SERVICE.error("the model is refused", extra={"fields": {"reason": self._reason}})
        else:
            served = {"model": self._model.contract.version, "model_file": self._model.path.name}
            if self._model.fallback:
                SERVICE.warning(
                    "the fp32 model answers in place of the int8 one",
                    extra={"fields": {**served, "reason": self._model.fallback}},
                )
            self.metrics.set_model(self._model.contract)
            SERVICE.info("ready", extra={"fields": served})

    def _readings(self) -> dict[str, float]:
        if self.engine is None:
            return {"lanes_busy": 0, "queue_depth": 0}
        return {"lanes_busy": self.engine.busy, "queue_depth": self.engine.depth}
