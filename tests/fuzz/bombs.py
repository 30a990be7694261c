"""Small files that ask for much: each is within every limit of bytes, and made to cost time or memory all the same.

Each function makes one file.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Final

from PIL import Image

from tests.conftest import encoded
from tests.fuzz.pictures import bmp, chunk, png, riff

LIMIT: Final = 50_000_000  # pixels
# Largest body of one picture, less the form around it.
ROOM: Final = 19_900_000
SIDE: Final = 7071  # its square is just within the limit


def _flat(side: int = SIDE, mode: str = "L") -> Image.Image:
    return Image.new(mode, (side, side))


def segment(marker: int, content: bytes) -> bytes:
    """One JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg_head(width: int, height: int, components: int, *, progressive: bool) -> bytes:
    """A JPEG up to its first scan: tables of ones, and Huffman codes of one bit each."""
    frame = struct.pack(">BHHB", 8, height, width, components)
    for number in range(components):
        frame += bytes((number + 1, 0x11, 0))
    # Two codes: 0 for DC is no difference, 10 for AC a run of 32,767 blocks without a coefficient.
    counts = bytes((1, 1)) + bytes(14)
    dc, ac = b"\x00" + counts + b"\x00\x01", b"\x10" + counts + b"\x00\xe0"
    tables = segment(0xDB, b"\x00" + b"\x01" * 64) + segment(0xC4, dc) + segment(0xC4, ac)
    return b"\xff\xd8" + tables + segment(0xC2 if progressive else 0xC0, frame)


def progressive_scans(count: int, width: int = SIDE, height: int = SIDE) -> bytes:
    """A progressive JPEG that says ``count`` times that nothing changes in 50 megapixels."""
    data = jpeg_head(width, height, 1, progressive=True) + segment(0xDA, b"\x01\x01\x00\x00\x00\x00")
    return data + (segment(0xDA, b"\x01\x01\x00\x01\x3f\x00")) * count + b"\xff\xd9"


def baseline_scans(count: int, width: int = SIDE, height: int = SIDE) -> bytes:
    """A baseline JPEG of three components whose first is sent again and again."""
    data = jpeg_head(width, height, 3, progressive=False)
    return data + segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") * count + b"\xff\xd9"


def arithmetic_scans(count: int, side: int) -> bytes:
    """A progressive JPEG in arithmetic code that refines three components ``count`` times, each scan without a byte."""
    components = range(1, 4)
    frame = struct.pack(">BHHB", 8, side, side, 3) + b"".join(bytes((number, 0x11, 0)) for number in components)
    scan = b"\x03" + b"".join(bytes((number, 0)) for number in components)
    tables = segment(0xDB, b"\x00" + b"\x01" * 64)
    first, refined = segment(0xDA, scan + b"\x00\x00\x01"), segment(0xDA, scan + b"\x00\x00\x10")
    return b"\xff\xd8" + tables + segment(0xCA, frame) + first + refined * count + b"\xff\xd9"


def jpeg_before(junk: bytes) -> bytes:
    """A good JPEG with something between its first marker and the rest."""
    data = encoded(Image.new("RGB", (32, 32)), "JPEG")
    return data[:2] + junk + data[2:]


def exif(entries: int, size: int, value: int) -> bytes:
    """An EXIF block of overlapping values: ``entries`` tags of ``value`` bytes each, in ``size`` bytes altogether."""
    head = b"MM\x00*\x00\x00\x00\x08" + struct.pack(">H", entries)
    tags = b"".join(struct.pack(">HHLL", number, 7, value, 8) for number in range(entries))
    return (head + tags).ljust(size, b"\x00")


def animation(name: str, frames: int) -> bytes:
    """An animation of many frames of 16×16."""
    images = [Image.new("L", (16, 16), number % 256) for number in range(frames)]
    options = {"speed": 10} if name == "AVIF" else {"lossless": True, "method": 0} if name == "WEBP" else {}
    return encoded(images[0].convert("RGB"), name, save_all=True, append_images=images[1:], duration=10, **options)


def blank_animation(frames: int) -> bytes:
    """A GIF that shows nothing, and none of whose frames Pillow leaves out."""
    still = encoded(Image.new("P", (256, 256)), "GIF")
    start = still.index(b",", 13 + 3 * (2 << (still[10] & 7)))
    return still[:-1] + still[start:-1] * (frames - 1) + b";"


# Says that the frame is to be replaced by the background, for which Pillow takes memory as soon as it opens the file.
WIPED: Final = b"!\xf9\x04\x08\x00\x00\x00\x00"
# After an empty extension Pillow reads one more row of pieces, here one that looks like a frame of 1×1.
ODD: Final = b"!\x01\x00" + b"," + bytes(4) + b"\x01\x00\x01\x00".ljust(40, b"\x00") + b"\x00"


