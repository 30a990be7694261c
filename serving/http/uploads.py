"""Request bodies, read within limits of bytes, time and memory."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import Request

from serving.engine.budget import Lease
from serving.errors import ProblemError
from serving.service import Service, Work

FIELD = "file"
MAX_PARTS = 20
MAX_HEADER_BYTES = 4096
# Blanks between a boundary and the end of its line; the parser takes them one by one.
MAX_PADDING_BYTES = 1000

# It warns of every malformed form; the client is told, and the log need not be.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@contextlib.asynccontextmanager
async def received(request: Request, max_bytes: int, form: bool = True) -> AsyncIterator[tuple[Work, bytearray]]:
    """Admit a request and read its body, within the service's limits; the memory is held until the block ends.

    Args:
        request: its body is not read yet.
        max_bytes: largest body.
        form: take the field ``file`` of a multipart form, and ignore other fields; else take the whole body.

    Yields:
        The request's `Work`, and the bytes.

    Raises:
        ProblemError: ``not_ready``, ``draining``, ``overloaded``, ``body_too_large``, ``slow_request`` or
            ``malformed_request``.
        ClientDisconnect: the client left.
    """
    service: Service = request.app.state.service
    service.admit()
    with service.budget.lease() as lease:
        data = await (_file if form else body)(request, max_bytes, lease)
        wanted = request.scope.get("extensions", {}).get("catsdogs.wanted", _always)
        with service.admit() as lanes:  # again: the queue may have filled while the body arrived
            yield Work(service, lanes, wanted), data


def _always() -> bool:
    return True


async def body(request: Request, max_bytes: int, lease: Lease) -> bytearray:
    """Read the whole body; raises the errors of :func:`_read`."""
    data = bytearray()  # it grows in place; joining pieces would hold them twice, and stop the event loop
    await _read(request, max_bytes, lease, data.extend)
    return data


async def _file(request: Request, max_bytes: int, lease: Lease) -> bytearray:
    form = Form(request.headers.get("content-type", ""))
    try:
        await _read(request, max_bytes, lease, form.feed)
        return form.finish()
    finally:
        form.close()


async def _read(request: Request, max_bytes: int, lease: Lease, take: Callable[[bytes], object]) -> None:
    """Pass each piece of the body to ``take`` as it arrives, once there is memory for it.

    Raises:
        ProblemError: ``body_too_large``, from Content-Length if there is one; ``slow_request``; ``overloaded``.
        ClientDisconnect: the client left.
    """
    length = request.headers.get("content-length", "0")
    # The parser takes any number of leading zeros; `int` takes 4,300 digits.
    declared = int(length.lstrip("0") or 0) if length.isdecimal() else 0
    if declared > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(None) as time_left:
            await lease.make_room(declared, time_left)
            async for piece in request.stream():
                lease.received += len(piece)
                if lease.received > max_bytes:
                    raise _too_large(max_bytes)
                take(piece)
                await lease.make_room(declared, time_left)
    except TimeoutError as error:
        raise ProblemError("slow_request", "the body arrived too slowly") from error
    lease.complete()


# Not kept in a variable: an error in a local variable of the frame that raises it is a reference cycle, and would hold
# the body's megabytes until the garbage collector runs.
def _too_large(max_bytes: int) -> ProblemError:
    return ProblemError("body_too_large", f"the body is larger than {max_bytes:,} bytes")


class Form:
    """A multipart form, parsed as it arrives; only the bytes of the field ``file`` are kept."""

    def __init__(self, content_type: str) -> None:
        """Take the boundary from the request's Content-Type.

        Raises:
            ProblemError: it is not a multipart form.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise ProblemError("malformed_request", f'send a multipart form with the picture in its field "{FIELD}"')
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._delimiter = b"\r\n--" + boundary
        self._delimiters = 0
        self._padding = 0
        self._parts = 0
        self._files = 0
        self._wanted = False
        self._ended = False
        self._data = bytearray()
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
        if self._delimiters > MAX_PARTS + 1:
            raise _too_many_parts()
        padded = self._parser.state == MultipartState.BOUNDARY_PADDING
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error
        if padded and self._parser.state == MultipartState.BOUNDARY_PADDING:
            self._padding += len(chunk)
            if self._padding > MAX_PADDING_BYTES:
                raise ProblemError("malformed_request", "the form has too much padding after a boundary")

    def finish(self) -> bytearray:
        """Return the file; call after the last piece."""
        if not self._ended:
            raise ProblemError("malformed_request", "the form is incomplete")
        if self._files == 0:
            raise ProblemError("malformed_request", f'the form has no field "{FIELD}"')
        return self._data

    def close(self) -> None:
        """Free the body now: form and parser are a reference cycle, which the garbage collector may free late."""
        self._parser.callbacks = {}
        self._data = bytearray()

    def _on_part_begin(self) -> None:
        self._parts += 1
        self._disposition = b""
        if self._parts > MAX_PARTS:
            raise _too_many_parts()

    def _on_header_end(self) -> None:
        field, value = self._header
        if field.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._wanted = options.get(b"name") == FIELD.encode()
        self._files += self._wanted
        if self._files > 1:
            raise ProblemError(
                "malformed_request", f'the form has more than one field "{FIELD}"; send several pictures as a batch'
            )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._data += memoryview(data)[start:end]

    def _on_end(self) -> None:
        self._ended = True


def _too_many_parts() -> ProblemError:
    return ProblemError("malformed_request", f"the form has more than {MAX_PARTS} parts")


def _malformed(error: FormParserError) -> ProblemError:
    return ProblemError("malformed_request", f"invalid form: {error}")
