"""The prepared pictures of one side, as a torch data set."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from shared.contract import CLASSES
from shared.pixels import SIZE, Photo, Pixels, RefusedImageError, decode
from training.labels import Decision, audited
from training.stage import StageError


class Pictures(Dataset[tuple[Any, int]]):
    """Pairs of a uint8 picture [3, side, side] and its class index, in the order of their names.

    Each picture is decoded when it is asked for: 0.5 ms for a prepared one of 180×180, 1.5 ms for one of 320×320.

    Args:
        folder: one side of ``data/processed_split``.
        transform: makes what a network sees of a prepared picture, uint8 [3, h, h], such as a random augmentation, or
            the first part of it; by default the picture is resized to ``side``.
        seed: with the index, decides what the transform draws; so a picture's augmentation in an epoch does not
            depend on the worker, or on interruptions.
        decided: decisions about labels to follow; empty for the original labels.
        side: of the pictures without a transform.
    """

    def __init__(
        self,
        folder: Path,
        transform: Callable[[Tensor], Any] | None = None,
        seed: int = 0,
        decided: dict[str, Decision] | None = None,
        side: int = SIZE,
    ) -> None:
        """List the files."""
        paths = sorted(folder.glob("*/*.webp"))
        given = [audited(path.stem, path.parent.name, decided or {}) for path in paths]
        self.paths = [path for path, label in zip(paths, given, strict=True) if label is not None]
        self.labels = [CLASSES.index(label) for label in given if label is not None]
        self.transform = transform
        self.seed = seed
        self.side = side
        if len(set(self.labels)) < 2:
            raise StageError(f"{folder}: expected pictures of both classes; run `catsdogs prepare` first")

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.paths)

    def take(self, order: Iterable[int]) -> None:
        """Keep the pictures of these indices, in this order, some perhaps several times."""
        order = list(order)
        self.paths = [self.paths[index] for index in order]
        self.labels = [self.labels[index] for index in order]

    def array(self, index: int) -> Pixels:
        """Read one picture without the transform, uint8 [side, side, 3]."""
        return _read(self.paths[index]).square(self.side)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Read, and augment, one picture."""
        if self.transform is None:
            return _tensor(self.array(index)), self.labels[index]
        photo = _read(self.paths[index])
        with torch.random.fork_rng([]):
            torch.manual_seed(_mix(self.seed, index))
            return self.transform(_tensor(photo.square(max(photo.size)))), self.labels[index]


def _read(path: Path) -> Photo:
    try:
        return decode(path.read_bytes())
    except RefusedImageError as error:
        raise StageError(f"{path}: {error}; run `catsdogs prepare` again") from error


def _tensor(picture: Pixels) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def evenly_spaced(total: int, count: int) -> list[int]:
    """Indices spread evenly over a data set, so that both classes are among them."""
    return [int(index) for index in np.linspace(0, total - 1, min(count, total))]


def _mix(*numbers: int) -> int:
    """One well-spread seed from several small numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little")


def loader(
    pictures: Dataset[tuple[Any, int]],
    batches: list[list[int]],
    workers: int,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> DataLoader[tuple[Any, Tensor]]:
    """Load the given batches of indices, in order, with this many loader processes (0: in this one)."""
    return DataLoader(
        pictures,  # type: ignore[arg-type]  # a loader yields batches of what its data set holds
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of the indices in the order that ``seed`` and ``epoch`` decide."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_mix(seed, epoch)))
    return [order[start : start + batch_size].tolist() for start in range(0, count, batch_size)]


def step_seed(seed: int, epoch: int, batch: int) -> int:
    """Seed of what the network draws while it learns from one batch."""
    return _mix(seed, epoch, 2, batch)


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of the augmentation of one epoch."""
    return _mix(seed, epoch, 1)
