"""The engine: whether a request is let in, and which model's lanes answer it.

Measured on two cores: a CPU convnet gains nothing from batching, and two single-threaded runs beat one two-threaded run
by about 15 %. So there is one lane for each usable core. The event loop never decodes, computes or waits for a file.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from serving.engine.cores import usable_cores
from serving.engine.supervisor import Forker, Lanes
from serving.engine.wire import Start
from serving.errors import ProblemError
from serving.settings import Settings
from shared.spec import Limits

# No lane can be started for so long: only a new process, or another machine, helps.
DEAD_SECONDS: Final = 15.0
# A lane is replaced in a quarter of a second, for which requests may wait.
DOWN_SECONDS: Final = 1.0
# Beyond the deadline of the last picture, for lanes to end.
CLOSE_SECONDS: Final = 2.0


class Engine:
    """Admission, and the lanes of the model in service; those of the model before it finish what they have.

    Args:
        forker: forks lanes.
        settings: those of lanes, queue and deadline.
        limits: what a picture may cost.
        restarted: told the reason of each restart of a lane.
    """

    def __init__(
        self,
        forker: Forker,
        settings: Settings,
        limits: Limits,
        restarted: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Make it; no lane runs yet."""
        self.lanes = settings.lanes or usable_cores()
        self.current: Lanes | None = None
        self._forker = forker
        self._settings = settings
        self._limits = limits
        self._restarted = restarted
        self._retiring: set[asyncio.Task[None]] = set()
        self.closed = False

    @property
    def busy(self) -> int:
        """Lanes at work."""
        return self.current.busy if self.current else 0

    @property
    def depth(self) -> int:
        """Pictures that wait."""
        return len(self.current.queue) if self.current else 0

    @property
    def pids(self) -> list[int]:
        """Process ids of the lanes and of their parent."""
        return [self._forker.pid, *(self.current.pids if self.current else ())]

    @property
    def down(self) -> bool:
        """No lane has been ready for longer than it takes to replace one."""
        return self._down_for(DOWN_SECONDS)

    @property
    def dead(self) -> bool:
        """That has lasted: the process must be replaced."""
        return self._down_for(DEAD_SECONDS)

    def _down_for(self, seconds: float) -> bool:
        since = self.current.down_since if self.current else None
        return since is not None and time.monotonic() - since > seconds

    def make(self, path: str) -> Lanes:
        """Lanes for the model file at ``path``; they run once loaded."""
        start = Start(
            path=path,
            file="",
            threads=usable_cores(),
            core=None,
            max_pixels=self._limits.max_pixels,
            max_bytes=self._limits.max_bytes,
            cpu_seconds=self._settings.max_cpu_seconds,
        )
        return Lanes(self._forker, start, self.lanes, self._settings.deadline_seconds, self._restarted)

    def place(self, lanes: Lanes) -> None:
        """Have these answer from now on."""
        before, self.current = self.current, lanes
        if before is not None:
            self.retire(before)

    def retire(self, lanes: Lanes) -> None:
        """Have these finish what they have and end."""
        task = asyncio.get_running_loop().create_task(lanes.close())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def close_admission(self) -> None:
        """Refuse new work from now on; what was accepted is finished."""
        self.closed = True

    def admit(self) -> Lanes:
        """Let a request in; returns what answers it, to the end.

        Raises:
            ProblemError: ``draining``, ``not_ready``, or ``overloaded`` with the seconds after which there should be
                room again.
        """
        if self.closed:
            raise ProblemError("draining", "the service is shutting down; another one will answer")
        lanes = self.current
        if lanes is None or self.down:
            raise ProblemError("not_ready", "no worker is ready", retry_after=1)
        if len(lanes.queue) >= self._settings.max_queue:
            raise ProblemError("overloaded", f"{len(lanes.queue)} pictures are waiting already", lanes.retry_after())
        return lanes

    def check(self) -> None:
        """See to lanes that hang; call every second or so."""
        if self.current:
            self.current.check()

    async def close(self) -> None:
        """Finish what was accepted and end the lanes."""
        self.close_admission()
        if self.current:
            self.retire(self.current)
        if self._retiring:  # a lane that waits for a disk in the kernel cannot be ended
            await asyncio.wait(self._retiring, timeout=self._settings.deadline_seconds + CLOSE_SECONDS)
        self._forker.close()
