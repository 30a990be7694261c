"""The second look: what the network is not sure of, it looks at again, closer, with a larger network.

The first look is at the whole picture. Where it is sure, and finds the picture familiar, its answer stands. Otherwise a
second network looks at the whole picture and at crops around the centre of the first look's evidence, cut from the
decoded picture, where there is more detail. The mean of its log-odds is the answer.

The service, ``catsdogs predict``, the calibration, the evaluation and the exam all call :func:`look`, so that an answer
means the same everywhere.
"""

from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shared.contract import SecondLook
from shared.pixels import SIZE, WHOLE, Box, Pixels

# Names of the graph's inputs; those of its outputs are the fields of `Outputs`.
INPUT: Final = "image"
AGAIN: Final = "again"
STRONG: Final = 0.3  # of the largest evidence, from which a place counts for the centre

Floats = npt.NDArray[np.float32]


class Outputs(NamedTuple):
    """What a model answers for n pictures."""

    probabilities: Floats  # [n, 2], in the order of the contract's classes
    evidence: Floats  # [n, 7, 7], positive for dogs
    familiarity: Floats  # [n], 0..1


class Photo(Protocol):
    """A decoded picture; see :class:`shared.pixels.Photo`."""

    def square(self, size: int = SIZE, box: Box = WHOLE) -> Pixels:
        """The part in ``box``, uint8 [size, size, 3]."""


class Network(Protocol):
    """The two networks of a model file."""

    def first(self, pictures: Pixels) -> Outputs:
        """Answer for uint8 [n, 224, 224, 3]."""

    def closer(self, pictures: Pixels) -> Outputs:
        """Answer for uint8 [n, side, side, 3]; neither probabilities nor familiarity are ever 0 or 1."""


def inputs(pictures: Pixels, *, again: bool) -> dict[str, npt.NDArray[Any]]:
    """What the graph takes; ``again`` chooses the network."""
    return {INPUT: np.ascontiguousarray(pictures), AGAIN: np.array(again)}


class Look(NamedTuple):
    """The answer for one picture, with the shapes of :class:`Outputs` for n = 1; ``again``: it was looked at twice."""

    outputs: Outputs
    picture: Pixels  # uint8 [224, 224, 3], what the first look saw
    again: bool


def look(photo: Photo, network: Network, when: SecondLook) -> Look:
    """Look at a picture, and again where the first answer is not sure or the picture not familiar."""
    picture = photo.square()
    outputs = network.first(picture[np.newaxis])
    if stands(outputs, when):
        return Look(outputs, picture, again=False)
    return Look(closer(photo, outputs, network, when), picture, again=True)


def stands(outputs: Outputs, when: SecondLook) -> bool:
    """Whether the first answer for one picture needs no second look."""
    return bool(outputs.probabilities.max() >= when.sure and outputs.familiarity[0] >= when.familiar)


def closer(photo: Photo, outputs: Outputs, network: Network, how: SecondLook) -> Outputs:
    """The second look's answer, whatever the first one's; the evidence is the first one's."""
    found = network.closer(views(photo, outputs.evidence[0], how))
    odds = log_odds(found.probabilities[:, 1], found.probabilities[:, 0]).mean()
    probabilities = 1 / (1 + np.exp([odds, -odds]))
    familiar = 1 / (1 + np.exp(-log_odds(found.familiarity, 1 - found.familiarity).mean()))
    return Outputs(probabilities[np.newaxis].astype(np.float32), outputs.evidence, np.array([familiar], np.float32))


def log_odds(probability: Floats, other: Floats) -> npt.NDArray[np.float64]:
    """Logarithm of the ratio of a probability to the other one; both are given, since 1 - p would lose digits."""
    odds: npt.NDArray[np.float64] = np.log(probability, dtype=np.float64) - np.log(other, dtype=np.float64)
    return odds


def views(photo: Photo, evidence: npt.NDArray[np.floating[Any]], how: SecondLook) -> Pixels:
    """What the second look sees, uint8 [len(crops), side, side, 3]: crops around the centre of ``evidence`` [7, 7]."""
    middle = centre(evidence)
    return np.stack([photo.square(how.side, box(middle, share)) for share in how.crops])


def centre(evidence: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Centre of mass of the strong evidence for either animal: across and down, 0..1."""
    strength = np.abs(evidence)
    strength = np.where(strength > STRONG * strength.max(), strength, 0)
    total = strength.sum()
    if not total > 0:
        return 0.5, 0.5
    places = (np.arange(len(strength)) + 0.5) / len(strength)
    return float(strength.sum(0) @ places / total), float(strength.sum(1) @ places / total)


def box(middle: tuple[float, float], share: float) -> Box:
    """The part of a picture that has ``share`` of each side, around ``middle`` as far as the edges allow."""
    left, top = (min(max(place - share / 2, 0.0), 1 - share) for place in middle)
    return left, top, left + share, top + share
