"""Figures about a model's answers, with their intervals: arrays in, numbers out."""

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from shared.contract import Contract
from shared.intervals import Interval, wilson
from shared.metrics import (
    Bools,
    ConfusionMatrix,
    Floats,
    Ints,
    calibration_error,
    confusion_counts,
    log_losses,
    reliability_bins,
)
from shared.second_look import Outputs

RESAMPLES: Final = 1000
SEED: Final = 20261123


class Quality(msgspec.Struct, frozen=True):
    """Quality of the answers to ``pictures`` photos; shares 0..1, losses in nats, with 95 % intervals."""

    pictures: int
    accuracy: Interval
    log_loss: Interval
    calibration_error: Interval
    answered: Interval
    answered_wrong: Interval  # of all photos
    accuracy_when_answered: Interval | None
    unsure: dict[str, int]
    confusion: ConfusionMatrix


def quality(outputs: Outputs, labels: Ints, document: Contract) -> Quality:
    """Measure the answers.

    Args:
        outputs: of the photos.
        labels: int [n], class indices.
        document: the contract that says when the file answers at all.
    """
    probabilities = outputs.probabilities.astype(np.float64)
    right = probabilities.argmax(1) == labels
    losses = log_losses(probabilities, labels)
    confidence = probabilities.max(1)
    because = reasons(outputs, document)
    answered = because == ""
    return Quality(
        pictures=len(labels),
        accuracy=wilson(int(right.sum()), len(right)),
        log_loss=bootstrap(lambda rows: float(losses[rows].mean()), len(labels)),
        calibration_error=bootstrap(
            lambda rows: calibration_error(reliability_bins(confidence[rows], right[rows])), len(labels)
        ),
        answered=wilson(int(answered.sum()), len(answered)),
        answered_wrong=wilson(int((answered & ~right).sum()), len(answered)),
        accuracy_when_answered=(wilson(int((right & answered).sum()), int(answered.sum())) if answered.any() else None),
        unsure={reason: int((because == reason).sum()) for reason in ("close_call", "unfamiliar")},
        confusion=confusion_counts(labels, probabilities.argmax(1)),
    )


def reasons(outputs: Outputs, document: Contract) -> npt.NDArray[np.str_]:
    """Why each photo is not answered, ``""`` where it is; str [n]."""
    verdicts = (
        document.judge(probabilities, float(familiarity))
        for probabilities, familiarity in zip(outputs.probabilities, outputs.familiarity, strict=True)
    )
    return np.array([verdict.unsure_because or "" for verdict in verdicts])


def share_of(part: Bools, whole: Bools) -> Interval:
    """Share of the photos in ``whole`` that are in ``part``, bool [n] each; 0 with an interval of 0..1 if none is."""
    return wilson(int(part.sum()), int(whole.sum())) if whole.any() else Interval(0.0, 0.0, 1.0)


def typical_seconds(seconds: npt.NDArray[np.float64], again: Bools, share: float) -> float:
    """Mean time of a photo, from the median of those answered at once and that of those looked at again.

    So a pause of the machine, which a plain mean would have in it, counts for little.

    Args:
        seconds: float [n].
        again: which photos were looked at again, bool [n].
        share: of all photos that are looked at again.
    """
    twice, once = (float(np.median(seconds[kind] if kind.any() else seconds)) for kind in (again, ~again))
    return share * twice + (1 - share) * once


def bootstrap(statistic: Callable[[Ints], float], count: int) -> Interval:
    """A statistic of photos with its 95 % percentile bootstrap interval (Efron 1979).

    Args:
        statistic: of the photos with these indices, int [count], some more than once.
        count: photos.
    """
    random = np.random.default_rng(SEED)
    draws = [statistic(random.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value=statistic(np.arange(count)), low=float(low), high=float(high))


def risk_coverage_curve(confidence: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Share answered and share wrong among the answered, [n] each, as the threshold falls from photo to photo.

    The risk-coverage curve of El-Yaniv and Wiener (2010, https://jmlr.org/papers/v11/el-yaniv10a.html).
    """
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(~right[order]) / answered


def auroc(familiar: Floats, strange: Floats) -> float:
    """Chance that a photo of a pet is more familiar than a photo of something else."""
    truth = np.concatenate([np.ones(len(familiar)), np.zeros(len(strange))])
    return float(roc_auc_score(truth, np.concatenate([familiar, strange])))
