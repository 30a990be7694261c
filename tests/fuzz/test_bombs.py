"""A file that is made to be costly costs no more than a picture may."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.fuzz.bombs import BOMBS
from tests.fuzz.test_damaged_pictures import assert_documented
from tests.serving.conftest import PHOTO, Running

# Of one core; the costliest took 1.5 s here (50 megapixels of transparent PNG or WebP).
CPU_SECONDS = 8.0
# Five copies of 50 megapixels: an animated WebP's canvas and the one before, Pillow's two, and one with its alpha
# multiplied in. Other formats take less than half of that.
MEMORY = 1_050_000_000


@pytest.fixture(scope="module")
def child() -> Iterator[subprocess.Popen[str]]:
    """A process of its own, so that its memory is that of one picture and can be measured."""
    command = [sys.executable, "-m", "tests.fuzz.bombs"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_decoded_or_refused_at_a_bounded_price(child: subprocess.Popen[str], name: str) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    print(name, file=child.stdin, flush=True)
    outcome, seconds, memory = json.loads(child.stdout.readline())
    assert outcome in ("decoded", "image_too_large", "unsupported_format", "undecodable_image")
    assert seconds < CPU_SECONDS
    assert memory < MEMORY


# What once took minutes, or the interpreter's lock for seconds.
WORST = [
    "JPEG, 1,000 progressive scans",
    "JPEG, Exif pieces without end",
    "JPEG, padding without end",
    "PNG, empty chunks without end",
    "PNG, 1 × 50,000,000",
    "BMP, RLE, one line of 50 megapixels",
    "GIF, extensions without end",
]


@pytest.mark.parametrize("name", WORST)
def test_a_server_refuses_the_worst_and_answers_the_next(server: Running, name: str) -> None:
    answer = server.predict(BOMBS[name]())
    assert_documented(answer)
    assert answer.status_code in (413, 422)
    assert server.predict(PHOTO).status_code == 200
