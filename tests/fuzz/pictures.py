"""Small good pictures of every accepted format and kind, and what damage can be done to a file.

The pictures are tiny: what is tried on them is tried thousands of times.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image

from shared.pixels import heif_reader
from tests.conftest import blobs, encoded

SIZE: Final = (32, 24)
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Bytes of a file that are damaged one by one: the whole header of each format, and the beginning of what follows.
HEADER: Final = 640
# Each length up to this is tried, then one in CUT_STEP: the tail of a file is pixel data, alike everywhere.
CUT_EACH: Final = 300
CUT_STEP: Final = 7
# Start column and row, and steps between columns and rows, of Adam7's passes.
ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(name: bytes, content: bytes) -> bytes:
    """One PNG chunk, its checksum right."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bits: int, colour: int, data: bytes, *, interlaced: bool = False) -> bytes:
    """A PNG file around pixel data that is compressed already."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of these chunks."""
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for name, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, bits: int, compression: int, body: bytes) -> bytes:
    """A BMP file, its palette (up to 8 bits) one of greys."""
    palette = b"".join(bytes((value, value, value, 0)) for value in range(1 << bits)) if bits <= 8 else b""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + palette + body


def _rows(array: np.ndarray) -> bytes:
    """PNG's rows, none of them filtered."""
    return b"".join(b"\x00" + row.tobytes() for row in array)


def _interlaced() -> bytes:
    picture = np.asarray(blobs(1, SIZE))
    passes = [picture[row::down, column::across] for column, row, across, down in ADAM7]
    return png(*SIZE, 8, 2, zlib.compress(b"".join(map(_rows, passes))), interlaced=True)


def _sixteen_bit_colour() -> bytes:
    return png(*SIZE, 16, 2, zlib.compress(_rows(np.asarray(blobs(1, SIZE)).astype(">u2") * 257)))


def _run_length() -> bytes:
    grey = np.asarray(blobs(1, SIZE).convert("L"))
    lines = (b"".join(bytes((1, value)) for value in row) + b"\x00\x00" for row in grey[::-1])
    return bmp(*SIZE, 8, 1, b"".join(lines) + b"\x00\x01")


def good() -> dict[str, bytes]:
    """A good file of every kind, by name; the first word of a name is the format."""
    assert heif_reader()
    rgb, other = blobs(1, SIZE), blobs(2, SIZE)
    rgba = rgb.copy()
    rgba.putalpha(other.convert("L"))
    palette = rgb.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6
    sixteen = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    several = {"save_all": True, "append_images": [other, rgb]}
    return {
        "JPEG baseline": encoded(rgb, "JPEG", quality=60),
        "JPEG progressive": encoded(rgb, "JPEG", quality=60, progressive=True),
        "JPEG CMYK": encoded(rgb.convert("CMYK"), "JPEG", quality=40),
        "JPEG grey": encoded(rgb.convert("L"), "JPEG", quality=60),
        "JPEG EXIF": encoded(rgb, "JPEG", quality=40, exif=turned, dpi=(72, 72)),
        "JPEG restart markers": encoded(rgb, "JPEG", quality=40, restart_marker_blocks=1),
        "JPEG of a phone": encoded(rgb, "MPO", quality=30, save_all=True, append_images=[other]),
        "PNG 1 bit": encoded(rgb.convert("1"), "PNG"),
        "PNG grey": encoded(rgb.convert("L"), "PNG"),
        "PNG grey alpha": encoded(rgba.convert("LA"), "PNG"),
        "PNG 16 bit": encoded(sixteen, "PNG"),
        "PNG 16 bit transparent": encoded(sixteen, "PNG", transparency=257),
        "PNG 16 bit colour": _sixteen_bit_colour(),
        "PNG palette": encoded(palette, "PNG", transparency=3),
        "PNG alpha": encoded(rgba, "PNG"),
        "PNG interlaced": _interlaced(),
        "PNG EXIF": encoded(rgb.convert("L"), "PNG", exif=turned),
        "WEBP lossy": encoded(rgb, "WEBP", quality=60),
        "WEBP lossless": encoded(rgb, "WEBP", lossless=True),
        "WEBP alpha": encoded(rgba, "WEBP", quality=60),
        "WEBP animated": encoded(rgb, "WEBP", quality=30, exif=turned, **several),
        "GIF": encoded(palette, "GIF", interlace=0),
        "GIF transparent": encoded(palette, "GIF", transparency=3, comment=b"a picture"),
        "GIF blank first": encoded(Image.new("P", SIZE), "GIF", save_all=True, append_images=[other.quantize(8)]),
        "GIF animated": encoded(palette, "GIF", save_all=True, append_images=[other.quantize(8)]),
        "BMP 1 bit": encoded(rgb.convert("1"), "BMP"),
        "BMP palette": encoded(palette, "BMP"),
        "BMP 16 bit": bmp(*SIZE, 16, 0, bytes(range(256)) * 6),
        "BMP 24 bit": encoded(rgb, "BMP"),
        "BMP 32 bit": encoded(rgba, "BMP"),
        "BMP run lengths": _run_length(),
        "AVIF": encoded(rgb, "AVIF", quality=50, speed=10),
        "AVIF alpha": encoded(rgba, "AVIF", quality=50, speed=10, exif=turned),
        "AVIF animated": encoded(rgb, "AVIF", quality=30, speed=10, **several),
        "HEIF": encoded(rgb, "HEIF", quality=50),
        "HEIF alpha": encoded(rgba, "HEIF", quality=50, exif=turned.tobytes()),
    }


def flips(data: bytes) -> Iterator[bytes]:
    """The file with one byte of its header changed, in three ways for each byte."""
    for place in range(min(HEADER, len(data))):
        for byte in {data[place] ^ 0xFF, 0, (data[place] + 1) % 256} - {data[place]}:
            yield data[:place] + bytes((byte,)) + data[place + 1 :]


def cuts(data: bytes) -> Iterator[bytes]:
    """The file with its end missing."""
    for length in (*range(min(CUT_EACH, len(data))), *range(CUT_EACH, len(data), CUT_STEP)):
        yield data[:length]


def mended(data: bytes) -> bytes:
    """A PNG with its checksums put right: a decoder that meets a wrong one looks at nothing else."""
    place, made = len(PNG_SIGNATURE), data[: len(PNG_SIGNATURE)]
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        end = place + 12 + size
        if end > len(data):
            break
        made += chunk(data[place + 4 : place + 8], data[place + 8 : end - 4])
        place = end
    return made + data[place:]


def damaged(name: str, data: bytes) -> Iterator[bytes]:
    """All damage to one file."""
    for spoilt in flips(data):
        yield spoilt
        if name.startswith("PNG"):
            yield mended(spoilt)
    yield from cuts(data)
