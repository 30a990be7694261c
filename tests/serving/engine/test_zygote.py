"""The parent of the lanes, as a process of its own that is asked over its socket."""

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from serving.engine.lane import LaneStartError, Zygote
from serving.engine.wire import MAX_MESSAGE, NUMBER, SHARED_BYTES, Loaded, LoadRefused
from serving.settings import SHIPPED_INT8
from tests.conftest import measured
from tests.serving.engine import brief
from tests.serving.engine.test_worker import START
from tests.waiting import until


@pytest.fixture
def control() -> Iterator[socket.socket]:
    """The socket to a zygote, which ends by itself once that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "serving.engine.zygote", str(theirs.fileno()), "tests.serving.engine.brief"]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ | measured())
    yield ours
    ours.close()
    assert process.wait(60) == 0


def load(control: socket.socket, path: str) -> Loaded | LoadRefused:
    control.send(msgspec.msgpack.encode(msgspec.structs.replace(START, path=path)))
    answer: Loaded | LoadRefused = msgspec.msgpack.decode(control.recv(MAX_MESSAGE), type=Loaded | LoadRefused)
    return answer


def test_it_says_what_it_loaded_without_the_golden_pictures(control: socket.socket) -> None:
    loaded = load(control, str(SHIPPED_INT8))
    assert isinstance(loaded, Loaded)
    assert (loaded.file, loaded.fallback) == (SHIPPED_INT8.name, None)
    assert loaded.digest == hashlib.sha256(SHIPPED_INT8.read_bytes()).hexdigest()
    assert loaded.contract.exam.questions
    assert not any(question.picture for question in loaded.contract.exam.questions)


def test_a_file_that_cannot_be_read_is_said_to_be_worth_another_try(control: socket.socket) -> None:
    assert load(control, "/nowhere/model.onnx") == LoadRefused("model.onnx: No such file or directory", True)


@pytest.mark.parametrize(("way", "code"), [(brief.DONE, 0), (brief.HUNG_UP, 0), (brief.ERROR, 1)])
def test_it_tells_how_a_lane_ended_which_hangs_up_last_of_all(control: socket.socket, way: int, code: int) -> None:
    load(control, str(SHIPPED_INT8))
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as memory:
        memory.truncate(SHARED_BYTES)
        socket.send_fds(control, [NUMBER.pack(way)], [theirs.fileno(), memory.fileno()])
        theirs.close()
        pid = control.recv(NUMBER.size)
        assert ours.recv(1) == b""
        control.send(pid)
        assert NUMBER.unpack(control.recv(NUMBER.size)) == (code,)


def children() -> str:
    """Process ids of what this thread has started."""
    return Path("/proc/thread-self/children").read_text()


async def test_one_that_is_closed_refuses_what_is_still_asked() -> None:
    before = children()
    zygote = Zygote("tests.serving.engine.brief")
    zygote.start()
    assert children() != before
    await zygote.close()
    assert await zygote.reap(os.getpid()) is None
    with pytest.raises(LaneStartError):
        await zygote.load(START)
    until(lambda: children() == before)
