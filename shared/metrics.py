"""Metrics of a classifier, the same in training's reports and in the report on a model in production."""

from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

BINS: Final = 15
LEAST_LIKELIHOOD: Final = 1e-12  # keeps the loss of an impossible answer finite

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
ConfusionMatrix = tuple[tuple[int, int], tuple[int, int]]


class ReliabilityBin(msgspec.Struct, frozen=True):
    """Answers of about one confidence: their mean confidence, the share that is right, and their number."""

    confidence: float
    right: float
    count: int


def log_losses(probabilities: Floats, labels: Ints) -> npt.NDArray[np.float64]:
    """Negative log likelihood of each photo in nats, float64 [n], from probabilities [n, 2] and class indices [n]."""
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: npt.NDArray[np.float64] = -np.log(likelihood.clip(LEAST_LIKELIHOOD))
    return losses


def confusion_counts(labels: Ints, predicted: Ints) -> ConfusionMatrix:
    """Counts by true and predicted class, ``[true][predicted]``, from class indices [n] of each."""
    counts = np.zeros((2, 2), int)
    np.add.at(counts, (labels, predicted), 1)
    return (int(counts[0, 0]), int(counts[0, 1])), (int(counts[1, 0]), int(counts[1, 1]))


def reliability_bins(confidence: Floats, right: Bools) -> tuple[ReliabilityBin, ...]:
    """At most ``BINS`` bins of equal mass, from the least confident on.

    Args:
        confidence: the larger probability, [n].
        right: whether the answer is right, [n].
    """
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return tuple(ReliabilityBin(float(confidence[part].mean()), float(right[part].mean()), len(part)) for part in parts)


def calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Expected calibration error, 0..1, over bins of equal mass (Nguyen and O'Connor 2015, arXiv:1508.05154)."""
    return sum(abs(each.confidence - each.right) * each.count for each in bins) / sum(each.count for each in bins)
