"""The prepared pictures of one side, as a torch data set."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared import pixels
from shared.contract import CLASSES
from training.labels import Decision, audited
from training.stage import StageError, progress

SHAPE: Final = (pixels.SIZE, pixels.SIZE, 3)
BYTES: Final = pixels.SIZE * pixels.SIZE * 3


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pairs of a uint8 picture [3, 224, 224] and its class index, in the order of their names.

    The pictures are read one by one from a file of raw pixels next to the prepared folder, which is made on first use:
    no picture is decoded twice, and only one batch is in memory.

    Args:
        folder: one side of ``data/processed_split``.
        transform: what to do to each picture, such as a random augmentation, or None for no change.
        seed: with the index, decides what the transform draws; so a picture's augmentation in an epoch does not
            depend on the worker, or on interruptions.
        decided: decisions about labels to follow; empty for the original labels.
    """

    def __init__(
        self,
        folder: Path,
        transform: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        decided: dict[str, Decision] | None = None,
    ) -> None:
        """List the files, and decode them unless that is done."""
        paths = sorted(folder.glob("*/*.png"))
        given = [audited(path.stem, path.parent.name, decided or {}) for path in paths]
        self._rows = [row for row, label in enumerate(given) if label is not None]
        self.paths = [paths[row] for row in self._rows]
        self.labels = [CLASSES.index(label) for label in given if label is not None]
        self.transform = transform
        self.seed = seed
        if len(set(self.labels)) < 2:
            raise StageError(f"{folder}: expected pictures of both classes; run `catsdogs prepare` first")
        self._pixels = decoded(folder, paths)

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.paths)

    def array(self, index: int) -> pixels.Pixels:
        """Read one picture without the transform, uint8 [224, 224, 3]."""
        # A read, not a memory map: mapped pages would count as this process's memory, in the end the whole data set.
        # Opened for each picture, 20 µs, so that it works in loader processes of any start method.
        data = bytearray(BYTES)
        with self._pixels.open("rb") as file:
            file.seek(self._rows[index] * BYTES)
            file.readinto(data)
        return np.frombuffer(data, np.uint8).reshape(SHAPE)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read, and augment, one picture."""
        picture = torch.from_numpy(self.array(index)).permute(2, 0, 1)
        if self.transform is not None:
            with torch.random.fork_rng([]):
                torch.manual_seed(_mix(self.seed, index))
                picture = self.transform(picture)
        return picture, self.labels[index]


def evenly_spaced(total: int, count: int) -> list[int]:
    """Indices spread evenly over a data set, so that both classes are among them."""
    return [int(index) for index in np.linspace(0, total - 1, min(count, total))]


def decoded(folder: Path, paths: list[Path]) -> Path:
    """File of raw pixels of the prepared pictures ``paths``, uint8 [n, 224, 224, 3], made if it is missing.

    Its name holds a digest of the pictures' names, sizes and times and of the pixel procedure, so that it is never
    stale; older ones of the same side are removed.
    """
    stamps = [(path.name, path.parent.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    key = hashlib.sha256(repr((pixels.DIGEST, stamps)).encode()).hexdigest()[:16]
    home = folder.parent.with_name("decoded")
    file = home / f"{folder.name}-{key}.rgb"
    if file.exists():
        return file
    home.mkdir(parents=True, exist_ok=True)
    for old in home.glob(f"{folder.name}-*.rgb"):
        old.unlink()
    aside = file.with_suffix(".partial")
    with contextlib.ExitStack() as stack:
        stack.callback(aside.unlink, missing_ok=True)
        out = stack.enter_context(aside.open("wb"))
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        for picture in progress(_decode(paths, pool), f"decoding {folder.name}", len(paths)):
            out.write(picture.data)
        out.flush()
        os.fsync(out.fileno())
        aside.replace(file)
    return file


def _decode(paths: list[Path], pool: ThreadPoolExecutor) -> Iterator[pixels.Pixels]:
    for start in range(0, len(paths), 64):  # in chunks: a pool's map would run ahead and hold everything it has decoded
        part = paths[start : start + 64]
        yield from pool.map(_pixels, part)


def _pixels(path: Path) -> pixels.Pixels:
    try:
        return np.ascontiguousarray(pixels.pixels(path.read_bytes()))
    except pixels.RefusedImageError as error:
        raise StageError(f"{path}: {error}; run `catsdogs prepare` again") from error


def _mix(*numbers: int) -> int:
    """One well-spread seed from several small numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little")


def loader(
    pictures: Dataset[tuple[Tensor, int]], batches: list[list[int]], workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Load the given batches of indices, in order, with this many loader processes (0: in this one)."""
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


def step_seed(seed: int, epoch: int, batch: int) -> int:
    """Seed of what the network draws while it learns from one batch."""
    return _mix(seed, epoch, 2, batch)


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of the augmentation of one epoch."""
    return _mix(seed, epoch, 1)
