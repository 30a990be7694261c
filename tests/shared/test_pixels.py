import io
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from shared.pixels import SIZE, Limits, RefusedImageError, decode, heif_reader, pixels
from shared.spec import MAX_FRAMES
from tests.conftest import blobs, encoded
from tests.fuzz.pictures import PNG_SIGNATURE, bmp, chunk

DEFAULT = Limits()
assert heif_reader()
FILES = {
    "JPEG": encoded(blobs(1), "JPEG", quality=90),
    "PNG": encoded(blobs(1), "PNG"),
    "WEBP": encoded(blobs(1), "WEBP", quality=90),
    "GIF": encoded(blobs(1), "GIF"),
    "BMP": encoded(blobs(1), "BMP"),
    "AVIF": encoded(blobs(1), "AVIF", quality=90),
    "HEIF": encoded(blobs(1), "HEIF", quality=90),
}
BLANK = Image.new("RGBA", (320, 240))


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
    data = encoded(Image.new("1", (16_000, 16_000)), "PNG", optimize=True)
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


def stored(upright: Image.Image, orientation: int) -> Image.Image:
    """How a camera stores the scene when it notes this orientation: the inverse of what a viewer does."""
    return {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_exif_orientation_is_applied(name: str, orientation: int) -> None:
    upright = blobs(3)
    options = {"lossless": True} if name == "WEBP" else {} if name == "PNG" else {"quality": 95}
    exif = turned(orientation).tobytes()
    photo = decode(encoded(stored(upright, orientation), name, exif=exif, **options))
    assert photo.size == photo.full_size == upright.size
    assert mean_difference(photo.square(), reference(upright)) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_part_is_that_part_of_the_upright_picture(mode: str, orientation: int) -> None:
    upright = blobs(3).convert(mode)
    if mode == "RGBA":
        upright.putalpha(blobs(4).convert("L"))
    part = upright.resize((100, 100), Image.Resampling.BILINEAR, (32, 60, 256, 180)).convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB")
    photo = decode(encoded(stored(upright, orientation), "PNG", exif=turned(orientation)))
    square = photo.square(100, (0.1, 0.25, 0.8, 0.75))
    # Of a picture on its side, columns are resized before rows, and each of the two rounds.
    assert np.abs(square.astype(int) - np.asarray(expected)).max() <= (4 if orientation >= 5 else 0)


def test_a_part_shows_detail_that_the_whole_has_lost() -> None:
    fine = np.zeros((2000, 2000), np.uint8)
    fine[900:1100, 900:1100] = np.indices((200, 200)).sum(axis=0) // 4 % 2 * 255
    photo = decode(encoded(Image.fromarray(fine), "PNG"))
    assert np.ptp(photo.square(224, (0.45, 0.45, 0.55, 0.55))) == 255
    assert photo.square()[105:118, 105:118].std() < 60


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + b"\x01" * 40]
)
def test_broken_exif_does_not_spoil_a_good_picture(exif: bytes) -> None:
    result = pixels(encoded(blobs(1), "JPEG", quality=95, exif=exif))
    assert mean_difference(result, reference(blobs(1))) < 3


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    data = encoded(blobs(1), "PNG", exif=turned(orientation))
    assert mean_difference(pixels(data), reference(blobs(1))) == 0


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


