"""The golden pictures of the exam: small, free of rights, and covering every way to store a picture.

The cat is ``chelsea.png`` from scikit-image (CC0); the rest is generated. Pictures of neither animal are
useful too: their answers lie between the classes, where a small difference shows.
"""

import io
from typing import Any

import numpy as np
import skimage.data
from PIL import Image, ImageDraw


def golden_pictures() -> dict[str, bytes]:
    """Names and file contents, deterministic for one version of Pillow."""
    cat = _cat()
    small = cat.resize((180, 120))
    turned = Image.Exif()
    turned[0x0112] = 6  # "rotate by 90 degrees to look at me"
    cut_out = small.convert("RGBA")
    mask = Image.new("L", small.size)
    ImageDraw.Draw(mask).ellipse((20, 5, 160, 115), fill=255)
    cut_out.putalpha(mask)
    grey16 = Image.fromarray((np.asarray(small.convert("L"), np.uint16) * 257).astype(np.uint16))
    return {
        "cat.jpg": _file(cat, "JPEG", quality=80),
        "large cat, decoded at half size.jpg": _file(cat.resize((960, 960)), "JPEG", quality=40),
        "cat on its side, told by EXIF.jpg": _file(small.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned),
        "cat in CMYK.jpg": _file(small.convert("CMYK"), "JPEG"),
        "cat in grey.jpg": _file(small.convert("L"), "JPEG"),
        "cat cut out.png": _file(cut_out.quantize(64), "PNG"),
        "cat in 16 bits.png": _file(grey16.resize((90, 60)), "PNG"),
        "cat.gif": _file(small.quantize(32), "GIF"),
        "cat.webp": _file(small, "WEBP", quality=60),
        "cat.avif": _file(small, "AVIF", quality=60),
        "cat's eye.bmp": _file(cat.crop((160, 80, 224, 128)), "BMP"),
        "blobs.png": _file(_blobs(1).quantize(32), "PNG"),
        "more blobs.jpg": _file(_blobs(2), "JPEG"),
        "noise.webp": _file(_noise(), "WEBP", quality=50),
    }


def _cat() -> Image.Image:
    return Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]  # scikit-image has no types


def _file(image: Image.Image, name: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, name, **options)
    return data.getvalue()


def _blobs(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 160), tuple(random.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x, y, radius = random.integers(0, 160), random.integers(0, 160), random.integers(5, 40)
        colour = tuple(random.integers(0, 255, 3).tolist())
        draw.ellipse((int(x - radius), int(y - radius), int(x + radius), int(y + radius)), fill=colour)
    return image


def _noise() -> Image.Image:
    random = np.random.default_rng(3)
    return Image.fromarray(random.integers(0, 255, (24, 24, 3), np.uint8)).resize((160, 160), Image.Resampling.BICUBIC)
