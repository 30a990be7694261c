"""Header fields of every format with values that nobody expects: sizes, depths, counts, offsets, EXIF."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.pixels import SIZE, Limits, RefusedImageError, pixels
from tests.fuzz import examples
from tests.fuzz.bombs import segment
from tests.fuzz.pictures import chunk, good, mended, png

GOOD = good()
# What is found in a header is made large, and large pictures take time; the limit is what is under test here.
LIMITS = Limits(max_pixels=300_000)
VALUES = st.sampled_from([0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1])
FIELDS = st.sampled_from(["B", "<H", ">H", "<I", ">I"])
EDITS = st.tuples(st.integers(0, 250), FIELDS, VALUES | st.integers(0, 2**32 - 1))


def decide(data: bytes) -> str:
    """Decoded or refused; nothing else may come of any file."""
    try:
        picture = pixels(data, LIMITS)
    except RefusedImageError as error:
        code: str = error.code
        return code
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.uint8
    return "decoded"


@pytest.mark.parametrize("kind", GOOD)
@examples(100)
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_any_fields_of_a_header_may_say_anything(kind: str, edits: list[tuple[int, str, int]]) -> None:
    data = bytearray(GOOD[kind])
    for place, field, value in edits:
        if place + struct.calcsize(field) <= len(data):
            struct.pack_into(field, data, place, value % 256 ** struct.calcsize(field))
    decide(mended(bytes(data)) if kind.startswith("PNG") else bytes(data))


@examples(300)
@given(
    VALUES,
    VALUES,
    st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32]),
    st.integers(0, 7),
    st.binary(max_size=100),
    st.booleans(),
)
def test_a_png_may_declare_anything(
    width: int, height: int, bits: int, colour: int, data: bytes, interlaced: bool
) -> None:
    outcome = decide(png(width, height, bits, colour, data, interlaced=interlaced))
    assert outcome != "unsupported_format"
    if width * height > LIMITS.max_pixels and (bits, colour) == (8, 2):
        assert outcome == "image_too_large"


TAGS = st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 20), VALUES, VALUES), max_size=12)


@st.composite
def exif_blocks(draw: st.DrawFn) -> bytes:
    order = draw(st.sampled_from("<>"))
    tags = [*draw(TAGS), *draw(st.lists(st.tuples(st.just(0x112), st.integers(0, 13), VALUES, VALUES), max_size=2))]
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + "HI", 42, draw(st.sampled_from([8, 8, 8, 0, 2**31]))
    )
    count = draw(st.sampled_from([len(tags), len(tags), 65535]))
    return head + struct.pack(order + "H", count) + b"".join(struct.pack(order + "HHII", *tag) for tag in tags)


@examples(300)
@given(exif_blocks() | st.binary(max_size=100))
def test_any_exif_leaves_a_good_picture_good(exif: bytes) -> None:
    plain = GOOD["JPEG baseline"]
    assert decide(plain[:2] + segment(0xE1, b"Exif\x00\x00" + exif) + plain[20:]) == "decoded"
    plain = GOOD["PNG grey"]
    assert decide(plain[:33] + chunk(b"eXIf", exif) + plain[33:]) == "decoded"


STRANGERS = {
    "TIFF": b"II*\x00\x08\x00\x00\x00",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.7\n",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "ICO": b"\x00\x00\x01\x00\x01\x00",
    "PSD": b"8BPS\x00\x01",
    "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    "PPM": b"P6 9 9 255\n",
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "ZIP": b"PK\x03\x04",
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_accepted_format_is_said_to_be_none(kind: str) -> None:
    assert decide(STRANGERS[kind] + GOOD["PNG grey"]) == "unsupported_format"
