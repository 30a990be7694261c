"""Balance: how often each training picture is drawn in an epoch, so that no collection's style becomes a label.

A network that can tell a collection by its style (tight crops, a size, a camera) learns which animal is usual there
instead of what the animal looks like. Balance takes that away: cats and dogs are drawn equally often within each
collection.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

MOST: Final = 4  # times the mean that a picture is drawn at most; also what a surplus is divided by at most
STEPS: Final = 60  # halvings of an interval: to the last digits of a float


def weights(labels: Sequence[int], collections: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean number of times that each picture is drawn in an epoch, float64 [n], with a mean of 1.

    Collections are drawn in proportion to their sizes, and each has as many draws of cats as of dogs, within two
    limits. A picture of the rarer animal is drawn at most ``MOST`` times, and the draws of the commoner animal are
    cut to match. But no picture is drawn less than 1/``MOST`` times as often as one of a balanced collection, so that
    photos of a collection with one animal only are not lost: there the label is certain whatever is done, and what the
    cut reduces is how often that is seen.

    Args:
        labels: class index of each picture, 0 or 1.
        collections: name of the collection of each picture.
    """
    names, place = np.unique(np.asarray(collections), return_inverse=True)
    label = np.asarray(labels)
    counts = np.zeros((len(names), 2))
    np.add.at(counts, (place, label), 1)
    fewer, more = counts.min(1), counts.max(1)
    common = counts[place, label] == more[place]

    def drawn(level: float) -> npt.NDArray[np.float64]:
        """The weights if a picture of a balanced collection is drawn ``level`` times."""
        rarer = np.minimum(MOST, level * (fewer + more) / (2 * np.maximum(fewer, 1)))
        commoner = np.maximum(rarer * fewer / more, level / MOST)
        result: npt.NDArray[np.float64] = np.where(common, commoner[place], rarer[place])
        return result

    # What the limits take away goes to all pictures alike: the mean grows with the level, from at most 1.
    low, high = 1.0, float(MOST**2)
    for _ in range(STEPS):
        level = (low + high) / 2
        low, high = (level, high) if drawn(level).mean() < 1 else (low, level)
    return drawn(high)


def raised(weights: npt.NDArray[np.float64], chosen: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.float64]:
    """Draw some pictures more often, so that they are a share of an epoch, but none ``MOST`` times as often as before.

    Args:
        weights: of :func:`weights`.
        chosen: which pictures, bool [n].
        share: of the draws, below 1; nothing changes where they have it already, or where none is chosen.

    Returns:
        Weights with a mean of 1, float64 [n].
    """
    now = weights[chosen].sum() / weights.sum()
    if not 0 < now < share:
        return weights
    result = np.where(chosen, weights * min(MOST, share * (1 - now) / (now * (1 - share))), weights)
    return np.asarray(result / result.mean(), np.float64)


def draw(weights: npt.NDArray[np.float64], seed: int) -> list[int]:
    """Indices of the pictures of an epoch, as many as there are, each as often as its weight says, in their order.

    A picture comes floor(w) times, and once more with the probability that is left (systematic resampling, in an order
    of the seed's).

    Args:
        weights: with a mean of 1.
        seed: decides which pictures come once more.
    """
    times = np.floor(weights + 1e-9)  # 0.999... is a 1 that was rounded
    left = np.maximum(weights - times, 0)
    random = np.random.default_rng(seed)
    order = random.permutation(len(weights))
    ticks = np.arange(len(weights) - int(times.sum())) + random.random()
    ends = np.cumsum(left[order])
    if len(ticks):
        chosen = np.searchsorted(ends * (len(ticks) / ends[-1]), ticks, side="right")
        times[order[chosen]] += 1
    return np.repeat(np.arange(len(weights)), times.astype(np.int64)).tolist()
