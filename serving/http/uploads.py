"""Request bodies, read within limits of bytes, time and memory."""

import asyncio
import contextlib
import logging
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Final, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import Request

from serving.engine.budget import PIECE_BYTES, Lease
from serving.errors import ProblemError
from serving.service import Service, Work

FIELD: Final = "file"
FORM: Final = "multipart/form-data"
# Parts of a form beside its pictures.
MAX_PARTS: Final = 20
MAX_HEADER_BYTES: Final = 4096
# Blanks between a boundary and the end of its line; the parser takes them one by one.
MAX_PADDING_BYTES: Final = 1000
# Fields that an error names, and so many characters of each.
NAMED_FIELDS: Final = 5
NAMED_CHARACTERS: Final = 40
ENCODINGS: Final = ("gzip", "x-gzip", "deflate")
# zlib tells gzip from its own format, which is what deflate means here (RFC 9110, section 8.4.1.2).
EITHER_FORMAT: Final = 32 + zlib.MAX_WBITS
# How base64 begins of JPEG, PNG, WebP, GIF, BMP and AVIF. None of them begins so itself.
BASE64: Final = re.compile(rb"data:|[/_]9j[/_]|iVBORw0KGgo|UklGR|R0lGODl|R0lGODd|Qk[0-3]|AAAA..Z0eX")
# A text this short in the place of a picture is the path of one.
PATH: Final = re.compile(rb"[ -~]{1,255}")

# It warns of every malformed form; the client is told, and the log need not be.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


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
        self.feed = self._data.extend

    def finish(self) -> list[bytearray]:
        """Return the body."""
        return [self._data]

    def close(self) -> None:
        """Nothing to free: it is in no reference cycle."""


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
        with service.admit() as lanes:  # again: the queue may have filled while the body arrived
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


def mistake(file: bytearray) -> str | None:
    """Say what a client did wrong who sent this as a picture file, if that can be told."""
    if BASE64.match(file):
        return f'the field "{FIELD}" has base64; send the file as it is, or base64 as JSON to /predict/batch'
    return None


class Form:
    """A multipart form, parsed as it arrives; only the bytes of its fields ``file``, up to ``most``, are kept."""

    def __init__(self, content_type: str, most: int = 1) -> None:
        """Take the boundary from the request's Content-Type.

        Raises:
            ProblemError: it is not a multipart form.
        """
        media, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if media != FORM.encode():
            raise ProblemError(
                "malformed_request",
                f'send a multipart form with the picture in its field "{FIELD}", '
                "or the picture itself with a Content-Type such as image/jpeg or application/octet-stream",
            )
        if not boundary:
            raise ProblemError(
                "malformed_request",
                "the form's Content-Type has no boundary; do not set that header, and the client makes one",
            )
        self._most = most
        self._max_parts = MAX_PARTS + most - 1
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._delimiter = b"\r\n--" + boundary
        self._delimiters = 0
        self._padding = 0
        self._parts = 0
        self._files: list[bytearray] = []
        self._unnamed = False  # the last one was sent as a text is: without a file name
        self._others: list[str] = []
        self._file: bytearray | None = None
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
                max_header_count=8,
                max_header_size=MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, chunk: bytes) -> None:
        """Parse the next piece of the body.

        Delimiters are counted first: the parser goes byte by byte over what looks like one, and 20 MB of that would
        block the event loop for seconds. Content cannot hold its form's delimiter (RFC 2046, section 5.1.1).
        """
        self._delimiters += chunk.count(self._delimiter)
        if self._delimiters > self._max_parts + 1:
            raise self._too_many_parts()
        padded = self._parser.state == MultipartState.BOUNDARY_PADDING
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error
        if padded and self._parser.state == MultipartState.BOUNDARY_PADDING:
            self._padding += len(chunk)
            if self._padding > MAX_PADDING_BYTES:
                raise ProblemError("malformed_request", "the form has too much padding after a boundary")

    def finish(self) -> list[bytearray]:
        """Return the files, at least one; call after the last piece."""
        if not self._ended:
            raise ProblemError("malformed_request", "the form is incomplete")
        if not self._files:
            others = f"; it has {', '.join(self._others[:NAMED_FIELDS])}" if self._others else ""
            raise ProblemError("malformed_request", f'the form has no field "{FIELD}"{others}')
        if self._most == 1:
            (file,) = self._files
            if reason := mistake(file):
                raise ProblemError("malformed_request", reason)
            if self._unnamed and PATH.fullmatch(file):
                raise ProblemError(
                    "malformed_request",
                    f'the field "{FIELD}" has a text, not a file; with curl, an @ is before the path: -F {FIELD}=@PATH',
                )
        return self._files

    def close(self) -> None:
        """Free the body now: form and parser are a reference cycle, which the garbage collector may free late."""
        self._parser.callbacks = {}
        self._files, self._file = [], None

    def _on_part_begin(self) -> None:
        self._parts += 1
        self._disposition = b""
        if self._parts > self._max_parts:
            raise self._too_many_parts()

    def _on_header_end(self) -> None:
        field, value = self._header
        if field.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"")
        if name != FIELD.encode():
            self._file = None
            self._others.append(ascii(name.decode("utf-8", "replace")[:NAMED_CHARACTERS]))
            return
        if len(self._files) == self._most:
            raise ProblemError(
                "malformed_request",
                f'the form has more than {self._most} fields "{FIELD}"'
                if self._most > 1
                else f'the form has more than one field "{FIELD}"; send several pictures to /predict/batch',
            )
        self._file = bytearray()
        self._files.append(self._file)
        self._unnamed = b"filename" not in options

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file += memoryview(data)[start:end]

    def _on_end(self) -> None:
        self._ended = True

    def _too_many_parts(self) -> ProblemError:
        return ProblemError("malformed_request", f"the form has more than {self._max_parts} parts")


def _malformed(error: FormParserError) -> ProblemError:
    return ProblemError("malformed_request", f"invalid form: {error}")
