"""Slices: how a file does on parts of the test side, the worst part first."""

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import laplace
from torchvision.models import MobileNet_V3_Small_Weights

from shared.contract import CLASSES
from shared.intervals import Interval, percent
from shared.metrics import Bools, Ints
from shared.pixels import Photo, Pixels
from training import models
from training.efficientnet_lite import imagenet_head
from training.measure import share_of
from training.photographs import Photographs, in_parallel

PARTS: Final = 4  # of the photos, by a quantity
LEAST: Final = 10  # photos of a slice
# Class indices of ImageNet's 1,000 that are breeds of cats and of dogs, in the order of `CLASSES`.
BREEDS: Final = (range(281, 286), range(151, 269))
JUDGE: Final = "efficientnet_lite0"  # untouched, so what the networks learned here does not decide who is in a slice
AT_ONCE: Final = 32
GREY: Final = np.array([0.299, 0.587, 0.114])


class Slice(msgspec.Struct, frozen=True):
    """Answers to the photos of one slice."""

    by: str
    name: str
    photos: int
    accuracy: Interval
    unsure: Interval
    wrong_when_answered: Interval


Quantity = Callable[[Photo, Pixels], float]


def _size(photo: Photo, _: Pixels) -> float:
    return min(photo.size)


def _brightness(_: Photo, picture: Pixels) -> float:
    return float(picture.mean() / 255)


def _sharpness(_: Photo, picture: Pixels) -> float:
    return float(laplace(picture @ GREY).std())


def _aspect(photo: Photo, _: Pixels) -> float:
    return photo.size[0] / photo.size[1]


# What a photo is measured by, and how a value is written.
QUANTITIES: Final[dict[str, tuple[Quantity, Callable[[float], str]]]] = {
    "shorter side in pixels": (_size, "{:.0f}".format),
    "brightness": (_brightness, percent),
    "sharpness": (_sharpness, "{:.1f}".format),
    "width to height": (_aspect, "{:.2f}".format),
}


def groups(photos: Photographs) -> dict[tuple[str, str], Bools]:
    """Which photos are in which slice, bool [n], by what it is a slice of and its name."""

    def look_at(index: int) -> tuple[Pixels, list[float]]:
        photo = photos[index]
        picture = photo.square()
        return picture, [quantity(photo, picture) for quantity, _ in QUANTITIES.values()]

    found = in_parallel(look_at, len(photos), "measuring the photos")
    result = {}
    for column, (by, (_, written)) in enumerate(QUANTITIES.items()):
        values = np.array([row[column] for _, row in found])
        edges = np.unique(np.quantile(values, np.linspace(0, 1, PARTS + 1)))
        part = np.searchsorted(edges[1:-1], values, "right")
        for number in np.unique(part):
            inside = part == number
            result[by, f"{written(values[inside].min())} to {written(values[inside].max())}"] = inside
    for by, names in (
        ("collection", np.array(photos.collections)),
        ("breed", breeds([picture for picture, _ in found], np.array(photos.labels))),
    ):
        result |= {(by, str(name)): names == name for name in np.unique(names)}
    return {key: inside for key, inside in result.items() if inside.sum() >= LEAST}


def breeds(pictures: list[Pixels], labels: Ints) -> npt.NDArray[np.str_]:
    """The likeliest breed of each animal, str [n], as ImageNet's classes and the network trained on them have it.

    Args:
        pictures: uint8 [224, 224, 3] each.
        labels: int [n], class indices: only breeds of this animal are considered.
    """
    names: list[str] = MobileNet_V3_Small_Weights.DEFAULT.meta["categories"]
    network, head = models.build(JUDGE, pretrained=True).eval(), imagenet_head(JUDGE)
    found = []
    with torch.inference_mode():
        for start in range(0, len(pictures), AT_ONCE):
            batch = torch.from_numpy(np.stack(pictures[start : start + AT_ONCE])).permute(0, 3, 1, 2)
            logits = head(network.feature_map(batch).mean((2, 3)))
            for row, label in zip(logits, labels[start:], strict=False):
                of_animal = BREEDS[label]
                found.append(
                    f"{names[of_animal[int(row[of_animal.start : of_animal.stop].argmax())]]} ({CLASSES[label]})"
                )
    return np.array(found)


def slices(groups: dict[tuple[str, str], Bools], right: Bools, answered: Bools) -> list[Slice]:
    """Measure the slices, those with the smallest share of right answers first, then those with most unsure.

    Args:
        groups: of :func:`groups`.
        right: whether each photo's likelier class is the true one, bool [n].
        answered: whether it is answered, bool [n].
    """
    rows = [
        Slice(
            by=by,
            name=name,
            photos=int(inside.sum()),
            accuracy=share_of(right & inside, inside),
            unsure=share_of(~answered & inside, inside),
            wrong_when_answered=share_of(inside & answered & ~right, inside & answered),
        )
        for (by, name), inside in groups.items()
    ]
    return sorted(rows, key=lambda row: (row.accuracy.value, -row.wrong_when_answered.value, -row.unsure.value))
