"""What is fitted on the validation set: the temperature, and the confidence below which to say "unsure"."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def log_loss(logits: Floats, labels: Ints, temperature: float = 1.0) -> float:
    """Mean negative log likelihood in nats.

    Args:
        logits: float [n, 2].
        labels: int [n], class indices.
        temperature: what the logits are divided by.
    """
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """Temperature that minimises the validation log loss (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Bounded to 0.05..20: on a validation set without mistakes it would go to zero.
    """
    found = minimize_scalar(
        lambda log_t: log_loss(logits, labels, float(np.exp(log_t))),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def close_call(probabilities: Floats, labels: Ints, error: float) -> float:
    """Smallest confidence to answer at, so that wrong answers are at most ``error`` of all pictures.

    Conformal risk control (Angelopoulos et al. 2022, https://arxiv.org/abs/2208.02814, equation 4) with the loss
    "answered, and wrongly", which falls as the threshold rises: the smallest threshold whose empirical risk R on n
    validation pictures has (n R + 1) / (n + 1) <= error bounds the expected risk on a new picture.

    Args:
        probabilities: float [n, 2], calibrated.
        labels: int [n], class indices.
        error: the bound, 0..1.

    Returns:
        A threshold in 0.5..1; 1 where n is too small for the bound, so that almost nothing is answered.
    """
    confidence = probabilities.max(1)
    wrong = np.sort(confidence[probabilities.argmax(1) != labels])
    allowed = int(np.floor(error * (len(labels) + 1) - 1))  # wrong answers that still satisfy the inequality
    if allowed < 0:
        return 1.0
    if len(wrong) <= allowed:
        return 0.5
    # A threshold just above the (allowed + 1)-th most confident mistake leaves `allowed` of them.
    return float(np.nextafter(wrong[len(wrong) - allowed - 1], 2.0).clip(0.5, 1.0))
