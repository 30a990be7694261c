"""The samples to label: which there are, what is known of each, and which one to look at first."""

import contextlib
import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from shared import stores
from shared.samples import HEAD_BYTES, SUFFIX, TOMBSTONE, Sample, SampleError, known
from training.decisions import ID

# Reasons to keep a sample, those first that tell most.
FIRST: Final = ("unsure", "disputed", "disagreed")
READERS: Final = 16  # a bucket answers a request in tens of milliseconds


class Samples:
    """What lies in a folder or bucket and was not forgotten. Every method raises OSError if the store fails."""

    def __init__(self, address: str) -> None:
        """Take the address; nothing is read yet."""
        self._store = stores.opened(address)
        # By name and size: a sample is written anew when it gets feedback.
        self._known: dict[tuple[str, int], Sample | None] = {}

    def listed(self) -> dict[str, Sample]:
        """What is known of each sample, by its id. Files that are no samples are left out."""
        sizes = dict(self._store.sizes())
        forgotten = {name.removesuffix(TOMBSTONE) for name in sizes if name.endswith(TOMBSTONE)}
        # A bucket has no range of an empty file.
        files = [
            (name, size)
            for name, size in sizes.items()
            if name.endswith(SUFFIX) and size and _id(name) not in forgotten
        ]
        with ThreadPoolExecutor(READERS) as pool:
            unread = [file for file in files if file not in self._known]
            self._known |= zip(unread, pool.map(self._head, [name for name, _ in unread]), strict=True)
        return {_id(name): sample for name, size in files if (sample := self._known[name, size])}

    def sample(self, id_: str) -> Sample | None:
        """What is known of one; None if there is no such sample, or it was forgotten."""
        return self._head(id_ + SUFFIX) if self._allowed(id_) else None

    def picture(self, id_: str) -> bytes | None:
        """The file of one; None if there is no such sample, or it was forgotten."""
        if self._allowed(id_):
            with contextlib.suppress(FileNotFoundError):
                return self._store.get(id_ + SUFFIX)
        return None

    def _allowed(self, id_: str) -> bool:
        return bool(ID.fullmatch(id_)) and not self._store.exists(id_ + TOMBSTONE)

    def _head(self, name: str) -> Sample | None:
        try:
            return known(self._store.get(name, HEAD_BYTES))
        except (FileNotFoundError, SampleError):
            return None


def _id(name: str) -> str:
    return name.removesuffix(SUFFIX)


def most_informative(samples: dict[str, Sample], ids: Iterable[str]) -> list[str]:
    """Sort ids: unsure, disputed, disagreed samples first, the closest calls among them, then those drawn at random.

    Samples that were drawn at random, for whatever else they were kept too, are in an order that has nothing to do
    with them: who labels only some of them must have labelled a random part. The figures of production are of these.
    """

    def key(id_: str) -> tuple[int, float, str]:
        sample = samples[id_]
        if "random" in sample.why:
            return len(FIRST), 0, hashlib.sha256(id_.encode()).hexdigest()
        why = min(map(FIRST.index, sample.why), default=len(FIRST))
        return why, max(sample.prediction.probabilities.values(), default=1), id_

    return sorted(ids, key=key)
