"""Bytes to pixels: the only image decoder of the project.

The prepared data set, the calibration, the evaluation, ``catsdogs predict`` and the service all call :func:`pixels`, so
a picture means the same numbers everywhere. Change anything that alters those numbers and ``VERSION`` must change too:
a model file carries the digest of the procedure it was trained with, and a service with another digest refuses it.
"""

import io
import struct
import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, ExifTags, Image

from shared.footprint import WEBP_BYTES, footprint, jpeg_coefficients
from shared.spec import DIGEST, DRAFT_FACTOR, FORMATS, MAX_PIXELS, MAX_SIDE, SIZE, Limits, RefusedImageError

__all__ = ["DIGEST", "MAX_PIXELS", "SIZE", "Limits", "Pixels", "RefusedImageError", "pixels", "sniff"]

MAX_BRAND_BYTES: Final = 256

# Pillow's own guard is a process-wide warning that counts differently from ours; `limits` is the one that rules here.
Image.MAX_IMAGE_PIXELS = None
# Lanes are the parallelism; left alone, the AVIF decoder starts a thread for each of the host's cores and picture.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Pillow warns of broken EXIF and the like; the pictures are fine, and a client should not be able to write our logs.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")

Pixels = npt.NDArray[np.uint8]
Opened = Callable[[int], object]
LIMITS: Final = Limits()

_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES: Final = ("RGBA", "LA", "PA", "RGBa", "La")


def pixels(data: bytes, limits: Limits = LIMITS, opened: Opened = lambda _: None) -> Pixels:
    """Decode a picture file into what the network sees.

    Args:
        data: a whole JPEG, PNG, WebP, GIF (first frame), BMP or AVIF file, told by its bytes.
        limits: what it may cost.
        opened: called with width times height once the header is read, before anything is decoded.

    Returns:
        uint8 array of shape (224, 224, 3), RGB, 0..255, oriented as EXIF says, transparency over white.

    Raises:
        RefusedImageError: code ``unsupported_format``, ``image_too_large`` or ``undecodable_image``.
    """
    if not data:
        raise RefusedImageError("undecodable_image", "the file is empty")
    name = sniff(data)
    if name is None:
        raise RefusedImageError("unsupported_format", f"not a picture in an accepted format ({', '.join(FORMATS)})")
    if name == "WEBP":
        width, height = _webp_canvas(data)
        _check_size((width, height), limits)
        _check_memory(WEBP_BYTES * width * height, limits)
    most = 0
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            _check_size(image.size, limits)
            opened(image.width * image.height)
            coefficients = jpeg_coefficients(image)
            image.draft(None, (SIZE * DRAFT_FACTOR, SIZE * DRAFT_FACTOR))  # does nothing for formats other than JPEG
            least = footprint(image)
            # A JPEG that is not progressive may be in several scans too, which only decoding it tells.
            most = least + coefficients
            _check_memory(most if image.info.get("progressive") else least, limits)
            return _standardise(image)
    except RefusedImageError:
        raise
    except MemoryError as error:
        raise RefusedImageError("image_too_large", "decoding it takes more memory than there is") from error
    # A decoder fed hostile bytes raises whatever it stumbles over (OSError, SyntaxError, struct.error, IndexError, …).
    except Exception as error:
        # Decoders report that an allocation failed as damage. Where one may have failed, do not call the file corrupt.
        if limits.max_bytes is not None and most > limits.max_bytes:
            raise RefusedImageError("image_too_large", "decoding it may take more memory than there is") from error
        raise RefusedImageError("undecodable_image", f"the {name} data is truncated or corrupt") from error


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
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        # The last two are any picture in this container, an HEIC too; what it is, is among the brands that follow.
        brands = data[8 : min(int.from_bytes(data[:4], "big"), MAX_BRAND_BYTES)]
        return "AVIF" if b"avif" in brands or b"avis" in brands else None
    return None


def _webp_canvas(data: bytes) -> tuple[int, int]:
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


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise RefusedImageError(
            "image_too_large", f"{width}×{height} pixels, more than the {limits.max_pixels:,} accepted"
        )
    if max(width, height) > MAX_SIDE:
        raise RefusedImageError("image_too_large", f"{width}×{height} pixels, more than {MAX_SIDE:,} on one side")
    if width < 1 or height < 1:
        raise RefusedImageError("undecodable_image", "the picture has no pixels")


def _check_memory(needed: int, limits: Limits) -> None:
    if limits.max_bytes is not None and needed > limits.max_bytes:
        taken, there = needed / 1e6, limits.max_bytes / 1e6
        raise RefusedImageError(
            "image_too_large", f"decoding it would take {taken:.0f} MB of memory, more than the {there:.0f} there are"
        )


def _standardise(image: Image.Image) -> Pixels:
    image.load()
    transpose = _TRANSPOSE.get(_orientation(image))
    image = _plain_mode(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    # After resizing there are few pixels left to turn, and onto a square the two steps commute.
    if transpose is not None:
        image = image.transpose(transpose)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _plain_mode(image: Image.Image) -> Image.Image:
    """Bring any mode to L, RGB or RGBA, which resize correctly (Pillow premultiplies RGBA by itself)."""
    if image.mode.startswith("I"):
        # 16-bit grey; the high byte, as Pillow itself does for 16-bit colour.
        return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    # Converting to the mode that a picture has would copy it whole: 0.6 ms of the 31 that 12 megapixels take.
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # EXIF is written by a thousand programs, badly: a picture whose EXIF is broken is still a good picture.
    except Exception:
        return 1
