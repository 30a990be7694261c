"""Each byte of a header changed, each length cut, for every kind of picture: thousands of files, straight to `pixels`
and, some of them, to a real server."""

import os
import random

import httpx
import numpy as np
import pytest

from serving.errors import CODES
from shared.pixels import SIZE, RefusedImageError, pixels
from tests.fuzz import SCALE, most_memory
from tests.fuzz.pictures import damaged, good
from tests.serving.conftest import PHOTO, Running, Start

GOOD = good()
REFUSALS = ("image_too_large", "unsupported_format", "undecodable_image")
# What is 32×24 may say that it is thousands wide, so some memory is due; 50 megapixels would be ten times this.
MEMORY = 400_000_000
# Sent over HTTP of each kind.
SAMPLE = 12


@pytest.mark.parametrize("kind", GOOD)
def test_a_damaged_picture_is_decoded_or_refused_and_nothing_else(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    expected = pixels(GOOD[kind])
    before = most_memory(os.getpid())
    refused = 0
    for data in damaged(kind, GOOD[kind]):
        try:
            picture = pixels(data)
        except RefusedImageError as error:
            assert error.code in REFUSALS
            refused += 1
        else:
            assert picture.shape == (SIZE, SIZE, 3)
            assert picture.dtype == np.uint8
    assert refused > 100
    assert most_memory(os.getpid()) - before < MEMORY
    assert (pixels(GOOD[kind]) == expected).all()
    assert capfd.readouterr() == ("", "")


def assert_documented(answer: httpx.Response) -> None:
    """The answer is a prediction, or a problem as DESIGN.md has them; never a fault of ours."""
    if answer.status_code == 200:
        assert set(answer.json()) >= {"predicted_label", "probabilities", "verdict"}
        return
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert CODES[problem["code"]][0] == problem["status"] == answer.status_code < 500


def test_a_server_answers_damaged_pictures_as_documented_and_the_good_one_after_them_as_before(
    start: Start,
) -> None:
    server = start()
    rng = random.Random(4)
    expected = server.predict(PHOTO).json()
    for kind, data in GOOD.items():
        for spoilt in rng.sample(list(damaged(kind, data)), SAMPLE * SCALE):
            answer = server.predict(spoilt)
            assert_documented(answer)
            if answer.status_code != 200:
                assert answer.json()["code"] in REFUSALS
        assert server.predict(PHOTO).json() | {"id": ""} == expected | {"id": ""}
    assert server.service.engine is not None and server.service.engine.current is not None
    assert all(most_memory(pid) < MEMORY for pid in server.service.engine.current.pids)


@pytest.mark.parametrize("kind", GOOD)
def test_each_kind_is_answered_when_it_is_whole(server: Running, kind: str) -> None:
    assert server.predict(GOOD[kind]).status_code == 200
