"""The photos that are sent: a few, in three sizes, as JPEG files.

    python -m ops.bench.photos FOLDER [SOURCE]

By default they are made from ``tests/cat.jpg`` (CC0) and from noise, the same bytes on every run and machine; SOURCE is
a folder or zip file of photos to make the three sizes from instead. One in eleven is noise. The model looks at it
again, which costs more than the first look, as it does with 9 % of the photos of its test side. This is a program of
its own because a benchmark that mapped numpy and Pillow would lower the PSS of the servers.
"""

import io
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from PIL import Image, ImageOps

from ops.bench.errors import BenchError
from ops.bench.processes import ROOT

T = TypeVar("T")

SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
OWN_PHOTOS: Final = 6
# Of the cat, as shares of its width and height: left, top, right, bottom.
PARTS: Final = ((0, 0, 1, 1), (0.2, 0, 1, 0.8), (0, 0, 0.8, 0.8), (0.1, 0, 0.9, 1), (0, 0.1, 1, 1))
# wrk holds each photo in each size in memory, and this program its pixels.
MAX_SOURCE_PIXELS: Final = 50_000_000


@dataclass(frozen=True)
class Size:
    """A size of photo: pixels, JPEG quality, and grain, like the noise of a sensor."""

    width: int
    height: int
    quality: int
    grain: float


SIZES: Final = {
    "small": Size(200, 150, 85, 2),
    "medium": Size(500, 375, 90, 2),
    "large": Size(4000, 3000, 88, 4.5),  # 12 megapixels, as from a phone, 2 to 4 MB
}


def make(folder: Path, source: Path | None) -> None:
    """Write three sizes of a few photos into ``folder``, as ``small-00.jpg``, ``small-01.jpg``, and so on.

    Args:
        folder: exists.
        source: a folder or zip file of photos; None for the cat and noise.

    Raises:
        BenchError: ``source`` has no photos.
    """
    pictures = list(_own(source)) if source else list(_drawn())
    if not pictures:
        raise BenchError(f"{source}: no photos in it ({', '.join(sorted(SUFFIXES))})")
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        for number, picture in enumerate(pictures):
            (folder / f"{name}-{number:02}.jpg").write_bytes(_encode(picture, size, rng))


def _drawn() -> Iterator[Image.Image]:
    """The cat, parts of it, each mirrored too, and clouds last."""
    with Image.open(ROOT / "tests" / "cat.jpg") as cat:
        cat.load()
    width, height = cat.size
    for left, top, right, bottom in PARTS:
        part = cat.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
        yield from (part, ImageOps.mirror(part))
    clouds = np.random.default_rng(1).integers(0, 255, (9, 12, 3), np.uint8)
    yield Image.fromarray(clouds)


def _own(source: Path) -> Iterator[Image.Image]:
    """A few photos of a folder or zip file, spread evenly over it."""
    try:
        if source.is_dir():
            names = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
            yield from map(_open, (path.read_bytes() for path in _some(names)))
        else:
            with zipfile.ZipFile(source) as archive:
                entries = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in SUFFIXES)
                entries = [name for name in entries if archive.getinfo(name).file_size]
                yield from map(_open, (archive.read(name) for name in _some(entries)))
    except (OSError, zipfile.BadZipFile) as error:
        raise BenchError(f"{source}: {error}") from error


def _some(names: list[T]) -> list[T]:
    return names[:: max(1, len(names) // OWN_PHOTOS)][:OWN_PHOTOS]


def _open(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_SOURCE_PIXELS:
            raise BenchError("one of the photos has more than 50 million pixels")
        return image.convert("RGB")


def _encode(picture: Image.Image, size: Size, rng: np.random.Generator) -> bytes:
    scaled = np.asarray(picture.convert("RGB").resize((size.width, size.height), Image.Resampling.BICUBIC), np.float32)
    scaled = scaled + size.grain * rng.standard_normal(scaled.shape[:2], np.float32)[..., None]
    data = io.BytesIO()
    Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=size.quality)
    return data.getvalue()


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
    except BenchError as error:
        sys.exit(str(error))
