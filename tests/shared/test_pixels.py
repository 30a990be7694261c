import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from shared.pixels import SIZE, Limits, RefusedImageError, pixels, sniff
from tests.conftest import blobs, encoded

DEFAULT = Limits()
FILES = {
    "JPEG": encoded(blobs(1), "JPEG", quality=90),
    "PNG": encoded(blobs(1), "PNG"),
    "WEBP": encoded(blobs(1), "WEBP", quality=90),
    "GIF": encoded(blobs(1), "GIF"),
    "BMP": encoded(blobs(1), "BMP"),
    "AVIF": encoded(blobs(1), "AVIF", quality=90),
}


def reference(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def code_of(data: bytes, limits: Limits = DEFAULT) -> str:
    with pytest.raises(RefusedImageError) as refused:
        pixels(data, limits)
    return refused.value.code


@pytest.mark.parametrize("name", FILES)
def test_every_accepted_format_gives_the_same_picture(name: str) -> None:
    result = pixels(FILES[name])
    assert result.shape == (SIZE, SIZE, 3)
    assert result.dtype == np.uint8
    # GIF has 256 colours and the lossy formats their losses.
    assert mean_difference(result, reference(blobs(1))) < (8 if name == "GIF" else 2.5)


def test_lossless_pictures_are_exact() -> None:
    assert (pixels(FILES["PNG"]) == reference(blobs(1))).all()
    assert (pixels(FILES["BMP"]) == reference(blobs(1))).all()
    assert (pixels(encoded(blobs(1), "WEBP", lossless=True)) == reference(blobs(1))).all()


def test_a_prepared_picture_comes_back_unchanged() -> None:
    once = pixels(FILES["JPEG"])
    assert (pixels(encoded(Image.fromarray(once), "PNG")) == once).all()


@pytest.mark.parametrize("name", ["TIFF", "PPM", "ICO", "PCX", "TGA"])
def test_other_formats_are_refused(name: str) -> None:
    assert code_of(encoded(blobs(1, (64, 64)), name)) == "unsupported_format"


@pytest.mark.parametrize("data", [b"hello, I am a cat", b"\x00" * 100, b"<svg xmlns='...'/>", b"%PDF-1.7", b"\xff\xd8"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert code_of(data) == "unsupported_format"


def test_an_empty_file_is_undecodable() -> None:
    assert code_of(b"") == "undecodable_image"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused_not_guessed(name: str, share: float) -> None:
    data = FILES[name]
    assert code_of(data[: int(len(data) * share)]) == "undecodable_image"


@pytest.mark.parametrize("name", FILES)
def test_a_signature_alone_is_undecodable(name: str) -> None:
    assert code_of(FILES[name][:16]) == "undecodable_image"


def test_a_corrupt_png_is_refused() -> None:
    data = bytearray(FILES["PNG"])
    data[len(data) // 2] ^= 0xFF
    assert code_of(bytes(data)) == "undecodable_image"


@pytest.mark.parametrize("name", FILES)
def test_whatever_byte_is_damaged_the_answer_is_a_picture_or_a_refusal(name: str) -> None:
    data = FILES[name]
    for place in [*range(64), *range(64, len(data), max(1, len(data) // 150))]:
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        try:
            assert pixels(bytes(damaged)).shape == (SIZE, SIZE, 3)
        except RefusedImageError as error:
            assert error.code in ("unsupported_format", "undecodable_image", "image_too_large")


def test_a_small_file_of_many_pixels_is_refused_from_its_header() -> None:
    data = encoded(Image.new("1", (9000, 9000)), "PNG", optimize=True)
    assert len(data) < 80_000
    tracemalloc.start()
    assert code_of(data) == "image_too_large"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("name", FILES)
def test_the_limit_is_exact_in_every_format(name: str) -> None:
    data = FILES[name]
    assert pixels(data, Limits(max_pixels=320 * 240)).shape == (SIZE, SIZE, 3)
    assert code_of(data, Limits(max_pixels=320 * 240 - 1)) == "image_too_large"


def test_a_webp_that_claims_a_huge_canvas_is_refused_before_it_is_made() -> None:
    header = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    assert code_of(b"RIFF" + struct.pack("<I", len(header)) + header) == "image_too_large"


def test_a_lossless_webp_is_measured_by_its_own_header() -> None:
    data = encoded(blobs(1), "WEBP", lossless=True)
    assert code_of(data, Limits(max_pixels=320 * 240 - 1)) == "image_too_large"


def test_a_png_without_pixels_is_undecodable() -> None:
    header = struct.pack(">IIBBBBB", 0, 10, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert code_of(data + b"\x00\x00\x00\x00IEND\xaeB`\x82") == "undecodable_image"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(name: str, orientation: int) -> None:
    upright = blobs(3)
    # How a camera stores the upright scene when it notes this orientation: the inverse of what a viewer does.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if name == "JPEG" else {"lossless": True} if name == "WEBP" else {}
    result = pixels(encoded(stored, name, exif=exif, **options))
    assert mean_difference(result, reference(upright)) < 3


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + b"\x01" * 40]
)
def test_broken_exif_does_not_spoil_a_good_picture(exif: bytes) -> None:
    result = pixels(encoded(blobs(1), "JPEG", quality=95, exif=exif))
    assert mean_difference(result, reference(blobs(1))) < 3


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert mean_difference(pixels(encoded(blobs(1), "PNG", exif=exif)), reference(blobs(1))) == 0


def test_transparency_is_laid_over_white() -> None:
    image = blobs(1).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert (pixels(encoded(image, "PNG")) == 255).all()
    image.putalpha(128)
    half = reference(Image.blend(Image.new("RGB", image.size, "white"), blobs(1), 128 / 255))
    assert mean_difference(pixels(encoded(image, "PNG")), half) < 1


def test_grey_with_alpha() -> None:
    image = Image.merge("LA", (Image.new("L", (60, 40), 100), Image.new("L", (60, 40), 0)))
    assert (pixels(encoded(image, "PNG")) == 255).all()


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_a_transparent_palette_colour(name: str) -> None:
    image = Image.new("P", (60, 40), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert (pixels(encoded(image, name, transparency=0)) == 255).all()
    assert (pixels(encoded(image, name)) == (10, 20, 30)).all()


def test_a_transparent_colour_of_an_rgb_png() -> None:
    image = Image.new("RGB", (60, 40), (1, 2, 3))
    assert (pixels(encoded(image, "PNG", transparency=(1, 2, 3))) == 255).all()


def test_one_bit() -> None:
    assert (pixels(encoded(Image.new("1", (50, 50), 1), "PNG")) == 255).all()


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_grey(name: str) -> None:
    assert mean_difference(pixels(encoded(Image.new("L", (50, 50), 77), name)), np.full((SIZE, SIZE, 3), 77)) < 1


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    ramp = np.linspace(0, 65535, 50 * 50).astype(np.uint16).reshape(50, 50)
    expected = reference(Image.fromarray((ramp >> 8).astype(np.uint8)))
    assert mean_difference(pixels(encoded(Image.fromarray(ramp), "PNG")), expected) == 0


def test_sixteen_bit_colour() -> None:
    # Pillow writes no such file: 48 bits a pixel, here all of one colour.
    row = b"\x00" + struct.pack(">HHH", 0x1234, 0x8000, 0xFFFF) * 20
    header = b"IHDR" + struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(row * 20)
    data = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, body, b"IEND"):
        data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert (pixels(data) == (0x12, 0x80, 0xFF)).all()


def test_cmyk() -> None:
    result = pixels(encoded(Image.new("CMYK", (50, 50), (0, 255, 255, 0)), "JPEG", quality=95))
    assert mean_difference(result, np.full((SIZE, SIZE, 3), (255, 0, 0))) < 3


def test_only_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for name in ("GIF", "WEBP"):
        data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
        assert mean_difference(pixels(data), np.full((SIZE, SIZE, 3), (255, 0, 0))) < 3


def test_a_multi_picture_jpeg_of_a_phone_is_a_jpeg() -> None:
    data = encoded(blobs(1), "MPO", save_all=True, append_images=[blobs(2)])
    assert sniff(data) == "JPEG"
    assert mean_difference(pixels(data), reference(blobs(1))) < 4


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    image = blobs(5, (2000, 1500))
    data = encoded(image, "JPEG", quality=92)
    full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert mean_difference(pixels(data), full) < 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2), (224, 224), (223, 225)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert pixels(encoded(Image.new("RGB", size, (9, 8, 7)), "PNG")).tolist()[100][100] == [9, 8, 7]


def test_an_avif_is_decoded_by_the_thread_that_asks() -> None:
    assert AvifImagePlugin._get_default_max_threads() == 1
