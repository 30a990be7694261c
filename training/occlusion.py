"""Occlusion: does the evidence lie on what decides? Paint over where it is strongest, and compare with another place.

A region of 3×3 cells of the map, 96×96 pixels of the picture, is painted with the picture's mean colour: once where
the evidence for the predicted class is largest, once at another place drawn at random. If the map is right, the first
lowers the predicted class's probability more (deletion, after Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421).
"""

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from shared.intervals import Interval, wilson
from shared.pixels import SIZE, Pixels
from shared.second_look import Network
from training.measure import bootstrap

PLACES: Final = 7
REGION: Final = 3
STEP: Final = SIZE // PLACES
CORNERS: Final = PLACES - REGION + 1
SEED: Final = 20261123


class Occlusion(msgspec.Struct, frozen=True):
    """Mean drop of the predicted class's probability, and how often the strongest region's is the larger one."""

    pictures: int
    strongest: Interval
    elsewhere: Interval
    strongest_matters_more: Interval


def occlusion(network: Network, pictures: list[Pixels]) -> Occlusion:
    """Occlude each picture twice and measure how far the probability drops.

    Args:
        network: whose first look has the evidence.
        pictures: uint8 [224, 224, 3] each.
    """
    random = np.random.default_rng(SEED)
    drops = np.array([_drops(network, picture, random) for picture in pictures])
    count = len(drops)
    return Occlusion(
        pictures=count,
        strongest=bootstrap(lambda rows: float(drops[rows, 0].mean()), count),
        elsewhere=bootstrap(lambda rows: float(drops[rows, 1].mean()), count),
        strongest_matters_more=wilson(int((drops[:, 0] > drops[:, 1]).sum()), count),
    )


def _drops(network: Network, picture: Pixels, random: np.random.Generator) -> tuple[float, float]:
    outputs = network.first(picture[np.newaxis])
    predicted = int(outputs.probabilities[0].argmax())
    strongest = strongest_corner(outputs.evidence[0] * (1 if predicted else -1))
    others = [place for place in np.ndindex(CORNERS, CORNERS) if place != strongest]
    elsewhere = others[random.integers(len(others))]
    before = float(outputs.probabilities[0, predicted])
    after = [
        float(network.first(occluded(picture, place)[np.newaxis]).probabilities[0, predicted])
        for place in (strongest, elsewhere)
    ]
    return before - after[0], before - after[1]


def strongest_corner(evidence: npt.NDArray[np.float32]) -> tuple[int, int]:
    """Row and column of the top left place of the region with the largest sum, given a map [7, 7]."""
    sums = np.lib.stride_tricks.sliding_window_view(evidence, (REGION, REGION)).sum((2, 3))
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(row), int(column)


def occluded(picture: Pixels, corner: tuple[int, int]) -> Pixels:
    """Copy of the picture with the region at this corner painted over in its mean colour."""
    top, left = (place * STEP for place in corner)
    result = picture.copy()
    result[top : top + REGION * STEP, left : left + REGION * STEP] = picture.mean((0, 1)).round().astype(np.uint8)
    return result
