"""What is fitted on the validation photos: the temperature, and the confidence below which to say "unsure"."""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from shared.metrics import Floats, Ints

COLDEST, HOTTEST = 0.05, 20.0
FOLDS: Final = 5


def fit_temperature(odds: Floats, labels: Ints) -> float:
    """Temperature that minimises the log loss (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    The targets are Platt's (1999, "Probabilistic outputs for support vector machines", section 2.2), 1 - 1/(n + 2)
    rather than 1: so few photos without a mistake do not make the network surer than n photos can show.

    Args:
        odds: log-odds of dogs, float [n].
        labels: class indices, int [n].
    """
    right = np.where(labels == 1, odds, -odds).astype(np.float64)
    off = 1 / (len(right) + 2)

    def loss(log_temperature: float) -> float:
        scaled = right / np.exp(log_temperature)
        return float(((1 - off) * np.logaddexp(0, -scaled) + off * np.logaddexp(0, scaled)).mean())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def cross_fitted(odds: Floats, labels: Ints) -> npt.NDArray[np.float64]:
    """Calibrated log-odds, each photo's by a temperature that was fitted on the other folds.

    Thresholds that are set on these do not profit from the photo they are set on.
    """
    folds = np.arange(len(odds)) % min(FOLDS, len(odds))
    result = np.empty(len(odds))
    for fold in np.unique(folds):
        out = folds == fold
        result[out] = odds[out] / fit_temperature(odds[~out], labels[~out])
    return result


def close_call(confidence: Floats, wrong: npt.NDArray[np.bool_], error: float) -> tuple[float, float]:
    """Smallest confidence to answer at, so that at most ``error`` of all pictures are answered wrongly.

    Conformal risk control (Angelopoulos et al. 2022, https://arxiv.org/abs/2208.02814, equation 4) with the loss
    "answered, and wrongly", which falls as the threshold rises: the smallest threshold whose empirical risk R on n
    validation photos has (n R + 1) / (n + 1) <= error bounds the expected risk on a new picture.

    Args:
        confidence: the larger probability, float [n].
        wrong: whether the answer is wrong, bool [n].
        error: the bound, 0..1.

    Returns:
        A threshold in 0.5..1, and the bound that holds: ``error``, or 1 / (n + 1) if n photos cannot show less.
    """
    mistakes = np.sort(confidence[wrong])
    bound = max(error, 1 / (len(confidence) + 1))
    allowed = int(np.floor(bound * (len(confidence) + 1) - 1 + 1e-9))  # wrong answers that satisfy the inequality
    if len(mistakes) <= allowed:
        return 0.5, bound
    # A threshold just above the (allowed + 1)-th most confident mistake leaves `allowed` of them.
    return float(np.nextafter(mistakes[len(mistakes) - allowed - 1], 2.0).clip(0.5, 1.0)), bound


def surer(
    confidence: Floats, wrong: npt.NDArray[np.bool_], between: tuple[float, float], error: float
) -> tuple[float, float]:
    """Smallest confidence to answer at, so that of no column's answers more than ``error`` is wrong.

    One wrong answer in a column is always allowed, as few photos cannot show less.

    Args:
        confidence: the larger probability, float [n, columns]; 0 where nothing is answered anyhow.
        wrong: whether the answer is wrong, bool [n, columns].
        between: the least and the largest threshold; the largest holds if none keeps the bound.
        error: the bound, 0..1.

    Returns:
        The threshold, and the largest share of a column's answers that is wrong with it.
    """
    least, largest = between
    mistakes = confidence[wrong & (confidence >= least) & (confidence < largest)]
    for threshold in (least, *np.nextafter(np.unique(mistakes), 2.0), largest):
        answered = confidence >= threshold
        found, given = (answered & wrong).sum(0), answered.sum(0)
        if (found <= np.maximum(1, error * given)).all():
            break
    return float(threshold), float((found / given.clip(1)).max())


def photos_needed(error: float) -> int:
    """Validation photos from which a bound of ``error`` can be shown."""
    return int(np.ceil(1 / error)) - 1
