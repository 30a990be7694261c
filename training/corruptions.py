"""Corruptions of photographs: fifteen kinds, each in five severities, the same at every run.

They are made of the decoded picture, stretched to a square as the network sees it, so that the second look sees them
too. The idea is that of Hendrycks and Dietterich 2019 (https://arxiv.org/abs/1903.12261); the kinds are what happens to
photos that people send.
"""

import io
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from shared.pixels import Photo, Pixels

SIDE: Final = 512  # of what is corrupted, at most; more than twice what the network sees
SEVERITIES: Final = 5
SEED: Final = 20261129
SAMPLES: Final = 15  # of a movement
SENSOR: Final = 4.0  # noise of a dark picture, of 255
TINTS: Final = ((1.0, 0.6, 0.2), (0.3, 0.6, 1.0), (0.4, 1.0, 0.4), (1.0, 0.4, 0.9))
LINES: Final = 28  # of text on a page
DEGRADED: Final = (80, 30)  # pixels a side and JPEG quality

Values = npt.NDArray[np.floating[Any]]
Corrupt = Callable[[Pixels, float, np.random.Generator], Pixels]


def _bytes(values: Values) -> Pixels:
    return values.clip(0, 255).round().astype(np.uint8)


def noise(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Add normal noise of this standard deviation."""
    return _bytes(picture + np.float32(amount) * random.standard_normal(picture.shape, np.float32))


def blur(picture: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Blur with a radius of this share of the side."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(amount * len(picture))))


def motion_blur(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Move the camera by this share of the side, in any direction."""
    side, angle = len(picture), random.uniform(0, np.pi)
    reach = int(amount * side / 2) + 1
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), "edge").astype(np.float32)
    total = np.zeros(picture.shape, np.float32)
    for step in np.linspace(-0.5, 0.5, SAMPLES) * amount * side:
        top, left = (reach + round(step * part) for part in (np.sin(angle), np.cos(angle)))
        total += padded[top : top + side, left : left + side]
    return _bytes(total / SAMPLES)


