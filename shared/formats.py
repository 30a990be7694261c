"""What a file is, told from its bytes without decoding it."""

import io
import re
import struct
import zlib
from typing import Final

from shared.spec import FORMATS

MAX_BRAND_BYTES: Final = 256
MAX_HEAD_BYTES: Final = 1024

_AVIF: Final = (b"avif", b"avis")
_HEIF: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
# Any picture in this container; what it is, is among the brands that follow.
_ANY: Final = (b"mif1", b"msf1")
_TEXT: Final = rb"(?is)(?:\xef\xbb\xbf)?\s*<(?:.*<)?"
_CONVERT: Final = "convert it to JPEG or PNG"
_STILL: Final = "send a still picture of it as JPEG or PNG"
# Beginnings of files that people send for pictures, what those are, and what to do about it.
_OTHERS: Final = tuple(
    (re.compile(beginning), what, remedy)
    for beginning, what, remedy in (
        (rb"II[*+]\0|MM\0[*+]", "a TIFF picture or a camera's raw file", _CONVERT),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", _CONVERT),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
        (rb"\0\0\x01\0", "an icon", _CONVERT),
        (rb"8BPS", "a Photoshop document", _CONVERT),
        (rb"%PDF-", "a PDF document", "export the picture in it as JPEG or PNG"),
        (_TEXT + rb"(?:!doctype\s+html|html)\b", "a web page", "save the picture on it and send that"),
        (_TEXT + rb"svg\b", "an SVG drawing", _CONVERT),
        (rb"(?s)....ftypcrx ", "a camera's raw file", _CONVERT),
        (rb"(?s)....(?:ftyp|moov|mdat|wide|free)|\x1a\x45\xdf\xa3|RIFF....AVI ", "a video", _STILL),
    )
)
# Of a PNG's ancillary chunks, those that say which pixels are seen, and how.
_ANCILLARY: Final = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")


def sniff(data: bytes) -> str | None:
    """Name the accepted format whose signature ``data`` starts with, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    return _brand(data) if data[4:8] == b"ftyp" else None


def _brand(data: bytes) -> str | None:
    major, brands = data[8:12], data[8 : min(int.from_bytes(data[:4], "big"), MAX_BRAND_BYTES)]
    if major in _AVIF or (major in _ANY and any(brand in brands for brand in _AVIF)):
        return "AVIF"
    return "HEIF" if major in (*_HEIF, *_ANY) else None


def refusal(data: bytes) -> str:
    """Say what a file of no accepted format is, and what to do."""
    head = data[:MAX_HEAD_BYTES]
    for beginning, what, remedy in _OTHERS:
        if beginning.match(head):
            return f"this is {what}; {remedy}"
    return f"not a picture in an accepted format ({', '.join(FORMATS)})"


def without_metadata(png: bytes) -> io.BytesIO:
    """Leave out of a PNG what changes no pixel: text, profiles, and ancillary chunks with a wrong checksum.

    Browsers show such files however long the text is; Pillow refuses them or inflates it.
    """
    view, stream, begin, start = memoryview(png), io.BytesIO(), 0, 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        kind = png[start + 4 : start + 8]
        if kind[:1].islower() and not (
            kind in _ANCILLARY and zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(png[end - 4 : end], "big")
        ):
            stream.write(view[begin:start])
            begin = end
        start = end
    if begin == 0:  # without a copy
        return io.BytesIO(png)
    stream.write(view[begin:])
    return stream


def webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP's canvas, for which Pillow takes memory on opening; (1, 1) if too short."""
    if len(data) < 30:
        return (1, 1)
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    width, height = struct.unpack_from("<HH", data, 26)
    return (width & 0x3FFF, height & 0x3FFF)
