"""Bytes to pixels: the only image decoder of the project.

The prepared data set, the calibration, the evaluation, ``catsdogs predict`` and the service all decode here, so
a picture means the same numbers everywhere. Change anything that alters those numbers and ``VERSION`` must change too:
a model file carries the digest of the procedure it was trained with, and a service with another digest refuses it.
"""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, ExifTags, Image, ImageFile

from shared.footprint import WEBP_BYTES, footprint, jpeg_coefficients
from shared.formats import refusal, sniff, webp_canvas, without_metadata
from shared.spec import (
    DIGEST,
    DRAFT_SIDE,
    FLAT,
    MAX_FRAME_PIXELS,
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_SIDE,
    SIZE,
    Limits,
    RefusedImageError,
)

__all__ = [
    "DIGEST", "MAX_PIXELS", "SIZE", "Box", "Limits", "Photo", "Pixels", "RefusedImageError", "decode", "heif_reader",
    "pixels", "sniff",
]  # fmt: skip

# Pillow's own guard is a process-wide warning that counts differently from ours; `limits` is the one that rules here.
Image.MAX_IMAGE_PIXELS = None
# Lanes are the parallelism; left alone, the AVIF decoder starts a thread for each of the host's cores and picture.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Pillow warns of broken EXIF and the like; the pictures are fine, and a client should not be able to write our logs.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom of the upright picture, each 0..1
Opened = Callable[[int], object]
LIMITS: Final = Limits()
WHOLE: Final[Box] = (0, 0, 1, 1)

_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# EXIF orientations of pictures that are stored on their side, from right to left, and from the bottom up.
_SIDEWAYS: Final = (5, 6, 7, 8)
_BACKWARDS: Final = (2, 3, 7, 8)
_UPWARDS: Final = (3, 4, 6, 7)
_ALPHA_MODES: Final = ("RGBA", "LA", "PA", "RGBa", "La")
_ANIMATED: Final = ("GIF", "PNG", "WEBP", "AVIF")
# What libjpeg meets where a JPEG has no end marker: in one decoding nothing, in the other what would show as pixels, at
# once and behind each restart marker that may come next.
_JUNK: Final = b"\xb5\x6d\xda" * 80
_TAILS: Final = (b"\xff\xd9", b"".join((_JUNK, *(bytes((0xFF, 0xD0 + n)) + _JUNK for n in range(8)), b"\xff\xd9")))


class Photo:
    """A decoded picture, of which squares can be had.

    Attributes:
        size: width and height of the upright picture as it was decoded, a JPEG's after its draft.
        full_size: width and height of the upright picture as it is in the file.
    """

    def __init__(self, image: Image.Image, orientation: int, full_size: tuple[int, int] | None = None) -> None:
        """Take an image of mode L, RGB or RGBA as it is stored, its EXIF orientation, and its size in the file."""
        self._image = image
        self._orientation = orientation
        full_size = full_size or image.size
        sideways = orientation in _SIDEWAYS
        self.size = image.size[::-1] if sideways else image.size
        self.full_size = full_size[::-1] if sideways else full_size

    def square(self, size: int = SIZE, box: Box = WHOLE) -> Pixels:
        """Resize a part of the upright picture (bilinear, antialiased; aspect not kept), transparency over white.

        Args:
            size: width and height of the square.
            box: the part, as shares of width and height.

        Returns:
            uint8 array of shape (size, size, 3), RGB.
        """
        left, top, right, bottom = box
        if self._orientation in _SIDEWAYS:
            left, top, right, bottom = top, left, bottom, right
        if self._orientation in _BACKWARDS:
            left, right = 1 - right, 1 - left
        if self._orientation in _UPWARDS:
            top, bottom = 1 - bottom, 1 - top
        width, height = self._image.size
        stored = (left * width, top * height, right * width, bottom * height)
        image = self._image.resize((size, size), Image.Resampling.BILINEAR, stored)
        # After resizing there are few pixels left to turn, and onto a square the two steps commute.
        if self._orientation in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[self._orientation])
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def pixels(data: bytes, limits: Limits = LIMITS, opened: Opened = lambda _: None) -> Pixels:
    """Decode a picture file into what the network sees: the whole picture as a square.

    Arguments and errors are those of :func:`decode`.

    Returns:
        uint8 array of shape (224, 224, 3), RGB, 0..255, oriented as EXIF says, transparency over white.
    """
    return decode(data, limits, opened).square()


def decode(data: bytes, limits: Limits = LIMITS, opened: Opened = lambda _: None) -> Photo:
    """Decode a picture file.

    Args:
        data: a whole JPEG, PNG, WebP, GIF, BMP, AVIF or HEIF file, told by its bytes. Of an animation the first frame
            that shows something counts.
        limits: what it may cost.
        opened: called with width times height once the header is read, before anything is decoded.

    Raises:
        RefusedImageError: code ``unsupported_format``, ``image_too_large`` or ``undecodable_image``.
    """
    name = _accepted(data, limits)
    stream = without_metadata(data) if name == "PNG" else io.BytesIO(data)
    most = 0
    try:
        with Image.open(stream, formats=[name]) as image:
            _check_size(image.size, limits)
            opened(image.width * image.height)
            coefficients = jpeg_coefficients(image)
            full_size = image.size
            image.draft(None, (DRAFT_SIDE, DRAFT_SIDE))  # does nothing for formats other than JPEG
            least = footprint(image)
            # A JPEG that is not progressive may be in several scans too, which only decoding it tells.
            most = least + coefficients
            _check_memory(most if image.info.get("progressive") else least, limits)
            return _photo(image, data, full_size)
    except RefusedImageError:
        raise
    except MemoryError as error:
        raise RefusedImageError("image_too_large", "decoding it takes more memory than there is") from error
    # A decoder fed hostile bytes raises whatever it stumbles over (OSError, SyntaxError, struct.error, IndexError, …).
    except Exception as error:
        if str(error).startswith("Unsupported BMP"):
            raise RefusedImageError(
                "unsupported_format", f"this kind of BMP cannot be decoded ({error}); convert it to JPEG or PNG"
            ) from error
        # Decoders report that an allocation failed as damage. Where one may have failed, do not call the file corrupt.
        if limits.max_bytes is not None and most > limits.max_bytes:
            raise RefusedImageError("image_too_large", "decoding it may take more memory than there is") from error
        raise RefusedImageError("undecodable_image", f"the {name} data is truncated or corrupt") from error


