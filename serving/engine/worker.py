"""A lane: a child process that decodes and infers one picture at a time.

The kernel enforces what a picture may cost: ``ITIMER_PROF`` ends the process after too much processor time, and
``RLIMIT_AS`` limits its address space. Whatever a decoder does, it cannot hold a core or the machine's memory. The
supervisor sees how the process ended and starts another.
"""

import mmap
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from serving.engine import bodies
from serving.engine.memory import trim
from serving.engine.wire import (
    ANSWER,
    REQUEST,
    SHARED_BYTES,
    Batch,
    Flags,
    Inference,
    ModelFailed,
    Outcome,
    PictureRefused,
    Ready,
    Start,
)
from serving.model.classify import classify
from serving.model.session import Model, ModelFailedError, ModelRefusedError
from shared.pixels import SIZE, Limits, Pixels, RefusedImageError
from shared.samples import PIXEL_BYTES

# Added to `Start.cpu_seconds`. Decoding 50 megapixels took 4 (BMP) to 35 (WebP) ns a pixel on two cores; a JPEG of 108
# that is decoded small takes 3.
CPU_SECONDS_PER_PIXEL: Final = 1e-7
MOST_CPU_SECONDS: Final = 5.0
# Up to this size, an ordinary photo, the base is enough, which saves a system call.
PIXELS_WITHIN_BASE: Final = 1_000_000
# Finding the pictures in 64 MB of batch took 0.05 s on two cores.
CPU_SECONDS_PER_BYTE: Final = 1e-8
# Address space beside decoding: the request, the network's arrays, what malloc keeps.
SLACK_BYTES: Final = 150_000_000
# Read at a time of a body that there is no memory for.
PASS_OVER_BYTES: Final = 65_536


def main(model: Model, start: Start, threads: int, connection: socket.socket, shared: mmap.mmap) -> None:
    """Answer requests until the front process closes the socket.

    Args:
        model: has passed its exam.
        start: limits.
        threads: of a wide session for this lane; 1 for none.
        connection: a stream socket to the front process.
        shared: where the front process puts bodies of up to `SHARED_BYTES`, and gets pixels (`Flags.KEEP`).
    """
    refused = None
    if threads > 1:
        try:
            model.widen(threads)
            trim()  # 12 MB likewise
        except ModelRefusedError as error:
            refused = str(error)
    limits = Limits(start.max_pixels, start.max_bytes)

    seen = np.frombuffer(shared, np.uint8, PIXEL_BYTES).reshape(SIZE, SIZE, 3)

    def keep(picture: Pixels) -> None:  # in place of the request's body, which was copied
        np.copyto(seen, picture)

    _confine(start)
    _send(connection, Ready(refused))
    while head := connection.recv(REQUEST.size, socket.MSG_WAITALL):
        length, number = REQUEST.unpack(head)
        # It is never stopped: waiting for a request takes no processor time, and the next request sets it again.
        seconds = start.cpu_seconds + length * CPU_SECONDS_PER_BYTE
        signal.setitimer(signal.ITIMER_PROF, seconds)
        data = _receive(connection, length, shared)
        if data is None:
            outcome: Outcome = PictureRefused("body_too_large", "receiving it takes more memory than there is")
        else:
            outcome = _outcome(model, data, limits, Flags(number), seconds, keep)
        _send(connection, outcome)
        del data  # or the next one would come beside it


def _receive(connection: socket.socket, length: int, shared: mmap.mmap) -> bytes | None:
    """Read a body; None, with the body passed over, if there is no memory for it."""
    try:
        return shared[:length] if length <= SHARED_BYTES else connection.recv(length, socket.MSG_WAITALL)
    except MemoryError:
        if length <= SHARED_BYTES:
            return None
        while length > 0:
            length -= len(connection.recv(min(length, PASS_OVER_BYTES), socket.MSG_WAITALL))
        return None


def _outcome(
    model: Model, data: bytes, limits: Limits, flags: Flags, seconds: float, keep: Callable[[Pixels], None]
) -> Outcome:
    processor = time.process_time()

    def opened(pixels: int) -> None:
        if pixels > PIXELS_WITHIN_BASE:
            signal.setitimer(signal.ITIMER_PROF, seconds + min(pixels * CPU_SECONDS_PER_PIXEL, MOST_CPU_SECONDS))

    try:
        source = bodies.unpack(data, flags)
        if isinstance(source, Batch | Inference):
            return source
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return PictureRefused("malformed_request", str(error))
    except MemoryError:
        return PictureRefused("body_too_large", "reading the batch takes more memory than there is")
    try:
        answer = classify(model, source, limits, flags, opened, keep)
    except RefusedImageError as error:
        return PictureRefused(error.code, str(error))
    except MemoryError:
        return PictureRefused("image_too_large", "decoding it takes more memory than there is")
    except ModelFailedError as error:
        return ModelFailed(f"{error}: {error.__cause__}")
    return msgspec.structs.replace(answer, cpu=time.process_time() - processor)


def _send(connection: socket.socket, message: Ready | Outcome) -> None:
    encoded = msgspec.msgpack.encode(message)
    connection.sendall(ANSWER.pack(len(encoded)) + encoded)


def _confine(start: Start) -> None:
    """Limit memory, and forbid opening files and sockets: decoding needs neither."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = size + SLACK_BYTES + (start.max_bytes or 0)
    if start.max_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    # Open descriptors stay open; no new one can be made.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
