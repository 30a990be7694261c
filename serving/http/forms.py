"""Multipart forms: the pictures in them, and what clients get wrong about them."""

import logging
import re
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from serving.errors import ProblemError

FIELD: Final = "file"
FORM: Final = "multipart/form-data"
# Parts of a form beside its pictures.
MAX_PARTS: Final = 20
MAX_HEADER_BYTES: Final = 4096
# Blanks between a boundary and the end of its line; the parser takes them one by one.
MAX_PADDING_BYTES: Final = 1000
# Fields that an error names, and the characters shown of each.
NAMED_FIELDS: Final = 5
NAMED_CHARACTERS: Final = 40
# How base64 begins of JPEG, PNG, WebP, GIF, BMP and AVIF. None of them begins so itself.
BASE64: Final = re.compile(rb"data:|[/_]9j[/_]|iVBORw0KGgo|UklGR|R0lGODl|R0lGODd|Qk[0-3]|AAAA..Z0eX")
# A text this short in the place of a picture is the path of one.
PATH: Final = re.compile(rb"[ -~]{1,255}")

# It warns of every malformed form; the client is told, and the log need not be.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


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