def gif(
    width: int,
    height: int,
    before: bytes = b"",
    lzw: bytes = b"\x02\x02\x44\x01\x00",
    frame: tuple[int, int] | None = None,
) -> bytes:
    """A GIF of two colours with something before its frame."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
    return head + before + b"," + struct.pack("<HHHHB", 0, 0, *(frame or (width, height)), 0) + lzw + b";"


def wide(name: str, side: int) -> bytes:
    """An AVIF or HEIF whose container says 16×16 and whose stream says ``side``."""
    options = {"speed": 10, "max_threads": 2} if name == "AVIF" else {}
    data = encoded(Image.new("L", (side, side)), name, quality=10, **options)
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", 16, 16) + data[place + 8 :]


def still_avif_of_frames(side: int, frames: int) -> bytes:
    """An AVIF of one picture whose AV1 stream is the same key frame again and again, each of which is decoded."""
    data = encoded(Image.new("L", (side, side)), "AVIF", speed=10, quality=10)
    start = data.index(b"mdat") + 4
    stream = data[start:] * frames
    extent, longer = (struct.pack(">II", start, size) for size in (len(data) - start, len(stream)))
    return data[: start - 8].replace(extent, longer) + struct.pack(">I4s", len(stream) + 8, b"mdat") + stream


def _deflated(size: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


def png_row_bomb() -> bytes:
    """A PNG of one pixel whose data goes on for 256 megabytes."""
    return png(1, 1, 8, 0, _deflated(1 << 28))


def png_small_data_chunks() -> bytes:
    """A PNG whose data is in empty chunks, a million of them."""
    good = png(32, 32, 8, 0, zlib.compress(bytes(33 * 32)))
    place = good.index(b"IDAT") - 4
    return good[:place] + chunk(b"IDAT", b"") * (ROOM // 12) + good[place:]


def _png_with(extra: bytes) -> bytes:
    good = encoded(Image.new("RGB", (32, 32)), "PNG")
    return good[:33] + extra + good[33:]


def _png_ending(extra: bytes) -> bytes:
    good = encoded(Image.new("RGB", (32, 32)), "PNG")
    return good[:-12] + extra + good[-12:]


# Nothing in their headers tells; what ends them is the lane's processor time.
COSTLY: Final[dict[str, Callable[[], bytes]]] = {
    "JPEG, 20,000 progressive scans": lambda: progressive_scans(20_000, 3000, 3000),
    "JPEG, 1,000 scans in arithmetic code": lambda: arithmetic_scans(1_000, 3000),
    "AVIF, one picture of 1,500 frames": lambda: still_avif_of_frames(3000, 1_500),
}
BOMBS: Final[dict[str, Callable[[], bytes]]] = {
    "PNG, 50,000 × 50,000": lambda: png(50_000, 50_000, 1, 0, b""),
    "PNG, 50 megapixels of one bit": lambda: encoded(_flat(mode="1"), "PNG"),
    "PNG, 250 megapixels of grey": lambda: encoded(_flat(15_811), "PNG", compress_level=1),
    "PNG, 50 megapixels of RGBA": lambda: png(SIDE, SIDE, 8, 6, zlib.compress(bytes((1 + SIDE * 4) * SIDE))),
    "PNG, 50 megapixels of 16-bit grey": lambda: png(SIDE, SIDE, 16, 0, zlib.compress(bytes((1 + SIDE * 2) * SIDE))),
    "PNG, 50 megapixels, transparent palette": lambda: encoded(_flat(mode="P"), "PNG", transparency=0),
    "PNG, 256 megabytes of pixels too many": png_row_bomb,
    "PNG, 50,000,000 × 1": lambda: png(50_000_000, 1, 1, 0, zlib.compress(bytes(6_250_001))),
    "PNG, 1 × 50,000,000": lambda: png(1, 50_000_000, 1, 0, zlib.compress(bytes(100_000_000))),
    "PNG, zTXt of 256 megabytes": lambda: _png_with(chunk(b"zTXt", b"a\x00\x00" + _deflated(1 << 28))),
    "PNG, iTXt of 256 megabytes": lambda: _png_with(chunk(b"iTXt", b"a\x00\x01\x00\x00\x00" + _deflated(1 << 28))),
    "PNG, iCCP of 256 megabytes": lambda: _png_with(chunk(b"iCCP", b"a\x00\x00" + _deflated(1 << 28))),
    "PNG, zTXt of a megabyte, many": lambda: _png_with(chunk(b"zTXt", b"a\x00\x00" + _deflated(1 << 20)) * 15_000),
    "PNG, tEXt of twenty megabytes": lambda: _png_with(chunk(b"tEXt", b"a\x00" + b"a" * ROOM)),
    "PNG, Raw profile type exif": lambda: _png_with(
        chunk(b"tEXt", b"Raw profile type exif\x00\n\n\n" + b"4d" * (ROOM // 2 - 100))
    ),
    "PNG, small tEXt without end": lambda: _png_with(chunk(b"tEXt", b"a\x00b") * (ROOM // 15)),
    "PNG, empty chunks without end": lambda: _png_with(chunk(b"aaAa", b"") * (ROOM // 12)),
    "PNG, empty chunks after the picture": lambda: _png_ending(chunk(b"aaAa", b"") * (ROOM // 12)),
    "PNG, empty IDAT without end": png_small_data_chunks,
    "PNG, eXIf of overlapping values": lambda: _png_with(chunk(b"eXIf", exif(60_000, ROOM, ROOM - 100))),
    "PNG, eXIf of 65,535 tags": lambda: _png_with(chunk(b"eXIf", exif(65_535, 800_000, 12))),
    "PNG, eXIf with one tag of 20 MB": lambda: _png_with(
        chunk(
            b"eXIf",
            b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03" + struct.pack(">LL", 9_000_000, 8) + bytes(18_100_000),
        )
    ),
    "PNG, fcTL without end": lambda: _png_with(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "JPEG, 65,535 × 762": lambda: encoded(Image.new("RGB", (65_500, 762)), "JPEG"),
    "JPEG, 50 megapixels, 4:4:4": lambda: encoded(_flat(mode="RGB"), "JPEG", subsampling=0),
    "JPEG, 50 megapixels, progressive": lambda: encoded(_flat(mode="RGB"), "JPEG", subsampling=0, progressive=True),
    "JPEG, 50 megapixels, CMYK, progressive": lambda: encoded(_flat(mode="CMYK"), "JPEG", progressive=True),
    "JPEG, 1,000 progressive scans": lambda: progressive_scans(1_000),
    "JPEG, 1,000 baseline scans": lambda: baseline_scans(1_000),
    "JPEG, restart markers without end": lambda: (
        encoded(_flat(1000), "JPEG", restart_marker_blocks=1)[:-2] + b"\xff\xd0" * 9_000_000
    ),
    "JPEG, segments without end": lambda: jpeg_before(segment(0xEF, b"") * (ROOM // 4)),
    "JPEG, comments without end": lambda: jpeg_before(segment(0xFE, b"") * (ROOM // 4)),
    "JPEG, Exif pieces without end": lambda: jpeg_before(segment(0xE1, b"Exif\x00\x00a") * (ROOM // 11)),
    "JPEG, ICC pieces without end": lambda: jpeg_before(segment(0xE2, b"ICC_PROFILE\x00\x01\x01") * (ROOM // 18)),
    "JPEG, 64 kB of overlapping EXIF": lambda: jpeg_before(segment(0xE1, b"Exif\x00\x00" + exif(5000, 65_000, 60_000))),
    "JPEG, Exif of many pieces, overlapping": lambda: jpeg_before(
        b"".join(segment(0xE1, b"Exif\x00\x00" + part) for part in _pieces(exif(60_000, ROOM - 10_000, ROOM - 100_000)))
    ),
    "JPEG, Photoshop blocks": lambda: jpeg_before(
        segment(0xED, b"Photoshop 3.0\x00" + b"8BIM\x00\x00\x00\x00\x00\x00\x00\x00" * 5400) * 300
    ),
    "JPEG, quantisation tables without end": lambda: jpeg_before(segment(0xDB, b"\x00" * 65 * 1000) * 300),
    "JPEG, Huffman tables without end": lambda: jpeg_before(
        segment(0xC4, (b"\x00\x01" + bytes(15) + b"\x00") * 3600) * 300
    ),
    "JPEG, padding without end": lambda: jpeg_before(b"\xff" * ROOM),
    "JPEG, junk without end": lambda: jpeg_before(segment(0xFE, b"") + b"a" * ROOM),
    "JPEG, multi-picture index": lambda: jpeg_before(
        segment(
            0xE2,
            b"MPF\x00MM\x00*\x00\x00\x00\x08\x00\x02\xb0\x01\x00\x04\x00\x00\x00\x01\x7f\xff\xff\xff"
            b"\xb0\x02\x00\x07\x00\x00\x40\x00\x00\x00\x00\x08" + bytes(20_000),
        )
    ),
    "GIF, 65,535 × 762": lambda: gif(65_535, 762),
    "GIF, a screen of 65,535 × 65,535": lambda: gif(65_535, 65_535),
    "GIF, a frame of 65,535 × 65,535, to be wiped": lambda: gif(1, 1, WIPED, frame=(65_535, 65_535)),
    "GIF, the same after what is no frame": lambda: gif(1, 1, ODD + WIPED, frame=(65_535, 65_535)),
    "GIF, 50 megapixels": lambda: encoded(_flat(mode="P"), "GIF"),
    "GIF, 50 megapixels, transparent": lambda: encoded(_flat(mode="P"), "GIF", transparency=0),
    "GIF, 10,000 frames": lambda: animation("GIF", 10_000),
    "GIF, 10,000 blank frames of 65,536 pixels": lambda: blank_animation(10_000),
    "GIF, comments without end": lambda: gif(32, 32, b"!\xfe\x01a\x00" * (ROOM // 5)),
    "GIF, a comment of pieces without end": lambda: gif(32, 32, b"!\xfe" + b"\x01a" * (ROOM // 2) + b"\x00"),
    "GIF, extensions without end": lambda: gif(32, 32, b"!\x01\x00" * (ROOM // 3)),
    "GIF, empty bytes without end": lambda: gif(32, 32, b"\x00" * ROOM),
    "GIF, pieces of one byte": lambda: gif(5000, 5000, lzw=b"\x02" + b"\x01\x44" * (ROOM // 2) + b"\x00"),
    "BMP, 30,000 × 30,000": lambda: bmp(30_000, 30_000, 1, 0, b""),
    "BMP, 50 megapixels and no data": lambda: bmp(SIDE, SIDE, 24, 0, b""),
    "BMP, a negative height of 2**31": lambda: bmp(1, -(2**31), 24, 0, b""),
    "BMP, RLE, one line of 50 megapixels": lambda: bmp(LIMIT, 1, 8, 1, b"\x01\x00\x00\x00\x00\x01"),
    "BMP, RLE, runs of one pixel": lambda: bmp(SIDE, SIDE, 8, 1, b"\x01\x00" * (ROOM // 2)),
    "BMP, RLE, nothing at all": lambda: bmp(SIDE, SIDE, 8, 1, b"\x00\x00" * (ROOM // 2)),
    "BMP, RLE4, runs of 255": lambda: bmp(SIDE, SIDE, 4, 2, b"\xff\x00" * 200_000),
    "BMP, RLE, leaps": lambda: bmp(SIDE, SIDE, 8, 1, b"\x00\x02\x00\x00" * (ROOM // 4)),
    "BMP, palette of 2**31 colours": lambda: bmp(32, 32, 8, 0, b"")[:46] + struct.pack("<I", 2**31 - 1) + bytes(64),
    "WebP, 16,383 × 16,383": lambda: riff((b"VP8L", b"\x2f" + struct.pack("<I", 0x3FFE | 0x3FFE << 14) + bytes(16))),
    "WebP, a canvas of 16,777,216 × 255": lambda: riff(
        (b"VP8X", b"\x02\x00\x00\x00\xff\xff\xff\xfe\x00\x00"), (b"ANIM", bytes(6))
    ),
    "WebP, 50 megapixels, lossless": lambda: encoded(_flat(mode="RGB"), "WEBP", lossless=True, method=0),
    "WebP, 50 megapixels, alpha": lambda: encoded(_flat(mode="RGBA"), "WEBP", lossless=True, method=0),
    "WebP, 10,000 frames": lambda: animation("WEBP", 10_000),
    "WebP, chunks without end": lambda: riff(
        (b"VP8X", bytes(4) + b"\x0f\x00\x00\x0f\x00\x00"),
        *[(b"aaaa", b"")] * (ROOM // 8),
        (b"VP8L", encoded(Image.new("L", (16, 16)), "WEBP", lossless=True)[20:]),
    ),
    "WebP, EXIF of overlapping values": lambda: encoded(
        Image.new("RGB", (16, 16)), "WEBP", exif=exif(60_000, ROOM, ROOM - 100)
    ),
    "AVIF, 50 megapixels": lambda: encoded(_flat(mode="L"), "AVIF", speed=10, quality=10),
    "AVIF, 64 megapixels that say they are 256": lambda: wide("AVIF", 8000),
    "AVIF, 1,000 frames": lambda: animation("AVIF", 1_000),
    "HEIF, 50 megapixels": lambda: encoded(_flat(mode="RGB"), "HEIF", quality=10),
    "HEIF, 49 megapixels that say they are 256": lambda: wide("HEIF", 7000),
    "AVIF, EXIF of overlapping values": lambda: encoded(
        Image.new("RGB", (16, 16)), "AVIF", speed=10, exif=exif(60_000, ROOM, ROOM - 100)
    ),
}


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + 65_000] for start in range(0, len(data), 65_000)]
