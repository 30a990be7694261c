"""The model in service: loaded at start, swapped while it serves, taken out while it fails."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from serving.engine.cores import usable_cores
from serving.engine.memory import trim
from serving.errors import ProblemError
from serving.model import session as models
from serving.model.session import Model, ModelFailedError, ModelRefusedError
from serving.telemetry.logs import SERVICE

# A model that fails so many pictures in a row answers no more until it passes its exam again, tried so often.
FAILURES: Final = 3
EXAM_SECONDS: Final = 1.0
# While there is no model because its file could not be read, not because of what is in it.
RELOAD_SECONDS: Final = 5.0

Signature = tuple[int, int, int]


class Slot:
    """Holds the one model that answers. On the event loop only; files are read and exams sat in threads.

    A request takes the model once and finishes with it, so a swap never changes a request in the middle, and the old
    model goes when its last request has.
    """

    def __init__(self, path: Callable[[], Path], placed: Callable[[Model], None]) -> None:
        """Make it empty.

        Args:
            path: names the file to load, asked each time.
            placed: told of each model that begins to serve.
        """
        self._path = path
        self._placed = placed
        self._model: Model | None = None
        self._reason: str | None = "the model is being loaded"
        self._one_at_a_time = asyncio.Lock()
        self._waiting = False
        self._failures = 0
        self._next_exam = 0.0
        self._next_load: float | None = None
        self._seen: Signature | None = None
        self._moved = False
        self.refused = False  # the file that was read last
        self.decided = asyncio.Event()  # the first file serves or is refused

    @property
    def model(self) -> Model:
        """The model in service.

        Raises:
            ProblemError: ``not_ready``, with the reason.
        """
        if self._model is None or self._reason is not None:
            raise ProblemError("not_ready", self._reason or "no model")
        return self._model

    async def load(self, loading: "Future[Model] | None" = None) -> None:
        """Load the file and have it serve once it has passed its exam, which it sits beside the model that serves.

        A file that is refused changes nothing: the old model stays, and the log says why. Calls come one after
        another; a call while another waits for its turn does nothing, since that one will see the same file.

        Args:
            loading: a load that has begun already.
        """
        if self._waiting:
            return
        self._waiting = self._one_at_a_time.locked()
        async with self._one_at_a_time:
            self._waiting = False
            path = self._path()
            self._seen = await asyncio.to_thread(_signature, path)
            try:
                new = await (asyncio.wrap_future(loading) if loading else asyncio.to_thread(models.load, path))
            except ModelRefusedError as error:
                self._refuse(str(error), again=isinstance(error.__cause__, OSError))
                return
            # No memory or no thread to load it with, say: whatever it is must not leave the service waiting for ever.
            except Exception:
                SERVICE.exception("loading the model failed")
                self._refuse("the model could not be loaded", again=True)
                return
            self._place(new)
            self.decided.set()
            try:
                await asyncio.to_thread(new.widen, usable_cores())
            except (OSError, ModelRefusedError) as error:  # the file has gone meanwhile; one thread answers as well
                SERVICE.warning("lone requests get one core", extra={"fields": {"reason": str(error)}})
            await asyncio.to_thread(trim)

    async def watch(self) -> None:
        """Load the file if it is another than the one that was loaded last, and has been for two calls."""
        signature = await asyncio.to_thread(_signature, self._path())
        if signature is None or signature == self._seen:
            self._moved = False
        elif not self._moved:  # whoever does not rename a file into place may still be writing it
            self._moved = True
        else:
            self._moved = False
            SERVICE.info("the model file has changed")
            await self.load()

    def answered(self) -> None:
        """Take note that the model has answered a picture."""
        self._failures = 0

    def failed(self, model: Model, error: ModelFailedError) -> ProblemError:
        """Take note that it has not, and say what to tell the client."""
        if model is self._model:
            self._failures += 1
            if self._failures == FAILURES:
                self._reason = str(error)
                SERVICE.error("the model fails", extra={"fields": {"reason": str(error.__cause__ or error)}})
        return ProblemError("not_ready", "the model failed on this picture", retry_after=1)

    async def heal(self) -> None:
        """Call now and then: what failed and may not any more is tried again.

        A model that was failing sits its exam again; one that could not be read is read again.
        """
        if self._model is None and self._next_load is not None and time.monotonic() >= self._next_load:
            await self.load()
        failing = self._model
        if failing is None or self._failures < FAILURES or time.monotonic() < self._next_exam:
            return
        try:
            await asyncio.to_thread(failing.sit_exam)
        except ModelRefusedError:
            self._next_exam = time.monotonic() + EXAM_SECONDS
            return
        if failing is self._model:
            self._failures = 0
            self._reason = None
            SERVICE.info("the model answers again", extra={"fields": {"model": failing.contract.version}})

    def _refuse(self, reason: str, *, again: bool) -> None:
        self.refused = True
        self._next_load = time.monotonic() + RELOAD_SECONDS if again else None
        if self._model is None:
            self._reason = reason
        self.decided.set()
        fields = {"reason": reason, "serving": self._model and self._model.contract.version}
        SERVICE.error("the model is refused", extra={"fields": fields})

    def _place(self, new: Model) -> None:
        self._model, self._reason, self._failures, self.refused = new, None, 0, False
        served = {"model": new.contract.version, "model_file": new.path.name}
        if new.fallback:
            SERVICE.warning(
                "the fp32 model answers in place of the int8 one", extra={"fields": {**served, "reason": new.fallback}}
            )
        self._placed(new)
        SERVICE.info("ready", extra={"fields": served})


def _signature(path: Path) -> Signature | None:
    """What changes when another file takes the place of this one; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
