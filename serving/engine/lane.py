"""A lane from the front process's side: the zygote that forks it, its connection, and a piece of its work."""

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from serving.engine.wire import (
    ANSWER,
    MAX_MESSAGE,
    NUMBER,
    REQUEST,
    SHARED_BYTES,
    Body,
    Flags,
    Loaded,
    LoadRefused,
    Outcome,
    Ready,
    Start,
)
from shared.samples import PIXEL_BYTES

WORKER: Final = "serving.engine.worker"
# Of a body that is too large for the shared memory, sent at a time.
PIECE_BYTES: Final = 131_072
# A process that forks must have no threads: on import, numpy's OpenBLAS starts some, and onnxruntime one for telemetry.
SINGLE_THREADED: Final = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
# glibc asks for pages of 2 MB, where it can: a picture takes a few per cent less time (ops/bench/NOTES.md).
HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_answers: Final = msgspec.msgpack.Decoder(Outcome | Ready)
_loads: Final = msgspec.msgpack.Decoder(Loaded | LoadRefused)


class ClientGoneError(Exception):
    """The client left while its picture was waiting, so it was not decoded."""


class LaneStartError(Exception):
    """The model is refused, or a process ended before it was ready; ``again``: trying again may help."""

    def __init__(self, reason: str, *, again: bool) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.again = again


def yield_to_others(pid: int) -> None:
    """Give a process, and what it forks, the lowest priority; when memory runs out, it is killed before all others."""
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    with contextlib.suppress(OSError):  # a sandbox may not know it; it gives way at once to who wants the core
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    # Outside of containers Linux may schedule sessions as groups (sched(7)), and a group gives way by its own priority.
    for file, value in (("autogroup", "19"), ("oom_score_adj", "1000")):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/{file}").write_text(value)


