"""A lane that does to pictures what the name of its model file says: the worker of the challenger's tests."""

import mmap
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from serving.engine import worker
from serving.engine.wire import Answer, Start
from serving.model.classify import classify
from serving.model.session import Model, ModelFailedError


def hang(*_: object) -> Answer:
    time.sleep(3600)
    raise AssertionError


def fail(*_: object) -> Answer:
    raise ModelFailedError("it failed")


def contrary(*arguments: object) -> Answer:
    found = classify(*arguments)  # type: ignore[arg-type]
    return msgspec.structs.replace(found, verdict="unsure" if found.verdict != "unsure" else "dogs")


def garbage(connection: socket.socket, *_: object) -> Answer:
    connection.sendall(b"\x03\0\0\0abc")
    return hang()


DEEDS: dict[str, Callable[..., Answer]] = {
    "hang": hang,
    "fail": fail,
    "contrary": contrary,
    "crash": lambda *_: os.abort(),
}


def main(model: Model, start: Start, threads: int, connection: socket.socket, shared: mmap.mmap) -> None:
    what = Path(start.path).stem
    deed = partial(garbage, connection) if what == "garbage" else DEEDS.get(what)
    if deed:
        worker.classify = deed  # type: ignore[attr-defined]
    worker.main(model, start, threads, connection, shared)
