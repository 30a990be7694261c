"""A lane: a child process that decodes and infers one picture at a time.

The kernel enforces what a picture may cost: ``ITIMER_PROF`` ends the process after too much processor time, and
``RLIMIT_AS`` limits its address space. Whatever a decoder does, it cannot hold a core or the machine's memory. The
supervisor sees how the process ended and starts another.
"""

import binascii
import codecs
import mmap
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
    SHARED_BYTES,
    Batch,
    Flags,
    Item,
    ModelFailed,
    Outcome,
    PictureRefused,
    Ready,
    Start,
)
from serving.messages import MAX_BATCH
from serving.model.classify import classify
from serving.model.session import Model, ModelFailedError, ModelRefusedError
from shared.pixels import Limits, RefusedImageError

# Added to `Start.cpu_seconds`. Decoding 50 megapixels took 4 (BMP) to 35 (WebP) ns a pixel on two cores.
CPU_SECONDS_PER_PIXEL: Final = 1e-7
# Up to this size, an ordinary photo, the base is enough, which saves a system call.
PIXELS_WITHIN_BASE: Final = 1_000_000
# Finding the pictures in 64 MB of batch took 0.05 s on two cores.
CPU_SECONDS_PER_BYTE: Final = 1e-8
# Address space beside decoding: the request, the network's arrays, what malloc keeps.
SLACK_BYTES: Final = 150_000_000
# More braces and commas than any batch needs; base64 has none.
MAX_OBJECTS: Final = 1_000
MAX_VALUES: Final = 100_000
MAX_ID: Final = 200
# Read at a time of a body that there is no memory for.
PASS_OVER_BYTES: Final = 65_536
_TO_PLAIN_BASE64: Final = bytes.maketrans(b"-_", b"+/")


class _BatchItem(msgspec.Struct):
    data: msgspec.Raw
    id: str | None = None


class _BatchBody(msgspec.Struct):
    images: list[msgspec.Raw]


def main(model: Model, start: Start, threads: int, connection: socket.socket, shared: mmap.mmap) -> None:
    """Answer requests until the front process closes the socket.

    Args:
        model: has passed its exam.
        start: limits.
        threads: of a wide session for this lane; 1 for none.
        connection: a stream socket to the front process.
        shared: where the front process puts bodies of up to `SHARED_BYTES`.
    """
    refused = None
    if threads > 1:
        try:
            model.widen(threads)
        except ModelRefusedError as error:
            refused = str(error)
    limits = Limits(start.max_pixels, start.max_bytes)
    _confine(start)
    _send(connection, Ready(refused))
    while head := connection.recv(REQUEST.size, socket.MSG_WAITALL):
        length, number = REQUEST.unpack(head)
        data = _receive(connection, length, shared)
        if data is None:
            outcome: Outcome = PictureRefused("body_too_large", "receiving it takes more memory than there is")
        else:
            outcome = _outcome(model, data, limits, Flags(number), start.cpu_seconds)
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


def _outcome(model: Model, data: bytes, limits: Limits, flags: Flags, seconds: float) -> Outcome:
    processor = time.process_time()
    seconds += len(data) * CPU_SECONDS_PER_BYTE
    # It is never stopped: waiting for a request takes no processor time, and the next request sets it again.
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
        return PictureRefused("body_too_large", "reading the batch takes more memory than there is")
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
    """Find each picture of a batch, so that lanes can decode their base64 in parallel."""
    # Decoding five million would take 700 MB.
    if data.count(b"{") > MAX_OBJECTS or data.count(b",") > MAX_VALUES:
        raise ValueError(f"a batch has at most {MAX_BATCH} pictures")
    body = msgspec.json.decode(
        memoryview(data)[len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0 :], type=_BatchBody
    )
    if len(body.images) > MAX_BATCH:
        raise ValueError(f"a batch has at most {MAX_BATCH} pictures, not {len(body.images):,}")
    base = _address(data)
    return Batch([_item(image, base) for image in body.images])


def _item(image: msgspec.Raw, base: int) -> Item:
    """Find one picture of a batch, or say what is wrong with it; ``base`` is the batch's address."""
    try:
        item = msgspec.json.decode(image, type=_BatchItem)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Item(None, 0, 0, str(error))
    if item.id is not None and len(item.id) > MAX_ID:
        return Item(None, 0, 0, f"the id is longer than {MAX_ID} characters")
    start = _address(item.data) - base
    return Item(item.id, start, start + memoryview(item.data).nbytes)


def _base64(text: str) -> bytes:
    """Decode base64, also as a ``data:`` URI, with line breaks, in the URL-safe alphabet or without padding."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        plain = text.encode("ascii").translate(_TO_PLAIN_BASE64, b" \t\r\n")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as error:  # binascii.Error is one, and what is not ASCII another
        raise ValueError(f"invalid base64: {error}") from error


def _address(data: bytes | msgspec.Raw) -> int:
    return int(np.frombuffer(memoryview(data), np.uint8).ctypes.data)


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
