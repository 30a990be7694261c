"""The evidence of a picture, drawn over it: what speaks for cats in the page's red, for dogs in its blue.

The page draws the same in the browser (``web/evidence.js``); a test holds the two together.
"""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageEnhance

from shared.pixels import SIZE, Pixels, sniff

Evidence = npt.NDArray[np.float32]  # [7, 7], positive for dogs, negative for cats

# The colours of the page by day (``web/style.css``).
CATS: Final = (0xC8, 0x55, 0x3D)
DOGS: Final = (0x2A, 0x7F, 0x9E)
# How much the strongest place hides of the photo, and how much of the photo's own colour is left for the two to stand
# out against, a ginger cat's being one of them.
OPACITY: Final = 0.7
SATURATION: Final = 0.3
# The drawing is the network's own picture, stretched back; beyond twice its size there is nothing more to see.
LONGER_SIDE: Final = 2 * SIZE
# A third of the time of Pillow's own choice for a twentieth more bytes: 25 ms and 161 kB for tests/cat.jpg, measured
# on two cores.
COMPRESS_LEVEL: Final = 3
# EXIF orientations that swap width and height.
SIDEWAYS: Final = (5, 6, 7, 8)


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture file, turned as EXIF says.

    ``data`` must be a file that ``shared.pixels.pixels`` has decoded: that is what holds it to the limits.
    """
    name = sniff(data)
    assert name is not None
    with Image.open(io.BytesIO(data), formats=[name]) as image:
        width, height = image.size
        try:
            sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        # A picture whose EXIF is broken is still a good picture, and ``pixels`` leaves it as it lies.
        except Exception:
            sideways = False
    return (height, width) if sideways else (width, height)


def drawn_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the drawing of a picture of this size: its aspect ratio, ``LONGER_SIDE`` at most."""
    scale = LONGER_SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def overlay(evidence: Evidence, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Colour the evidence.

    Args:
        evidence: float32 [7, 7].
        size: width and height to spread it over, smoothly (bicubic).

    Returns:
        uint8 array [height, width, 4], RGBA; the alpha is 0 where nothing speaks for either animal, and ``OPACITY``
        where the picture's own strongest evidence is.
    """
    peak = float(np.abs(evidence).max()) or 1.0
    smooth = np.asarray(Image.fromarray(evidence / peak).resize(size, Image.Resampling.BICUBIC)).clip(-1, 1)
    colours = np.where(smooth[..., np.newaxis] > 0, np.array(DOGS, np.uint8), np.array(CATS, np.uint8))
    alpha = (np.abs(smooth) * (OPACITY * 255)).round().astype(np.uint8)
    return np.dstack([colours, alpha])


def draw(picture: Pixels, evidence: Evidence, size: tuple[int, int]) -> bytes:
    """Draw the evidence over the picture.

    Args:
        picture: uint8 [224, 224, 3], what the network saw.
        evidence: float32 [7, 7], what it made of it.
        size: width and height of the drawing.

    Returns:
        A PNG file.
    """
    photo = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    photo = ImageEnhance.Color(photo).enhance(SATURATION)
    colours = Image.fromarray(overlay(evidence, size))
    photo.paste(colours, mask=colours)
    file = io.BytesIO()
    photo.save(file, "PNG", compress_level=COMPRESS_LEVEL)
    return file.getvalue()
