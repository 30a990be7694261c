"""When a picture is looked at again, where, and what comes of it."""

import numpy as np
import pytest
from PIL import Image

from shared.contract import SecondLook
from shared.pixels import Photo, Pixels
from shared.second_look import Floats, Look, Outputs, box, centre, look, views

WHEN = SecondLook(sure=0.97, familiar=0.6, side=260, crops=(1.0, 0.6, 0.45), temperature=1.0)


class Two:
    """A network whose first look answers as told, and whose second is sure of what the mean of a view's red says."""

    def __init__(self, dogs: float, familiarity: float, evidence: Floats | None = None) -> None:
        self.outputs = Outputs(
            np.array([[1 - dogs, dogs]], np.float32),
            np.ones((1, 7, 7), np.float32) if evidence is None else evidence[np.newaxis],
            np.array([familiarity], np.float32),
        )
        self.seen: list[Pixels] = []

    def first(self, pictures: Pixels) -> Outputs:
        assert pictures.shape == (1, 224, 224, 3)
        return self.outputs

    def closer(self, pictures: Pixels) -> Outputs:
        self.seen.append(pictures)
        odds = 20 * pictures[..., 0].mean((1, 2)) / 255 - 10
        probabilities = 1 / (1 + np.exp(np.stack([odds, -odds], 1)))
        familiarity = np.full(len(pictures), 1 / (1 + np.exp(-2)))
        evidence = np.zeros((len(pictures), 7, 7), np.float32)
        return Outputs(probabilities.astype(np.float32), evidence, familiarity.astype(np.float32))


def photo(half: int = 0) -> Photo:
    """A black picture whose right part, from ``half`` per cent on, is red."""
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[:, 4 * half :, 0] = 255
    return Photo(Image.fromarray(picture), 1)


def asked(network: Two, half: int = 0) -> Look:
    return look(photo(half), network, WHEN)


@pytest.mark.parametrize(("dogs", "familiarity"), [(0.98, 0.7), (0.02, 0.7), (0.97001, 0.6001)])
def test_an_answer_that_is_sure_and_familiar_stands(dogs: float, familiarity: float) -> None:
    network = Two(dogs, familiarity)
    found = asked(network)
    assert not found.again
    assert not network.seen
    assert found.outputs is network.outputs


@pytest.mark.parametrize(("dogs", "familiarity"), [(0.96, 0.9), (0.5, 0.9), (0.04, 0.9), (0.999, 0.59)])
def test_what_is_not_sure_or_not_familiar_is_looked_at_again(dogs: float, familiarity: float) -> None:
    network = Two(dogs, familiarity)
    found = asked(network)
    assert found.again
    (seen,) = network.seen
    assert seen.shape == (3, 260, 260, 3)
    # Each view's log-odds are 10; so is their mean, whatever the first look said.
    assert found.outputs.probabilities[0, 1] == pytest.approx(1 / (1 + np.exp(-10)))
    assert found.outputs.probabilities.sum() == pytest.approx(1)
    assert found.outputs.familiarity[0] == pytest.approx(1 / (1 + np.exp(-2)))
    assert found.outputs.evidence is network.outputs.evidence


def test_the_answer_is_the_mean_of_the_views_log_odds() -> None:
    evidence = np.zeros((7, 7), np.float32)
    evidence[3, 6] = 5
    network = Two(0.5, 0.9, evidence)
    found = asked(network, half=50)
    odds = [20 * view[..., 0].mean() / 255 - 10 for view in network.seen[0]]
    assert odds[0] == pytest.approx(0, abs=0.2)  # of the whole picture, half is red
    assert odds[1] > 5  # and of the crops, which lie to the right, nearly all
    assert found.outputs.probabilities[0, 1] == pytest.approx(1 / (1 + np.exp(-np.mean(odds))), abs=1e-5)


def test_crops_are_cut_from_the_picture_where_the_evidence_is() -> None:
    evidence = np.zeros((7, 7), np.float32)
    evidence[0, 0] = -4  # for cats is evidence too
    seen = views(photo(50), evidence, WHEN)
    assert seen[0][:, 140:, 0].min() == 255
    assert seen[1][..., 0].mean() < 60  # the upper left 0.6 of each side: a sixth of it is red
    assert seen[2][..., 0].max() == 0


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({}, (0.5, 0.5)),
        ({(3, 3): 1.0}, (0.5, 0.5)),
        ({(0, 6): 2.0}, (6.5 / 7, 0.5 / 7)),
        ({(0, 0): 1.0, (6, 6): -1.0}, (0.5, 0.5)),
        ({(0, 0): 10.0, (6, 6): 2.9}, (0.5 / 7, 0.5 / 7)),  # below 0.3 of the strongest it does not count
    ],
)
def test_the_centre_is_that_of_the_strong_evidence(
    places: dict[tuple[int, int], float], expected: tuple[float, float]
) -> None:
    evidence = np.zeros((7, 7), np.float32)
    for place, value in places.items():
        evidence[place] = value
    assert centre(evidence) == pytest.approx(expected)


@pytest.mark.parametrize("middle", [(0.5, 0.5), (0.0, 1.0), (0.9, 0.2)])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.45])
def test_a_crop_stays_within_the_picture(middle: tuple[float, float], share: float) -> None:
    left, top, right, bottom = box(middle, share)
    assert 0 <= left < right <= 1 + 1e-9
    assert 0 <= top < bottom <= 1 + 1e-9
    assert (right - left, bottom - top) == pytest.approx((share, share))
    if share / 2 <= middle[0] <= 1 - share / 2:
        assert (left + right) / 2 == pytest.approx(middle[0])


def test_evidence_that_is_no_number_still_gives_a_place_to_look() -> None:
    assert centre(np.full((7, 7), np.nan, np.float32)) == (0.5, 0.5)
