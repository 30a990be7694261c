"""A lane of which only the first comes up."""

import mmap
import socket

from serving.engine.wire import Start
from serving.model.session import Model
from tests.serving.engine import hostile

started = mmap.mmap(-1, 1)  # shared by all lanes


def main(model: Model, start: Start, threads: int, connection: socket.socket, shared: mmap.mmap) -> None:
    if started[0]:
        raise SystemExit
    started[0] = 1
    hostile.main(model, start, threads, connection, shared)
