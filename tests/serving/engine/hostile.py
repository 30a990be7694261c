"""A lane whose decoder does what a file says: the worker that the engine's tests run."""

import ctypes
import itertools
import mmap
import os
import socket
import sys
import time
from collections.abc import Callable

import numpy as np

from serving.engine import worker
from serving.engine.wire import Answer, Flags, Start
from serving.model.classify import classify
from serving.model.session import Model, ModelFailedError
from shared.pixels import Limits

MEGABYTE = 1_000_000
pieces = itertools.count(1)


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def fail(_: float) -> None:
    raise ModelFailedError("it failed")


DEEDS: dict[bytes, Callable[[float], object]] = {
    b"sleep": time.sleep,
    b"spin": spin,
    b"spin-in-c": lambda amount: sum(range(int(amount))),
    b"allocate": lambda amount: [np.ones(MEGABYTE, np.uint8) for _ in range(int(amount))],
    b"crash": lambda _: ctypes.string_at(0),
    b"exit": lambda code: os._exit(int(code)),
    b"raise": lambda _: sys.exit(),
    b"fail": fail,
    b"network": lambda _: socket.socket(),
}


def decode(model: Model, data: bytes, limits: Limits, flags: Flags, *_others: object) -> Answer:
    what, _, amount = data.partition(b" ")
    if what != b"count":
        next(pieces)
    if what in DEEDS:
        began = time.perf_counter()
        DEEDS[what](float(amount or 0))
        return answer(decode=time.perf_counter() - began)
    if what == b"alone":
        return answer(label="cats" if Flags.ALONE in flags else "dogs")
    if what == b"echo":
        return answer(familiarity=float(amount))
    if what == b"count":
        return answer(familiarity=next(pieces))
    if what == b"pid":
        return answer(familiarity=os.getpid())
    return classify(model, data, limits, flags)


def answer(**fields: object) -> Answer:
    made = {
        "label": "cats", "verdict": "cats", "unsure_because": None, "cats": 1.0, "dogs": 0.0, "familiarity": 1.0,
        "again": False, "brightness": 0.5, "size": 1, "width": 1, "height": 1, "evidence": None, "png": None,
        "decode": 0.0, "infer": 0.0, "draw": 0.0, "cpu": 0.0,
    }  # fmt: skip
    return Answer(**{**made, **fields})  # type: ignore[arg-type]


def main(model: Model, start: Start, threads: int, connection: socket.socket, shared: mmap.mmap) -> None:
    worker.classify = decode  # type: ignore[assignment,attr-defined]
    worker.main(model, start, threads, connection, shared)
