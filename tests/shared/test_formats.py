"""What a file is, told from its bytes; of one that is not accepted, what to do."""

import struct

import pytest
from PIL import Image

from shared.formats import refusal, sniff
from tests.conftest import encoded


def boxed(*brands: bytes) -> bytes:
    """The beginning of an ISO media file: its major brand, and those that it is compatible with."""
    content = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", 8 + len(content)) + b"ftyp" + content + bytes(100)


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        ((b"avif", b"mif1"), "AVIF"),
        ((b"avis",), "AVIF"),
        ((b"mif1", b"miaf", b"avif"), "AVIF"),
        ((b"msf1", b"avis"), "AVIF"),
        ((b"heic", b"mif1"), "HEIF"),
        ((b"heix",), "HEIF"),
        ((b"hevc",), "HEIF"),
        ((b"heim",), "HEIF"),
        ((b"mif1", b"heic"), "HEIF"),
        ((b"mif1",), "HEIF"),
        ((b"isom", b"avif"), None),
        ((b"qt  ",), None),
    ],
)
def test_the_brands_tell_avif_from_heif(brands: tuple[bytes, ...], name: str | None) -> None:
    assert sniff(boxed(*brands)) == name


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_an_accepted_format_is_told_by_its_signature(name: str) -> None:
    data = encoded(Image.new("RGB", (8, 8)), name)
    assert sniff(data) == name
    assert sniff(b"\x00" + data) is None


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (encoded(Image.new("RGB", (8, 8)), "TIFF"), "a TIFF picture"),
        (b"MM\x00\x2a\x00\x00\x00\x08", "a TIFF picture"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL picture"),
        (b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a", "a JPEG XL picture"),
        (encoded(Image.new("RGB", (8, 8)), "JPEG2000"), "a JPEG 2000 picture"),
        (encoded(Image.new("RGB", (16, 16)), "ICO"), "an icon"),
        (b"8BPS\x00\x01", "a Photoshop document"),
        (b"%PDF-1.7", "a PDF document"),
        (b"<svg xmlns='...'/>", "an SVG drawing"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg:svg>", "an SVG drawing"),
        (b"\n <!DOCTYPE html><html><body><svg/>", "a web page"),
        (b"<HTML lang=en>", "a web page"),
        (boxed(b"isom", b"mp42"), "a video"),
        (boxed(b"qt  "), "a video"),
        (boxed(b"crx "), "a camera's raw file"),
        (b"\x00\x00\x00\x08wide\x00\x00", "a video"),
        (b"\x1a\x45\xdf\xa3", "a video"),
    ],
)
def test_the_refusal_says_what_the_file_is_and_what_to_do(data: bytes, what: str) -> None:
    assert sniff(data) is None
    said = refusal(data)
    assert said.startswith(f"this is {what}")
    assert "JPEG or PNG" in said or "save the picture on it" in said


@pytest.mark.parametrize("data", [b"hello, I am a cat", bytes(100), b"\xff\xd8", b"<note>", b"a <html> page"])
def test_what_nobody_knows_is_told_what_is_accepted(data: bytes) -> None:
    assert sniff(data) is None
    assert refusal(data) == "not a picture in an accepted format (JPEG, PNG, WEBP, GIF, BMP, AVIF, HEIF)"
