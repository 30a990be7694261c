"""The parent of the lanes, as a process of its own that is asked over its socket."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from serving.engine.forker import PID
from serving.engine.lane import Forker
from tests.conftest import measured
from tests.serving.engine.test_worker import START


@pytest.fixture
def control() -> Iterator[socket.socket]:
    """The socket to a forker, which ends by itself once that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "serving.engine.forker", str(theirs.fileno()), "tests.serving.engine.brief"]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ | measured())
    yield ours
    ours.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize(("way", "code"), [("done", 0), ("hung up", 0), ("an error", 1)])
def test_it_tells_how_a_lane_ended_which_hangs_up_last_of_all(control: socket.socket, way: str, code: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Path(os.devnull).open() as memory:
        message = msgspec.msgpack.encode(msgspec.structs.replace(START, file=way))
        socket.send_fds(control, [message], [theirs.fileno(), memory.fileno()])
        theirs.close()
        pid = control.recv(PID.size)
        assert ours.recv(1) == b""
        control.send(pid)
        assert PID.unpack(control.recv(PID.size)) == (code,)


def children() -> str:
    """Process ids of what this thread has started."""
    return Path("/proc/thread-self/children").read_text()


async def test_one_that_is_closed_is_not_started_again_for_what_is_still_asked() -> None:
    before = children()
    forker = Forker("tests.serving.engine.brief")
    forker.start()
    assert children() != before
    forker.close()
    assert await forker.reap(os.getpid()) is None
    assert children() == before