def flat_png(bits: int, colour: int, row: bytes, *before: bytes) -> bytes:
    """A PNG of 20×20 with the same bytes in each row, and chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 20, bits, colour, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\x00" + row) * 20))
    return PNG_SIGNATURE + header + b"".join(before) + rows + chunk(b"IEND", b"")


def deep(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def test_sixteen_bits_of_colour_or_with_alpha_keep_their_high_bytes() -> None:
    assert (pixels(flat_png(16, 2, deep(0x1234, 0x8000, 0xFFFF) * 20)) == (0x12, 0x80, 0xFF)).all()
    assert (pixels(flat_png(16, 4, deep(0x1234, 0xFFFF) * 20)) == 0x12).all()
    assert (pixels(flat_png(16, 4, deep(0x1234, 0) * 20)) == 255).all()
    assert (pixels(flat_png(16, 6, deep(0x1234, 0x8000, 0xFFFF, 0xFFFF) * 20)) == (0x12, 0x80, 0xFF)).all()


def test_a_transparent_grey_of_sixteen_bits_is_compared_in_full() -> None:
    clear = chunk(b"tRNS", deep(0x1234))
    assert (pixels(flat_png(16, 0, deep(0x1234) * 20, clear)) == 255).all()
    assert (pixels(flat_png(16, 0, deep(0x1235) * 20, clear)) == 0x12).all()


@pytest.mark.parametrize(
    ("bits", "colour", "row", "clear"),
    [
        (1, 0, bytes(3), deep(0)),
        (2, 0, b"\x55" * 5, deep(1)),
        (4, 0, b"\x77" * 10, deep(7)),
        (8, 0, b"\x77" * 20, deep(0x77)),
        (16, 2, deep(0x1234, 0, 0xFFFF) * 20, deep(0x1234, 0, 0xFFFF)),
    ],
)
def test_a_transparent_colour_is_transparent_at_every_depth(bits: int, colour: int, row: bytes, clear: bytes) -> None:
    assert (pixels(flat_png(bits, colour, row, chunk(b"tRNS", clear))) == 255).all()
    assert not (pixels(flat_png(bits, colour, row)) == 255).all()


def test_cmyk() -> None:
    result = pixels(encoded(Image.new("CMYK", (50, 50), (0, 255, 255, 0)), "JPEG", quality=95))
    assert mean_difference(result, np.full((SIZE, SIZE, 3), (255, 0, 0))) < 3


def animation(name: str, *frames: Image.Image) -> bytes:
    options = {"disposal": 2} if name in ("GIF", "PNG") else {"quality": 95}
    return encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=100, **options)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("blank", [BLANK, Image.new("RGB", BLANK.size), Image.new("RGB", BLANK.size, "orange")])
def test_the_first_frame_that_shows_something_counts(name: str, blank: Image.Image) -> None:
    last = Image.new(blank.mode, blank.size, "navy")
    frames = [blank, last, blobs(1).convert(blank.mode), blobs(2).convert(blank.mode)]
    assert mean_difference(pixels(animation(name, *frames)), reference(blobs(1))) < 8
    assert mean_difference(pixels(animation(name, *frames[2:])), reference(blobs(1))) < 8


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "AVIF"])
def test_of_an_animation_that_shows_nothing_the_first_frame_counts(name: str) -> None:
    flat = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "lime")]
    assert mean_difference(pixels(animation(name, *flat)), np.full((SIZE, SIZE, 3), (255, 0, 0))) < 3


def test_few_frames_are_looked_at_and_none_but_the_first_of_a_large_animation() -> None:
    flat = [Image.new("RGB", (40, 30), (number, 99, 0)) for number in range(MAX_FRAMES)]
    assert np.ptp(pixels(animation("PNG", *flat[1:], blobs(1, (40, 30))))) > 100
    assert (pixels(animation("PNG", *flat, blobs(1, (40, 30)))) == (0, 99, 0)).all()
    large = animation("WEBP", Image.new("RGB", (2000, 1500)), blobs(1, (2000, 1500)))
    assert (pixels(large) == 0).all()


def test_a_broken_second_frame_leaves_the_first() -> None:
    data = animation("GIF", Image.new("RGB", (320, 240), "red"), blobs(1))
    assert mean_difference(pixels(data[: len(data) // 2]), np.full((SIZE, SIZE, 3), (255, 0, 0))) == 0


def test_a_multi_picture_jpeg_of_a_phone_is_a_jpeg() -> None:
    data = encoded(blobs(1), "MPO", save_all=True, append_images=[blobs(2)])
    assert mean_difference(pixels(data), reference(blobs(1))) < 4


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    image = blobs(5, (2000, 1500))
    data = encoded(image, "JPEG", quality=92)
    full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert mean_difference(pixels(data), full) < 0.6


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2), (224, 224), (223, 225)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert pixels(encoded(Image.new("RGB", size, (9, 8, 7)), "PNG")).tolist()[100][100] == [9, 8, 7]


def test_an_avif_is_decoded_by_the_thread_that_asks() -> None:
    assert AvifImagePlugin._get_default_max_threads() == 1


LONG = b"cat " * 400_000


@pytest.mark.parametrize(
    "metadata",
    {
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LONG),
        "compressed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
        "zTXt": chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG)),
        "tEXt": chunk(b"tEXt", b"a\0" + LONG * 50),
        "profile": chunk(b"iCCP", b"a\0\0" + zlib.compress(LONG)),
        "text with a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
        "EXIF with a wrong checksum": chunk(b"eXIf", turned(6).tobytes()[6:])[:-1] + b"?",
        "a chunk nobody knows, with a wrong checksum": chunk(b"caTs", b"meow")[:-1] + b"?",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_png_is_not_refused_for_its_metadata(metadata: tuple[str, bytes]) -> None:
    data = FILES["PNG"]
    assert (pixels(data[:33] + metadata[1] + data[33:]) == reference(blobs(1))).all()
    assert (pixels(data[:-12] + metadata[1] + data[-12:]) == reference(blobs(1))).all()


@pytest.mark.parametrize("place", [29, 60], ids=["header", "pixels"])
def test_a_png_damaged_in_header_or_pixels_is_refused(place: int) -> None:
    data = bytearray(FILES["PNG"])
    data[place] ^= 0xFF
    assert code_of(bytes(data)) == "undecodable_image"


def test_a_gif_with_a_long_comment_is_decoded() -> None:
    data = encoded(blobs(1).quantize(64), "GIF", comment=b"a cat")
    place = data.index(b"!\xfe")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 52_000 + b"\x00"
    assert (pixels(data[:place] + comment + data[place:]) == pixels(data)).all()


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("size", [(320, 240), (451, 301), (2000, 1500)])
def test_a_jpeg_that_lacks_only_its_end_marker_is_decoded(size: tuple[int, int], options: dict[str, int]) -> None:
    data = encoded(blobs(1, size), "JPEG", quality=90, **options)
    assert data.endswith(b"\xff\xd9")
    assert (pixels(data[:-2]) == pixels(data)).all()
    assert (pixels(data[:-1]) == pixels(data)).all()


@pytest.mark.parametrize(
    "options", [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}, {"progressive": True}]
)
def test_a_jpeg_that_lacks_pixels_too_is_refused_wherever_it_is_cut(options: dict[str, int]) -> None:
    data = encoded(blobs(1), "JPEG", quality=90, **options)
    halves = [place + 1 for place in range(len(data) - 4000, len(data) - 40) if data[place] == 0xFF]
    assert len(halves) > 2
    for end in (*halves, *(place - 1 for place in halves), *range(len(data) - 4000, len(data) - 40, 50)):
        assert code_of(data[:end]) == "undecodable_image"


def test_a_bmp_of_bit_fields_that_are_not_read_is_not_called_corrupt() -> None:
    plain = bmp(4, 4, 16, 3, struct.pack("<III", 0xF00, 0xF0, 0xF) + bytes(32))
    with pytest.raises(RefusedImageError, match=r"this kind of BMP cannot be decoded.*convert it") as refused:
        pixels(plain)
    assert refused.value.code == "unsupported_format"


@pytest.mark.parametrize("size", [(8160, 6144), (8192, 6144), (12000, 9000)])
def test_a_phone_s_largest_jpeg_takes_little_memory(size: tuple[int, int]) -> None:
    data = encoded(blobs(1).resize(size), "JPEG", quality=30)
    assert mean_difference(pixels(data, Limits(max_bytes=8_000_000)), reference(blobs(1))) < 8


def test_a_heif_is_refused_with_a_reason_where_its_decoder_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heif_reader.cache_clear()
    with pytest.raises(RefusedImageError, match=r"HEIC or HEIF picture.*extra `heif`.*convert it") as refused:
        pixels(FILES["HEIF"])
    heif_reader.cache_clear()
    assert refused.value.code == "unsupported_format"
