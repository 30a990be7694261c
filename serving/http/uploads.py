"""Request bodies, read within limits of bytes, time and memory."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Final, Protocol

from starlette.requests import Request

from serving.engine.budget import PIECE_BYTES, Lease
from serving.errors import ProblemError
from serving.http.forms import Form
from serving.messages import MAX_BATCH, MAX_OBJECTS, MAX_VALUES
from serving.service import Service, Work

ENCODINGS: Final = ("gzip", "x-gzip", "deflate")
# zlib tells gzip from its own format, which is what deflate means here (RFC 9110, section 8.4.1.2).
EITHER_FORMAT: Final = 32 + zlib.MAX_WBITS


class Body(Protocol):
    """Takes a body in pieces."""

    def feed(self, piece: bytes) -> None:
        """Take the next piece; raises ``malformed_request``."""

    def finish(self) -> list[bytearray]:
        """Return what is in it, after the last piece; raises ``malformed_request``."""

    def close(self) -> None:
        """Free it."""


class Whole:
    """A body that is one thing: a picture, or JSON."""

    def __init__(self) -> None:
        """Make it empty."""
        self._data = bytearray()  # it grows in place; joining pieces would hold them twice, and stop the event loop

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        self._data += piece

    def finish(self) -> list[bytearray]:
        """Return the body."""
        return [self._data]

    def close(self) -> None:
        """Nothing to free: it is in no reference cycle."""


class BatchJson(Whole):
    """The JSON of a batch, refused as soon as it has far too many pictures.

    Five million fit into the largest body. Decoding them would take 700 MB; receiving them to count them took 0.12 s.
    """

    def __init__(self) -> None:
        """Make it empty."""
        super().__init__()
        self._objects = self._values = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece; raises ``malformed_request``."""
        self._objects += piece.count(b"{")
        self._values += piece.count(b",")
        if self._objects > MAX_OBJECTS or self._values > MAX_VALUES:
            raise ProblemError(
                "malformed_request",
                f"a batch has at most {MAX_BATCH} pictures, {MAX_OBJECTS:,} objects and {MAX_VALUES:,} values",
            )
        super().feed(piece)


def kind(request: Request) -> str:
    """The media type of the body, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def picture(request: Request) -> Body:
    """The body of a request with one picture: a form, or the picture itself.

    Raises:
        ProblemError: ``malformed_request``: it is neither.
    """
    media = kind(request)
    if media.startswith("image/") or media in ("application/octet-stream", ""):
        return Whole()
    return Form(request.headers.get("content-type", ""))


@contextlib.asynccontextmanager
async def received(request: Request, max_bytes: int, body: Body) -> AsyncIterator[tuple[Work, list[bytearray]]]:
    """Admit a request and read its body, within the service's limits; the memory is held until the block ends.

    Args:
        request: its body is not read yet.
        max_bytes: largest body, and largest decompressed one.
        body: takes it.

    Yields:
        The request's `Work`, and what ``body`` made of the body.

    Raises:
        ProblemError: ``not_ready``, ``draining``, ``overloaded``, ``body_too_large``, ``slow_request``,
            ``unsupported_encoding`` or ``malformed_request``.
        ClientDisconnect: the client left.
    """
    service: Service = request.app.state.service
    service.admit()
    with service.budget.lease() as lease, contextlib.closing(body):
        data = await read(request, max_bytes, lease, body)
        wanted = request.scope.get("extensions", {}).get("catsdogs.wanted", _always)
        with service.admit(begun=True) as lanes:  # again: the queue may have filled while the body arrived
            yield Work(service, lanes, wanted, request.state.trace), data


def _always() -> bool:
    return True


async def read(request: Request, max_bytes: int, lease: Lease, body: Body) -> list[bytearray]:
    """Pass each piece of the body to ``body`` as it arrives, once there is memory for it; returns what it made of them.

    Raises:
        ProblemError: ``body_too_large``, from Content-Length if there is one; ``slow_request``; ``overloaded``;
            ``unsupported_encoding``; ``malformed_request``.
        ClientDisconnect: the client left.
    """
    length = request.headers.get("content-length", "0")
    # The parser takes any number of leading zeros; `int` takes 4,300 digits.
    declared = int(length.lstrip("0") or 0) if length.isdecimal() else 0
    if declared > max_bytes:
        raise _too_large(max_bytes)
    compressed = _compressed(request, max_bytes)
    if compressed:
        declared = 0  # it says nothing of the size that is kept
    try:
        async with asyncio.timeout(None) as time_left:
            await lease.make_room(declared, time_left)
            async for sent in request.stream():
                for piece in compressed.pieces(sent) if compressed else (sent,):
                    lease.received += len(piece)
                    if lease.received > max_bytes:
                        raise _too_large(max_bytes)
                    body.feed(piece)
                    await lease.make_room(declared, time_left)
                    if compressed:
                        await asyncio.sleep(0)  # a thousand times what was sent may come of it
            if compressed:
                compressed.finish()
    except TimeoutError as error:
        raise ProblemError("slow_request", "the body arrived too slowly") from error
    lease.complete()
    return body.finish()


def _compressed(request: Request, max_bytes: int) -> "Compressed | None":
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in ENCODINGS:
        raise ProblemError(
            "unsupported_encoding", f"Content-Encoding is {encoding[:40]!r}; send gzip, deflate, or no such header"
        )
    return Compressed(encoding, max_bytes)


class Compressed:
    """Decompresses a body, a piece at a time, so that a bomb takes no more memory than another body."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        """Take up to ``max_bytes`` compressed bytes."""
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._taken = 0
        self._stream = zlib.decompressobj(EITHER_FORMAT)

    def pieces(self, sent: bytes) -> Iterator[bytes]:
        """Decompress what was sent, into pieces of up to `PIECE_BYTES`.

        Raises:
            ProblemError: ``malformed_request``, or ``body_too_large``: too much was sent for what comes of it.
        """
        self._taken += len(sent)
        if self._taken > self._max_bytes:
            raise _too_large(self._max_bytes)
        piece = b""
        # A piece of the full size may leave something in the stream's buffer.
        while sent or (len(piece) == PIECE_BYTES and not self._stream.eof):
            if self._stream.eof:
                raise ProblemError("malformed_request", f"the {self._encoding} data goes on after its end")
            try:
                piece = self._stream.decompress(sent, PIECE_BYTES)
            except zlib.error as error:
                raise ProblemError("malformed_request", f"invalid {self._encoding} data") from error
            sent = self._stream.unconsumed_tail or self._stream.unused_data
            yield piece

    def finish(self) -> None:
        """Check that all of it was sent; raises ``malformed_request``."""
        if not self._stream.eof:
            raise ProblemError("malformed_request", f"the {self._encoding} data is incomplete")


# Not kept in a variable: an error in a local variable of the frame that raises it is a reference cycle, and would hold
# the body's megabytes until the garbage collector runs.
def _too_large(max_bytes: int) -> ProblemError:
    return ProblemError("body_too_large", f"the body is larger than {max_bytes:,} bytes")
