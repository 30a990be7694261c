"""A lane as a process that ends by itself when its connection does, so that coverage counts what it ran.

python -m tests.serving.engine.single CONNECTION MEMORY < START
"""

import mmap
import os
import resource
import socket
import sys
from pathlib import Path

import msgspec

from serving.engine import worker
from serving.engine.wire import SHARED_BYTES, Start
from serving.model.session import load

set_limit = resource.setrlimit


def keep_descriptors(what: int, limits: tuple[int, int]) -> None:
    if what != resource.RLIMIT_NOFILE:
        set_limit(what, limits)


if __name__ == "__main__":
    if "COVERAGE_PROCESS_START" in os.environ:  # it writes a file at the end
        resource.setrlimit = keep_descriptors
    start = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Start)
    connection, memory = map(int, sys.argv[1:])
    worker.main(load(Path(start.path)), start, 2, socket.socket(fileno=connection), mmap.mmap(memory, SHARED_BYTES))