def reap_orphans() -> None:
    """Wait for children that have ended, as only the first process of a container has to.

    Its zygotes' lanes become its children when a zygote is killed. That of a zygote, too, may be waited for here:
    `subprocess` takes it for one that has ended.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class Zygote:
    """The process that loads one model and forks its lanes (:mod:`serving.engine.zygote`)."""

    def __init__(self, worker: str = WORKER, *, lowest: bool = False) -> None:
        """Make it; ``worker`` is the module whose ``main`` a lane runs, ``lowest`` its and its lanes' priority."""
        self.ended = False
        self._lowest = lowest
        self._worker = worker
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs, without waiting for its imports."""
        if self._process is not None:
            return
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._control.setblocking(False)
            command = [sys.executable, "-m", "serving.engine.zygote", str(theirs.fileno()), self._worker]
            # In its own session: signals from a terminal are for the front process.
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=HUGE_PAGES | os.environ | SINGLE_THREADED,
            )
        if self._lowest:
            yield_to_others(self.pid)

    def another(self, *, lowest: bool = False) -> "Zygote":
        """Make one for another model; it is not started."""
        return Zygote(self._worker, lowest=lowest)

    @property
    def pid(self) -> int:
        """Its process id, once it is started."""
        assert self._process is not None
        return self._process.pid

    async def load(self, start: Start) -> Loaded:
        """Load a model; the first thing to ask, and to ask once.

        Raises:
            LaneStartError: it is refused, or the process ended.
        """
        message = await self._ask(lambda control: control.send(msgspec.msgpack.encode(start)), MAX_MESSAGE)
        answer: Loaded | LoadRefused = _loads.decode(message)
        if isinstance(answer, LoadRefused):
            raise LaneStartError(answer.reason, again=answer.again)
        return answer

    async def fork(self, threads: int) -> tuple[int, socket.socket, mmap.mmap]:
        """Fork a lane with ``threads`` threads for a wide session; returns its process id, and socket and memory to it.

        Raises:
            LaneStartError: the zygote ended, or cannot fork.
            OSError: descriptors or memory have run out.
        """
        memory = os.memfd_create("bodies")
        try:
            os.truncate(memory, SHARED_BYTES)
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    ours.setblocking(False)
                    numbers, descriptors = [NUMBER.pack(threads)], [theirs.fileno(), memory]
                    said = await self._ask(lambda control: socket.send_fds(control, numbers, descriptors))
                pid: int = NUMBER.unpack(said)[0]
                if pid < 0:
                    raise LaneStartError(f"no process can be forked: {os.strerror(-pid)}", again=True)
                return pid, ours, mmap.mmap(memory, SHARED_BYTES)
            except BaseException:
                ours.close()
                raise
        finally:
            os.close(memory)

    async def reap(self, pid: int) -> int | None:
        """Return the exit code of a lane that has ended, negative for a signal; None if the zygote has ended too."""
        try:
            code: int = NUMBER.unpack(await self._ask(lambda control: control.send(NUMBER.pack(pid))))[0]
        except LaneStartError:
            return None
        return code

    def kill(self) -> None:
        """End it, and with it its lanes."""
        if self._process is None or self.ended:
            return
        self.ended = True
        self._process.kill()
        # In a daemon thread: a process that is blocked on a disk cannot be killed. If threads have run out,
        # `subprocess` waits for this one when it starts another.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._process.wait, daemon=True).start()
        if not self._lock.locked():
            self._control.close()

    async def close(self) -> None:
        """End it, and close its socket once nothing is being asked."""
        self.kill()
        async with self._lock:
            if self._process is not None:
                self._control.close()

    async def _ask(self, send: Callable[[socket.socket], object], size: int = NUMBER.size) -> bytes:
        # If the caller is cancelled, its answer must still be read, or the next caller would get it.
        asked = asyncio.ensure_future(self._exchange(send, size))
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio would log it
        return await asyncio.shield(asked)

    async def _exchange(self, send: Callable[[socket.socket], object], size: int) -> bytes:
        async with self._lock:
            answer = b""
            with contextlib.suppress(OSError):
                send(self._control)
                answer = await asyncio.get_running_loop().sock_recv(self._control, size)
            if answer:
                return answer
            self.kill()
            raise LaneStartError("the process that starts lanes ended", again=True)


class Job:
    """A piece of work, and the future of its outcome."""

    __slots__ = ("data", "flags", "future", "started", "submitted", "wanted")

    def __init__(self, data: Body, flags: Flags, wanted: Callable[[], bool]) -> None:
        """Make it; its waiting time starts now."""
        self.data = data
        self.flags = flags
        self.wanted = wanted
        self.submitted = self.started = time.perf_counter()
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        """Set an error as the outcome, unless there is one already."""
        if not self.future.done():
            self.future.set_exception(error)


class Lane(asyncio.Protocol):
    """The connection to one child process."""

    def __init__(
        self, number: int, pid: int, shared: mmap.mmap, heard: "Callable[[Lane, Outcome | Ready | None], None]"
    ) -> None:
        """Call ``heard`` with each message, and with None when the connection is lost."""
        self.number = number
        self.pid = pid
        self.job: Job | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.forked = time.perf_counter()
        self.ended_for: str | None = None  # why we killed it
        self._heard = heard
        self._shared = shared
        self._unsent = memoryview(b"")
        self._writable = True
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Decode each complete message."""
        self._buffer += data
        while len(self._buffer) >= ANSWER.size:
            end = ANSWER.size + ANSWER.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[ANSWER.size : end])
            del self._buffer[:end]
            try:
                self._heard(self, _answers.decode(message))
            except msgspec.MsgspecError:  # a hostile file may have taken the lane over
                self.end("crash")
                return

    def connection_lost(self, _: Exception | None) -> None:
        """Report the end of the lane."""
        self._heard(self, None)

    def begin(self, job: Job, flags: Flags) -> None:
        """Send a piece of work to the lane."""
        assert self._transport is not None
        self.job = job
        job.started = time.perf_counter()
        head, size = REQUEST.pack(len(job.data), flags), len(job.data)
        if size <= SHARED_BYTES:
            self._shared[:size] = job.data
            self._transport.write(head)
        else:
            self._transport.write(head)
            self._unsent = memoryview(job.data)
            self.resume_writing()

    def pause_writing(self) -> None:
        """Wait with the rest of a large body until the lane has read what is there."""
        self._writable = False

    def resume_writing(self) -> None:
        """Send more of a large body: all of it at once would be copied at once."""
        assert self._transport is not None
        self._writable = True
        while self._unsent and self._writable:
            self._transport.write(self._unsent[:PIECE_BYTES])
            self._unsent = self._unsent[PIECE_BYTES:] or memoryview(b"")  # an empty slice would keep the whole body

    def pixels(self) -> bytes:
        """What the network saw in the picture answered last, if it was kept."""
        return self._shared[:PIXEL_BYTES]

    def end(self, reason: str) -> None:
        """Kill the lane; its job is answered when it has ended."""
        if self.ended_for is None:
            self.ended_for = reason
            with contextlib.suppress(ProcessLookupError):  # the zygote has ended, and nobody keeps the process id
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the connection, as the zygote's end has ended the lane."""
        assert self._transport is not None
        self._transport.abort()
