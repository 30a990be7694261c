"""The parent of one model's lanes: it loads the file, sits the exam, and forks a lane on request.

    python -m serving.engine.zygote DESCRIPTOR MODULE

A fork takes milliseconds, and all lanes share the memory of the weights that passed the exam. Forking the front process
would copy its event loop and threads; this process has neither: a session with one thread starts none. Unlike the
forkserver of ``multiprocessing``, it needs no folder for a socket (a container may have none to write to) and no
resource tracker process (10 MB), does not run the main module again in each child, and tells how a child ended.
"""

import contextlib
import ctypes
import gc
import importlib
import mmap
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from serving.engine.memory import trim
from serving.engine.wire import MAX_MESSAGE, NUMBER, SHARED_BYTES, Loaded, LoadRefused, Start
from serving.model.session import Model, ModelRefusedError, load
from shared.pixels import heif_reader

# When the machine runs out of memory, lanes are killed before the processes that they need.
OOM_SCORE: Final = "800"
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_THP_DISABLE = 1, 38, 41


def main(control: socket.socket, module: str) -> None:
    """Load the model that the first message, a `Start`, names; then serve requests from ``control``.

    A number with descriptors of a socket and of memory for bodies forks a lane, and is answered with its process id, or
    a negative error number; the number is of threads for the lane's wide session, and the lane runs ``main`` of
    ``module``. A number without
    descriptors is a process id, and is answered with that lane's exit code, negative for a signal.

    Signals that a terminal or systemd sends to every process are for the front process: this one ends with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _harden()
    # Of huge pages, which malloc asks for, only a lane makes use: 4 MB less with two lanes (ops/bench/NOTES.md).
    _huge_pages(allowed=False)
    worker = importlib.import_module(module)
    message = control.recv(MAX_MESSAGE)
    if not message:
        return
    start = msgspec.msgpack.decode(message, type=Start)
    try:
        model = load(Path(start.path))
    except ModelRefusedError as error:
        control.send(msgspec.msgpack.encode(LoadRefused(str(error), error.again)))
        return
    control.send(msgspec.msgpack.encode(_loaded(model)))
    trim()  # 8 MB that loading the file took
    heif_reader()  # a lane can open no file to import it from
    # Collecting garbage in a lane would otherwise write to, and so copy, every page that has an object.
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, NUMBER.size, 2)
        if not message:
            return
        (number,) = NUMBER.unpack(message)
        if not descriptors:
            _, status = os.waitpid(number, 0)
            control.send(NUMBER.pack(os.waitstatus_to_exitcode(status)))
            continue
        try:
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            control.close()
            _lane(partial(worker.main, model, start, number), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(NUMBER.pack(pid))


def _lane(main: Callable[[socket.socket, mmap.mmap], None], connection: int, memory: int) -> NoReturn:
    """Run a lane in this process, which ends with it."""
    code = 1
    try:
        _harden()
        _huge_pages(allowed=True)
        with contextlib.suppress(OSError):  # a sandbox may not allow it
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
        # Kept until the process ends, so that the front process sees it close only then.
        kept = socket.socket(fileno=connection)
        main(kept, mmap.mmap(memory, SHARED_BYTES))
        code = 0
    except ConnectionError:  # the front process hung up
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _loaded(model: Model) -> Loaded:
    questions = tuple(msgspec.structs.replace(question, picture=b"") for question in model.contract.exam.questions)
    contract = msgspec.structs.replace(
        model.contract, exam=msgspec.structs.replace(model.contract.exam, questions=questions)
    )
    return Loaded(contract=contract, file=model.file, fallback=model.fallback, digest=model.digest)


def _harden() -> None:
    """End with the parent, gain no privileges, dump no core."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _huge_pages(*, allowed: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, not allowed, 0, 0, 0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
