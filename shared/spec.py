"""What a picture file may be and what becomes of it: the constants and the error of :mod:`shared.pixels`.

Apart from the decoder, so that the service's front process can name them without importing numpy or Pillow.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal

VERSION: Final = 2
SIZE: Final = 224
# JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as it stays this many times larger than SIZE:
# `ops/bench/NOTES.md` has what that saves and what it changes.
DRAFT_FACTOR: Final = 1.5
DRAFT_SIDE: Final = int(SIZE * DRAFT_FACTOR)
# HEIF with the extra `heif` only; it is among them always, so that a model file goes with both.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIF")
# The most frames of an animation that are looked at, and the most pixels of all of them together. This bounds the time
# that blank ones take, and the memory (50 MB).
MAX_FRAMES: Final = 16
MAX_FRAME_PIXELS: Final = 4_000_000
# A frame whose values differ by no more is of one colour; a lossy encoder leaves a level or two.
FLAT: Final = 8
# Beyond any telephone's 200 megapixels. Memory and time have limits of their own.
MAX_PIXELS: Final = 250_000_000
# What JPEG and GIF can say. Pillow keeps a pointer and a block of memory for each row: 1 × 50,000,000 took 1.7 GB.
MAX_SIDE: Final = 65_535

# One description of everything that decides the numbers; its digest is what a model file carries.
DIGEST: Final = hashlib.sha256(
    json.dumps(
        {
            "version": VERSION,
            "size": SIZE,
            "formats": FORMATS,
            "resize": "bilinear, antialiased, aspect not kept",
            "jpeg_draft": DRAFT_FACTOR,
            "alpha": "over white",
            "transparent colour": "compared at the depth of the file, of 16-bit colour by high bytes",
            "16 bit": "high byte",
            "frame": ["first that shows something", MAX_FRAMES, MAX_FRAME_PIXELS, FLAT],
            "orientation": "exif, after resizing",
            "png metadata": "eXIf",
        },
        sort_keys=True,
    ).encode()
).hexdigest()

Code = Literal["unsupported_format", "image_too_large", "undecodable_image"]


class RefusedImageError(ValueError):
    """A picture that is not turned into numbers; ``code`` says why, for programs."""

    def __init__(self, code: Code, detail: str) -> None:
        """Keep ``code`` for programs and ``detail`` for people."""
        super().__init__(detail)
        self.code: Code = code


@dataclass(frozen=True)
class Limits:
    """What a picture may cost.

    ``max_pixels`` is width times height, known from the header; ``max_bytes`` the memory that decoding takes, None for
    any.
    """

    max_pixels: int = MAX_PIXELS
    max_bytes: int | None = None
