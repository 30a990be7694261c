"""The photographs of one side as the service gets them: whole files, decoded when they are asked for.

What a network learns from is prepared; what is measured and fitted after training is measured on these, as the service
would answer for them.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from shared import hardware
from shared.contract import CLASSES, SecondLook
from shared.metrics import Bools
from shared.pixels import Photo, RefusedImageError, decode
from shared.second_look import Network, Outputs, look
from training import stage
from training.labels import ID_LENGTH, Decision, audited
from training.split import read
from training.stage import StageError, progress

T = TypeVar("T")


class Photos(Protocol):
    """Photos that are decoded when they are asked for."""

    def __len__(self) -> int:
        """Count them."""

    def __getitem__(self, index: int, /) -> Photo:
        """Decode one."""


class Answered(NamedTuple):
    """A file's answers to n photos, and which of them it looked at again, bool [n]."""

    outputs: Outputs
    again: Bools


class Photographs:
    """The photographs of one side, in the order of their ids.

    Attributes:
        ids: the start of each photo's SHA-256.
        given: the labels that they came with.
        labels: class indices, by ``decided`` where it says so.
        collections: where each came from.
    """

    def __init__(self, side: str, decided: dict[str, Decision] | None = None) -> None:
        """List them; photos that ``decided`` excludes are left out.

        Raises:
            StageError: the split has not run.
        """
        found = sorted((photo.sha256[:ID_LENGTH], photo) for photo in read(stage.SPLIT) if photo.side == side)
        kept = [(id_, photo, audited(id_, photo.label, decided or {})) for id_, photo in found]
        self.ids = [id_ for id_, _, label in kept if label]
        self.given = [photo.label for _, photo, label in kept if label]
        self.labels = [CLASSES.index(label) for _, _, label in kept if label]
        self.collections = [photo.collection for _, photo, label in kept if label]
        self._paths = [stage.RAW / photo.path for _, photo, label in kept if label]

    def __len__(self) -> int:
        """Count them."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Photo:
        """Decode one."""
        return read_photo(self._paths[index])


def read_photo(path: Path) -> Photo:
    """Decode a photograph.

    Raises:
        StageError: it is no longer there, or no longer whole.
    """
    try:
        return decode(path.read_bytes())
    except (OSError, RefusedImageError) as error:
        raise StageError(f"{path}: {error}; run `catsdogs fetch` again") from error


def answers(network: Network, photos: Photos, when: SecondLook, what: str) -> Answered:
    """Answer for each photo as the service would.

    Args:
        network: computes on one thread, as photos are shared among the cores.
        photos: any number but none.
        when: to look again.
        what: to show with the progress.
    """
    looks = in_parallel(lambda index: look(photos[index], network, when), len(photos), what)
    return Answered(joined([each.outputs for each in looks]), np.array([each.again for each in looks]))


def joined(rows: list[Outputs]) -> Outputs:
    """Answers to photos one after the other as those to all."""
    return Outputs(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def in_parallel(function: Callable[[int], T], count: int, what: str) -> list[T]:
    """What ``function`` gives for 0..count-1, on all cores; decoding and computing leave Python's lock."""
    with ThreadPoolExecutor(hardware.cores()) as pool:
        return list(progress(pool.map(function, range(count)), what, count))
