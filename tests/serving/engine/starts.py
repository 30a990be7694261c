"""Lanes that start badly: the second fork fails, and the third lane hangs before it is ready."""

import errno
import mmap
import os
import signal
import socket

from serving.engine.wire import Start
from serving.model.session import Model
from tests.serving.engine import hostile

forks: list[None] = []
fork = os.fork


def count() -> int:
    forks.append(None)
    if len(forks) == 2:
        raise BlockingIOError(errno.EAGAIN, "processes have run out")
    return fork()


os.fork = count


def main(model: Model, start: Start, threads: int, connection: socket.socket, shared: mmap.mmap) -> None:
    if len(forks) == 3:
        signal.pause()
    hostile.main(model, start, threads, connection, shared)
