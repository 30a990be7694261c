"""The drawing shows the evidence, where it is and for whom it speaks, on the picture that was sent."""

import io

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image

from serving.model import evidence
from serving.model.evidence import CATS, DOGS, LONGER_SIDE, OPACITY
from shared.pixels import SIZE, decode, pixels
from tests.conftest import ROOT, blobs, encoded
from tests.serving.conftest import PHOTO, Running

PICTURE = pixels(PHOTO)
NOTHING = np.zeros((7, 7), np.float32)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def drawn(png: bytes) -> "np.typing.NDArray[np.int64]":
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(np.int64)


def answered(answer: httpx.Response) -> "np.typing.NDArray[np.int64]":
    assert answer.status_code == 200, answer.text
    return drawn(answer.content)


@pytest.mark.parametrize(("value", "colour", "other"), [(5.0, DOGS, CATS), (-5.0, CATS, DOGS)], ids=["dogs", "cats"])
def test_a_corner_that_speaks_takes_its_animal_s_colour_and_the_opposite_one_stays(
    value: float, colour: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    corner = NOTHING.copy()
    corner[:2, :2] = value
    with_it = drawn(evidence.draw(PICTURE, corner, (SIZE, SIZE)))
    without = drawn(evidence.draw(PICTURE, NOTHING, (SIZE, SIZE)))
    there, elsewhere = (slice(0, 40), slice(0, 40)), (slice(112, None), slice(112, None))
    assert (with_it[elsewhere] == without[elsewhere]).all()
    # The share of the way to the colour, everywhere in the corner.
    np.testing.assert_allclose(with_it[there], without[there] * (1 - OPACITY) + np.array(colour) * OPACITY, atol=6)
    assert np.abs(with_it[there] - other).mean() > np.abs(with_it[there] - colour).mean() + 20


def test_opacity_follows_the_evidence_and_is_full_at_the_picture_s_own_strongest() -> None:
    columns = np.tile(np.array([-8, -8, -8, 0, 4, 4, 4], np.float32), (7, 1))
    for scale in (1, 1000):
        alpha = evidence.overlay(columns * scale, (70, 70))[35, :, 3] / 255
        assert alpha[5] == pytest.approx(OPACITY, abs=0.01)
        assert alpha[65] == pytest.approx(OPACITY / 2, abs=0.01)
        assert alpha.min() < 0.03


def test_the_overlay_is_smooth() -> None:
    noise = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    alpha = evidence.overlay(noise, (448, 448))[..., 3].astype(int)
    # Two places lie 64 pixels apart, so a step between them that was not spread out would be far larger.
    assert np.abs(np.diff(alpha, axis=0)).max() < 12
    assert np.abs(np.diff(alpha, axis=1)).max() < 12


def test_without_evidence_the_photo_is_greyed_and_nothing_more() -> None:
    plain = drawn(evidence.draw(PICTURE, NOTHING, (SIZE, SIZE)))
    grey = np.asarray(Image.fromarray(PICTURE).convert("L")).astype(int)
    assert np.abs(np.asarray(Image.fromarray(plain.astype(np.uint8)).convert("L")).astype(int) - grey).max() <= 2
    assert np.ptp(plain, axis=2).mean() < 0.4 * np.ptp(PICTURE, axis=2).mean()


def test_the_colours_are_the_page_s() -> None:
    style = (ROOT / "serving/web/style.css").read_text()
    day = style[: style.index("@media")]
    for name, colour in (("cats", CATS), ("dogs", DOGS)):
        assert f"--{name}: #{bytes(colour).hex()};" in day


@pytest.mark.parametrize(
    ("size", "expected"),
    [((4000, 3000), (448, 336)), ((30, 60), (224, 448)), ((448, 448), (448, 448)), ((9000, 1), (448, 1))],
)
def test_a_drawing_has_the_aspect_ratio_of_its_picture_and_a_bounded_size(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert evidence.drawn_size(*size) == expected


def test_the_answer_is_the_sent_picture_with_the_evidence_that_predict_tells(server: Running) -> None:
    answer = server.explain()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "no-store"
    told = np.array(server.predict(params={"explain": "true"}).json()["evidence"], np.float32)
    expected = drawn(evidence.draw(PICTURE, told, (LONGER_SIDE, 336)))  # PHOTO has 320×240
    assert answered(answer).shape == (336, LONGER_SIDE, 3)
    assert np.abs(answered(answer) - expected).max() <= 1
    assert np.abs(expected - drawn(evidence.draw(PICTURE, NOTHING, (LONGER_SIDE, 336)))).max() > 30


def test_a_photo_taken_sideways_is_drawn_upright(server: Running) -> None:
    upright = blobs(4, (240, 320))
    sideways = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned(6))
    one, other = answered(server.explain(encoded(upright, "PNG"))), answered(server.explain(sideways))
    assert one.shape == other.shape == (LONGER_SIDE, 336, 3)
    assert np.abs(one - other).mean() < 1


def test_real_photographs_are_drawn_in_the_colour_of_their_animal(
    server: Running, photos: list[tuple[str, bytes]]
) -> None:
    right = 0
    for label, data in photos[:20]:
        red, _, blue = np.moveaxis(answered(server.explain(data)) - drawn(greyed(data)), 2, 0)
        right += (red.sum() > blue.sum()) == (label == "cats")
    assert right >= 18


def greyed(data: bytes) -> bytes:
    return evidence.draw(pixels(data), NOTHING, evidence.drawn_size(*decode(data).size))
