"""Draws a picture's evidence over it: for cats in the page's red, for dogs in its blue.

The page draws the same in the browser (``web/evidence.js``); a test compares the two.
"""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from shared.pixels import SIZE, Pixels

Evidence = npt.NDArray[np.float32]  # [7, 7], positive for dogs, negative for cats

# The colours of the page's light theme (``web/style.css``).
CATS: Final = (0xC8, 0x55, 0x3D)
DOGS: Final = (0x2A, 0x7F, 0x9E)
# Opacity at the strongest evidence, and how much of the photo's own colour is kept: a ginger cat's would hide the red.
OPACITY: Final = 0.7
SATURATION: Final = 0.3
# The drawing is the network's input, stretched back; above twice its size there is no more detail.
LONGER_SIDE: Final = 2 * SIZE
# A third of the time of Pillow's default for a twentieth more bytes: 25 ms and 161 kB for tests/cat.jpg, measured on
# two cores.
COMPRESS_LEVEL: Final = 3


def drawn_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture's drawing: the same aspect ratio, the longer side ``LONGER_SIDE``."""
    scale = LONGER_SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def overlay(evidence: Evidence, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Colour the evidence.

    Args:
        evidence: float32 [7, 7].
        size: width and height to resize it to (bicubic).

    Returns:
        uint8 array [height, width, 4], RGBA; the alpha is 0 where there is no evidence, and ``OPACITY`` at the
        picture's strongest evidence.
    """
    peak = float(np.abs(evidence).max()) or 1.0
    smooth = np.asarray(Image.fromarray(evidence / peak).resize(size, Image.Resampling.BICUBIC)).clip(-1, 1)
    colours = np.where(smooth[..., np.newaxis] > 0, np.array(DOGS, np.uint8), np.array(CATS, np.uint8))
    alpha = (np.abs(smooth) * (OPACITY * 255)).round().astype(np.uint8)
    return np.dstack([colours, alpha])


def draw(picture: Pixels, evidence: Evidence, size: tuple[int, int]) -> bytes:
    """Draw the evidence over the picture.

    Args:
        picture: uint8 [224, 224, 3], the network's input.
        evidence: float32 [7, 7], its output.
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
