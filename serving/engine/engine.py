"""The engine: whether a request is admitted, and which model's lanes answer it.

There is one lane for each usable core: measured on two cores, a CPU convnet gains nothing from batching, and two
single-threaded runs beat one two-threaded run by about 15 %. The event loop never decodes, computes or reads a file.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from serving.engine.cores import usable_cores
from serving.engine.lane import Zygote
from serving.engine.supervisor import Lanes
from serving.engine.wire import Start
from serving.errors import ProblemError
from serving.settings import Settings
from shared.spec import Limits

# Without a ready lane for this long, the process should be replaced.
DEAD_SECONDS: Final = 15.0
# Replacing a lane takes a quarter of a second, and requests may wait that long.
DOWN_SECONDS: Final = 1.0
LOST_SECONDS: Final = 45.0
# For lanes to end, after the deadline of the last picture.
CLOSE_SECONDS: Final = 2.0


class Engine:
    """Admission, and the lanes of the model in service. Lanes of earlier models finish their requests and end.

    Args:
        zygote: for the first model; it may run already.
        settings: of lanes, queue and deadline.
        limits: what decoding a picture may cost.
        restarted: called with the reason of each restart of a lane.
        wide: whether a request that is alone gets all cores.
    """

    def __init__(
        self,
        zygote: Zygote,
        settings: Settings,
        limits: Limits,
        restarted: Callable[[str], None] = lambda _: None,
        *,
        wide: bool = True,
    ) -> None:
        """Make it; no lane runs yet."""
        self.lanes = settings.lanes or usable_cores()
        self._threads = usable_cores() if wide else 1
        self.current: Lanes | None = None
        self._zygote = zygote
        self._settings = settings
        self._limits = limits
        self._restarted = restarted
        self._retiring: dict[asyncio.Task[None], Lanes] = {}
        self.closed = False

    @property
    def busy(self) -> int:
        """Lanes at work."""
        return self.current.busy if self.current else 0

    @property
    def idle(self) -> bool:
        """No picture waits, and a core has nothing to do: a lone picture uses them all, more only one each."""
        lanes = self.current
        return lanes is not None and not lanes.queue and lanes.busy != 1 and lanes.busy < lanes.usable

    @property
    def depth(self) -> int:
        """Pictures that wait."""
        return len(self.current.queue) if self.current else 0

    @property
    def pids(self) -> list[int]:
        """Process ids of the lanes and the zygote."""
        return [self.current.zygote.pid, *self.current.pids] if self.current else []

    @property
    def down(self) -> bool:
        """No lane has been ready for longer than replacing one takes, or none can be forked."""
        return self._down_for(DOWN_SECONDS) or (self.current is not None and self.current.zygote.ended)

    @property
    def dead(self) -> bool:
        """No lane has been ready for `DEAD_SECONDS`: the process should be replaced."""
        return self._down_for(DEAD_SECONDS)

    @property
    def lost(self) -> bool:
        """No lane has been ready for `LOST_SECONDS`: the process should end, since some supervisors ask no health."""
        return self._down_for(LOST_SECONDS)

    def _down_for(self, seconds: float) -> bool:
        since = self.current.down_since if self.current else None
        return since is not None and time.monotonic() - since > seconds

    def make(self, path: str) -> Lanes:
        """Make lanes for the model file at ``path``; `Lanes.load` starts them."""
        zygote, self._zygote = self._zygote, self._zygote.another()
        deadline = self._settings.deadline_seconds
        return Lanes(zygote, self._start(path), self.lanes, self._threads, deadline, self._restarted)

    def beside(self, path: str) -> tuple[Zygote, Start]:
        """For a model that answers at the lowest priority: its process, which is not started, and what to tell it."""
        return self._zygote.another(lowest=True), self._start(path)

    def _start(self, path: str) -> Start:
        return Start(
            path=path,
            max_pixels=self._limits.max_pixels,
            max_bytes=self._limits.max_bytes,
            cpu_seconds=self._settings.max_cpu_seconds,
        )

    def place(self, lanes: Lanes) -> None:
        """Put lanes into service, and retire those before them."""
        before, self.current = self.current, lanes
        if before is not None:
            self.retire(before)

    def retire(self, lanes: Lanes) -> None:
        """End lanes after their last request, in the background."""
        task = asyncio.get_running_loop().create_task(lanes.close())
        self._retiring[task] = lanes
        task.add_done_callback(self._retiring.pop)

    def close_admission(self) -> None:
        """Refuse new requests from now on; accepted ones are finished."""
        self.closed = True

    def admit(self, *, begun: bool = False) -> Lanes:
        """Admit a request; returns the lanes that answer it.

        Args:
            begun: it was admitted before, and its body has arrived since.

        Raises:
            ProblemError: ``draining``, ``not_ready``, or ``overloaded`` with the seconds after which there should be
                room.
        """
        if self.closed and not begun:
            raise ProblemError("draining", "the service is shutting down; another one will answer")
        lanes = self.current
        if lanes is None or self.down:
            raise ProblemError("not_ready", "no worker is ready", retry_after=1)
        if len(lanes.queue) >= self._settings.max_queue:
            raise ProblemError("overloaded", f"{len(lanes.queue)} pictures are waiting already", lanes.retry_after())
        return lanes

    def check(self) -> None:
        """Kill lanes that hang; call about once a second."""
        for lanes in (self.current, *self._retiring.values()):
            if lanes:
                lanes.check()

    async def close(self) -> None:
        """Finish accepted requests and end the lanes."""
        self.close_admission()
        if self.current:
            self.retire(self.current)
        if self._retiring:  # not for ever: a lane blocked in the kernel, on a disk, cannot be killed
            await asyncio.wait([*self._retiring], timeout=self._settings.deadline_seconds + CLOSE_SECONDS)
        await self._zygote.close()