def jpeg(picture: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Save with this quality."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=int(amount))
    return np.asarray(Image.open(data))


def small(picture: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Scale down to this many pixels a side."""
    side = min(int(amount), len(picture))
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def dark(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Leave this share of the light, and the sensor's noise."""
    return _bytes(picture * np.float32(amount) + SENSOR * random.standard_normal(picture.shape, np.float32))


def bright(picture: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Multiply the light by this."""
    return _bytes(picture * np.float32(amount))


def low_contrast(picture: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Leave this share of the contrast."""
    return _bytes(128 + (picture.astype(np.float32) - 128) * np.float32(amount))


def turned(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Turn by this many degrees, either way; beyond 360, the degrees above are turned and the picture made smaller."""
    times, degrees = divmod(amount, 360)
    image = Image.fromarray(picture).rotate(degrees * random.choice((-1, 1)), Image.Resampling.BILINEAR)
    side = len(picture) >> int(times)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def cropped(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Keep this share of the picture, cut at one of its sides."""
    turns, kept = int(random.integers(4)), max(1, round(amount * len(picture)))
    return np.ascontiguousarray(np.rot90(np.rot90(picture, turns)[:kept], -turns))


def covered(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Paint a square over this share of the picture, in one colour."""
    side = len(picture)
    inner = round(side * amount**0.5)
    top, left = random.integers(0, side - inner + 1, 2)
    result = picture.copy()
    result[top : top + inner, left : left + inner] = random.integers(0, 256, 3)
    return result


def letterboxed(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Put bars at two opposite sides that take this share of the result."""
    side = len(picture)
    bar = round(side * amount / (1 - amount) / 2)
    ends = [(bar, bar), (0, 0)][:: random.choice((-1, 1))]
    colour = int(random.choice((0, 0, 255)))
    return np.pad(picture, (*ends, (0, 0)), constant_values=colour)


def screenshot(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Show the picture on a page of text, this share of the page's width."""
    side = len(picture)
    inner = round(amount * side)
    paper, ink = [(255, 40), (30, 200)][random.integers(2)]
    page = Image.new("RGB", (side, side), (paper,) * 3)
    draw = ImageDraw.Draw(page)
    line = side / LINES
    for number in range(LINES):
        start = line
        while start < side - line:
            end = min(start + random.uniform(1, 5) * line, side - line)
            draw.rectangle((start, (number + 0.3) * line, end, (number + 0.7) * line), fill=(ink,) * 3)
            start = end + 0.4 * line
    left, top = (int(place) for place in random.integers(0, side - inner + 1, 2))
    page.paste(Image.fromarray(picture).resize((inner, inner), Image.Resampling.BILINEAR), (left, top))
    return np.asarray(page)


def colour_cast(picture: Pixels, amount: float, random: np.random.Generator) -> Pixels:
    """Tint the light by this much."""
    tint = np.array(TINTS[random.integers(len(TINTS))], np.float32)
    return _bytes(picture * (1 - np.float32(amount) * (1 - tint)))


class Corruption(NamedTuple):
    """A kind: what it does, and how much of it at each severity."""

    corrupt: Corrupt
    amounts: tuple[float, float, float, float, float]


CORRUPTIONS: Final = {
    "noise": Corruption(noise, (12, 24, 40, 60, 90)),
    "blur": Corruption(blur, (0.005, 0.01, 0.016, 0.025, 0.04)),
    "motion blur": Corruption(motion_blur, (0.02, 0.04, 0.07, 0.1, 0.15)),
    "JPEG": Corruption(jpeg, (30, 18, 10, 6, 3)),
    "small": Corruption(small, (112, 80, 48, 32, 20)),
    "dark": Corruption(dark, (0.5, 0.3, 0.18, 0.1, 0.06)),
    "bright": Corruption(bright, (1.4, 1.8, 2.4, 3.2, 4.5)),
    "low contrast": Corruption(low_contrast, (0.6, 0.4, 0.25, 0.15, 0.08)),
    "on its side": Corruption(turned, (30, 60, 90, 360 + 90, 720 + 90)),
    "upside down": Corruption(turned, (120, 150, 180, 360 + 180, 720 + 180)),
    "cropped": Corruption(cropped, (0.8, 0.65, 0.5, 0.4, 0.3)),
    "covered": Corruption(covered, (0.15, 0.25, 0.4, 0.5, 0.65)),
    "letterboxed": Corruption(letterboxed, (0.15, 0.3, 0.45, 0.6, 0.7)),
    "screenshot": Corruption(screenshot, (0.85, 0.7, 0.55, 0.4, 0.28)),
    "colour cast": Corruption(colour_cast, (0.2, 0.4, 0.6, 0.8, 1.0)),
}


def square(photo: Photo) -> Pixels:
    """What is corrupted of a photo, uint8 [side, side, 3]."""
    return photo.square(min(SIDE, max(photo.size)))


def corrupted(picture: Pixels, kind: str, severity: int, photo: int) -> Photo:
    """Corrupt a picture of :func:`square`.

    Args:
        picture: uint8 [side, side, 3].
        kind: one of ``CORRUPTIONS``.
        severity: 1..5.
        photo: its number; with the kind, it decides what is drawn, such as the side that is cut off.
    """
    corrupt, amounts = CORRUPTIONS[kind]
    random = np.random.default_rng((SEED, list(CORRUPTIONS).index(kind), photo))
    return Photo(Image.fromarray(corrupt(picture, amounts[severity - 1], random)), 1)


def degraded(photo: Photo) -> Photo:
    """A small, badly compressed copy of a photo."""
    side, quality = DEGRADED
    random = np.random.default_rng(SEED)
    return Photo(Image.fromarray(jpeg(small(square(photo), side, random), quality, random)), 1)
