"""What is done to photos to see how a file answers then."""

import numpy as np
import pytest
from PIL import Image

from shared.pixels import Photo, Pixels
from tests.conftest import blobs
from training.corruptions import CORRUPTIONS, SEVERITIES, SIDE, corrupted, degraded, square


@pytest.fixture(scope="module")
def picture() -> Pixels:
    return square(Photo(blobs(3, (400, 300)), 1))


def difference(photo: Photo, picture: Pixels) -> float:
    before = Photo(Image.fromarray(picture), 1)
    return float(np.abs(photo.square().astype(int) - before.square().astype(int)).mean())


def test_there_are_fifteen_in_five_severities() -> None:
    assert (len(CORRUPTIONS), SEVERITIES) == (15, 5)
    assert {len(amounts) for _, amounts in CORRUPTIONS.values()} == {SEVERITIES}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_changes_the_picture_and_is_the_same_whenever_it_is_made(kind: str, picture: Pixels) -> None:
    before = picture.copy()
    for severity in range(1, SEVERITIES + 1):
        one, again = (corrupted(picture, kind, severity, photo=7).square() for _ in range(2))
        assert (one == again).all()
        assert difference(corrupted(picture, kind, severity, photo=7), picture) > 0.3
    assert (picture == before).all()


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS.keys() - {"on its side", "upside down"}))
def test_the_worst_severity_changes_more_than_the_mildest(kind: str, picture: Pixels) -> None:
    mild, worst = (difference(corrupted(picture, kind, severity, photo=7), picture) for severity in (1, SEVERITIES))
    assert worst > 1.3 * mild


def test_severity_3_is_exactly_on_its_side_and_upside_down(picture: Pixels) -> None:
    whole = Photo(Image.fromarray(picture), 1).square(len(picture))
    for kind, turns in (("on its side", (1, 3)), ("upside down", (2,))):
        found = corrupted(picture, kind, 3, photo=7).square(len(picture))
        assert any((found == np.rot90(whole, turn)).all() for turn in turns)


def test_photos_are_cut_and_covered_at_different_places(picture: Pixels) -> None:
    for kind in ("cropped", "covered", "letterboxed", "screenshot", "noise"):
        some = {corrupted(picture, kind, 3, photo=number).square().tobytes() for number in range(8)}
        assert len(some) > 1, kind


def test_what_is_cropped_or_letterboxed_keeps_or_adds_its_share(picture: Pixels) -> None:
    side = len(picture)
    assert sorted(corrupted(picture, "cropped", 3, photo=1).size) == [side // 2, side]
    width, height = corrupted(picture, "letterboxed", 3, photo=1).size
    assert max(width, height) == pytest.approx(side / (1 - 0.45), abs=2)


def test_the_second_look_sees_more_detail_of_a_corrupted_photo_than_the_first() -> None:
    large = Photo(blobs(3, (1600, 1200)), 1)
    assert len(square(large)) == SIDE
    assert corrupted(square(large), "dark", 1, photo=0).size == (SIDE, SIDE)
    assert degraded(large).size == (80, 80)
