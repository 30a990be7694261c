"""The model in service: loaded at start, and replaced without interrupting requests."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from serving.engine.engine import Engine
from serving.engine.lane import LaneStartError
from serving.engine.wire import Loaded
from serving.telemetry.logs import SERVICE

# A load, with its exam, takes a tenth of a second; after this long it will not end.
LOAD_SECONDS: Final = 30.0
# Between attempts while there is no model because its file could not be read.
RELOAD_SECONDS: Final = 5.0
# How long to wait for a file system to answer.
STAT_SECONDS: Final = 5.0

Signature = tuple[int, int, int]


class ModelManager:
    """Loads the model file into new lanes and puts them into service if it passes its exam. On the event loop.

    A request keeps the lanes that it began with, so its model never changes midway.
    """

    def __init__(self, engine: Engine, path: Callable[[], Path], placed: Callable[[Loaded], None]) -> None:
        """Make it; nothing is loaded yet.

        Args:
            engine: makes the lanes and puts them into service.
            path: returns the file to load; called for each load.
            placed: called with each model that begins to serve.
        """
        self._engine = engine
        self._path = path
        self._placed = placed
        self.reason = "the model is being loaded"  # why there is no model, while there is none
        self._loading: asyncio.Task[None] | None = None
        self._next_load: float | None = None
        self._seen: Signature | None = None
        self._looked_at: Signature | None = None
        self.refused = False  # the file that was loaded last
        self.decided = asyncio.Event()  # set when the first file serves or is refused

    @property
    def model(self) -> Loaded | None:
        """The model in service."""
        return self._engine.current.model if self._engine.current else None

    async def load(self) -> None:
        """Load the file, and put it into service if it passes its exam; the present model serves meanwhile.

        If the file is refused, the present model stays, and the log says why. A load in progress is cancelled: the file
        may have changed since it began, or it may hang.
        """
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
        self._loading = loading = asyncio.get_running_loop().create_task(self._load())
        await asyncio.wait([loading])  # which does not cancel it, and is not cancelled by it
        if not loading.cancelled():
            loading.result()

    async def close(self) -> None:
        """Cancel a load in progress."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    async def watch(self) -> None:
        """Load the file if it is another than the one loaded last, and the same as at the call before."""
        signature = await _signature(self._path())
        before, self._looked_at = self._looked_at, signature
        # A file that is not renamed into place may still be being written.
        if signature is not None and signature != self._seen and signature == before:
            SERVICE.info("the model file has changed")
            await self.load()

    async def heal(self) -> None:
        """Load again if no lane can be forked, or no model serves and the file could not be read; call each second."""
        current = self._engine.current
        unread = current is None and self._next_load is not None and time.monotonic() >= self._next_load
        if unread or (current is not None and current.zygote.ended):
            await self.load()

    async def _load(self) -> None:
        path = self._path()
        self._seen = await _signature(path)
        lanes = self._engine.make(str(path))
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                model = await lanes.load()
        except LaneStartError as error:
            self._refuse(str(error), again=error.again)
        except TimeoutError:
            self._refuse(f"{path.name}: not loaded within {LOAD_SECONDS:g} seconds", again=True)
        except OSError as error:  # processes, descriptors or memory have run out
            self._refuse(f"no process could be started: {error.strerror}", again=True)
        else:
            self.refused, self._next_load = False, None
            self._engine.place(lanes)
            self._placed(model)
            served = {"model": model.contract.version, "model_file": model.file, "digest": model.digest}
            if model.fallback:
                SERVICE.warning(
                    "the fp32 model serves because the int8 model failed its exam",
                    extra={"fields": {**served, "reason": model.fallback}},
                )
            SERVICE.info("ready", extra={"fields": served})
            self.decided.set()
        finally:
            if self._engine.current is not lanes:
                self._engine.retire(lanes)

    def _refuse(self, reason: str, *, again: bool) -> None:
        self.refused = True
        if again:
            self._seen = None  # for `watch`
        self._next_load = time.monotonic() + RELOAD_SECONDS if again else None
        if self.model is None:
            self.reason = reason
        self.decided.set()
        fields = {"reason": reason, "serving": self.model and self.model.contract.version}
        SERVICE.error("the model is refused", extra={"fields": fields})


async def _signature(path: Path) -> Signature | None:
    """Time, size and inode of the file; None if it does not exist or the file system does not answer.

    Asked in a daemon thread: a file system that hangs must block neither the event loop nor the end of the process.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Future[Signature | None] = loop.create_future()

    def tell(found: Signature | None) -> None:
        if not told.done():
            told.set_result(found)

    def ask() -> None:
        try:
            stat = path.stat()
            found = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            found = None
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=ask, name="stat", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STAT_SECONDS):
            return await told
    return None
