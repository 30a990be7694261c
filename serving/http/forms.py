"""Multipart forms: the pictures in them, and what clients get wrong about them."""

import re
from typing import Final

from multipart import MultipartError, MultipartSegment, ParserError, PushMultipartParser

from serving.errors import ProblemError

FIELD: Final = "file"
FORM: Final = "multipart/form-data"
# Parts of a form beside its pictures.
MAX_PARTS: Final = 20
MAX_HEADERS: Final = 8
MAX_HEADER_BYTES: Final = 4096
# Of a Content-Type. What clients send as a boundary is not always a token, nor in quotes where it is none.
BOUNDARY: Final = re.compile(r';\s*boundary\s*=\s*(?:"([ !#-~]{1,256})"|([!#-:<-~][ !#-:<-~]{0,255}))', re.IGNORECASE)
# Fields that an error names, and the characters shown of each.
NAMED_FIELDS: Final = 5
NAMED_CHARACTERS: Final = 40
# How base64 begins of JPEG, PNG, WebP, GIF, BMP and AVIF. None of them begins so itself.
BASE64: Final = re.compile(rb"data:|[/_]9j[/_]|iVBORw0KGgo|UklGR|R0lGODl|R0lGODd|Qk[0-3]|AAAA..Z0eX")
# A text this short in the place of a picture is the path of one.
PATH: Final = re.compile(rb"[ -~]{1,255}")


def mistake(file: bytearray) -> str | None:
    """Say what a client did wrong who sent this as a picture file, if that can be told."""
    if BASE64.match(file):
        return f'the field "{FIELD}" has base64; send the file as it is, or base64 as JSON to /predict/batch'
    return None


class _Parser(PushMultipartParser):  # type: ignore[misc]  # it has no types
    """Reads of a part's headers only its Content-Disposition.

    The others say nothing of use and would be checked. For each line that continues a header, the library reads all of
    it again.
    """

    _lines = 0

    def _on_segment_headerline(self, line: bytes) -> None:
        self._lines += 1
        if self._lines > MAX_HEADERS:
            raise ParserError(f"a part has more than {MAX_HEADERS} headers")
        name, colon, _ = line.partition(b":")
        if not colon or line[0] in b" \t":
            raise ParserError("a header of a part is no name and value in one line")
        if name.strip().lower() == b"content-disposition":
            super()._on_segment_headerline(line.replace(b"\t", b" "))

    def _create_segment(self, headerlist: list[tuple[str, str]]) -> MultipartSegment:
        """Make a part; the library's own method refuses other dispositions than ``form-data``, which clients send."""
        self._lines = 0
        return MultipartSegment(headerlist)


class Form:
    """A multipart form, parsed as it arrives; only the bytes of its fields ``file``, up to ``most``, are kept."""

    def __init__(self, content_type: str, most: int = 1) -> None:
        """Take the boundary from the request's Content-Type.

        Raises:
            ProblemError: it is not a multipart form.
        """
        if content_type.partition(";")[0].strip().lower() != FORM:
            raise ProblemError(
                "malformed_request",
                f'send a multipart form with the picture in its field "{FIELD}", '
                "or the picture itself with a Content-Type such as image/jpeg or application/octet-stream",
            )
        found = BOUNDARY.search(content_type)
        if not found:
            raise ProblemError(
                "malformed_request",
                "the form's Content-Type has no boundary; do not set that header, and the client makes one",
            )
        self._most = most
        self._parts = 0
        self._files: list[bytearray] = []
        self._unnamed = False  # the last one was sent as a text is: without a file name
        self._others: list[str] = []
        self._file: bytearray | None = None
        # No bytes are invalid in Latin-1; a name that is not ASCII is not ours.
        boundary = found[1] or found[2].rstrip()
        self._parser = _Parser(boundary, max_header_size=MAX_HEADER_BYTES, header_charset="latin-1")

    def feed(self, chunk: bytes) -> None:
        """Parse the next piece of the body."""
        if not chunk:  # it would end the form
            return
        try:
            for event in self._parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    self._begin(event)
                elif event and self._file is not None:
                    self._file += event
        except MultipartError as error:
            raise ProblemError("malformed_request", f"invalid form: {error}") from error

    def finish(self) -> list[bytearray]:
        """Return the files, at least one; call after the last piece."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise ProblemError("malformed_request", "the form is incomplete") from error
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
        """Free the body now: a parser keeps its error, and with the traceback all that was there, in a cycle."""
        self._parser.error = None
        self._files, self._file = [], None

    def _begin(self, part: MultipartSegment) -> None:
        self._parts += 1
        most = MAX_PARTS + self._most - 1
        if self._parts > most:
            raise ProblemError("malformed_request", f"the form has more than {most} parts")
        if part.name != FIELD:
            self._file = None
            self._others.append(
                ascii((part.name or "").encode("latin-1").decode("utf-8", "replace")[:NAMED_CHARACTERS])
            )
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
        self._unnamed = part.filename is None
