"""Robustness: how a file answers when photos are corrupted, by kind and severity."""

from typing import Final, NamedTuple

import msgspec
import numpy as np

from shared.contract import Contract, SecondLook
from shared.intervals import Interval, wilson
from shared.metrics import Bools, Floats, Ints
from shared.second_look import Network, look
from training.corruptions import CORRUPTIONS, SEVERITIES, corrupted, square
from training.measure import share_of
from training.photographs import Photos, in_parallel

JUDGED: Final = 3  # the severity that promotion compares, and that a promise is made of
MOST_WRONG: Final = 0.015  # of the answers there
CELLS: Final = [(kind, severity) for kind in CORRUPTIONS for severity in range(1, SEVERITIES + 1)]


class Cell(msgspec.Struct, frozen=True):
    """Answers to photos of one kind and severity of corruption."""

    kind: str
    severity: int
    photos: int
    accuracy: Interval
    unsure: Interval
    wrong_when_answered: Interval
    looked_again: Interval


class File(NamedTuple):
    """A file to measure; the network computes on one thread."""

    network: Network
    document: Contract


def robustness(files: dict[str, File], photos: Photos, labels: Ints, chosen: list[int]) -> dict[str, dict[str, Cell]]:
    """Answer for photos in every cell of ``CELLS``; returns the cells by name, by file.

    Args:
        files: by name.
        photos: some.
        labels: int [len(photos)], class indices.
        chosen: indices of the photos to corrupt.
    """

    def judge(number: int) -> Bools:
        """Whether each file, in each cell, is right about the photo, answers it, and looked again; bool [f, c, 3]."""
        index = chosen[number]
        picture = square(photos[index])
        found = np.zeros((len(files), len(CELLS), 3), bool)
        for place, (kind, severity) in enumerate(CELLS):
            photo = corrupted(picture, kind, severity, index)
            for row, file in zip(found[:, place], files.values(), strict=True):
                outputs, _, again = look(photo, file.network, file.document.second_look)
                verdict = file.document.judge(outputs.probabilities[0], float(outputs.familiarity[0]))
                right = outputs.probabilities[0].argmax() == labels[index]
                row[:] = right, verdict.unsure_because is None, again
        return found

    found = np.stack(in_parallel(judge, len(chosen), "corrupting"))
    return {
        name: {
            f"{kind} {severity}": _cell(kind, severity, *found[:, file, place].T)
            for place, (kind, severity) in enumerate(CELLS)
        }
        for file, name in enumerate(files)
    }


def when_corrupted(
    network: Network, when: SecondLook, photos: Photos, labels: Ints, chosen: list[int]
) -> tuple[Floats, Floats, Bools]:
    """Confidence, familiarity, and whether the answer is wrong, in the cells of severity ``JUDGED``; [n, kinds] each.

    Args:
        network: computes on one thread.
        when: to look again.
        photos: some.
        labels: int [len(photos)], class indices.
        chosen: indices of the n photos to corrupt.
    """

    def answer(index: int) -> list[tuple[float, float, bool]]:
        picture = square(photos[index])
        rows = []
        for kind in CORRUPTIONS:
            outputs = look(corrupted(picture, kind, JUDGED, index), network, when).outputs
            probabilities = outputs.probabilities[0]
            wrong = bool(probabilities.argmax() != labels[index])
            rows.append((float(probabilities.max()), float(outputs.familiarity[0]), wrong))
        return rows

    found = np.array(in_parallel(lambda number: answer(chosen[number]), len(chosen), "corrupting validation photos"))
    confidence, familiarity, wrong = np.moveaxis(found, 2, 0)
    return confidence, familiarity, wrong > 0


def _cell(kind: str, severity: int, right: Bools, answered: Bools, again: Bools) -> Cell:
    count = len(right)
    return Cell(
        kind=kind,
        severity=severity,
        photos=count,
        accuracy=wilson(int(right.sum()), count),
        unsure=wilson(int((~answered).sum()), count),
        wrong_when_answered=share_of(answered & ~right, answered),
        looked_again=wilson(int(again.sum()), count),
    )
