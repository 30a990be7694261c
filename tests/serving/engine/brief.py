"""A lane that ends at once, in the way that its number of threads stands for."""

import mmap
import socket

from serving.engine.wire import Start
from serving.model.session import Model

DONE, HUNG_UP, ERROR = range(3)


def main(_model: Model, _start: Start, threads: int, _connection: socket.socket, _shared: mmap.mmap) -> None:
    if threads == HUNG_UP:
        raise BrokenPipeError
    if threads == ERROR:
        raise RuntimeError
