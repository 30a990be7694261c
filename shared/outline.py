"""The outline of a picture file: does it ask for more work than a picture needs?

Pillow walks the segments, chunks, blocks and runs of a file in Python, and libjpeg goes over the whole picture once for
each scan that a JPEG announces; neither knows an end. 8 kB of JPEG took 5 s here, so 20 MB would have taken hours;
20 MB of Exif segments took more than a minute, of empty PNG chunks 6 s. What is refused here is written by no camera
and by no program for pictures. ``tests/fuzz/bombs.py`` has one of each kind.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import Final

from PIL import Image

# Two or three for a segment, chunk or block, at 1 µs each. A PNG of 20 MB in chunks of 8 kB, as libpng writes it, takes
# 8,000.
MAX_READS: Final = 100_000
# Of a JPEG; a hundred with all the metadata there is.
MAX_SEGMENTS: Final = 20_000
# libjpeg writes ten, mozjpeg a few more; over 50 megapixels one takes 5 ms even if it says nothing.
MAX_SCANS: Final = 100
# One as a rule; Pillow joins several at a cost that grows with their square.
MAX_EXIF_SEGMENTS: Final = 16
# Quantisation tables (four of 129 bytes) and frame headers, which Pillow unpacks value by value.
MAX_TABLE_BYTES: Final = 65_536
# Of a BMP with run lengths, which Pillow unpacks pixel by pixel: 0.1 s.
MAX_RUN_LENGTH_PIXELS: Final = 1_000_000

# In a scan's data 0xFF is followed by a stuffed zero or is a restart marker; any other marker ends it.
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_START_OF_SCAN, _END, _EXIF, _TABLES = 0xDA, 0xD9, 0xE1, 0xDB
_FRAMES: Final = frozenset((*range(0xC0, 0xD0), 0xDE)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
# Without length or content.
_BARE: Final = frozenset((0xC8, 0xD8, _END, *range(0xF0, 0xFE)))


class CostlyError(ValueError):
    """The file asks for more work than a picture needs."""


class Metered(io.BytesIO):
    """A picture file that can be read so often and no more: what its decoder walks, whatever that is, has an end.

    Raises:
        CostlyError: on reading once too often.
    """

    def __init__(self, data: bytes) -> None:
        """Start at the beginning of ``data``."""
        super().__init__(data)
        self._left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does."""
        self._left -= 1
        if self._left < 0:
            raise CostlyError("it is in too many pieces")
        return super().read(size)


def check(name: str, data: bytes) -> float:
    """Look for work that is not reading.

    Args:
        name: the format, as Pillow names it.
        data: the file, of which nothing need be right.

    Returns:
        Coefficients for each pixel that the decoder holds of the whole picture at once, 0 but for a JPEG whose scans
        complete each other.

    Raises:
        CostlyError: there is too much of it.
    """
    if name == "BMP":
        _check_bmp(data)
    return _check_jpeg(data) if name == "JPEG" else 0


def _check_jpeg(data: bytes) -> float:
    scans, exif, tables, components = 0, 0, 0, 0
    progressive, held, coefficients = False, 0.0, 0.0
    for marker, place, size in _segments(data):
        if marker in _FRAMES:
            progressive, components = marker in _PROGRESSIVE, data[place + 5]
            coefficients = _coefficients(data[place + 6 : place + 6 + 3 * components])
        if marker in _FRAMES or marker == _TABLES:
            tables += size
        elif marker == _EXIF:
            exif += data.startswith(b"Exif\x00\x00", place)
        elif marker == _START_OF_SCAN:
            scans += 1
            in_parts = progressive or data[place] < components
            held = coefficients if in_parts else held
            # A file that is not progressive and has all components in its first scan has no other. Counting is fast,
            # and counts only ever too many: pictures within the picture, and chance.
            if scans == 1 and not (in_parts and data.count(b"\xff\xda", place) >= MAX_SCANS):
                return held
        if scans > MAX_SCANS or exif > MAX_EXIF_SEGMENTS or tables > MAX_TABLE_BYTES:
            raise CostlyError("it has too many scans, Exif segments or tables")
    return held


