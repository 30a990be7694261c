"""How much memory decoding a picture takes, from its header: a better answer than running out of it."""

from typing import Final

from PIL import Image

# Of a decoder beside the picture that it leaves, for each pixel. A WebP's has two canvases and hands over a third; an
# AVIF's and a HEIF's have planes of their own, twice as large above eight bits. Measured over 12 megapixels;
# `tests/shared/test_footprint.py` measures again.
_WORKSPACE: Final = {"WEBP": 12, "AVIF": 10, "HEIF": 6}
# The least that a WebP takes for each pixel, most of it on being opened.
WEBP_BYTES: Final = 4 + _WORKSPACE["WEBP"]
# Of Pillow's modes, for each pixel; all others take four, whatever their bands.
_ROOM: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}


def jpeg_coefficients(image: Image.Image) -> int:
    """Bytes of the coefficients that libjpeg holds of the whole picture if its scans complete each other, else 0.

    Two for each, whatever the draft. Call it before ``draft``.
    """
    layers = getattr(image, "layer", ())  # (id, sampling across, sampling down, table) of each component
    if not layers:
        return 0
    across, down = max(layer[1] for layer in layers), max(layer[2] for layer in layers)
    sampled: float = sum(layer[1] * layer[2] for layer in layers) / max(1, across * down)
    return round(2 * sampled * image.width * image.height)


def footprint(image: Image.Image) -> int:
    """Bytes that decoding an opened picture and bringing it to a plain mode takes, beside a JPEG's coefficients.

    ``image`` is not loaded yet; a JPEG's ``draft`` is made.
    """
    room = _ROOM.get(image.mode, 4)
    alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    plain = ("RGBA",) if alpha else ("L", "RGB")
    copies = 4 * (image.mode not in plain) + 4 * alpha  # in a plain mode, and premultiplied
    workspace = _WORKSPACE.get(image.format or "", 0) * (2 if image.info.get("bit_depth", 8) > 8 else 1)
    return (room + copies + workspace) * image.width * image.height
