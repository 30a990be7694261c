"""The files of samples, read by Pillow and by the project's own decoder."""

import io

import msgspec
import numpy as np
import pytest
from PIL import Image

from shared.pixels import SIZE, pixels
from shared.samples import HEAD_BYTES, KEYWORD, Sample, SampleError, encode, known
from tests.conftest import blobs, encoded
from tests.shared.test_journal import prediction

SAMPLE = Sample(why=("unsure", "disputed"), prediction=prediction("a", verdict="unsure"), feedback="dogs")


@pytest.mark.parametrize(
    "picture",
    [
        np.asarray(blobs(1, (SIZE, SIZE))),
        np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8),
        np.tile(np.array([[[0]], [[255]]], np.uint8), (SIZE // 2, SIZE, 3)),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.full((SIZE, SIZE, 3), 255, np.uint8),
    ],
    ids=["blobs", "noise", "stripes", "black", "white"],
)
def test_a_sample_is_decoded_to_the_pixels_that_it_was_made_of(picture: np.ndarray) -> None:
    file = encode(picture.tobytes(), SAMPLE)
    assert (pixels(file) == picture).all()
    with Image.open(io.BytesIO(file)) as image:
        image.verify()
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (SIZE, SIZE))


def test_a_sample_says_what_is_known_of_it_and_nothing_else() -> None:
    with Image.open(io.BytesIO(encode(bytes(3 * SIZE * SIZE), SAMPLE))) as image:
        assert msgspec.json.decode(image.info[KEYWORD], type=Sample) == SAMPLE
        assert set(image.info) == {KEYWORD}
        assert not image.getexif()


def test_the_head_of_a_file_says_what_is_known_of_its_sample() -> None:
    file = encode(bytes(3 * SIZE * SIZE), SAMPLE)
    assert known(file) == known(file[:HEAD_BYTES]) == SAMPLE


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"not a picture",
        encoded(blobs(1), "PNG"),
        encode(bytes(3 * SIZE * SIZE), SAMPLE)[:200],
        encode(bytes(3 * SIZE * SIZE), SAMPLE).replace(b'"time"', b'"tyme"'),
    ],
)
def test_a_file_that_is_no_samples_is_refused(file: bytes) -> None:
    with pytest.raises(SampleError, match="not the file of a sample"):
        known(file)
