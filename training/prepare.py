"""Prepare: decode each photo once, as the service does, and store it losslessly, at a size that is quick to read.

    catsdogs prepare

Writes ``data/processed_split/{train,val,test}/{cats,dogs}/<start of the photo's SHA-256>.webp``, RGB: squares of at
most ``SIDE`` pixels, never larger than the photo. That is more than a network sees at once, so that a crop of half a
photo is as sharp as the service's second look at it.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from PIL import Image

from shared.contract import CLASSES
from shared.pixels import decode
from training.split import SIDES, Photo
from training.stage import StageError, progress, whole_directory

SIDE: Final = 320


def prepare(photos: list[Photo], raw: Path, out: Path) -> None:
    """Write the standardised picture of every photo of train, val and test below ``out``, all of them or none.

    Raises:
        StageError: a photo of the split is no longer in ``raw``.
    """
    with whole_directory(out) as aside:
        for side in SIDES:
            for label in CLASSES:
                (aside / side / label).mkdir(parents=True)

        def write(photo: Photo) -> None:
            try:
                data = (raw / photo.path).read_bytes()
            except OSError as error:
                raise StageError(f"{raw / photo.path}: {error.strerror}; run `catsdogs audit` again") from error
            decoded = decode(data)
            picture = io.BytesIO()
            # Of 320×320: 116 kB and 1.5 ms to read, where PNG takes 161 kB and 2.5 ms, BMP 307 kB and 0.1 ms.
            square = Image.fromarray(decoded.square(min(SIDE, max(decoded.size))))
            square.save(picture, "WEBP", lossless=True, method=0)
            (aside / photo.side / photo.label / f"{photo.sha256[:20]}.webp").write_bytes(picture.getvalue())

        # The other test sides are measured on the original photographs only.
        photos = [photo for photo in photos if photo.side in SIDES]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in progress(pool.map(write, photos), "preparing", total=len(photos)):
                pass
