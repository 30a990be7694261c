"""Request bodies: read under a limit of bytes and of time, both enforced while reading."""

import asyncio
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from serving.problems import ProblemError

FIELD = "file"
MAX_PARTS = 20
MAX_HEADER_BYTES = 4096


async def chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives.

    Raises:
        ProblemError: ``body_too_large``, from the header alone where there is one.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


async def body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """Read the whole body.

    Raises:
        ProblemError: ``body_too_large`` or ``slow_request``.
        ClientDisconnect: the client left.
    """
    try:
        async with asyncio.timeout(seconds):
            return b"".join([chunk async for chunk in chunks(request, max_bytes)])
    except TimeoutError as error:
        raise _slow(seconds) from error


async def file(request: Request, max_bytes: int, seconds: float) -> bytes:
    """Read the one ``file`` of a multipart form; other fields are passed over.

    Raises:
        ProblemError: ``malformed_request``, ``body_too_large`` or ``slow_request``.
        ClientDisconnect: the client left.
    """
    form = Form(request.headers.get("content-type", ""))
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks(request, max_bytes):
                form.feed(chunk)
        return form.finish()
    except TimeoutError as error:
        raise _slow(seconds) from error
    finally:
        form.close()


# Made where it is raised: an error kept in a local variable of the frame that raises it is a cycle, and would hold the
# body's megabytes until the garbage collector comes by.
def _too_large(max_bytes: int) -> ProblemError:
    return ProblemError("body_too_large", f"the body is larger than {max_bytes:,} bytes")


def _slow(seconds: float) -> ProblemError:
    return ProblemError("slow_request", f"the body did not arrive within {seconds:g} seconds")


class Form:
    """A multipart form on its way in. It keeps the bytes of the field ``file`` in memory and nothing else."""

    def __init__(self, content_type: str) -> None:
        """Take the request's Content-Type.

        Raises:
            ProblemError: it is not a multipart form.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise ProblemError("malformed_request", f'send a multipart form with the picture in its field "{FIELD}"')
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._parts = 0
        self._files = 0
        self._wanted = False
        self._ended = False
        self._data: list[bytes] = []
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
        """Take the next piece of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error

    def finish(self) -> bytes:
        """Return the file once the body has ended."""
        if not self._ended:
            raise ProblemError("malformed_request", "the form ends in the middle")
        if self._files == 0:
            raise ProblemError("malformed_request", f'the form has no field "{FIELD}" with a file in it')
        return b"".join(self._data)

    def close(self) -> None:
        """Let go of the body: form and parser refer to each other, and the garbage collector may be long in coming."""
        self._parser.callbacks = {}
        self._data = []

    def _on_part_begin(self) -> None:
        self._parts += 1
        self._disposition = b""
        if self._parts > MAX_PARTS:
            raise ProblemError("malformed_request", f"the form has more than {MAX_PARTS} parts")

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
            raise ProblemError("malformed_request", f'the form has more than one field "{FIELD}"; send one, or a batch')

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._data.append(data[start:end])

    def _on_end(self) -> None:
        self._ended = True


def _malformed(error: FormParserError) -> ProblemError:
    return ProblemError("malformed_request", f"the form cannot be read: {error}")
