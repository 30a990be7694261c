"""A job: the shards of one manifest, scored by one model, in one folder of a destination.

A shard is a file, created once and whole, and the files that exist are the shards that are done. So any number of
workers may share a job, and one that is killed loses no more than the shard it was at.
"""

import io
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from pyarrow import parquet

from scoring.destinations import Destination
from scoring.errors import ScoreError
from scoring.manifest import Manifest, digest
from scoring.rows import to_parquet
from scoring.score import Shard, Tally
from serving.engine.wire import Loaded

# Readers of folders of Parquet files, pyarrow and Spark among them, pass over names that begin like this.
SUMMARY: Final = "_summary.json"
DIGITS: Final = 16  # of a digest in a name


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has found."""

    source: str
    pictures: int
    bytes: int
    verdicts: dict[str, int]
    unsure_because: dict[str, int]
    errors: dict[str, int]
    model: str
    file: str
    digest: str  # of the model file
    manifest: str  # its digest
    seconds: float  # from the begin of the first shard to the end of the last, with any time between runs
    pictures_per_second: float


class Job:
    """The shards of a manifest, scored by a model.

    Args:
        manifest: what there is to score.
        model: what scores it.
        destination: where the results go.
        evidence: whether rows have the evidence map.
        limits: on pictures that are not the usual ones, as they are written in the folder's name.

    Attributes:
        model: what scores it.
        folder: where its files are at the destination.
    """

    def __init__(
        self, manifest: Manifest, model: Loaded, destination: Destination, *, evidence: bool, limits: Sequence[str] = ()
    ) -> None:
        """Name the job's folder."""
        self._manifest = manifest
        self.model = model
        self._destination = destination
        self._evidence = evidence
        parts = [manifest.digest[:DIGITS], model.digest[:DIGITS], *(["evidence"] if evidence else []), *limits]
        self.folder = "-".join(parts)

    def done(self) -> set[int]:
        """The numbers of the shards that are done."""
        names = self._destination.names(self.folder)
        return {int(name.partition("-")[0]) for name in names if name.endswith(".parquet") and name[0].isdigit()}

    def left(self, tally: Tally) -> list[int]:
        """The numbers of the shards to do, in an order of this worker's own, so that workers seldom meet."""
        done = self.done()
        tally.total = self._manifest.count
        tally.before = sum(map(self._manifest.size, done))
        numbers = [number for number in range(self._manifest.shards) if number not in done]
        random.shuffle(numbers)
        return numbers

    def shards(self, numbers: list[int], tally: Tally) -> Iterator[Shard]:
        """The shards of these numbers, but for those that another worker has done meanwhile."""
        for number in numbers:
            entries = self._manifest.shard(number)
            name = f"{self.folder}/{number:06}-{digest(entries)[:DIGITS]}.parquet"
            if self._destination.exists(name):
                tally.before += len(entries)
            else:
                yield Shard(number, entries, name)

    def commit(self, shard: Shard) -> None:
        """Create a shard's file, unless another worker has."""
        about = {
            "catsdogs.model": self.model.contract.version,
            "catsdogs.began": repr(shard.began),
            "catsdogs.ended": repr(time.time()),
        }
        self._destination.create(shard.name, to_parquet(shard.in_order(), about, evidence=self._evidence))

    def summary(self) -> Summary | None:
        """The summary, if there is one."""
        name = f"{self.folder}/{SUMMARY}"
        if not self._destination.exists(name):
            return None
        return msgspec.json.decode(self._destination.read(name), type=Summary)

    def sum_up(self) -> Summary:
        """Write the summary of a job whose shards are all done; if another worker has, return that one's.

        Raises:
            ScoreError: there are not as many rows as keys.
        """
        counts: dict[str, Counter[Any]] = {name: Counter() for name in ("verdict", "unsure_because", "error")}
        rows = size = 0
        began, ended = [], []
        for name in sorted(self._destination.names(self.folder)):
            if not name.endswith(".parquet") or not name[0].isdigit():
                continue
            file = parquet.ParquetFile(io.BytesIO(self._destination.read(f"{self.folder}/{name}")))
            table = file.read([*counts, "size"])
            rows += len(table)
            size += sum(filter(None, table["size"].to_pylist()))
            for column, found in counts.items():
                found.update(filter(None, table[column].to_pylist()))
            about = file.metadata.metadata
            began.append(float(about[b"catsdogs.began"]))
            ended.append(float(about[b"catsdogs.ended"]))
        if rows != self._manifest.count:
            raise ScoreError(f"{self.folder} has {rows:,} rows for {self._manifest.count:,} keys")
        seconds = max(ended) - min(began)
        summary = Summary(
            source=self._manifest.source,
            pictures=rows,
            bytes=size,
            verdicts=dict(sorted(counts["verdict"].items())),
            unsure_because=dict(sorted(counts["unsure_because"].items())),
            errors=dict(sorted(counts["error"].items())),
            model=self.model.contract.version,
            file=self.model.file,
            digest=self.model.digest,
            manifest=self._manifest.digest,
            seconds=round(seconds, 3),
            pictures_per_second=round(rows / seconds, 1),
        )
        written = msgspec.json.format(msgspec.json.encode(summary)) + b"\n"
        self._destination.create(f"{self.folder}/{SUMMARY}", written)
        self._destination.sweep(self.folder)
        return summary
