"""A lane of which only the first comes up."""

import socket

from serving.engine.wire import Start
from tests.serving.engine import hostile


def main(start: Start, connection: socket.socket, memory: int) -> None:
    if start.path is None:
        raise SystemExit
    hostile.main(start, connection, memory)
