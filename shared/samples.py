"""Samples: pictures that a service kept to be learned from.

Each is a PNG of the 224×224 pixels that the network saw, which :mod:`shared.pixels` decodes to the same pixels. A text
chunk has its journal line, and why it was kept. There is no EXIF, file name or address. Beside samples lie tombstones:
empty files that say which prediction's picture is to be forgotten; no data set may have it.
"""

import struct
import zlib
from typing import Final, Literal

import msgspec

from shared.contract import Actual
from shared.journal import PredictionLine
from shared.spec import SIZE

HEAD_BYTES: Final = 4096  # of a file, which have all that `known` reads
SUFFIX: Final = ".png"  # after the id of the prediction
TOMBSTONE: Final = ".forgotten"  # likewise
KEYWORD: Final = "catsdogs"  # of the text chunk
PIXEL_BYTES: Final = 3 * SIZE * SIZE

Reason = Literal["unsure", "disputed", "disagreed", "random"]

_ROW: Final = 3 * SIZE
_HEADER: Final = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
_UNFILTERED: Final = b"\0"


class SampleError(Exception):
    """A file that is not a sample's."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a sample. ``feedback`` is what a client said: a hint for what to look at, not a label."""

    why: tuple[Reason, ...]
    prediction: PredictionLine
    feedback: Actual | None = None


def encode(pixels: bytes, sample: Sample) -> bytes:
    """Make the file; ``pixels`` are RGB, row by row.

    Written by hand, since the process that keeps samples has neither numpy nor Pillow, and not compressed: that would
    take 2 ms of the time of requests to save half of 150 kB.
    """
    rows = b"".join(_UNFILTERED + pixels[start : start + _ROW] for start in range(0, PIXEL_BYTES, _ROW))
    text = KEYWORD.encode() + b"\0" + msgspec.json.encode(sample)
    chunks = ((b"IHDR", _HEADER), (b"tEXt", text), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def known(head: bytes) -> Sample:
    """What a sample's file says of it, from its first ``HEAD_BYTES``.

    Raises:
        SampleError: it is not the file of a sample.
    """
    place = 8
    while place + 8 <= len(head):
        length, kind = struct.unpack_from(">I4s", head, place)
        word, _, text = head[place + 8 : place + 8 + length].partition(b"\0")
        if kind == b"tEXt" and word == KEYWORD.encode():
            try:
                return msgspec.json.decode(text, type=Sample)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise SampleError(f"not the file of a sample: {error}") from error
        place += 12 + length
    raise SampleError(f"not the file of a sample: no text chunk {KEYWORD!r}")


def bare(file: bytes) -> bytes:
    """A sample's file without what is known of it: the same bytes for the same pixels, whatever feedback came."""
    start = 8 + 12 + len(_HEADER)  # after signature and header
    return file[:start] + file[start + 12 + int.from_bytes(file[start : start + 4]) :]