def _coefficients(components: bytes) -> float:
    """For each pixel, of components of three bytes: the second has the sampling across and down."""
    across = [max(1, byte >> 4) for byte in components[1::3]]
    down = [max(1, byte & 15) for byte in components[1::3]]
    return sum(a * b for a, b in zip(across, down, strict=True)) / (max(across, default=1) * max(down, default=1))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, place of the content, and size of each segment, up to the end of the picture."""
    place, started = 2, False
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or (found[0][1] == _END and started):
            return
        place = found.end()
        if found[0][1] in _BARE:
            continue
        if place + 8 > len(data):
            return
        (size,) = struct.unpack_from(">H", data, place)
        yield found[0][1], place + 2, size
        started = started or found[0][1] == _START_OF_SCAN
        place += max(2, size)
    raise CostlyError("it has too many segments")


def _check_bmp(data: bytes) -> None:
    # The header of 12 bytes, of 1987, knows no run lengths.
    if len(data) < 34 or data[14] == 12:
        return
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression in (1, 2) and abs(width * height) > MAX_RUN_LENGTH_PIXELS:
        raise CostlyError("it has too many pixels for run lengths")


def gif_frame(data: bytes) -> tuple[int, int]:
    """Width and height of a GIF's first frame, for which Pillow may take memory on opening; (1, 1) if there is none.

    Frames are found where Pillow finds them, which after an empty extension is not where they should be.
    """
    if len(data) < 13:
        return (1, 1)
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    in_extension, unconditional = False, 0
    for _ in range(MAX_READS):
        kind = data[place : place + 1]
        if in_extension:
            in_extension = unconditional > 0 or kind > b"\x00"
            unconditional -= 1
            place += 1 + kind[0] if kind else 1
        elif kind == b"!":
            in_extension, unconditional = True, _pieces_in_any_case(data[place + 1 : place + 14])
            place += 2
        elif kind == b",":
            width, height = struct.unpack("<HH", data[place + 5 : place + 9].ljust(4, b"\x00"))
            return (max(1, width), max(1, height))
        elif kind in (b"", b";"):
            break
        else:
            place += 1
    return (1, 1)


def _pieces_in_any_case(extension: bytes) -> int:
    """How many pieces of an extension Pillow reads without minding that one is the last."""
    if extension[:1] == b"\xfe":
        return 0
    return 2 if extension.startswith(b"\xff\x0bNETSCAPE2.0") else 1


# Of a decoder beside the picture that it leaves, for each pixel. A WebP's has two canvases and hands over a third; an
# AVIF's has planes of its own. Measured over 12 megapixels; `tests/shared/test_outline.py` measures again.
_WORKSPACE: Final = {"WEBP": 12, "AVIF": 10}
# Of Pillow's modes, for each pixel; all others take four, whatever their bands.
_ROOM: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}


def footprint(image: Image.Image, size: tuple[int, int], coefficients: float) -> int:
    """Most memory that decoding an opened picture and bringing it to a plain mode takes, in bytes.

    Args:
        image: opened, not loaded; a JPEG's ``draft`` made.
        size: width and height before that.
        coefficients: what `check` said of it.
    """
    whole, drafted = size[0] * size[1], image.width * image.height
    room = _ROOM.get(image.mode, 4)
    alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    plain = ("RGBA",) if alpha else ("L", "RGB")
    copies = 4 * (image.mode not in plain) + 4 * alpha  # in a plain mode, and premultiplied
    needed = (room + copies + _WORKSPACE.get(image.format or "", 0)) * drafted
    # Two bytes for each coefficient, whatever the draft.
    return needed + round(2 * coefficients * whole)
