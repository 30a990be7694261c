"""What decoding takes, measured: peak memory of a process of its own, picture after picture."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from shared.pixels import Limits, RefusedImageError, heif_reader, pixels
from tests.conftest import ROOT

WIDTH, HEIGHT = 1600, 1200
SLACK = 2_000_000
# What is freed goes back at once, so that it is not there for the next picture.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
MEASURE = """
import json, sys
from pathlib import Path
from PIL import Image
from shared.footprint import footprint, jpeg_coefficients
from shared.pixels import heif_reader, pixels
from shared.spec import DRAFT_SIDE

heif_reader()

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)

for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    with Image.open(path) as image:
        coefficients = jpeg_coefficients(image) if image.info.get("progressive") else 0
        image.draft(None, (DRAFT_SIDE, DRAFT_SIDE))
        told = footprint(image) + coefficients
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    pixels(data)
    print(json.dumps([path.name, told, (peak() - before) * 1024]))
"""


def save(kind: str, **options: object) -> bytes:
    grain = np.random.default_rng(0).integers(0, 256, (18, 24, 3), dtype=np.uint8)
    image = Image.fromarray(grain).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    if mode := options.pop("mode", None):
        image = image.quantize(64) if mode == "P" else image.convert(str(mode))
    if options.pop("deep", False):
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_heif() -> bytes:
    """Ten bits, which Pillow has no mode for."""
    values = np.tile(np.linspace(0, 0xFFFF, WIDTH * 3).astype(np.uint16), HEIGHT)
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), values.tobytes()).save(buffer, chroma=444)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """Bytes told and bytes taken, of every kind of file."""
    assert heif_reader()
    folder = tmp_path_factory.mktemp("pictures")
    for name, data in {
        "jpeg": save("JPEG"),
        "jpeg-progressive-420": save("JPEG", progressive=True),
        "jpeg-progressive": save("JPEG", progressive=True, subsampling=0),
        "jpeg-progressive-cmyk": save("JPEG", progressive=True, mode="CMYK", subsampling=0),
        "png-grey": save("PNG", mode="L", compress_level=1),
        "png-16": save("PNG", deep=True, compress_level=1),
        "png-rgb": save("PNG", compress_level=1),
        "png-rgb-transparent": save("PNG", transparency=(0, 0, 0), compress_level=1),
        "png-rgba": save("PNG", mode="RGBA", compress_level=1),
        "png-la": save("PNG", mode="LA", compress_level=1),
        "png-palette": save("PNG", mode="P", compress_level=1),
        "png-palette-transparent": save("PNG", mode="P", transparency=0, compress_level=1),
        "webp": save("WEBP", method=0),
        "webp-alpha": save("WEBP", mode="RGBA", lossless=True, quality=0, method=0),
        "gif": save("GIF", mode="P"),
        "bmp": save("BMP"),
        "png-16-transparent": save("PNG", deep=True, transparency=0, compress_level=1),
        "heif": save("HEIF"),
        "heif-444-alpha": save("HEIF", mode="RGBA", chroma=444),
        "heif-10-bit": deep_heif(),
        "avif": save("AVIF", speed=10),
        "avif-444-alpha": save("AVIF", mode="RGBA", subsampling="4:4:4", speed=10),
    }.items():
        (folder / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        capture_output=True, text=True, check=True, cwd=ROOT, env=ENVIRONMENT,
    )  # fmt: skip
    return {name: (told, taken) for name, told, taken in map(json.loads, done.stdout.splitlines())}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's to tell")
def test_decoding_takes_no_more_memory_than_is_told_from_the_header(measured: dict[str, tuple[int, int]]) -> None:
    assert len(measured) == 22
    assert {name: pair for name, pair in measured.items() if pair[1] > pair[0] + SLACK} == {}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is Linux's to tell")
def test_what_is_told_is_not_far_above_what_is_taken(measured: dict[str, tuple[int, int]]) -> None:
    assert {name: pair for name, pair in measured.items() if pair[0] > 1.6 * pair[1] + SLACK} == {}


def test_a_picture_that_would_take_too_much_memory_is_refused_before_it_takes_any() -> None:
    webp, jpeg = save("WEBP", method=0), save("JPEG")
    limits = Limits(max_bytes=12_000_000)
    assert pixels(jpeg, limits).shape == (224, 224, 3)
    with pytest.raises(RefusedImageError, match="would take 31 MB of memory, more than the 12 there are") as refused:
        pixels(webp, limits)
    assert refused.value.code == "image_too_large"


@pytest.mark.parametrize("size", [(4000, 3000), (8000, 6000)])
def test_a_large_webp_is_not_called_corrupt_where_opening_it_takes_the_memory(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "WEBP", method=0)
    with pytest.raises(RefusedImageError, match="would take") as refused:
        pixels(file.getvalue(), Limits(max_bytes=50_000_000))
    assert refused.value.code == "image_too_large"


def test_a_jpeg_in_several_scans_that_fails_for_want_of_memory_is_not_called_corrupt() -> None:
    jpeg = save("JPEG")
    scan = jpeg.index(b"\xff\xda")
    assert jpeg[scan + 4] == 3
    # The first scan says that it is of one component: libjpeg then waits for the others with all it has.
    parts = jpeg[: scan + 4] + b"\x01" + jpeg[scan + 5 :]
    with pytest.raises(RefusedImageError, match="may take more memory") as refused:
        pixels(parts, Limits(max_bytes=5_000_000))
    assert refused.value.code == "image_too_large"
    with pytest.raises(RefusedImageError, match="corrupt"):
        pixels(parts, Limits(max_bytes=50_000_000))
