"""The prepared pictures of one side, as a torch data set."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from shared.contract import CLASSES
from shared.pixels import pixels
from training.stage import StageError


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pairs of a uint8 picture [3, 224, 224] and its class index, in the order of their names.

    Args:
        folder: one side of ``data/processed_split``.
        transform: random augmentation, or None to leave the pictures as they are.
        seed: with the index, decides what the transform draws; so a picture's augmentation in an epoch is the same
            whichever worker makes it, and after an interruption too.
    """

    def __init__(self, folder: Path, transform: v2.Transform | None = None, seed: int = 0) -> None:
        """List the files; they are read when asked for."""
        self.paths = sorted(folder.glob("*/*.png"))
        self.labels = [CLASSES.index(path.parent.name) for path in self.paths]
        self.transform = transform
        self.seed = seed
        if len(set(self.labels)) < 2:
            raise StageError(f"{folder}: no pictures of both classes there; run `catsdogs prepare` first")

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read, and augment, one picture."""
        array = pixels(self.paths[index].read_bytes())
        picture = torch.from_numpy(np.array(array)).permute(2, 0, 1)
        if self.transform is not None:
            with torch.random.fork_rng([]):
                torch.manual_seed(_mix(self.seed, index))
                picture = self.transform(picture)
        return picture, self.labels[index]


def _mix(*numbers: int) -> int:
    """One well-spread seed from several small numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little")


def loader(
    pictures: Dataset[tuple[Tensor, int]], batches: list[list[int]], workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Load the given batches of indices, in order, by so many processes (0: in this one)."""
    return DataLoader(
        pictures,  # type: ignore[arg-type]  # a loader yields batches of what its data set holds
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def in_order(count: int, batch_size: int) -> list[list[int]]:
    """Batches of the indices 0..count-1 in order."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of the indices in the order that ``seed`` and ``epoch`` decide."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_mix(seed, epoch)))
    return [order[start : start + batch_size].tolist() for start in range(0, count, batch_size)]


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of the augmentation of one epoch."""
    return _mix(seed, epoch, 1)
