"""A lane: a child process that decodes and infers one picture at a time.

What a picture may cost is the kernel's to enforce: a timer that counts the processor time of this process and ends it
(``ITIMER_PROF``), and a limit of its address space. So nothing here can keep a core or the machine's memory, whatever
a decoder does. The supervisor sees how the process ended and starts another.
"""

import binascii
import contextlib
import ctypes
import os
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from serving.engine.wire import (
    ANSWER,
    REQUEST,
    Batch,
    Flags,
    Item,
    Loaded,
    LoadRefused,
    ModelFailed,
    Outcome,
    PictureRefused,
    Start,
)
from serving.messages import MAX_BATCH
from serving.model.classify import classify
from serving.model.session import Model, ModelFailedError, ModelRefusedError, load
from shared.pixels import Limits, RefusedImageError

# Beside the base of `Start`: decoding 50 megapixels took up to 35 ns a pixel here (WebP), a BMP 4.
CPU_SECONDS_PER_PIXEL: Final = 1e-7
# Of which those of an ordinary photo are not worth a system call.
PIXELS_WITHIN_BASE: Final = 1_000_000
# Taking apart 64 MB of batch took 0.05 s here.
CPU_SECONDS_PER_BYTE: Final = 1e-8
# Address space for all but decoding: the request, the network's own, what malloc keeps.
SLACK_BYTES: Final = 150_000_000
# Of the first to be chosen where the machine runs out of memory; the front process is not.
OOM_SCORE: Final = "800"
_TO_PLAIN_BASE64: Final = bytes.maketrans(b"-_", b"+/")
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


class _BatchItem(msgspec.Struct):
    data: msgspec.Raw
    id: str | None = None


class _BatchBody(msgspec.Struct):
    images: list[_BatchItem]


def main(start: Start, connection: socket.socket, memory: int) -> None:
    """Load the model, say so, and answer until the front process hangs up.

    Args:
        start: what to start with.
        connection: a stream socket to the front process.
        memory: descriptor of the memory file that holds the model's bytes, or will hold them.
    """
    _harden()
    if start.core is not None:
        os.sched_setaffinity(0, {start.core})
    try:
        model = _model(start, memory)
    except ModelRefusedError as error:
        _send(connection, LoadRefused(str(error), error.again))
        return
    questions = tuple(msgspec.structs.replace(question, picture=b"") for question in model.contract.exam.questions)
    told = msgspec.structs.replace(
        model.contract, exam=msgspec.structs.replace(model.contract.exam, questions=questions)
    )
    os.close(memory)
    limits = Limits(start.max_pixels, start.max_bytes)
    _confine(start)
    _send(connection, Loaded(contract=told, file=model.file, fallback=model.fallback, digest=model.digest))
    while head := connection.recv(REQUEST.size, socket.MSG_WAITALL):
        length, number = REQUEST.unpack(head)
        data = connection.recv(length, socket.MSG_WAITALL) if length else b""
        _send(connection, _outcome(model, data, limits, Flags(number), start.cpu_seconds))


def _model(start: Start, memory: int) -> Model:
    if start.path is None:
        data = os.pread(memory, os.fstat(memory).st_size, 0)
        return Model(data, start.file, start.threads, start.fallback)
    model = load(Path(start.path), start.threads)
    with open(memory, "wb", closefd=False) as file:  # a descriptor
        file.write(model.data)
    return model


def _outcome(model: Model, data: bytes, limits: Limits, flags: Flags, seconds: float) -> Outcome:
    processor = time.process_time()
    seconds += len(data) * CPU_SECONDS_PER_BYTE
    # It counts on until the next one is set, but waiting for a request takes no processor time.
    signal.setitimer(signal.ITIMER_PROF, seconds)

    def opened(pixels: int) -> None:
        if pixels > PIXELS_WITHIN_BASE:
            signal.setitimer(signal.ITIMER_PROF, seconds + pixels * CPU_SECONDS_PER_PIXEL)

    try:
        if Flags.BATCH in flags:
            return _batch(data)
        if Flags.BASE64 in flags:
            data = _base64(msgspec.json.decode(data, type=str))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return PictureRefused("malformed_request", str(error))
    except MemoryError:
        return PictureRefused("body_too_large", "taking the batch apart takes more memory than there is")
    try:
        answer = classify(model, data, limits, flags, opened)
    except RefusedImageError as error:
        return PictureRefused(error.code, str(error))
    except MemoryError:
        return PictureRefused("image_too_large", "decoding it takes more memory than there is")
    except ModelFailedError as error:
        return ModelFailed(f"{error}: {error.__cause__}")
    return msgspec.structs.replace(answer, cpu=time.process_time() - processor)


def _batch(data: bytes) -> Batch:
    """Where each picture of a batch is, so that lanes can decode its base64 side by side."""
    body = msgspec.json.decode(data, type=_BatchBody)
    if len(body.images) > MAX_BATCH:
        raise ValueError(f"a batch has at most {MAX_BATCH} pictures, not {len(body.images):,}")
    base = _address(data)
    items = []
    for number, item in enumerate(body.images):
        if item.id is not None and len(item.id) > 200:
            raise ValueError(f"the id of picture {number} is longer than 200 characters")
        start = _address(item.data) - base
        items.append(Item(item.id, start, start + memoryview(item.data).nbytes))
    return Batch(items)


def _base64(text: str) -> bytes:
    """Decode what clients send: also a ``data:`` URI, line breaks, the URL-safe alphabet, no padding."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        plain = text.encode("ascii").translate(_TO_PLAIN_BASE64, b" \t\r\n")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as error:  # binascii.Error is one, and what is not ASCII another
        raise ValueError(f"invalid base64: {error}") from error


def _address(data: bytes | msgspec.Raw) -> int:
    return int(np.frombuffer(memoryview(data), np.uint8).ctypes.data)


def _send(connection: socket.socket, message: Loaded | LoadRefused | Outcome) -> None:
    encoded = msgspec.msgpack.encode(message)
    connection.sendall(ANSWER.pack(len(encoded)) + encoded)


def _harden() -> None:
    """End with the parent, and gain no privileges."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # a sandbox may not have it
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def _confine(start: Start) -> None:
    """Let go of everything that a picture does not need: more memory, files, and with them the network."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = size + SLACK_BYTES + (start.max_bytes or 0)
    if start.max_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    # What is open stays open; there is no number left for another.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
