"""The service with lanes that answer at once, which shows what its front process can do.

python ops/bench/baselines/instant.py     # with this folder on PYTHONPATH, for the process that forks the lanes
"""

import mmap
import socket
import sys
from typing import Final

import msgspec

from serving.engine.wire import ANSWER, REQUEST, SHARED_BYTES, Answer, Outcome, Ready, Start
from serving.model.session import Model

NAME: Final = "instant"
SAME: Final = Answer(
    label="cats",
    verdict="cats",
    unsure_because=None,
    cats=0.9987654,
    dogs=0.0012346,
    familiarity=0.87654,
    again=False,
    brightness=0.4,
    size=0,
    width=500,
    height=375,
    evidence=None,
    png=None,
    decode=0.001,
    infer=0.002,
    draw=0.0,
    cpu=0.003,
)


def main(_: Model, __: Start, ___: int, connection: socket.socket, shared: mmap.mmap) -> None:
    """Answer every request in the same way, once it has been read as a lane reads it."""
    _send(connection, Ready())
    while head := connection.recv(REQUEST.size, socket.MSG_WAITALL):
        length, _ = REQUEST.unpack(head)
        data = shared[:length] if length <= SHARED_BYTES else connection.recv(length, socket.MSG_WAITALL)
        _send(connection, msgspec.structs.replace(SAME, size=len(data)))


def _send(connection: socket.socket, message: Ready | Outcome) -> None:
    encoded = msgspec.msgpack.encode(message)
    connection.sendall(ANSWER.pack(len(encoded)) + encoded)


if __name__ == "__main__":
    from serving.engine.lane import Zygote
    from serving.http import server
    from serving.settings import from_environment

    zygote = Zygote(NAME)
    zygote.start()
    sys.exit(server.run(from_environment(), zygote))