def _accepted(data: bytes, limits: Limits) -> str:
    """Name the format, if it is one that can be decoded here."""
    if not data:
        raise RefusedImageError("undecodable_image", "the file is empty")
    name = sniff(data)
    if name is None:
        raise RefusedImageError("unsupported_format", refusal(data))
    if name == "HEIF" and not heif_reader():
        raise RefusedImageError(
            "unsupported_format",
            "this is a HEIC or HEIF picture, and the extra `heif` is not installed; convert it to JPEG or PNG",
        )
    if name == "WEBP":
        width, height = webp_canvas(data)
        _check_size((width, height), limits)
        _check_memory(WEBP_BYTES * width * height, limits)
    return name


@functools.cache
def heif_reader() -> bool:
    """Whether HEIF can be decoded. The first call imports the decoder, so it must come before a lane is confined."""
    try:
        import pillow_heif  # noqa: PLC0415 - an extra, and of use to few

        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    except ImportError:
        return False
    return True


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


def _photo(image: ImageFile.ImageFile, data: bytes, full_size: tuple[int, int]) -> Photo:
    """Decode an opened picture; of an animation, the first frame that shows something, else the first."""
    if image.format == "PNG":
        _scale_transparency(image, depth=data[24])
    loaded = _load_jpeg(image, data) if image.format == "JPEG" else image
    loaded.load()
    orientation = _orientation(image)
    # Whether a GIF has more frames only reading on tells.
    moving = image.format == "GIF" or (image.format in _ANIMATED and getattr(image, "is_animated", False))
    return Photo(_first_shown(image) if moving else _plain_mode(loaded), orientation, full_size)


def _first_shown(image: Image.Image) -> Image.Image:
    """Bring the first frame that shows something to a plain mode; if none of those looked at does, the first."""
    first, size = _plain_mode(image), image.size
    frames = min(MAX_FRAMES, MAX_FRAME_PIXELS // (image.width * image.height))
    if frames < 2 or _shows(first):
        return first
    first = first.copy()  # since the next frame may be drawn over it
    with contextlib.suppress(Exception):  # there are no more frames, or a broken one
        for number in range(1, frames):
            image.seek(number)
            if image.size != size:  # a GIF's canvas grows with a frame
                break
            image.load()
            frame = _plain_mode(image)
            if _shows(frame):
                return frame
    return first


def _load_jpeg(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Decode a JPEG, also one that lacks nothing but its end marker."""
    assert image.fp is not None
    count = len(getattr(image, "layer", ()))
    scan = image.fp.tell() - 8 - 2 * count
    try:
        image.load()
    except OSError as error:
        # Whether further scans are missing nobody can tell, so there must be a single one, of all components.
        single = data[scan : scan + 5] == bytes((0xFF, 0xDA, 0, 6 + 2 * count, count))
        if "truncated" not in str(error) or image.info.get("progressive") or not single:
            raise
        # A last 0xFF is half of a marker, or of a byte that is lost.
        one, other = (_drafted(data.rstrip(b"\xff") + tail) for tail in _TAILS)
        # Pixels that are missing libjpeg makes of what follows, so then the two differ.
        if one.tobytes() != other.tobytes():
            raise
        return one
    return image


def _drafted(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    image.draft(None, (DRAFT_SIDE, DRAFT_SIDE))
    image.load()
    return image


def _shows(image: Image.Image) -> bool:
    """Whether an image of a plain mode is neither of one colour nor transparent throughout."""
    # A sample tells of most, in 0.01 ms rather than 0.5 for 500×375.
    return any(_varies(part) for part in (image.resize((32, 32), Image.Resampling.NEAREST), image))


def _varies(image: Image.Image) -> bool:
    least, most = np.array([band.getextrema() for band in image.split()]).T
    clear = image.mode == "RGBA" and most[3] == 0
    return not clear and bool((most - least > FLAT).any())


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Bring a PNG's transparent colour from the depth of the file to that of the pixels."""
    colour = image.info.get("transparency")
    if image.mode == "L" and colour is not None:
        image.info["transparency"] = colour * 255 // ((1 << depth) - 1)
    elif image.mode == "RGB" and colour is not None and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _plain_mode(image: Image.Image) -> Image.Image:
    """Bring any mode to L, RGB or RGBA, which resize correctly (Pillow premultiplies RGBA by itself)."""
    if image.mode.startswith("I"):
        # 16-bit grey; the high byte, as Pillow itself does for 16-bit colour.
        values = np.asarray(image)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        if (clear := image.info.get("transparency")) is None:
            return grey
        opaque = Image.fromarray(np.where(values == clear, np.uint8(0), np.uint8(255)))
        return Image.merge("RGBA", (grey, grey, grey, opaque))
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
